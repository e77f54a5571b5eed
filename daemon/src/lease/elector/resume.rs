//! Going on with the term of this node's former process.
//!
//! The former process died, or ended to be replaced, while its fence held. Clients go on writing through the mount as
//! if nothing had happened, so that this process is primary from its first moment on. What it does not know it finds
//! out while it is: whether the service still has the lease is asked at once, and what is recorded with the next record.
//! The fence is what the former process left until the service has renewed the lease.

use engine::Role;
use litefs_api::NodeId;

use super::Elector;
use super::keeper::Keeper;
use super::lead::Term;
use crate::lease::{BootTime, Fence, Grant, Repetition, kept};
use crate::stream::Order;

/// A term that this process goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resumed {
    pub epoch: u64,
    /// The fence of the former process holds until then.
    pub deadline: BootTime,
}

impl Resumed {
    /// The term `epoch` of the process that left `fence`; nothing once its time is over.
    pub fn left_in(fence: &Fence, epoch: u64) -> Option<Self> {
        let deadline = fence.deadline();
        fence.holds().then_some(Resumed { epoch, deadline })
    }
}

impl Elector {
    /// Makes everybody see the resumed term before anything else of this process is seen.
    pub(super) fn appear(&self, resumed: &Resumed) {
        self.fence.raise(resumed.deadline);
        self.appear_primary(resumed.epoch);
    }

    /// Leads to the end of the resumed term.
    pub(super) async fn resume(&mut self, resumed: Resumed) {
        let Resumed { epoch, deadline } = resumed;
        let Some(id) = self.former_lease() else {
            tracing::error!(epoch, "the former process left no lease to go on with");
            return self.abandon().await;
        };
        let grant = Grant { id, deadline };
        let keeper = Keeper::resume(self.lease.clone(), self.fence.clone(), grant.clone());
        let term = Term {
            grant,
            epoch,
            keeper,
            recorded: None,
            failures: Repetition::default(),
        };
        if self.epoch() > epoch {
            return self.lose(term, "this node has seen a later term").await;
        }
        if !self.options.candidate {
            tracing::warn!(
                epoch,
                "this node is not a candidate any more, letting go of its lease"
            );
            return self.resign(term).await;
        }
        let damaged = self.store.damaged();
        if self.lease.hands_over() && !damaged.is_empty() {
            let names: Vec<String> = damaged.iter().map(|(name, _)| name.to_string()).collect();
            tracing::warn!(
                epoch,
                databases = names.join(", "),
                "this node cannot open all databases, letting go of its lease"
            );
            return self.resign(term).await;
        }
        tracing::info!(
            epoch,
            lease = self.lease.kind(),
            left = ?deadline.remaining(),
            "going on with the term of this node's former process"
        );
        self.preside_to_the_end(term).await;
    }

    /// Id of the lease that the former process of this node held.
    fn former_lease(&self) -> Option<String> {
        if !self.lease.hands_over() {
            // There is one lease for ever, and it has no id.
            return Some(String::new());
        }
        match kept::load(self.store.dir()) {
            Ok(kept) => kept
                .filter(|kept| kept.node_id == NodeId(self.store.node_id()))
                .map(|kept| kept.id),
            Err(error) => {
                tracing::error!(%error, "cannot read what lease this node had");
                None
            }
        }
    }

    /// Ends a term whose lease is not known: it can be neither renewed nor let go of, and runs out.
    async fn abandon(&mut self) {
        if let Err(error) = self.set_role(Role::Replica).await {
            tracing::error!(%error, "cannot stop all writers of the term");
        }
        self.leave(&Order::Abort);
    }
}
