//! Competing for a free lease, and taking over one that was passed on.

use std::collections::BTreeMap;

use engine::{Database, DbName, Store};
use litefs_api::{Checksum, Position, Txid};

use super::{Elector, Next, RoundError, blocking};
use crate::lease::{Acquired, Recorded, Sighting, Standing, standing};

impl Elector {
    /// Asks for the lease if this node's data allow it to lead.
    pub(super) async fn campaign(&mut self, sighting: Sighting) -> Result<Next, RoundError> {
        let recorded = self.lease.state().await?;
        let standing = self.stand(&recorded).await?;
        let allowed = standing == Standing::Eligible || self.forced;
        if !allowed && standing != self.standing {
            tracing::warn!(%standing, "not taking the free lease; POST /promote?force=true overrides this");
        }
        self.standing = standing;
        if !allowed {
            return Ok(self.wait(sighting, self.options.reconnect_delay).await);
        }
        let epoch = self.next_epoch(&recorded);
        let grant = match self.lease.acquire(&self.own_holder(epoch)).await? {
            Acquired::Held(grant) => grant,
            Acquired::Refused => return Ok(Next::Again),
        };
        // A primary may have come and gone since the state was read.
        let checked = self.lease.state().await;
        if checked.as_ref().map(|now| now.version) != Ok(recorded.version) {
            self.let_go(&grant).await;
            checked?;
            return Ok(Next::Round);
        }
        self.lead(grant, epoch, recorded).await
    }

    /// Takes over a lease that its holder passed on to this node.
    pub(super) async fn accept(&mut self, id: &str) -> Result<Next, RoundError> {
        let recorded = self.lease.state().await?;
        let standing = self.stand(&recorded).await?;
        if standing != Standing::Eligible {
            // The holder waits until this node has everything, so that something is wrong with one of the two.
            tracing::error!(%standing, "not taking over the lease that was passed on");
            self.standing = standing;
            return Ok(Next::Pause(None));
        }
        let epoch = self.next_epoch(&recorded);
        let grant = self.lease.take_over(id, &self.own_holder(epoch)).await?;
        tracing::info!(epoch, "took over the lease");
        self.lead(grant, epoch, recorded).await
    }

    fn next_epoch(&self, recorded: &Recorded) -> u64 {
        let recorded = recorded.state.as_ref().map_or(0, |state| state.epoch);
        recorded.max(self.epoch()) + 1
    }

    async fn stand(&self, recorded: &Recorded) -> Result<Standing, RoundError> {
        let state = recorded.state.clone();
        let standing = blocking(&self.store, move |store| {
            let local: BTreeMap<String, Position> = store
                .databases()
                .iter()
                .map(|db| (db.name().to_string(), own_position(db)))
                .collect();
            Ok(standing(&local, state.as_ref(), &|name, txid| {
                checksum_at(store, name, txid)
            }))
        });
        Ok(standing.await?)
    }
}

/// The newest transaction this node has, applied or not. A suspended database counts with what it had: it must not keep
/// the node from leading all others. One that is closed after a failure of the disk will not apply what it has received.
fn own_position(db: &Database) -> Position {
    if db.is_closed() {
        return super::api_position(db.position());
    }
    let (received, applied) = (db.received(), db.position());
    super::api_position(if received.txid > applied.txid {
        received
    } else {
        applied
    })
}

/// The checksum after a transaction, if the log still has it.
fn checksum_at(store: &Store, name: &str, txid: Txid) -> Option<Checksum> {
    let db = store.database(&name.parse::<DbName>().ok()?)?;
    let record = db.record(ltx::Txid(txid.0)).ok()??;
    (record.info.max.0 == txid.0).then_some(Checksum(record.info.post.0))
}
