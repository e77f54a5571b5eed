//! Nodes of one process that share a lease service, without a mount: SQLite files come in through the API.

mod resumed;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use engine::disk::failing::FailingDisk;
use engine::disk::sim::Fault;
use engine::{DbName, Role, Store, StoreOptions};
use litefs_api::Client;
use ltx::Pos;
use tokio::runtime::Runtime;

use super::ElectorOptions;
use crate::http::{Limits, Server};
use crate::lease::imitation::Imitation;
use crate::lease::{ClusterState, ConsulLease, ConsulOptions, Fence, Lease};
use crate::services::{ServiceOptions, Services, Succession};

const TTL: Duration = Duration::from_millis(1500);
const LOCK_DELAY: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than it takes another node to stop and this one to take the lease.
const DEMOTE_DELAY: Duration = Duration::from_secs(4);

const KEY: &str = "litefs/primary";

struct Cluster {
    runtime: Runtime,
    consul: Imitation,
    ttl: Duration,
    lock_delay: Duration,
}

/// What a node is started with.
struct Start {
    dir: tempfile::TempDir,
    hostname: String,
    candidate: bool,
    /// `HOST:PORT` of the API.
    address: String,
    node_id: u64,
    lease: Arc<dyn Lease>,
    succession: Succession,
    /// Where the fence's deadline is.
    cell: Arc<AtomicU64>,
}

/// A node in a runtime of its own, so that it can die at once.
struct Node {
    runtime: Option<Runtime>,
    services: Option<Services>,
    store: Arc<Store>,
    client: Client,
    disk: FailingDisk,
    cell: Arc<AtomicU64>,
    dir: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Self {
        Self::with(TTL, LOCK_DELAY)
    }

    fn with(ttl: Duration, lock_delay: Duration) -> Self {
        let runtime = runtime();
        let consul = runtime.block_on(Imitation::start());
        Cluster {
            runtime,
            consul,
            ttl,
            lock_delay,
        }
    }

    fn lease(&self) -> ConsulLease {
        ConsulLease::new(ConsulOptions {
            url: self.consul.url(),
            key: KEY.to_string(),
            ttl: self.ttl,
            lock_delay: self.lock_delay,
        })
        .unwrap()
    }

    fn node(&self, hostname: &str) -> Node {
        self.node_in(tempfile::tempdir().unwrap(), hostname, true)
    }

    fn node_in(&self, dir: tempfile::TempDir, hostname: &str, candidate: bool) -> Node {
        let mut start = Start::fresh(dir, hostname, Arc::new(self.lease()));
        start.candidate = candidate;
        start.node()
    }

    fn state(&self) -> ClusterState {
        let lease = self.lease();
        self.runtime
            .block_on(lease.state())
            .unwrap()
            .state
            .unwrap_or_default()
    }
}

impl Start {
    fn fresh(dir: tempfile::TempDir, hostname: &str, lease: Arc<dyn Lease>) -> Self {
        let cell = Arc::new(AtomicU64::new(0));
        Start {
            dir,
            hostname: hostname.to_string(),
            candidate: true,
            address: "127.0.0.1:0".to_string(),
            node_id: StoreOptions::default().node_id,
            lease,
            succession: Succession {
                fence: Fence::sharing(cell.clone()),
                resumed: None,
            },
            cell,
        }
    }

    fn node(self) -> Node {
        let runtime = runtime();
        let disk = FailingDisk::default();
        let options = StoreOptions {
            disk: Arc::new(disk.clone()),
            node_id: self.node_id,
            ..StoreOptions::default()
        };
        let store = Store::open(self.dir.path(), options).unwrap();
        let kernel = Arc::new(engine::Direct::new(store.files_dir()));
        store.start(kernel).unwrap();
        if let Some(resumed) = &self.succession.resumed {
            let epoch = resumed.epoch;
            store.set_role(Role::Primary { epoch }).unwrap();
        }
        let services = runtime.block_on(async {
            let server = bind(&self.address).await;
            let elector = ElectorOptions {
                candidate: self.candidate,
                hostname: self.hostname,
                advertise_url: format!("http://{}", server.address()),
                reconnect_delay: Duration::from_millis(500),
                demote_delay: DEMOTE_DELAY,
            };
            let options = ServiceOptions {
                elector,
                data_dir: self.dir.path().to_path_buf(),
                snapshot_timeout: None,
                retention: None,
                retention_interval: None,
                limits: Limits::default(),
            };
            Services::succeed(options, self.succession, store.clone(), self.lease, server)
        });
        let client = Client::new(&format!("http://{}", services.address)).unwrap();
        Node {
            runtime: Some(runtime),
            services: Some(services),
            store,
            client,
            disk,
            cell: self.cell,
            dir: self.dir,
        }
    }
}

/// The sockets of a node that has just died may still have the port.
async fn bind(address: &str) -> Server {
    loop {
        match Server::bind(address).await {
            Ok(server) => return server,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

impl Node {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    fn is_primary(&self) -> bool {
        self.services.as_ref().unwrap().leadership.borrow().is_primary
    }

    fn epoch(&self) -> u64 {
        self.services.as_ref().unwrap().leadership.borrow().epoch
    }

    fn follows(&self) -> Option<String> {
        self.services
            .as_ref()
            .unwrap()
            .leadership
            .borrow()
            .primary_hostname()
            .map(str::to_string)
    }

    fn position(&self, name: &str) -> Pos {
        let name: DbName = name.parse().unwrap();
        self.store.database(&name).map_or(Pos::ZERO, |db| db.position())
    }

    fn import(&self, name: &str, rows: u32) -> Pos {
        let body = reqwest::Body::from(database(rows));
        self.block_on(self.client.import(name, body)).unwrap();
        self.position(name)
    }

    /// Why this node does not become primary.
    fn refusal(&self) -> String {
        let promoted = self.block_on(async {
            // Before the node has compared itself with the cluster it agrees to be promoted and then is not.
            tokio::time::timeout(Duration::from_millis(200), self.client.promote(false)).await
        });
        promoted.map_or_else(|_| String::new(), |promoted| promoted.unwrap_err().to_string())
    }

    /// An orderly stop. The data stay.
    fn stop(mut self) -> tempfile::TempDir {
        let services = self.services.take().unwrap();
        self.block_on(services.stop());
        self.store.close().unwrap();
        self.die()
    }

    /// The end without a word to anybody.
    fn die(mut self) -> tempfile::TempDir {
        self.runtime.take().unwrap().shutdown_background();
        self.dir
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// The bytes of an SQLite database with so many rows.
fn database(rows: u32) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let db = rusqlite::Connection::open(file.path()).unwrap();
    db.execute_batch("PRAGMA synchronous = OFF; CREATE TABLE t (x); BEGIN")
        .unwrap();
    for row in 0..rows {
        db.execute("INSERT INTO t VALUES (?)", [row]).unwrap();
    }
    db.execute_batch("COMMIT").unwrap();
    drop(db);
    std::fs::read(file.path()).unwrap()
}

#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Two nodes, the first of which is primary and has a database at TXID 1 that the second has too.
fn pair(cluster: &Cluster) -> (Node, Node) {
    let one = cluster.node("one");
    eventually("the first node leads", || one.is_primary());
    let two = cluster.node("two");
    let position = one.import("a.db", 1);
    eventually("the second node has the database", || {
        two.position("a.db") == position
    });
    (one, two)
}

#[test]
fn one_node_leads_and_the_others_follow_it() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    assert!(!two.is_primary());
    assert_eq!(two.follows().as_deref(), Some("one"));
    assert_eq!(one.store.cluster_id(), two.store.cluster_id());
    assert_eq!((one.epoch(), two.epoch()), (1, 1));
    for rows in 2..6 {
        let position = one.import("a.db", rows);
        eventually("every transaction arrives", || two.position("a.db") == position);
    }
    assert!(
        two.block_on(two.client.import("a.db", database(1).into()))
            .unwrap_err()
            .status()
            .is_some()
    );
    two.stop();
    one.stop();
}

#[test]
fn after_an_orderly_stop_another_node_leads_within_a_second() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    let last = one.import("a.db", 7);
    let stopped = Instant::now();
    let stopping = std::thread::spawn(move || one.stop());
    eventually("the second node leads", || two.is_primary());
    assert!(
        stopped.elapsed() < Duration::from_secs(1),
        "{:?}",
        stopped.elapsed()
    );
    assert_eq!(two.position("a.db"), last, "the last transaction is not lost");
    assert_eq!(two.epoch(), 2);
    stopping.join().unwrap();
    two.import("a.db", 8);
    two.stop();
}

#[test]
fn a_primary_that_dies_is_replaced_when_its_lease_has_run_out() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    one.die();
    eventually("the second node leads", || two.is_primary());
    assert_eq!(two.position("a.db").txid.0, 1);
    two.stop();
}

#[test]
fn a_primary_that_dies_and_is_back_at_once_takes_its_lease_back() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    let last = one.import("a.db", 4);
    let died = Instant::now();
    let one = cluster.node_in(one.die(), "one", true);
    eventually("the node leads again", || one.is_primary());
    assert!(died.elapsed() < TTL, "{:?}", died.elapsed());
    assert_eq!((one.epoch(), one.position("a.db")), (2, last));
    assert!(!two.is_primary());
    eventually("the other node follows", || {
        two.position("a.db") == last && two.epoch() == 2
    });
    one.stop();
    two.stop();
}

#[test]
fn a_node_that_handed_its_lease_over_and_died_does_not_take_it_back() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    two.block_on(two.client.promote(false)).unwrap();
    let one = cluster.node_in(one.die(), "one", true);
    eventually("the returning node follows", || {
        one.follows().as_deref() == Some("two")
    });
    assert!(two.is_primary());
    assert_eq!(two.epoch(), 2);
    one.stop();
    two.stop();
}

#[test]
fn a_handoff_moves_the_lease_and_loses_nothing() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    let last = one.import("a.db", 3);
    two.block_on(two.client.promote(false)).unwrap();
    assert!(two.is_primary());
    assert_eq!(two.position("a.db"), last);
    assert_eq!(two.epoch(), 2);
    eventually("the former primary follows", || {
        one.follows().as_deref() == Some("two")
    });
    assert_eq!(one.store.role(), Role::Replica);
    let next = two.import("a.db", 4);
    eventually("the former primary has the next transaction", || {
        one.position("a.db") == next
    });
    one.block_on(one.client.promote(false)).unwrap();
    assert_eq!(one.epoch(), 3);
    one.stop();
    two.stop();
}

#[test]
fn a_primary_cut_off_from_the_lease_service_stops_before_its_lease_can_be_given_away() {
    let cluster = Cluster::start();
    let one = cluster.node("one");
    eventually("the node leads", || one.is_primary());
    let cut = Instant::now();
    cluster.consul.silence(true);
    eventually("the node stops leading", || one.store.role() == Role::Replica);
    assert!(cut.elapsed() < TTL, "{:?}", cut.elapsed());
    assert!(
        one.block_on(one.client.import("a.db", database(1).into()))
            .is_err()
    );
    cluster.consul.silence(false);
    eventually("the node leads again", || one.is_primary());
    assert_eq!(one.epoch(), 2, "a new term has a new epoch");
    one.stop();
}

#[test]
fn a_node_that_is_behind_or_empty_does_not_take_the_lease_unless_it_is_forced() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    let behind = two.stop();
    let last = one.import("a.db", 5);
    one.stop();
    assert_eq!(cluster.state().positions["a.db"], last.to_string());

    let two = cluster.node_in(behind, "two", true);
    let empty = cluster.node("empty");
    eventually("the node that is behind says so", || {
        two.refusal().contains("is behind")
    });
    assert!(!two.is_primary() && !empty.is_primary());

    two.block_on(two.client.promote(true)).unwrap();
    assert!(two.is_primary());
    assert_eq!(two.epoch(), 2);
    eventually("the empty node follows", || {
        empty.position("a.db") == two.position("a.db")
    });
    two.stop();
    empty.stop();
}

#[test]
fn an_empty_node_with_the_clusters_id_does_not_take_the_lease_either() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    let id = one.store.cluster_id().unwrap();
    two.stop();
    one.stop();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("clusterid"), format!("{id}\n")).unwrap();
    let empty = cluster.node_in(dir, "empty", true);
    eventually("the empty node says so", || empty.refusal().contains("is empty"));
    assert!(!empty.is_primary());
    empty.stop();
}

#[test]
fn a_node_of_another_cluster_neither_leads_nor_follows() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("clusterid"), "LFSC0123456789ABCDEF\n").unwrap();
    let stranger = cluster.node_in(dir, "stranger", true);
    let last = one.import("a.db", 4);
    eventually("the second node has it", || two.position("a.db") == last);
    let dir = two.stop();
    one.stop();
    // The lease is free, and the stranger the only one who could take it.
    let two = cluster.node_in(dir, "two", true);
    eventually("a node of the cluster leads again", || two.is_primary());
    assert_eq!(two.epoch(), 2, "nobody led in between");
    assert!(!stranger.is_primary());
    assert_eq!(stranger.follows(), None);
    assert_eq!(stranger.position("a.db"), Pos::ZERO);
    assert_eq!(
        stranger.store.cluster_id().as_deref(),
        Some("LFSC0123456789ABCDEF")
    );
    stranger.stop();
    two.stop();
}

#[test]
fn transactions_that_only_a_returning_primary_has_are_archived() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    let two_dir = two.stop();
    let lost = one.import("a.db", 20);
    assert_eq!(lost.txid.0, 2);
    let one_dir = one.die();

    let two = cluster.node_in(two_dir, "two", true);
    two.block_on(async { while two.client.promote(true).await.is_err() {} });
    let kept = two.import("a.db", 30);
    let one = cluster.node_in(one_dir, "one", true);
    eventually("the former primary follows", || one.position("a.db") == kept);
    let archive = one.dir.path().join("archive");
    let found: Vec<_> = walk(&archive)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "ltx"))
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    let summary = ltx::verify(std::fs::File::open(&found[0]).unwrap()).unwrap();
    assert_eq!((summary.header.min_txid.0, summary.header.max_txid.0), (2, 2));
    assert_eq!(summary.trailer.post_apply, lost.post_apply);
    one.stop();
    two.stop();
}

impl Node {
    /// The next sync of a log fails, which closes the database whose log it is.
    fn break_sync(&self) {
        self.disk.inject(Fault::on("log.append.sync", libc::EIO));
    }

    /// The next record cannot be written to its log, and what was written of it cannot be removed.
    fn break_write(&self) {
        for op in ["log.append.write", "log.append.length", "log.append.cut"] {
            self.disk.inject(Fault::on(op, libc::EIO));
        }
    }

    fn try_import(&self, name: &str, rows: u32) -> Result<(), litefs_api::Error> {
        let body = reqwest::Body::from(database(rows));
        self.block_on(self.client.import(name, body)).map(drop)
    }

    /// Why a database of this node is in trouble.
    fn trouble(&self, name: &str) -> Option<String> {
        let status = self.block_on(self.client.status()).unwrap();
        let found = status.databases.into_iter().find(|db| db.name == name);
        found.and_then(|db| db.quarantine)
    }
}

#[test]
fn a_primary_whose_disk_fails_gives_its_lease_away_and_does_not_compete_for_a_while() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    let before = one.position("a.db");
    one.break_write();
    let began = Instant::now();
    assert!(one.try_import("a.db", 9).is_err());
    eventually("the second node leads", || two.is_primary());
    assert_eq!(two.position("a.db"), before);
    eventually("the first node follows", || {
        one.follows().as_deref() == Some("two")
    });
    assert!(one.trouble("a.db").unwrap().contains("log.append.cut"));
    let metrics = one.block_on(async {
        let url = format!("{}/metrics", one.client.base());
        reqwest::get(url).await.unwrap().text().await.unwrap()
    });
    assert!(metrics.contains("litefs_db_closed{db=\"a.db\"} 1"), "{metrics}");
    let refused = one.block_on(one.client.promote(false)).unwrap_err().to_string();
    assert!(refused.contains("disk of this node failed"), "{refused}");
    let last = two.import("b.db", 3);
    eventually("databases without trouble are replicated", || {
        one.position("b.db") == last
    });

    two.stop();
    eventually("it competes again", || one.is_primary());
    assert!(began.elapsed() >= DEMOTE_DELAY, "{:?}", began.elapsed());
    assert!(one.try_import("a.db", 4).is_err());
    one.import("b.db", 4);
    one.die();
}

#[test]
fn a_primary_whose_disk_fails_leads_on_while_there_is_no_other_candidate() {
    let cluster = Cluster::start();
    let one = cluster.node("one");
    eventually("the node leads", || one.is_primary());
    let replica = cluster.node_in(tempfile::tempdir().unwrap(), "replica", false);
    one.import("a.db", 1);
    let other = one.import("b.db", 1);
    eventually("the replica is connected", || replica.position("b.db") == other);
    one.break_sync();
    assert!(one.try_import("a.db", 2).is_err());
    assert!(one.try_import("a.db", 2).is_err(), "closed until the next start");
    let other = one.import("b.db", 2);
    eventually("other databases are replicated", || {
        replica.position("b.db") == other
    });
    assert_eq!(one.epoch(), 1);

    let two = cluster.node("two");
    eventually("a candidate is given the lease", || two.is_primary());
    assert_eq!(two.position("b.db"), other);
    two.import("a.db", 3);
    replica.stop();
    two.stop();
    let again = cluster.node_in(one.die(), "one", true);
    assert_eq!(again.trouble("a.db"), None);
    again.stop();
}

#[test]
fn replicas_acknowledge_what_they_have() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    let position = one.import("a.db", 9);
    eventually("the replica acknowledges", || {
        let status = one.block_on(one.client.status()).unwrap();
        status
            .replicas
            .iter()
            .any(|replica| replica.hostname == "two" && replica.acked["a.db"].0 == position.txid.0)
    });
    two.stop();
    eventually("the replica is gone", || {
        one.block_on(one.client.status()).unwrap().replicas.is_empty()
    });
    one.stop();
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .flat_map(|entry| {
            if entry.path().is_dir() {
                walk(&entry.path())
            } else {
                vec![entry.path()]
            }
        })
        .collect()
}
