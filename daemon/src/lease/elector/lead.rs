//! The time as primary.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::Role;
use litefs_api::{NodeId, Position};

use super::keeper::Keeper;
use super::{Command, Elector, Ending, Next, Refusal, RoundError};
use crate::lease::kept::{self, Kept};
use crate::lease::{Grant, Recorded, Repetition};
use crate::stream::Order;
use crate::stream::position_map::PositionMap;

/// How long a graceful stop waits for replicas to have everything. Another node is to be primary within a second.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);
/// What is left of a lease that cannot be renewed when its end begins: time to stop writers and send what they committed.
/// A share of the time to live, but no more than this.
const LONGEST_FAREWELL: Duration = Duration::from_millis(500);
/// Longest time between two records of the positions.
const LONGEST_RECORD_INTERVAL: Duration = Duration::from_secs(5);

/// One term of this node as primary.
pub(super) struct Term {
    pub(super) grant: Grant,
    pub(super) epoch: u64,
    pub(super) keeper: Keeper,
    /// What this process has recorded last, and the version to replace it by; nothing before its first record.
    pub(super) recorded: Option<Recorded>,
    /// Records that failed since the last one that did not.
    pub(super) failures: Repetition,
}

const NOT_RENEWED: &str = "the lease could not be renewed in time";

/// Why a term ends.
pub(super) enum End {
    Ordered(Ending),
    Lost(&'static str),
    HandedOver,
}

impl Elector {
    /// Leads until it is told to stop, a handoff, or the loss of the lease.
    pub(super) async fn lead(
        &mut self,
        grant: Grant,
        epoch: u64,
        recorded: Recorded,
    ) -> Result<Next, RoundError> {
        // Records of the last primary that are still on their way must not come after this node's first own.
        self.receiving.wait().await;
        let keeper = Keeper::start(self.lease.clone(), self.fence.clone(), grant.clone());
        let mut term = Term {
            grant,
            epoch,
            keeper,
            recorded: None,
            failures: Repetition::default(),
        };
        if let Err(error) = self.begin(&mut term, &recorded).await {
            self.step_back(term).await;
            return Err(RoundError::Begin(Box::new(error)));
        }
        self.preside_to_the_end(term).await;
        Ok(Next::Round)
    }

    /// The part of a term in which clients write, and its end.
    pub(super) async fn preside_to_the_end(&mut self, mut term: Term) {
        match self.preside(&mut term).await {
            End::Ordered(Ending::Stopped) => self.resign(term).await,
            End::Ordered(Ending::Replaced) => self.leave_to_successor(term).await,
            End::Lost(reason) => self.lose(term, reason).await,
            End::HandedOver => {}
        }
    }

    /// Makes sure that this node may lead, then lets clients write.
    async fn begin(&mut self, term: &mut Term, recorded: &Recorded) -> Result<(), RoundError> {
        self.settle_cluster_id().await?;
        let positions = self.positions().await?;
        self.record_first(term, recorded, &positions).await?;
        self.remember_epoch(term.epoch).await?;
        self.keep(&term.grant).await?;
        self.set_role(Role::Primary { epoch: term.epoch }).await?;
        self.forced = false;
        self.takes_part();
        self.appear_primary(term.epoch);
        tracing::info!(
            epoch = term.epoch,
            lease = self.lease.kind(),
            "primary lease acquired"
        );
        Ok(())
    }

    /// What everybody else sees of the begin of a term.
    pub(super) fn appear_primary(&self, epoch: u64) {
        self.lag.set_primary();
        self.leadership.send_modify(|leadership| {
            leadership.is_primary = true;
            leadership.epoch = epoch;
            leadership.primary = None;
            leadership.ready = true;
        });
    }

    /// The cluster's id is the service's, else this node's, else a new one.
    async fn settle_cluster_id(&self) -> Result<(), RoundError> {
        let local = self.store.cluster_id();
        let proposed = local.clone().unwrap_or_else(crate::cluster_id::generate);
        let settled = self.lease.claim_cluster_id(&proposed).await?;
        match local {
            Some(local) if local != settled => Err(RoundError::WrongCluster {
                service: settled,
                local,
            }),
            Some(_) => Ok(()),
            None => Ok(self.store.set_cluster_id(&settled)?),
        }
    }

    fn farewell(&self) -> Duration {
        (self.lease.ttl() / 8).min(LONGEST_FAREWELL)
    }

    async fn preside(&mut self, term: &mut Term) -> End {
        let interval = (self.lease.ttl() / 2).min(LONGEST_RECORD_INTERVAL);
        let mut records = tokio::time::interval(interval);
        records.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (fence, stop) = (self.fence.clone(), self.stop.clone());
        let farewell = self.farewell();
        loop {
            tokio::select! {
                ending = stop.ordered() => return End::Ordered(ending),
                () = fence.expires_within(farewell) => return End::Lost(NOT_RENEWED),
                () = self.trouble.due(&self.store) => {
                    if let Some(end) = self.step_down(term).await {
                        return end;
                    }
                }
                () = term.keeper.gone() => return End::Lost("the lease service gave the lease up"),
                _ = records.tick() => {
                    // A lease service that does not answer must not keep this node from noticing that its time is up.
                    let end = tokio::select! {
                        end = self.record_positions(term) => end,
                        () = fence.expires_within(farewell) => Some(End::Lost(NOT_RENEWED)),
                    };
                    if let Some(end) = end {
                        return end;
                    }
                },
                Some(command) = self.commands.recv() => match command {
                    Command::Promote { answer, .. } => drop(answer.send(Ok(()))),
                    Command::HandOff { node_id, answer } => {
                        let handed = self.hand_over(term, node_id).await;
                        let done = handed.is_ok();
                        drop(answer.send(handed.map_err(|error| Refusal::Handoff(error.to_string()))));
                        if done {
                            return End::HandedOver;
                        }
                    }
                },
            }
        }
    }

    /// A planned end: no writers, everything sent, then the lease is free at once.
    pub(super) async fn resign(&mut self, mut term: Term) {
        let positions = match self.stop_writers().await {
            Ok(positions) => positions,
            Err(error) => {
                // With writers that may still commit, the lease must not be given to anybody else before it runs out.
                tracing::error!(%error, "cannot stop writers, leaving the lease to run out");
                return self.leave(&Order::Abort);
            }
        };
        let behind = self.replicas.flush(&position_map(&positions), FLUSH_LIMIT).await;
        if behind > 0 {
            tracing::warn!(behind, "replicas did not confirm the last transactions in time");
        }
        if let Err(error) = self.record(&mut term, &positions).await {
            tracing::warn!(%error, "cannot record the last positions with the lease");
        }
        self.let_go(&term.grant).await;
        self.leave(&Order::End);
        tracing::info!(epoch = term.epoch, "primary lease released");
    }

    /// The term goes on in the next process: lease, fence and role stay as they are, and clients go on writing.
    async fn leave_to_successor(&self, term: Term) {
        // What is being sent must not keep this process; the next one sends the rest.
        self.replicas.close();
        // From here on the fence is the next process's to move.
        term.keeper.end().await;
        tracing::info!(
            epoch = term.epoch,
            left = ?self.fence.deadline().remaining(),
            "leaving the term to this node's next process"
        );
    }

    /// The lease is somebody else's, or may be any moment.
    pub(super) async fn lose(&mut self, term: Term, reason: &str) {
        tracing::error!(epoch = term.epoch, reason, "primary lease lost");
        // Writers first: what they have committed can still be sent while the lease lasts.
        match self.stop_writers().await {
            Ok(positions) if self.fence.holds() => {
                self.replicas
                    .flush(&position_map(&positions), self.farewell())
                    .await;
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "cannot stop all writers of the lost term"),
        }
        self.fence.drop_now();
        self.replicas.order_all(&Order::Abort);
        self.leave(&Order::Abort);
        drop(term.keeper);
        // The session may live on where only its key is gone.
        self.let_go(&term.grant).await;
    }

    /// Becoming primary failed.
    async fn step_back(&mut self, term: Term) {
        match self.set_role(Role::Replica).await {
            Ok(()) => self.let_go(&term.grant).await,
            Err(error) => tracing::error!(%error, "cannot stop writers, leaving the lease to run out"),
        }
        self.leave(&Order::Abort);
    }

    /// Ends writing and gives the last positions of the term.
    pub(super) async fn stop_writers(&self) -> Result<BTreeMap<String, Position>, RoundError> {
        self.set_role(Role::Replica).await?;
        self.positions().await
    }

    /// What everybody else sees of the end of a term.
    pub(super) fn leave(&mut self, order: &Order) {
        self.replicas.order_all(order);
        self.fence.drop_now();
        self.lag.set_unknown();
        self.leadership
            .send_modify(|leadership| leadership.is_primary = false);
    }

    /// Lets go of the lease, once writers are stopped or before they were let in.
    pub(super) async fn let_go(&self, grant: &Grant) {
        // Before the service knows: a process that dies in between must leave no time to the next one.
        self.fence.drop_now();
        if let Err(error) = self.lease.release(grant).await {
            tracing::warn!(%error, "cannot release the lease; it runs out by itself");
        }
        if let Err(error) = self.forget_kept().await {
            tracing::warn!(%error, "cannot forget the lease");
        }
    }

    /// Notes the lease for the process that comes after this one, in case this one dies.
    pub(super) async fn keep(&self, grant: &Grant) -> Result<(), RoundError> {
        let kept = Kept {
            id: grant.id.clone(),
            node_id: NodeId(self.store.node_id()),
        };
        match self.lease.hands_over() {
            true => self.note(move |dir| kept::save(dir, &kept)).await,
            false => Ok(()),
        }
    }

    /// From here on the lease may be somebody else's.
    pub(super) async fn forget_kept(&self) -> Result<(), RoundError> {
        self.note(kept::forget).await
    }
}

pub(super) fn position_map(positions: &BTreeMap<String, Position>) -> PositionMap {
    let convert =
        |position: &Position| ltx::Pos::new(ltx::Txid(position.txid.0), ltx::Checksum(position.checksum.0));
    positions
        .iter()
        .map(|(name, position)| (name.clone(), convert(position)))
        .collect()
}
