//! The state machine that makes this node primary or replica.
//!
//! Round after round: look who holds the lease, then lead, follow, campaign or wait. It alone sets the store's role and
//! publishes the leadership. `lead` is the time as primary, `resume` that of a term which a former process of this node
//! began, `hand_over` its planned end, `step_down` the same after a failure of the disk, `track` the time as replica.
//!
//! Order of things, which is what keeps two primaries apart:
//! * The store becomes primary after the lease is ours and its epoch is recorded; it ceases to be before the lease is
//!   let go of, and before the fence's deadline at the latest.
//! * What a new primary's data is compared with is read again after the lease is ours, so that nothing recorded between
//!   the comparison and the lease is missed.

mod campaign;
mod command;
mod hand_over;
mod keeper;
mod lead;
mod record;
mod resume;
mod step_down;
mod stop;
#[cfg(test)]
mod tests;
mod track;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Database, Role, Store};
use litefs_api::{NodeId, Position};
use tokio::sync::{mpsc, watch};

pub use command::{Command, ElectorHandle, Refusal};
pub use resume::Resumed;
use step_down::Trouble;
pub use stop::{Ending, Stop};

use super::{Backoff, Fence, Holder, Lease, LeaseError, Repetition, Sighting, Standing, kept};
use crate::lag::Lag;
use crate::leadership::Leadership;
use crate::stream::Replicas;
use crate::stream::follow::{Done, FAILED_PAUSE};

/// First pause after a failed round; the longest is the configuration's `reconnect-delay`.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// How long one look at an unchanged lease takes before the next round.
const LOOK: Duration = Duration::from_secs(5);

/// How this node takes part.
#[derive(Debug, Clone)]
pub struct ElectorOptions {
    pub candidate: bool,
    pub hostname: String,
    pub advertise_url: String,
    pub reconnect_delay: Duration,
    /// How long this node does not compete after it has given the lease away because of a failure of its own.
    pub demote_delay: Duration,
}

/// The state machine. `run` it once.
pub struct Elector {
    lease: Arc<dyn Lease>,
    store: Arc<Store>,
    options: ElectorOptions,
    leadership: watch::Sender<Leadership>,
    lag: Lag,
    fence: Fence,
    replicas: Arc<Replicas>,
    commands: mpsc::Receiver<Command>,
    stop: Stop,
    backoff: Backoff,
    /// Rounds that failed since this node took part last.
    failures: Repetition,
    /// The term to go on with, until that has begun.
    resumed: Option<Resumed>,
    /// Nobody writes to the store on behalf of a stream when this is done.
    receiving: Arc<Done>,
    /// How long databases that cannot take records are left alone.
    failed_pause: Duration,
    /// A lease that was passed on to this node.
    passed_on: Option<String>,
    /// Take the next free lease whatever this node's data are.
    forced: bool,
    /// Why this node did not take the lease the last time, so that it is logged once.
    standing: Standing,
    trouble: Trouble,
}

/// What the elector shares with the rest of the node.
pub struct Shared {
    pub lease: Arc<dyn Lease>,
    pub store: Arc<Store>,
    pub leadership: watch::Sender<Leadership>,
    pub lag: Lag,
    pub fence: Fence,
    pub replicas: Arc<Replicas>,
    pub stop: Stop,
}

/// What a round comes to.
enum Next {
    /// Another round at once.
    Round,
    /// Another round after a pause, or as soon as the lease changes.
    Pause(Option<Sighting>),
    /// The lease is free and not given out yet (Consul's lock delay), or another node was faster.
    Again,
}

/// Why a round failed. All of it is worth another round.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error("{0}")]
    Store(#[from] engine::Error),
    #[error("the lease belongs to cluster {service}, this node to {local}")]
    WrongCluster { service: String, local: String },
    #[error("write to the data directory: {0}")]
    Note(std::io::Error),
    #[error("cannot become primary: {0}")]
    Begin(Box<RoundError>),
}

impl RoundError {
    /// What to do about it, if there is something to do.
    fn hint(&self) -> Option<&'static str> {
        match self {
            RoundError::Lease(error) => error.hint(),
            RoundError::Begin(error) => error.hint(),
            RoundError::WrongCluster { .. } => {
                Some("set another `lease.consul.key`, or start with an empty `data.dir` to join that cluster")
            }
            RoundError::Store(_) | RoundError::Note(_) => None,
        }
    }
}

impl Elector {
    /// A node whose store is primary goes on with the term `resumed`, and is seen as its primary from here on. One whose
    /// store is a replica begins without any time as primary, whatever the fence's cell held.
    pub fn new(
        options: ElectorOptions,
        shared: Shared,
        resumed: Option<Resumed>,
    ) -> (Elector, ElectorHandle) {
        let (sender, commands) = mpsc::channel(16);
        let Shared {
            lease,
            store,
            leadership,
            lag,
            fence,
            replicas,
            stop,
        } = shared;
        let backoff = Backoff::new(FIRST_PAUSE, options.reconnect_delay.max(FIRST_PAUSE));
        let elector = Elector {
            trouble: Trouble::watch(&store),
            lease,
            store,
            options,
            leadership,
            lag,
            fence,
            replicas,
            commands,
            stop,
            backoff,
            failures: Repetition::default(),
            resumed,
            receiving: Arc::default(),
            passed_on: None,
            failed_pause: FAILED_PAUSE.0,
            forced: false,
            standing: Standing::Eligible,
        };
        match &resumed {
            Some(resumed) => elector.appear(resumed),
            None => elector.fence.drop_now(),
        }
        (elector, ElectorHandle::new(sender))
    }

    /// Runs until it is told to stop. On return this node is not primary and has let go of the lease, or it is replaced and
    /// has left everything to the next process.
    pub async fn run(mut self) {
        match super::epoch::load(self.store.dir()) {
            Ok(epoch) => self.leadership.send_modify(|leadership| {
                leadership.epoch = leadership.epoch.max(epoch);
            }),
            Err(error) => tracing::error!(%error, "cannot read the highest epoch this node has seen"),
        }
        match self.resumed.take() {
            Some(resumed) => self.resume(resumed).await,
            None => self.take_back().await,
        }
        while !self.stop.is_ordered() {
            match self.round().await {
                Ok(Next::Round) => self.backoff.reset(),
                Ok(Next::Pause(sighting)) => self.pause(sighting).await,
                Ok(Next::Again) => tokio::time::sleep(FIRST_PAUSE).await,
                Err(error) => {
                    if let Some(line) = self.failures.failed(&error, Instant::now()) {
                        let (hint, unlogged) = (error.hint(), line.unlogged);
                        tracing::warn!(%error, hint, unlogged, "cannot take part in the cluster, trying again");
                    }
                    self.pause(None).await;
                }
            }
        }
        self.receiving.wait().await;
    }

    /// Goes on with a lease that this node's former process died with: nobody else has what it had committed last.
    async fn take_back(&mut self) {
        let kept = match kept::load(self.store.dir()) {
            Ok(Some(kept)) if self.options.candidate && self.lease.hands_over() => kept,
            Ok(_) => return,
            Err(error) => return tracing::warn!(%error, "cannot read what lease this node had"),
        };
        let holder = self.lease.holder().await.map(|sighting| sighting.holder);
        if matches!(holder, Ok(Some(holder)) if holder.node_id == kept.node_id.to_string()) {
            tracing::info!("taking back the lease of this node's former process");
            self.passed_on = Some(kept.id);
        }
    }

    async fn round(&mut self) -> Result<Next, RoundError> {
        if let Some(id) = self.passed_on.take() {
            return self.accept(&id).await;
        }
        let looks =
            async { Ok::<_, LeaseError>((self.lease.holder().await?, self.lease.cluster_id().await?)) };
        let (sighting, service_id) = tokio::select! {
            looked = looks => looked?,
            _ = self.stop.ordered() => return Ok(Next::Round),
        };
        let local_id = self.store.cluster_id();
        if let (Some(service), Some(local)) = (&service_id, &local_id)
            && service != local
        {
            return Err(RoundError::WrongCluster {
                service: service.clone(),
                local: local.clone(),
            });
        }
        match &sighting.holder {
            Some(holder) if self.is_self(holder) => {
                tracing::info!("waiting for a former lease of this node to run out");
                self.publish_primary(None);
                Ok(self.wait(sighting, LOOK).await)
            }
            Some(holder) => self.track(holder.clone(), &sighting).await,
            None => {
                self.publish_primary(None);
                // A node without a cluster id knows nothing of a cluster that has one.
                let stranger = service_id.is_some() && local_id.is_none() && !self.forced;
                if !self.options.candidate || stranger {
                    return Ok(self.wait(sighting, LOOK).await);
                }
                if let Some(left) = self.trouble.excluded_for().filter(|_| !self.forced) {
                    return Ok(self.wait(sighting, left.min(LOOK)).await);
                }
                self.campaign(sighting).await
            }
        }
    }

    fn is_self(&self, holder: &Holder) -> bool {
        holder.node_id == NodeId(self.store.node_id()).to_string()
            || (!self.options.advertise_url.is_empty() && holder.advertise_url == self.options.advertise_url)
    }

    fn own_holder(&self, epoch: u64) -> Holder {
        Holder {
            hostname: self.options.hostname.clone(),
            advertise_url: self.options.advertise_url.clone(),
            epoch,
            node_id: NodeId(self.store.node_id()).to_string(),
        }
    }

    /// Positions with everything that clients have committed so far.
    async fn positions(&self) -> Result<BTreeMap<String, Position>, RoundError> {
        let positions = blocking(&self.store, |store| {
            Ok(store
                .databases()
                .iter()
                .map(|db| (db.name().to_string(), last_position(db)))
                .collect())
        });
        Ok(positions.await?)
    }

    async fn set_role(&self, role: Role) -> Result<(), RoundError> {
        Ok(blocking(&self.store, move |store| store.set_role(role)).await?)
    }

    /// Pauses for as long as the backoff says; ends early when the lease changes.
    async fn pause(&mut self, sighting: Option<Sighting>) {
        let pause = self.backoff.pause();
        match sighting {
            Some(sighting) => drop(self.wait(sighting, pause).await),
            None => self.idle(pause).await,
        }
    }

    /// The lease service did all that this node's present part takes.
    fn takes_part(&mut self) {
        if let Some(over) = self.failures.worked(Instant::now()) {
            tracing::info!(after = ?over.after, attempts = over.attempts, "taking part in the cluster again");
        }
    }

    /// Waits for the lease to change, a command or the end.
    async fn wait(&mut self, sighting: Sighting, limit: Duration) -> Next {
        self.takes_part();
        let lease = Arc::clone(&self.lease);
        let changed = async {
            if lease.changed(&sighting, limit).await.is_err() {
                tokio::time::sleep(FIRST_PAUSE).await;
            }
        };
        tokio::pin!(changed);
        tokio::select! {
            () = &mut changed => {}
            Some(command) = self.commands.recv() => self.command_while_idle(command),
            _ = self.stop.ordered() => {}
        }
        Next::Round
    }

    async fn idle(&mut self, limit: Duration) {
        tokio::select! {
            () = tokio::time::sleep(limit) => {}
            Some(command) = self.commands.recv() => self.command_while_idle(command),
            _ = self.stop.ordered() => {}
        }
    }

    /// A command while there is no primary: only force helps, as an eligible candidate needs no command.
    fn command_while_idle(&mut self, command: Command) {
        match command {
            Command::HandOff { answer, .. } => drop(answer.send(Err(Refusal::NotPrimary))),
            Command::Promote { answer, .. } if !self.options.candidate => {
                drop(answer.send(Err(Refusal::NotCandidate)));
            }
            Command::Promote { force: true, answer } => {
                tracing::warn!(standing = %self.standing, "taking the lease by force");
                self.forced = true;
                drop(answer.send(Ok(())));
            }
            Command::Promote { answer, .. } if !self.closed_databases().is_empty() => {
                drop(answer.send(Err(Refusal::DiskFailed(self.closed_databases()))));
            }
            Command::Promote { force: false, answer } => {
                let answered = match &self.standing {
                    Standing::Eligible => Ok(()),
                    standing => Err(Refusal::NoPrimary(standing.to_string())),
                };
                drop(answer.send(answered));
            }
        }
    }

    fn publish_primary(&self, primary: Option<litefs_api::Primary>) {
        self.leadership.send_if_modified(|leadership| {
            let changed = leadership.is_primary || leadership.primary != primary;
            leadership.is_primary = false;
            leadership.primary = primary;
            changed
        });
    }

    fn epoch(&self) -> u64 {
        self.leadership.borrow().epoch
    }

    /// Remembers an epoch that is higher than all before it, so that an older primary is known for one after a restart.
    async fn remember_epoch(&self, epoch: u64) -> Result<(), RoundError> {
        if epoch <= self.epoch() {
            return Ok(());
        }
        self.note(move |dir| super::epoch::save(dir, epoch)).await?;
        self.leadership.send_modify(|leadership| leadership.epoch = epoch);
        Ok(())
    }

    /// Writes one of the elector's own notes to the data directory.
    async fn note<F>(&self, write: F) -> Result<(), RoundError>
    where
        F: FnOnce(&Path) -> std::io::Result<()> + Send + 'static,
    {
        let dir = self.store.dir().to_path_buf();
        let written = tokio::task::spawn_blocking(move || write(&dir)).await;
        written
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(RoundError::Note)
    }
}

/// A database in trouble is where it was when the trouble began; the others are none the worse for it.
fn last_position(db: &Database) -> Position {
    let drained = db.drain();
    if let Err(error) = &drained
        && !db.is_closed()
    {
        tracing::warn!(db = %db.name(), %error, "cannot capture the last commits of the database");
    }
    api_position(drained.unwrap_or_else(|_| db.position()))
}

/// Runs something that waits for the disk or for clients.
async fn blocking<T, F>(store: &Arc<Store>, run: F) -> Result<T, engine::Error>
where
    T: Send + 'static,
    F: FnOnce(&Store) -> Result<T, engine::Error> + Send + 'static,
{
    let store = Arc::clone(store);
    match tokio::task::spawn_blocking(move || run(&store)).await {
        Ok(result) => result,
        Err(error) => Err(engine::Error::Invalid(format!(
            "a thread of the elector ended: {error}"
        ))),
    }
}

fn api_position(position: ltx::Pos) -> Position {
    Position {
        txid: litefs_api::Txid(position.txid.0),
        checksum: litefs_api::Checksum(position.post_apply.0),
    }
}

fn primary_of(holder: &Holder) -> litefs_api::Primary {
    litefs_api::Primary {
        hostname: holder.hostname.clone(),
        advertise_url: holder.advertise_url.clone(),
    }
}
