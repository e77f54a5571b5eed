//! What a term leaves with the lease for those who come after it: its epoch and the positions of its databases.
//!
//! Check-and-set: a record that somebody else has written means that there is another primary. A record of this very term
//! is no such thing. It is there when the answer to a write was lost, or when the process that the term was resumed from
//! had a write under way.

use std::collections::BTreeMap;
use std::time::Instant;

use litefs_api::{NodeId, Position};

use super::lead::{End, Term};
use super::{Elector, RoundError};
use crate::lease::{ClusterState, LeaseError, Recorded};

/// A process has one write under way at most, so that the second attempt has nothing of the term to collide with.
const ATTEMPTS: usize = 2;

impl Elector {
    /// Begins the record of a term. Nobody may have written since `found`, which this node was compared with.
    pub(super) async fn record_first(
        &self,
        term: &mut Term,
        found: &Recorded,
        positions: &BTreeMap<String, Position>,
    ) -> Result<(), RoundError> {
        let state = self.state_of(term, positions, found.state.as_ref());
        Ok(self.write(term, state, found.version).await?)
    }

    pub(super) async fn record(
        &self,
        term: &mut Term,
        positions: &BTreeMap<String, Position>,
    ) -> Result<(), RoundError> {
        match &term.recorded {
            Some(recorded) => {
                let state = self.state_of(term, positions, recorded.state.as_ref());
                if recorded.state.as_ref() == Some(&state) {
                    return Ok(());
                }
                match self.write(term, state, recorded.version).await {
                    Err(LeaseError::Gone) => {}
                    written => return Ok(written?),
                }
            }
            None => self.announce(term).await?,
        }
        Ok(self.record_over(term, positions).await?)
    }

    /// Tells those who come after how far this term is.
    pub(super) async fn record_positions(&self, term: &mut Term) -> Option<End> {
        let recorded = match self.positions().await {
            Ok(positions) => tokio::select! {
                recorded = self.record(term, &positions) => recorded,
                // Whoever writes next finds out what became of this write.
                ending = self.stop.ordered() => return Some(End::Ordered(ending)),
            },
            Err(error) => Err(error),
        };
        match recorded {
            Ok(()) => {
                if let Some(over) = term.failures.worked(Instant::now()) {
                    tracing::info!(after = ?over.after, "recording positions with the lease again");
                }
                None
            }
            Err(RoundError::Lease(LeaseError::Gone)) => Some(End::Lost("another node recorded a term")),
            Err(error) => {
                if let Some(line) = term.failures.failed(&error, Instant::now()) {
                    let (hint, unlogged) = (error.hint(), line.unlogged);
                    tracing::warn!(%error, hint, unlogged, "cannot record positions with the lease");
                }
                None
            }
        }
    }

    /// Replaces a record of this term whose version is not known here.
    async fn record_over(
        &self,
        term: &mut Term,
        positions: &BTreeMap<String, Position>,
    ) -> Result<(), LeaseError> {
        for _ in 0..ATTEMPTS {
            let found = self.own_record(term).await?;
            let state = self.state_of(term, positions, found.state.as_ref());
            match self.write(term, state, found.version).await {
                Err(LeaseError::Gone) => {}
                written => return written,
            }
        }
        Err(LeaseError::Gone)
    }

    /// What is recorded, if it is of this term. Nothing at all is too: a service that keeps nothing, or a record that a
    /// person removed.
    async fn own_record(&self, term: &Term) -> Result<Recorded, LeaseError> {
        let found = self.lease.state().await?;
        let is_own =
            |state: &ClusterState| state.epoch == term.epoch && state.primary == self.options.hostname;
        match found.state.as_ref().is_none_or(is_own) {
            true => Ok(found),
            false => Err(LeaseError::Gone),
        }
    }

    /// Sees to it that the lease of a resumed term says where this process is: it may be configured differently from
    /// the one that has published the value.
    async fn announce(&self, term: &Term) -> Result<(), LeaseError> {
        let own = self.own_holder(term.epoch);
        match self.lease.holder().await?.holder {
            Some(holder) if holder != own && holder.node_id == NodeId(self.store.node_id()).to_string() => {
                tracing::info!(from = %holder.advertise_url, to = %own.advertise_url, "publishing this node's new address");
                self.lease.take_over(&term.grant.id, &own).await.map(drop)
            }
            // Whether a lease that is somebody else's, or nobody's, is lost is for the keeper to find out.
            Some(_) | None => Ok(()),
        }
    }

    async fn write(&self, term: &mut Term, state: ClusterState, version: u64) -> Result<(), LeaseError> {
        let version = self.lease.record(&state, version).await?;
        term.recorded = Some(Recorded {
            state: Some(state),
            version,
        });
        Ok(())
    }

    /// Of a database that cannot be opened here, what was recorded `before` stays: a node that has it must be the one to lead.
    fn state_of(
        &self,
        term: &Term,
        positions: &BTreeMap<String, Position>,
        before: Option<&ClusterState>,
    ) -> ClusterState {
        let mut positions: BTreeMap<String, String> = positions
            .iter()
            .map(|(name, position)| (name.clone(), position.to_string()))
            .collect();
        for (name, _) in self.store.damaged() {
            let name = name.to_string();
            if let Some(position) = before.and_then(|before| before.positions.get(&name)) {
                positions.insert(name, position.clone());
            }
        }
        ClusterState {
            epoch: term.epoch,
            primary: self.options.hostname.clone(),
            positions,
        }
    }
}
