//! The replicas that follow this node: what each has, and what the elector wants of its stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use litefs_api::{NodeId, ReplicaStatus, Txid};
use ltx::Pos;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::position_map::PositionMap;

/// What a stream is to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Order {
    /// Send what happens.
    #[default]
    Serve,
    /// No more will happen: send all of it and tell when that is done.
    Flush,
    /// As `Flush`, then pass on this lease and end.
    HandOver(String),
    /// End cleanly.
    End,
    /// End at once: this node is not primary any more.
    Abort,
}

/// One connected replica.
#[derive(Debug)]
pub struct Replica {
    pub node_id: NodeId,
    pub hostname: String,
    /// Whether it can be given the lease, as far as is known.
    pub candidate: bool,
    acknowledges: bool,
    /// Whether it is told to whom databases belong.
    pub takes_owners: bool,
    order: watch::Sender<Order>,
    progress: watch::Sender<Progress>,
}

/// What a replica can do. A node of LiteFS 0.5 says nothing about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Abilities {
    /// It confirms what it has.
    pub acknowledges: bool,
    /// It can be given the lease.
    pub candidate: bool,
    /// It gives databases the owners that they have here.
    pub takes_owners: bool,
}

/// How far a replica is.
#[derive(Debug, Clone, Default)]
struct Progress {
    sent: PositionMap,
    acked: PositionMap,
    flushed: bool,
}

impl Replica {
    /// Orders for this replica's stream, the newest one only.
    pub(super) fn orders(&self) -> watch::Receiver<Order> {
        self.order.subscribe()
    }

    pub fn order(&self, order: Order) {
        // What an earlier flush has sent says nothing about the next one.
        self.progress
            .send_if_modified(|progress| std::mem::take(&mut progress.flushed));
        self.order.send_replace(order);
    }

    pub(super) fn sent(&self, name: &str, position: Pos) {
        self.progress.send_modify(|progress| {
            progress.sent.insert(name.to_string(), position);
        });
    }

    pub(super) fn acked(&self, name: String, position: Pos) {
        self.progress.send_modify(|progress| {
            progress.acked.insert(name, position);
        });
    }

    pub(super) fn flushed(&self) {
        self.progress.send_modify(|progress| progress.flushed = true);
    }

    /// Waits until the replica has all of `positions`, by its own word where it gives it; false if it takes too long.
    pub async fn has(&self, positions: &PositionMap, limit: Duration) -> bool {
        let mut progress = self.progress.subscribe();
        let has_all = progress.wait_for(|progress| self.covers(progress, positions));
        matches!(tokio::time::timeout(limit, has_all).await, Ok(Ok(_)))
    }

    fn covers(&self, progress: &Progress, positions: &PositionMap) -> bool {
        let has = if self.acknowledges {
            &progress.acked
        } else {
            &progress.sent
        };
        progress.flushed
            && positions.iter().all(|(name, position)| {
                position.is_zero() || has.get(name).is_some_and(|has| has.txid >= position.txid)
            })
    }

    /// Newest transaction per database that the replica is known to have.
    pub fn known(&self) -> PositionMap {
        let progress = self.progress.borrow();
        if self.acknowledges {
            progress.acked.clone()
        } else {
            progress.sent.clone()
        }
    }

    fn status(&self) -> ReplicaStatus {
        let progress = self.progress.borrow();
        let txids = |positions: &PositionMap| {
            positions
                .iter()
                .map(|(name, position)| (name.clone(), Txid(position.txid.0)))
                .collect()
        };
        ReplicaStatus {
            node_id: self.node_id,
            hostname: self.hostname.clone(),
            sent: txids(&progress.sent),
            acked: txids(&progress.acked),
        }
    }
}

/// All connected replicas.
#[derive(Debug, Default)]
pub struct Replicas {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    connected: BTreeMap<NodeId, Arc<Replica>>,
    /// What a replica that connects is ordered first.
    first_order: Order,
}

impl Replicas {
    /// Adds a replica that begins at `positions`. A stream that its node still has is ended: a node has one life.
    pub(super) fn connect(
        self: &Arc<Self>,
        node_id: NodeId,
        hostname: String,
        abilities: Abilities,
        positions: &PositionMap,
    ) -> Connected {
        let progress = Progress {
            sent: positions.clone(),
            acked: positions.clone(),
            flushed: false,
        };
        let mut table = self.table.lock();
        let replica = Arc::new(Replica {
            node_id,
            hostname,
            candidate: abilities.candidate,
            acknowledges: abilities.acknowledges,
            takes_owners: abilities.takes_owners,
            order: watch::Sender::new(table.first_order.clone()),
            progress: watch::Sender::new(progress),
        });
        if let Some(former) = table.connected.insert(node_id, Arc::clone(&replica)) {
            former.order(Order::Abort);
        }
        drop(table);
        Connected {
            replicas: Arc::clone(self),
            replica,
        }
    }

    pub fn find(&self, node_id: NodeId) -> Option<Arc<Replica>> {
        self.table.lock().connected.get(&node_id).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Replica>> {
        self.table.lock().connected.values().cloned().collect()
    }

    pub fn count(&self) -> usize {
        self.table.lock().connected.len()
    }

    pub fn order_all(&self, order: &Order) {
        for replica in self.all() {
            replica.order(order.clone());
        }
    }

    /// Ends all streams cleanly, and those that are asked for from now on before they have begun.
    pub fn close(&self) {
        self.table.lock().first_order = Order::End;
        self.order_all(&Order::End);
    }

    /// Has every stream send what there is, and waits until all replicas have `positions`; tells how many do not.
    pub async fn flush(&self, positions: &PositionMap, limit: Duration) -> usize {
        self.order_all(&Order::Flush);
        let replicas = self.all();
        let waits = replicas.iter().map(|replica| replica.has(positions, limit));
        futures_util::future::join_all(waits)
            .await
            .into_iter()
            .filter(|has| !has)
            .count()
    }

    pub fn status(&self) -> Vec<ReplicaStatus> {
        self.all().iter().map(|replica| replica.status()).collect()
    }
}

/// A replica for as long as its stream lives.
#[derive(Debug)]
pub(super) struct Connected {
    replicas: Arc<Replicas>,
    pub(super) replica: Arc<Replica>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let connected = &mut self.replicas.table.lock().connected;
        // A newer stream of the same node is not this one's to remove.
        if connected
            .get(&self.replica.node_id)
            .is_some_and(|current| Arc::ptr_eq(current, &self.replica))
        {
            connected.remove(&self.replica.node_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use ltx::Checksum;

    use super::*;

    fn positions(txid: u64) -> PositionMap {
        PositionMap::from([("a".to_string(), Pos::new(ltx::Txid(txid), Checksum(1 << 63)))])
    }

    const ACKS: Abilities = Abilities {
        acknowledges: true,
        candidate: false,
        takes_owners: false,
    };
    const SHORT: Duration = Duration::from_millis(10);

    #[tokio::test]
    async fn a_replica_has_what_it_acknowledged_and_not_what_was_sent() {
        let replicas = Arc::new(Replicas::default());
        let connected = replicas.connect(NodeId(1), "r".to_string(), ACKS, &positions(1));
        let replica = &connected.replica;
        replica.flushed();
        assert!(replica.has(&positions(1), SHORT).await);
        replica.sent("a", positions(2)["a"]);
        assert!(!replica.has(&positions(2), SHORT).await);
        replica.acked("a".to_string(), positions(2)["a"]);
        assert!(replica.has(&positions(2), SHORT).await);
        assert_eq!(replicas.status()[0].acked["a"], Txid(2));
    }

    #[tokio::test]
    async fn a_replica_that_does_not_acknowledge_has_what_was_sent() {
        let replicas = Arc::new(Replicas::default());
        let connected = replicas.connect(
            NodeId(1),
            "r".to_string(),
            Abilities::default(),
            &PositionMap::new(),
        );
        connected.replica.sent("a", positions(2)["a"]);
        assert!(
            !connected.replica.has(&positions(2), SHORT).await,
            "before the flush more may follow"
        );
        connected.replica.flushed();
        assert!(connected.replica.has(&positions(2), SHORT).await);
    }

    #[test]
    fn a_stream_that_is_asked_for_at_the_end_ends_at_once() {
        let replicas = Arc::new(Replicas::default());
        let first = replicas.connect(NodeId(1), "r".to_string(), ACKS, &PositionMap::new());
        replicas.close();
        let late = replicas.connect(NodeId(2), "s".to_string(), ACKS, &PositionMap::new());
        assert_eq!(*first.replica.orders().borrow(), Order::End);
        assert_eq!(*late.replica.orders().borrow(), Order::End);
    }

    #[test]
    fn a_node_that_connects_again_ends_its_former_stream_and_stays_connected() {
        let replicas = Arc::new(Replicas::default());
        let first = replicas.connect(NodeId(1), "r".to_string(), ACKS, &PositionMap::new());
        let second = replicas.connect(NodeId(1), "r".to_string(), ACKS, &PositionMap::new());
        assert_eq!(*first.replica.orders().borrow(), Order::Abort);
        drop(first);
        assert_eq!(replicas.count(), 1);
        drop(second);
        assert_eq!(replicas.count(), 0);
    }
}
