//! The time as replica: following the primary while watching the lease.

use std::sync::Arc;
use std::time::{Duration, Instant};

use litefs_api::NodeId;
use tokio::sync::watch;

use super::{Command, Elector, FIRST_PAUSE, LOOK, Next, Refusal, RoundError, primary_of};
use crate::lease::{Holder, Lease, Repetition, Sighting};
use crate::stream::follow::{Ended, FAILED_PAUSE, FollowError, Follower, News};

/// A primary that lets go of its lease has sent everything before; the last of it may still be on its way.
const GRACE: Duration = Duration::from_millis(300);

/// What ends following.
enum Event {
    Stream(Result<Ended, FollowError>),
    /// Somebody else holds the lease now, or nobody does.
    Moved,
    Shutdown,
}

impl Elector {
    /// Follows `primary` until its stream ends or the lease moves on.
    pub(super) async fn track(&mut self, primary: Holder, sighting: &Sighting) -> Result<Next, RoundError> {
        if primary.epoch != 0 && primary.epoch < self.epoch() {
            tracing::warn!(
                theirs = primary.epoch,
                ours = self.epoch(),
                "the holder of the lease is of an older term"
            );
        }
        self.remember_epoch(primary.epoch).await?;
        self.takes_part();
        // Known before the connection is made: clients look for the primary exactly when it is in trouble.
        self.publish_primary(Some(primary_of(&primary)));
        let (news, mut told) = watch::channel(News::default());
        let follower = Follower {
            store: Arc::clone(&self.store),
            hostname: self.options.hostname.clone(),
            lag: self.lag.clone(),
            news,
            epoch: self.epoch(),
            candidate: self.options.candidate && self.closed_databases().is_empty(),
            failed_pause: self.failed_pause,
        };
        let begun = Instant::now();
        let lease = Arc::clone(&self.lease);
        let event = {
            let stream = follower.follow(&primary, Arc::clone(&self.receiving));
            let moved = moved(&*lease, sighting.clone(), &primary);
            tokio::pin!(stream, moved);
            loop {
                tokio::select! {
                    ended = &mut stream => break Event::Stream(ended),
                    () = &mut moved => break match tokio::time::timeout(GRACE, &mut stream).await {
                        Ok(ended) => Event::Stream(ended),
                        Err(_) => Event::Moved,
                    },
                    Ok(()) = told.changed() => {
                        let news = *told.borrow_and_update();
                        self.take_news(news).await?;
                    }
                    Some(command) = self.commands.recv() => self.command_while_replica(command, &primary),
                    _ = self.stop.ordered() => break Event::Shutdown,
                }
            }
        };
        // The stream is dropped. What it had received is stored before anything else happens to the databases.
        self.receiving.wait().await;
        self.failed_pause = match &event {
            // Again, and as soon as it could be.
            Event::Stream(Err(FollowError::Retry(_))) if begun.elapsed() < self.failed_pause * 2 => {
                (self.failed_pause * 2).min(FAILED_PAUSE.1)
            }
            Event::Stream(_) | Event::Moved | Event::Shutdown => FAILED_PAUSE.0,
        };
        match event {
            Event::Stream(Ok(Ended::HandedOver(id))) => {
                tracing::info!("the primary passed its lease on to this node");
                self.passed_on = Some(id);
                Ok(Next::Round)
            }
            Event::Stream(Ok(Ended::Cleanly)) => {
                tracing::info!(primary = %primary.hostname, "the primary ended the stream");
                Ok(Next::Pause(Some(sighting.clone())))
            }
            Event::Stream(Err(error)) => {
                tracing::warn!(primary = %primary.hostname, %error, "cannot follow the primary, trying again");
                Ok(Next::Pause(Some(sighting.clone())))
            }
            Event::Moved | Event::Shutdown => Ok(Next::Round),
        }
    }

    async fn take_news(&mut self, news: News) -> Result<(), RoundError> {
        self.remember_epoch(news.epoch).await?;
        if news.ready {
            self.backoff.reset();
            self.leadership
                .send_if_modified(|leadership| !std::mem::replace(&mut leadership.ready, true));
        }
        Ok(())
    }

    fn command_while_replica(&self, command: Command, primary: &Holder) {
        match command {
            Command::HandOff { answer, .. } => drop(answer.send(Err(Refusal::NotPrimary))),
            Command::Promote { answer, .. } if !self.options.candidate => {
                drop(answer.send(Err(Refusal::NotCandidate)))
            }
            Command::Promote { answer, .. } if !self.closed_databases().is_empty() => {
                drop(answer.send(Err(Refusal::DiskFailed(self.closed_databases()))));
            }
            Command::Promote { answer, .. } => {
                let own = NodeId(self.store.node_id());
                let url = primary.advertise_url.clone();
                // The primary's answer comes while this node takes the lease over, which needs the elector.
                tokio::spawn(async move {
                    let asked = async { litefs_api::Client::new(&url)?.handoff(own).await };
                    drop(answer.send(asked.await.map_err(|error| Refusal::Handoff(error.to_string()))));
                });
            }
        }
    }
}

/// Returns when the lease is not `primary`'s any more. Trouble with the service ends nothing: the stream goes on.
async fn moved(lease: &dyn Lease, mut seen: Sighting, primary: &Holder) {
    let mut failures = Repetition::default();
    loop {
        let looked = lease.changed(&seen, LOOK).await;
        if looked.is_ok()
            && let Some(over) = failures.worked(Instant::now())
        {
            tracing::info!(after = ?over.after, attempts = over.attempts, "watching the lease again");
        }
        match looked {
            Ok(now) if now.holder.as_ref() == Some(primary) => seen = now,
            Ok(_) => return,
            Err(error) => {
                if let Some(line) = failures.failed(&error, Instant::now()) {
                    let (hint, unlogged) = (error.hint(), line.unlogged);
                    tracing::warn!(%error, hint, unlogged, "cannot watch the lease, still following the primary");
                }
                tokio::time::sleep(FIRST_PAUSE * 10).await;
            }
        }
    }
}
