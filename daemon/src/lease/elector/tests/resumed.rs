//! A process that goes on with the term of the one before it.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use super::*;
use crate::leadership::Leadership;
use crate::lease::elector::{Ending, Resumed};
use crate::lease::{BootTime, StaticLease};

/// So long that nothing is renewed within a test's patience unless it is renewed at once.
const LONG_TTL: Duration = Duration::from_secs(1800);
const LONG_LOCK_DELAY: Duration = Duration::from_secs(60);
const STATE_KEY: &str = "litefs/primary/state";

/// What a process leaves to the next one.
struct Left {
    start: Start,
    resumed: Resumed,
}

/// Whether a node is primary, and whom it follows.
type Seen = (bool, Option<String>);

impl Node {
    /// The end without a word; gives what the next process goes on with.
    fn killed(self, lease: Arc<dyn Lease>) -> Left {
        let Role::Primary { epoch } = self.store.role() else {
            panic!("a replica has no term");
        };
        let (cell, node_id) = (self.cell.clone(), self.store.node_id());
        let address = self
            .client
            .base()
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_string();
        let fence = Fence::sharing(cell.clone());
        let resumed = Resumed::left_in(&fence, epoch).unwrap();
        let succession = Succession {
            fence,
            resumed: Some(resumed),
        };
        let start = Start {
            address,
            node_id,
            succession,
            cell,
            ..Start::fresh(self.die(), "one", lease)
        };
        Left { start, resumed }
    }

    /// The end of a process that another one replaces.
    fn replaced(mut self, lease: Arc<dyn Lease>) -> Left {
        let services = self.services.take().unwrap();
        let ended = Instant::now();
        self.block_on(services.end(Ending::Replaced));
        assert!(ended.elapsed() < Duration::from_secs(1), "{:?}", ended.elapsed());
        self.killed(lease)
    }

    fn leadership(&self) -> Leadership {
        self.services.as_ref().unwrap().leadership.borrow().clone()
    }

    /// Notes all that this node sees of the leadership from now on.
    fn watch_primaries(&self) -> Arc<Mutex<Vec<Seen>>> {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (noted, mut leadership) = (seen.clone(), self.services.as_ref().unwrap().leadership.clone());
        self.runtime.as_ref().unwrap().spawn(async move {
            loop {
                let now = leadership.borrow_and_update().clone();
                let primary = now.primary_hostname().map(str::to_string);
                noted.lock().unwrap().push((now.is_primary, primary));
                if leadership.changed().await.is_err() {
                    return;
                }
            }
        });
        seen
    }
}

fn deadline(cell: &AtomicU64) -> BootTime {
    BootTime::from_nanos(cell.load(Ordering::Acquire))
}

#[track_caller]
fn assert_followed_throughout(seen: &Mutex<Vec<Seen>>) {
    let seen = seen.lock().unwrap().clone();
    let expected = (false, Some("one".to_string()));
    assert!(seen.iter().all(|seen| *seen == expected), "{seen:?}");
}

#[test]
fn a_process_that_is_killed_leaves_its_term_to_the_next_one() {
    let cluster = Cluster::with(LONG_TTL, LONG_LOCK_DELAY);
    let (one, two) = pair(&cluster);
    let last = one.import("a.db", 4);
    eventually("the second node has it", || two.position("a.db") == last);
    let seen = two.watch_primaries();
    let (lease, holder) = (cluster.consul.session(KEY), cluster.consul.value(KEY));
    assert!(lease.is_some());

    let left = one.killed(Arc::new(cluster.lease()));
    let before = left.resumed.deadline;
    let one = left.start.node();
    let leadership = one.leadership();
    assert!(leadership.is_primary && leadership.ready, "{leadership:?}");
    assert_eq!(leadership.epoch, 1);
    assert_eq!(one.services.as_ref().unwrap().lag.behind(), Some(Duration::ZERO));
    // Much earlier than the next renewal would be due.
    eventually("the lease is renewed", || deadline(&one.cell) > before);

    let last = one.import("a.db", 5);
    eventually("the other node goes on following", || {
        two.position("a.db") == last
    });
    assert_eq!(cluster.consul.session(KEY), lease);
    assert_eq!(cluster.consul.value(KEY), holder, "the same node, id and epoch");
    assert_eq!((one.epoch(), two.epoch()), (1, 1));
    assert_eq!(one.store.role(), Role::Primary { epoch: 1 });
    assert_followed_throughout(&seen);
    eventually("the term's record goes on", || {
        cluster.state().positions["a.db"] == last.to_string()
    });
    one.stop();
    eventually("an orderly stop frees the lease as ever", || two.is_primary());
    assert_eq!(two.epoch(), 2);
    two.stop();
}

#[test]
fn a_process_that_is_replaced_keeps_lease_and_role_and_ends_its_streams() {
    let cluster = Cluster::with(LONG_TTL, LONG_LOCK_DELAY);
    let (one, two) = pair(&cluster);
    let seen = two.watch_primaries();
    let (lease, holder) = (cluster.consul.session(KEY), cluster.consul.value(KEY));
    let left = one.replaced(Arc::new(cluster.lease()));
    assert!(left.start.succession.fence.holds());
    assert_eq!(cluster.consul.session(KEY), lease);
    let one = left.start.node();
    assert!(one.is_primary());
    let last = one.import("a.db", 7);
    eventually("the other node goes on following", || {
        two.position("a.db") == last
    });
    assert_eq!(cluster.consul.value(KEY), holder);
    assert_eq!((one.epoch(), two.epoch()), (1, 1));
    assert_followed_throughout(&seen);
    one.stop();
    two.stop();
}

#[test]
fn a_resumed_term_whose_session_has_ended_is_lost_and_its_writers_are_stopped() {
    let cluster = Cluster::with(LONG_TTL, LONG_LOCK_DELAY);
    let one = cluster.node("one");
    eventually("the node leads", || one.is_primary());
    one.import("a.db", 1);
    let left = one.killed(Arc::new(cluster.lease()));
    cluster.consul.end_sessions();
    let one = left.start.node();
    // The lock delay keeps the node from leading again at once.
    eventually("writers are stopped", || one.store.role() == Role::Replica);
    eventually("the node is a replica", || !one.is_primary());
    assert_eq!(one.cell.load(Ordering::Acquire), 0, "down for all who share it");
    assert!(one.try_import("a.db", 2).is_err());
    one.stop();
}

#[test]
fn a_term_is_not_resumed_over_that_of_another_node() {
    let cluster = Cluster::with(LONG_TTL, LOCK_DELAY);
    let (one, two) = pair(&cluster);
    let left = one.killed(Arc::new(cluster.lease()));
    cluster.consul.end_sessions();
    eventually("the other node leads", || two.is_primary());
    let kept = two.import("a.db", 3);
    let one = left.start.node();
    eventually("the returning node follows", || {
        one.store.role() == Role::Replica && one.follows().as_deref() == Some("two")
    });
    eventually("and has what the other node wrote", || {
        one.position("a.db") == kept
    });
    assert!(two.is_primary());
    assert_eq!((one.epoch(), two.epoch()), (2, 2));
    one.stop();
    two.stop();
}

#[test]
fn a_resumed_term_ends_in_time_when_the_service_does_not_answer() {
    let cluster = Cluster::with(Duration::from_secs(3), LOCK_DELAY);
    let one = cluster.node("one");
    eventually("the node leads", || one.is_primary());
    let left = one.killed(Arc::new(cluster.lease()));
    cluster.consul.silence(true);
    let before = left.resumed.deadline;
    let one = left.start.node();
    assert!(one.is_primary());
    assert_eq!(
        deadline(&one.cell),
        before,
        "nothing but a renewal moves the fence"
    );
    eventually("writers are stopped", || one.store.role() == Role::Replica);
    assert!(before.remaining() > Duration::ZERO, "before the fence falls");
    eventually("the fence is down", || one.cell.load(Ordering::Acquire) == 0);
    assert!(one.try_import("a.db", 1).is_err());
    cluster.consul.silence(false);
    eventually("the node leads again", || one.is_primary());
    assert_eq!(one.epoch(), 2);
    one.stop();
}

#[test]
fn a_resumed_term_goes_on_when_the_service_answers_late() {
    let cluster = Cluster::with(Duration::from_secs(10), LOCK_DELAY);
    let one = cluster.node("one");
    eventually("the node leads", || one.is_primary());
    let left = one.killed(Arc::new(cluster.lease()));
    cluster.consul.silence(true);
    let before = left.resumed.deadline;
    let one = left.start.node();
    one.import("a.db", 1);
    assert_eq!(deadline(&one.cell), before);
    cluster.consul.silence(false);
    eventually("the lease is renewed", || deadline(&one.cell) > before);
    eventually("positions are recorded", || {
        cluster.state().positions.contains_key("a.db")
    });
    assert_eq!((one.epoch(), cluster.state().epoch), (1, 1));
    one.stop();
}

#[test]
fn a_record_of_the_term_that_arrives_late_does_not_end_it_and_another_nodes_does() {
    let cluster = Cluster::start();
    let one = cluster.node("one");
    eventually("the node leads", || one.is_primary());
    let one = one.killed(Arc::new(cluster.lease())).start.node();
    let recorded = || cluster.state().positions.get("a.db").cloned();
    let put = |primary: &str| {
        let state = ClusterState {
            epoch: 1,
            primary: primary.to_string(),
            ..ClusterState::default()
        };
        cluster
            .consul
            .put(STATE_KEY, &serde_json::to_vec(&state).unwrap());
    };
    let last = one.import("a.db", 2).to_string();
    eventually("positions are recorded", || recorded().as_ref() == Some(&last));
    put("one");
    let last = one.import("a.db", 3);
    let position = last.to_string();
    eventually("positions are recorded again", || {
        recorded().as_ref() == Some(&position)
    });
    assert_eq!(one.epoch(), 1);
    put("other");
    one.import("a.db", 4);
    eventually("another node's record ends the term", || one.epoch() == 2);
    one.stop();
}

#[test]
fn a_resumed_term_with_another_address_is_followed_there() {
    let cluster = Cluster::with(LONG_TTL, LOCK_DELAY);
    let (one, two) = pair(&cluster);
    let mut left = one.killed(Arc::new(cluster.lease()));
    left.start.address = "127.0.0.1:0".to_string();
    let one = left.start.node();
    let last = one.import("a.db", 6);
    eventually("the other node follows", || two.position("a.db") == last);
    assert_eq!((one.epoch(), two.epoch()), (1, 1));
    one.stop();
    two.stop();
}

#[test]
fn a_term_is_resumed_by_the_same_node_only() {
    let cluster = Cluster::with(LONG_TTL, LOCK_DELAY);
    let one = cluster.node("one");
    eventually("the node leads", || one.is_primary());
    let mut left = one.killed(Arc::new(cluster.lease()));
    left.start.node_id ^= 1;
    let one = left.start.node();
    eventually("writers are stopped", || one.store.role() == Role::Replica);
    eventually("the node is a replica", || !one.is_primary());
    one.stop();
}

#[test]
fn a_node_that_is_no_candidate_any_more_lets_go_of_the_term_it_resumes() {
    let cluster = Cluster::with(LONG_TTL, LONG_LOCK_DELAY);
    let (one, two) = pair(&cluster);
    let mut left = one.killed(Arc::new(cluster.lease()));
    left.start.candidate = false;
    let one = left.start.node();
    eventually("the other node leads", || two.is_primary());
    assert_eq!(two.epoch(), 2);
    eventually("the first node follows", || {
        one.follows().as_deref() == Some("two")
    });
    one.stop();
    two.stop();
}

/// What is recorded of the database stays, so that this node does not lead before it has it again.
#[test]
fn a_node_that_cannot_open_a_database_lets_go_of_the_term_it_resumes() {
    let cluster = Cluster::with(LONG_TTL, LONG_LOCK_DELAY);
    let (one, two) = pair(&cluster);
    let last = one.import("a.db", 4);
    eventually("the other node has it", || two.position("a.db") == last);
    eventually("it is recorded", || {
        cluster.state().positions.contains_key("a.db")
    });
    let left = one.killed(Arc::new(cluster.lease()));
    let homes = std::fs::read_dir(left.start.dir.path().join("databases")).unwrap();
    for home in homes.flatten() {
        let log = home.path().join("log");
        std::fs::remove_dir_all(&log).unwrap();
        std::fs::write(log, "no directory").unwrap();
    }
    let one = left.start.node();
    assert_eq!(one.store.damaged().len(), 1);
    eventually("the other node leads", || two.is_primary());
    assert_eq!(cluster.state().positions["a.db"], last.to_string());
    eventually("the first node gets it again", || {
        one.store.damaged().is_empty() && one.position("a.db") == last
    });
    one.stop();
    two.stop();
}

#[test]
fn a_static_term_goes_on_too() {
    let lease = || Arc::new(StaticLease::primary());
    let one = Start::fresh(tempfile::tempdir().unwrap(), "one", lease()).node();
    eventually("the node leads", || one.is_primary());
    one.import("a.db", 1);
    let left = one.killed(lease());
    let before = left.resumed.deadline;
    let one = left.start.node();
    assert!(one.is_primary());
    eventually("the lease is renewed", || deadline(&one.cell) > before);
    let one = one.replaced(lease()).start.node();
    assert!(one.is_primary());
    assert_eq!(one.import("a.db", 2).txid.0, 2);
    assert_eq!((one.epoch(), one.store.role()), (1, Role::Primary { epoch: 1 }));
    one.stop();
}

#[test]
fn a_fresh_start_takes_no_time_from_what_is_left_in_the_cell() {
    let cluster = Cluster::start();
    cluster.consul.silence(true);
    let start = Start::fresh(tempfile::tempdir().unwrap(), "one", Arc::new(cluster.lease()));
    let stale = BootTime::now() + Duration::from_secs(60);
    start.cell.store(stale.as_nanos(), Ordering::Release);
    let one = start.node();
    assert_eq!(one.cell.load(Ordering::Acquire), 0);
    assert!(!one.is_primary());
    cluster.consul.silence(false);
    eventually("the node leads", || one.is_primary());
    assert!(deadline(&one.cell).remaining() <= TTL);
    one.stop();
}
