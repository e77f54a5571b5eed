//! Handing the lease to a replica without losing a transaction.
//!
//! Writers stop first, then the target gets everything and says so, then the lease changes hands. Until the last step
//! this node can go back to being primary as if nothing had happened.

use std::sync::Arc;
use std::time::Duration;

use engine::Role;
use litefs_api::NodeId;

use super::lead::{Term, position_map};
use super::{Elector, RoundError};
use crate::lease::LeaseError;
use crate::stream::{Order, Replica};

/// How long the target may take to get everything.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(5);
/// How long the target may take to take the lease over.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(500);

/// Why a handoff did not happen.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandOverError {
    #[error("{} lease does not support handoff", .0)]
    Unsupported(&'static str),
    #[error("node {0} is not connected")]
    NotConnected(NodeId),
    #[error("node {0} did not get all transactions in time")]
    Behind(NodeId),
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error("{0}")]
    Round(String),
}

impl From<RoundError> for HandOverError {
    fn from(error: RoundError) -> Self {
        HandOverError::Round(error.to_string())
    }
}

impl Elector {
    /// Hands the lease to a connected node. An error means that this node is still primary.
    pub(super) async fn hand_over(&mut self, term: &mut Term, node_id: NodeId) -> Result<(), HandOverError> {
        if !self.lease.hands_over() {
            return Err(HandOverError::Unsupported(self.lease.kind()));
        }
        let target = self
            .replicas
            .find(node_id)
            .ok_or(HandOverError::NotConnected(node_id))?;
        self.lease.renew(&term.grant).await?;
        tracing::info!(to = %target.hostname, "handing the lease over");
        if let Err(error) = self.prepare(term, &target).await {
            tracing::warn!(%error, "handoff failed, staying primary");
            target.order(Order::Serve);
            // The last step of the preparation may have failed half-way.
            if let Err(error) = self.keep(&term.grant).await {
                tracing::warn!(%error, "cannot note the lease again");
            }
            // If even that fails the fence and the keeper decide, as for any primary in trouble.
            self.set_role(Role::Primary { epoch: term.epoch }).await?;
            return Err(error);
        }
        target.order(Order::HandOver(term.grant.id.clone()));
        // Nobody new is served, while the target still gets the last frames.
        self.leadership
            .send_modify(|leadership| leadership.is_primary = false);
        self.see_off(term).await;
        self.leave(&Order::End);
        Ok(())
    }

    /// Stops writers and waits until the target has what they wrote.
    async fn prepare(&self, term: &mut Term, target: &Arc<Replica>) -> Result<(), HandOverError> {
        let positions = self.stop_writers().await?;
        target.order(Order::Flush);
        if !target.has(&position_map(&positions), CATCH_UP_LIMIT).await {
            return Err(HandOverError::Behind(target.node_id));
        }
        self.record(term, &positions).await?;
        // A process of this node that comes later must not take back what it has passed on.
        Ok(self.forget_kept().await?)
    }

    /// Keeps the lease alive until the target has it. If it does not take it, anybody may.
    async fn see_off(&self, term: &Term) {
        let own = self.own_holder(term.epoch);
        let taken = async {
            let mut seen = self.lease.holder().await?;
            while seen.holder.as_ref() == Some(&own) {
                seen = self.lease.changed(&seen, LOOK).await?;
            }
            Ok::<(), LeaseError>(())
        };
        match tokio::time::timeout(TAKE_OVER_LIMIT, taken).await {
            Ok(Ok(())) => tracing::info!(epoch = term.epoch, "lease handed over"),
            Ok(Err(error)) => tracing::warn!(%error, "cannot see whether the lease was taken over"),
            Err(_) => {
                tracing::warn!("the lease was not taken over, releasing it");
                self.let_go(&term.grant).await;
            }
        }
    }
}
