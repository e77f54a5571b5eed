//! Disks that are full, syncs that fail, clients that write across a change of the primary, files that stop being
//! databases.

mod common;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use common::disk::{Watch, Watched};
use common::{Client, Node, ROWS, count, integrity, name, replicate, send_snapshot, wait_applied};
use engine::disk::failing::FailingDisk;
use engine::disk::sim::Fault;
use engine::disk::{DiskError, Op, Result};
use engine::{Coherence, Durability, Role, StoreOptions, Watcher};
use ltx::Txid;

/// A disk on which writes to the log fail on command.
#[derive(Debug, Clone, Default)]
struct Faulty {
    write: Arc<AtomicI32>,
    sync: Arc<AtomicI32>,
}

fn check(op: Op, path: &Path, errno: &AtomicI32) -> Result<()> {
    match errno.load(Ordering::SeqCst) {
        errno if errno != 0 && op.starts_with("log.") => {
            Err(DiskError::new(op, path, std::io::Error::from_raw_os_error(errno)))
        }
        _ => Ok(()),
    }
}

impl Watch for Faulty {
    fn writing(&self, op: Op, path: &Path) -> Result<()> {
        check(op, path, &self.write)
    }

    fn syncing(&self, op: Op, path: &Path) -> Result<()> {
        check(op, path, &self.sync)
    }
}

fn primary_on(disk: &Faulty, durability: Durability) -> Node {
    Node::primary_with(StoreOptions {
        disk: Arc::new(Watched(disk.clone())),
        durability,
        ..StoreOptions::default()
    })
}

fn same(primary: &Node, replica: &Node) {
    replicate(primary, replica);
    assert_eq!(primary.digest(), replica.digest());
    integrity(&replica.connect());
}

fn eventually(what: impl fmt::Display, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A commit whose record cannot be written fails where SQLite asks; what was committed before it asked is captured
/// once there is room, and no transaction is captured twice.
#[test]
fn commits_go_on_when_a_full_disk_has_room_again() {
    for (mode, synchronous) in [
        ("DELETE", "FULL"),
        ("TRUNCATE", "NORMAL"),
        ("MEMORY", "OFF"),
        ("WAL", "FULL"),
        ("WAL", "NORMAL"),
    ] {
        let disk = Faulty::default();
        let primary = primary_on(&disk, Durability::Follow);
        let client = primary.mount();
        client.exec(&format!(
            "PRAGMA journal_mode={mode}; PRAGMA synchronous={synchronous}; PRAGMA wal_autocheckpoint=5; \
             CREATE TABLE t(x INTEGER PRIMARY KEY, y); INSERT INTO t VALUES(0, 0)"
        ));
        let replica = Node::new();
        same(&primary, &replica);
        disk.write.store(libc::ENOSPC, Ordering::SeqCst);
        let mut committed = 1;
        for x in 1..5 {
            let insert = format!("INSERT INTO t VALUES({x}, randomblob(5000))");
            committed += i64::from(client.try_exec(&insert).is_ok());
        }
        let _ = primary.db().drain();
        disk.write.store(0, Ordering::SeqCst);
        for x in 5..8 {
            client.exec(&format!("INSERT INTO t VALUES({x}, randomblob(5000))"));
        }
        assert_eq!(count(&client), committed + 3, "{mode} {synchronous}");
        integrity(&client);
        same(&primary, &replica);
        assert_eq!(count(&replica.connect()), committed + 3, "{mode} {synchronous}");
        assert!(primary.db().position().txid <= Txid(2 + 2 * 8), "captured twice");
        let again = Node::open(primary.kill());
        again.store.set_role(Role::Primary { epoch: 2 }).unwrap();
        assert_eq!(again.digest(), replica.digest(), "{mode} {synchronous}");
    }
}

/// Also where nothing is written: the node hands its lease on before somebody needs to write.
#[test]
fn a_file_system_that_turns_read_only_is_noticed() {
    let disk = FailingDisk::default();
    let node = Node::primary_with(StoreOptions {
        disk: Arc::new(disk.clone()),
        ..StoreOptions::default()
    });
    let client = node.mount();
    client.exec("PRAGMA journal_mode=WAL; CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    client.exec(ROWS);
    let told: Arc<AtomicI32> = Arc::default();
    let telling = told.clone();
    let watcher: Watcher = Arc::new(move |_| {
        telling.fetch_add(1, Ordering::SeqCst);
    });
    node.store.watch_failures(&watcher);
    disk.inject(Fault::on("probe.write", libc::EROFS).forever());
    eventually("the database is closed", || node.db().is_closed());
    let reason = node.db().status().quarantine.unwrap();
    assert!(reason.contains("read-only"), "{reason}");
    assert_eq!(told.load(Ordering::SeqCst), 1);
    assert_eq!(count(&client), 60);
    eventually("nobody commits", || {
        client.try_exec("INSERT INTO t VALUES(NULL, 1)").is_err()
    });
}

/// Nothing is wrong with such a database: it is neither replaced nor read before it is whole, and the node goes on with it.
#[test]
fn a_database_that_there_was_no_room_to_open_is_opened_when_there_is() {
    for (role, errno) in [
        (Role::Primary { epoch: 2 }, libc::ENOSPC),
        (Role::Replica, libc::EDQUOT),
        (Role::Replica, libc::EMFILE),
    ] {
        let primary = Node::primary();
        let client = primary.mount();
        client.exec("PRAGMA journal_mode=WAL; CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
        client.exec(ROWS);
        let replica = Node::new();
        same(&primary, &replica);
        let expected = primary.digest();
        let dir = primary.kill();
        drop(client);

        let disk = FailingDisk::default();
        disk.inject(Fault::on("database.mkdir", errno).forever());
        let options = StoreOptions {
            disk: Arc::new(disk.clone()),
            ..StoreOptions::default()
        };
        let node = Node::open_with(dir, Coherence::Passthrough, options);
        node.store.set_role(role).unwrap();
        assert!(node.store.waits_for_room(&name()) && node.store.database(&name()).is_none());
        let damaged = node.store.damaged();
        assert!(damaged[0].1.contains("until there is room"), "{damaged:?}");
        if !role.is_primary() {
            replica.store.set_role(Role::Primary { epoch: 2 }).unwrap();
            let mut snapshot = replica.db().snapshot().unwrap().ltx(7).unwrap();
            node.store.receive(&name(), &mut snapshot).unwrap_err();
        }
        disk.heal();
        eventually("it is opened", || node.store.database(&name()).is_some());
        eventually("it waits no more", || !node.store.waits_for_room(&name()));
        assert!(node.store.damaged().is_empty());
        assert_eq!(node.digest(), expected);
        let (leader, follower) = match role.is_primary() {
            true => (&node, &replica),
            false => (&replica, &node),
        };
        leader.mount().exec("INSERT INTO t VALUES(1000, 1)");
        same(leader, follower);
    }
}

/// After a failed sync nobody knows what is on disk: nothing more is committed, and a start finds the truth.
#[test]
fn a_failed_sync_of_the_log_ends_commits_until_the_next_start() {
    for mode in ["DELETE", "WAL"] {
        let disk = Faulty::default();
        let primary = primary_on(&disk, Durability::Commit);
        let client = primary.mount();
        client.exec(&format!(
            "PRAGMA journal_mode={mode}; PRAGMA synchronous=FULL; CREATE TABLE t(x INTEGER PRIMARY KEY, y); INSERT INTO t VALUES(0, 0)"
        ));
        let before = primary.db().drain().unwrap();
        disk.sync.store(libc::EIO, Ordering::SeqCst);
        assert!(client.try_exec("INSERT INTO t VALUES(1, 1)").is_err(), "{mode}");
        disk.sync.store(0, Ordering::SeqCst);
        assert!(client.try_exec("INSERT INTO t VALUES(2, 2)").is_err(), "{mode}");
        client.kill();
        let again = Node::open(primary.kill());
        again.store.set_role(Role::Primary { epoch: 2 }).unwrap();
        assert!(again.db().position().txid >= before.txid);
        let client = again.mount();
        client.exec("INSERT INTO t VALUES(3, 3)");
        let replica = Node::new();
        same(&again, &replica);
        assert_eq!(count(&replica.connect()), count(&client));
    }
}

/// Commits that need no request of the daemon do not go on either, and reading does.
#[test]
fn a_failed_sync_fences_the_writers_that_nobody_asks() {
    let disk = Faulty::default();
    let primary = primary_on(&disk, Durability::Follow);
    let told = Arc::new(AtomicI32::new(0));
    let counted = told.clone();
    let watcher: Watcher = Arc::new(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    primary.store.watch_failures(&watcher);
    let client = primary.mount();
    client.exec(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0; PRAGMA busy_timeout=0; \
         CREATE TABLE t(x INTEGER PRIMARY KEY, y); INSERT INTO t VALUES(0, 0)",
    );
    let before = primary.db().drain().unwrap();
    disk.sync.store(libc::EIO, Ordering::SeqCst);
    client.try_exec("PRAGMA wal_checkpoint").unwrap_err();
    disk.sync.store(0, Ordering::SeqCst);
    assert_eq!(primary.store.closed_databases(), [name()]);
    assert_eq!(told.load(Ordering::SeqCst), 1);
    assert!(primary.db().status().quarantine.is_some());

    let mut committed = 1;
    eventually("the writer is fenced", || {
        let inserted = client.try_exec("INSERT INTO t(y) VALUES(1)");
        committed += i64::from(inserted.is_ok());
        inserted.is_err_and(|error| error.contains("locked"))
    });
    let refused = |primary: &Node| {
        let newcomer = primary.mount();
        newcomer.exec("PRAGMA busy_timeout=0");
        for client in [&client, &newcomer] {
            client.try_exec("INSERT INTO t(y) VALUES(2)").unwrap_err();
            assert_eq!(count(client), committed);
        }
    };
    refused(&primary);
    // The node gives its lease away, and may get it back.
    primary.store.set_role(Role::Replica).unwrap();
    refused(&primary);
    primary.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    refused(&primary);
    assert_eq!(primary.db().position(), before);
    client.kill();

    let again = Node::open(primary.kill());
    again.store.set_role(Role::Primary { epoch: 3 }).unwrap();
    let client = again.mount();
    assert_eq!(count(&client), committed);
    client.exec("INSERT INTO t(y) VALUES(3)");
    same(&again, &Node::new());
    assert_eq!(again.store.closed_databases(), []);
}

/// A transaction under way when the node is demoted cannot be committed there any more, and its client cannot begin another one.
#[test]
fn a_transaction_across_the_change_of_the_primary_fails_and_leaves_no_trace() {
    // The demotion waits for its end, in vain.
    std::thread::scope(|scope| {
        for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
            scope.spawn(move || demote_in_the_middle_of_a_transaction(mode));
        }
        if can_seal() {
            scope.spawn(|| demote_in_the_middle_of_a_transaction("WAL"));
        }
    });
}

/// Whether this process has CAP_LINUX_IMMUTABLE. Without, a commit that passes the daemon by cannot be kept from returning.
fn can_seal() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    u64::from_str_radix(effective.unwrap().trim(), 16).unwrap() & 1 << 9 != 0
}

fn demote_in_the_middle_of_a_transaction(mode: &str) {
    let options = StoreOptions {
        seal: can_seal(),
        ..StoreOptions::default()
    };
    let old = Node::primary_with(options);
    let client = old.mount();
    client.exec(&format!(
            "PRAGMA journal_mode={mode}; PRAGMA cache_size=1; PRAGMA cache_spill=1; CREATE TABLE t(x INTEGER PRIMARY KEY, y)"
        ));
    client.exec(ROWS);
    let new = Node::new();
    same(&old, &new);
    client.exec("BEGIN; UPDATE t SET y='uncommitted'");
    old.store.set_role(Role::Replica).unwrap();
    new.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    assert!(client.try_exec("COMMIT").is_err(), "{mode}");
    let _ = client.try_exec("ROLLBACK");
    assert_eq!(client.query("SELECT count(*) FROM t WHERE y='uncommitted'"), "0");
    client.exec("PRAGMA busy_timeout=20");
    let refused = || {
        let again = client.try_exec("INSERT INTO t VALUES(1000, 'unheard')");
        assert!(again.is_err(), "{mode}");
    };
    refused();
    new.mount().exec("DELETE FROM t WHERE x > 30");
    same(&new, &old);
    refused();
    assert_eq!(count(&old.mount()), 30, "{mode}");
    assert_eq!(count(&client), 30, "{mode}");
}

/// Where the WAL cannot be sealed, such a commit returns. It is not mixed with what the new primary sends.
#[test]
fn a_commit_after_a_demotion_makes_the_node_ask_for_a_snapshot() {
    let old = Node::primary();
    let client = old.mount();
    client.exec("PRAGMA journal_mode=WAL; CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    client.exec(ROWS);
    let new = Node::new();
    same(&old, &new);
    client.exec("BEGIN; UPDATE t SET y='unheard' WHERE x < 40");
    old.store.set_role(Role::Replica).unwrap();
    new.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    client.exec("COMMIT");
    let writer = new.mount();
    writer.exec("DELETE FROM t WHERE x > 50");
    let last = new.db().drain().unwrap();
    let record = new.db().record(last.txid).unwrap().unwrap();
    old.store.receive(&name(), &mut record.reader()).unwrap();
    eventually("it is noticed", || old.db().status().quarantine.is_some());
    send_snapshot(&new, &old);
    wait_applied(&old);
    assert_eq!(old.db().status().quarantine, None);
    assert_eq!(old.digest(), new.digest());
    assert_eq!(count(&old.mount()), 50);
    writer.exec("INSERT INTO t VALUES(100, 'heard')");
    same(&new, &old);
}

/// Nothing announces the commits of `journal_mode=MEMORY`; a demotion right behind one captures it.
#[test]
fn a_commit_just_before_a_demotion_is_in_the_log() {
    for mode in ["MEMORY", "OFF", "WAL", "DELETE"] {
        let old = Node::primary();
        let client = old.mount();
        client.exec(&format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x)"));
        for round in 0..5 {
            client.exec("INSERT INTO t VALUES(1)");
            old.store.set_role(Role::Replica).unwrap();
            let replica = Node::new();
            same(&old, &replica);
            assert_eq!(count(&replica.connect()), round + 1, "{mode}");
            old.store.set_role(Role::Primary { epoch: 1 }).unwrap();
        }
    }
}

/// A file that stops being a database is left alone, and is replicated again when it is one.
#[test]
fn a_file_that_is_no_database_for_a_while_loses_its_replication_for_that_while() {
    let primary = Node::primary();
    let client = primary.mount();
    client.exec("CREATE TABLE t(x); INSERT INTO t VALUES(1)");
    let replica = Node::new();
    same(&primary, &replica);
    let position = primary.db().position();
    drop(client);
    let good = std::fs::read(primary.path()).unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(primary.path())
        .unwrap();
    primary
        .db()
        .write_database(&file, 0, b"no database at all")
        .unwrap();
    primary.db().close_database();
    eventually("quarantined", || primary.db().status().quarantine.is_some());
    assert_eq!(primary.db().drain().unwrap(), position);
    primary.db().write_database(&file, 0, &good[..4096]).unwrap();
    primary.db().close_database();
    eventually("resumed", || primary.db().status().quarantine.is_none());
    let client = primary.mount();
    client.exec("INSERT INTO t VALUES(2)");
    same(&primary, &replica);
    assert_eq!(count(&replica.connect()), 2);
}

/// Somebody changed the files of a replica behind everybody's back.
#[test]
fn a_replica_that_does_not_follow_its_log_asks_for_a_snapshot_and_heals() {
    for mode in ["DELETE", "WAL"] {
        let primary = Node::primary();
        let client = primary.mount();
        client.exec(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(x INTEGER PRIMARY KEY, y)"
        ));
        client.exec(ROWS);
        let replica = Node::new();
        same(&primary, &replica);
        // As if the node had been the primary when a client without a journal died in the middle of its writes.
        replica.store.set_role(Role::Primary { epoch: 9 }).unwrap();
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(replica.path())
            .unwrap();
        let locks = Client::connect(&replica.path());
        locks.exec("PRAGMA busy_timeout=0");
        replica.db().write_database(&file, 3 * 4096, &[7; 4096]).unwrap();
        let damaged = replica.store.set_role(Role::Replica);
        assert!(damaged.is_ok());
        drop(locks);
        // Whether it was captured, as a raw write, or not: the new primary's history replaces it.
        if replica.db().received() != primary.db().position() {
            replica
                .store
                .archive_tail(&name(), primary.db().position().txid)
                .unwrap();
        }
        client.exec("DELETE FROM t WHERE x > 30");
        primary.db().drain().unwrap();
        send_snapshot(&primary, &replica);
        wait_applied(&replica);
        assert_eq!(replica.digest(), primary.digest(), "{mode}");
        assert_eq!(replica.db().status().quarantine, None);
        same(&primary, &replica);
    }
}
