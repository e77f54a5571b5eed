//! What a daemon that takes a mount over finds besides half done requests: commits that nobody heard of, records that are half applied,
//! fences and locks of the dead one, a node in the middle of a change of its role.

mod common;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::disk::{Watch, Watched};
use common::{
    Client, Node, ROWS, Vacant, checkpoint, count, integrity, name, replicate, send_last, send_snapshot,
    wait_applied,
};
use engine::disk::{DiskError, Op, Result};
use engine::{Coherence, Error, Role, Side, StoreOptions};
use ltx::Txid;

const PRIMARY: Role = Role::Primary { epoch: 1 };

fn primary(coherence: Coherence, setup: &str) -> (Node, Client) {
    let node = Node::kept(coherence, StoreOptions::default());
    node.store.set_role(PRIMARY).unwrap();
    let client = node.mount();
    client.exec(setup);
    client.exec("CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    node.db().drain().unwrap();
    (node, client)
}

fn same(primary: &Node, replica: &Node) {
    replicate(primary, replica);
    assert_eq!(primary.digest(), replica.digest());
    integrity(&replica.connect());
}

const NORMAL: &str =
    "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=0; PRAGMA wal_autocheckpoint=0";

#[test]
fn commits_that_nobody_heard_of_are_captured_one_by_one() {
    let (node, client) = primary(Coherence::Passthrough, NORMAL);
    let before = node.db().drain().unwrap();
    let vacant = node.vacate();
    for x in 0..5 {
        client.exec(&format!("INSERT INTO t VALUES({x}, randomblob(3000))"));
    }
    let node = vacant.resume(PRIMARY);
    assert_eq!(node.db().drain().unwrap().txid, Txid(before.txid.0 + 5));
    same(&node, &Node::new());
    assert_eq!(count(&client), 5);
}

/// All frames were in the main file, so the writer began anew at the first, without a request.
#[test]
fn a_wal_that_started_over_while_nobody_looked_is_captured() {
    let (node, client) = primary(Coherence::Passthrough, NORMAL);
    // Else the new header would be synced, which is a request.
    client.exec("PRAGMA synchronous=OFF; INSERT INTO t VALUES(100, randomblob(9000))");
    checkpoint(&client, "PASSIVE");
    let before = node.db().drain().unwrap();
    let vacant = node.vacate();
    client.exec("INSERT INTO t VALUES(1, 1)");
    client.exec("INSERT INTO t VALUES(2, 2)");
    let node = vacant.resume(PRIMARY);
    assert_eq!(node.db().drain().unwrap().txid, Txid(before.txid.0 + 2));
    same(&node, &Node::new());
}

/// Its frames were captured when they were durable, it died before it published them, and another writer overwrote them. `lags`: the daemon
/// had not come to note that clients knew of the transactions before.
#[test]
fn a_commit_that_was_lost_with_its_writer_and_the_daemon_is_taken_back() {
    for (bytes, lags) in [(10, false), (9000, false), (10, true), (9000, true)] {
        let (node, client) = primary(Coherence::Passthrough, NORMAL);
        let home = common::homes(node.dir.path()).remove(0);
        let noted = std::fs::read(home.join("scratch")).unwrap();
        client.exec("INSERT INTO t VALUES(1, randomblob(500))");
        let before = node.db().drain().unwrap().txid.0;
        let victim = node.mount();
        victim.exec("PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0; SELECT count(*) FROM t");
        node.edge.kill_next_committer();
        victim.send("INSERT INTO t VALUES(2, randomblob(9000))");
        victim.await_death();
        let vacant = node.vacate();
        if lags {
            std::fs::write(vacant.scratch(), noted).unwrap();
        }
        client.exec(&format!("INSERT INTO t VALUES(3, randomblob({bytes}))"));
        let node = vacant.resume(PRIMARY);
        same(&node, &Node::new());
        let context = format!("{bytes}, lags: {lags}");
        assert_eq!(client.query("SELECT group_concat(x) FROM t"), "1,3", "{context}");
        // The lost one, what takes it back, and the new one.
        assert_eq!(node.db().drain().unwrap().txid, Txid(before + 3), "{context}");
    }
}

#[test]
fn a_wal_that_is_gone_is_no_loss() {
    let (node, client) = primary(Coherence::Passthrough, NORMAL);
    client.exec("INSERT INTO t VALUES(1, 1)");
    let other = node.mount();
    other.exec("SELECT count(*) FROM t");
    let node = node.replace();
    drop(client);
    drop(other);
    let before = node.db().drain().unwrap();
    let node = node.replace();
    assert_eq!(node.db().drain().unwrap(), before);
    same(&node, &Node::new());
}

/// Runs something in which the daemon dies.
fn dies(node: &Node, run: impl FnOnce()) {
    let outcome = catch_unwind(AssertUnwindSafe(run));
    assert!(outcome.is_err(), "the daemon lives");
    assert!(!node.edge.is_dead());
}

/// The daemon dies at the `at`th call of the kernel.
fn die_at_call(node: &Node, at: u32) -> impl FnMut(Side) + Send + use<> {
    let kernel = Arc::downgrade(&node.kernel);
    let calls = AtomicU32::new(0);
    move |_| {
        if calls.fetch_add(1, Ordering::SeqCst) == at {
            if let Some(kernel) = kernel.upgrade() {
                kernel.die();
            }
            resume_unwind(Box::new(()));
        }
    }
}

fn follower(coherence: Coherence, from: &Node) -> (Node, Client) {
    let node = Node::kept(coherence, StoreOptions::default());
    replicate(from, &node);
    let reader = node.mount();
    count(&reader);
    (node, reader)
}

#[test]
fn a_record_that_is_half_applied_to_the_wal_is_applied_once_more() {
    for coherence in [Coherence::Passthrough, Coherence::Intercepted] {
        for at in 0..12 {
            let (source, client) = primary(Coherence::Passthrough, NORMAL);
            client.exec(ROWS);
            let (node, reader) = follower(coherence, &source);
            let reading = node.mount();
            reading.exec("BEGIN; SELECT count(*) FROM t");
            client.exec("UPDATE t SET y=randomblob(800) WHERE x < 30; DELETE FROM t WHERE x=30");
            let last = source.db().drain().unwrap();
            node.kernel.on_store(die_at_call(&node, at));
            let mut received = Ok(());
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                for txid in node.db().received().txid.0 + 1..=last.txid.0 {
                    let record = source.db().record(Txid(txid)).unwrap().unwrap();
                    received = node.store.receive(&name(), &mut record.reader()).map(drop);
                }
            }));
            received.unwrap();
            let died = outcome.is_err();
            let node = node.vacate().resume(Role::Replica);
            replicate(&source, &node);
            let context = format!("{coherence:?} at call {at}, died: {died}");
            assert_eq!(node.db().status().quarantine, None, "{context}");
            assert_eq!(node.digest(), source.digest(), "{context}");
            if coherence == Coherence::Passthrough {
                assert_eq!(count(&reading), 60, "{context}");
            }
            reading.exec("COMMIT");
            assert_eq!(count(&reader), 59, "{context}");
            integrity(&reader);
            client.exec("INSERT INTO t VALUES(1000, 1)");
            same(&source, &node);
            assert_eq!(count(&reader), 60, "{context}");
            // No lock is left behind.
            checkpoint(&reader, "TRUNCATE");
        }
    }
}

/// What the dead daemon published counts for readers, and nobody noted it.
#[test]
fn a_record_that_was_applied_and_not_noted_is_no_commit_of_a_client() {
    for mode in ["WAL", "DELETE"] {
        let (source, client) = primary(Coherence::Passthrough, &format!("PRAGMA journal_mode={mode}"));
        client.exec(ROWS);
        let (node, reader) = follower(Coherence::Passthrough, &source);
        let home = common::homes(node.dir.path()).remove(0);
        let noted = std::fs::read(home.join("scratch")).unwrap();
        client.exec("UPDATE t SET y=randomblob(800) WHERE x < 30");
        replicate(&source, &node);
        let vacant = node.vacate();
        std::fs::write(vacant.scratch(), noted).unwrap();
        let node = vacant.resume(Role::Replica);
        wait_applied(&node);
        assert_eq!(node.db().status().quarantine, None);
        same(&source, &node);
        integrity(&reader);
        client.exec("DELETE FROM t WHERE x > 30");
        same(&source, &node);
        assert_eq!(count(&reader), 30);
    }
}

/// The writer of the wal-index died between the two copies of its header.
#[test]
fn a_torn_wal_index_is_mended() {
    use std::os::unix::fs::FileExt;
    let (source, client) = primary(Coherence::Passthrough, NORMAL);
    client.exec(ROWS);
    let (node, reader) = follower(Coherence::Passthrough, &source);
    let home = common::homes(node.dir.path()).remove(0);
    let noted = std::fs::read(home.join("scratch")).unwrap();
    let shm = node.path().with_file_name("a.db-shm");
    let shm = std::fs::File::options().read(true).write(true).open(shm).unwrap();
    let mut first = [0; 48];
    shm.read_exact_at(&mut first, 0).unwrap();
    client.exec("UPDATE t SET y=randomblob(800) WHERE x < 30");
    replicate(&source, &node);
    let vacant = node.vacate();
    std::fs::write(vacant.scratch(), noted).unwrap();
    shm.write_all_at(&first, 0).unwrap();
    let node = vacant.resume(Role::Replica);
    wait_applied(&node);
    same(&source, &node);
    integrity(&reader);
    assert_eq!(node.db().status().quarantine, None);
}

/// The dead daemon was about to start the WAL over, and had told so in the header of the wal-index alone.
#[test]
fn a_wal_that_was_about_to_start_over_starts_over() {
    use sqlite_format::wal_index::{IndexHeader, SECOND_HEADER, read_headers};
    use std::os::unix::fs::FileExt;
    let (source, client) = primary(Coherence::Passthrough, NORMAL);
    client.exec(ROWS);
    let (node, reader) = follower(Coherence::Passthrough, &source);
    client.exec("UPDATE t SET y=randomblob(800) WHERE x < 50");
    same(&source, &node);
    checkpoint(&reader, "PASSIVE");
    let vacant = node.vacate();
    let shm = vacant.dir.path().join("files/a.db-shm");
    let shm = std::fs::File::options().read(true).write(true).open(shm).unwrap();
    let mut bytes = [0; 96];
    shm.read_exact_at(&mut bytes, 0).unwrap();
    let header = read_headers(&bytes).unwrap();
    let emptied = IndexHeader {
        max_frame: 0,
        salt: [header.salt[0].wrapping_add(1), 77],
        ..header
    };
    shm.write_all_at(&emptied.encode(), SECOND_HEADER as u64).unwrap();
    shm.write_all_at(&emptied.encode(), 0).unwrap();
    let node = vacant.resume(Role::Replica);
    client.exec("DELETE FROM t WHERE x > 20");
    same(&source, &node);
    assert_eq!(count(&reader), 20);
    integrity(&reader);
}

/// Nobody reads a main file in which only some pages are written, from the death of the daemon until all are.
#[test]
fn a_record_that_is_half_written_to_the_main_file_is_read_by_nobody() {
    use std::os::unix::fs::FileExt;
    let (source, client) = primary(Coherence::Passthrough, "PRAGMA journal_mode=DELETE");
    client.exec(ROWS);
    let (node, reader) = follower(Coherence::Passthrough, &source);
    reader.exec("PRAGMA busy_timeout=0");
    let home = common::homes(node.dir.path()).remove(0);
    let mut noted = std::fs::read(home.join("scratch")).unwrap();
    let old = std::fs::read(node.path()).unwrap();
    client.exec("UPDATE t SET y=randomblob(800) WHERE x < 30");
    node.kernel.on_invalidate(die_at_call(&node, 0));
    dies(&node, || send_last(&source, &node));
    let begun = std::fs::read(home.join("scratch")).unwrap();
    let mut vacant = node.vacate();
    assert!(
        reader.try_exec("SELECT count(*) FROM t").is_err(),
        "it may be half written"
    );
    // The last pages are not written, and the record is noted as begun.
    let file = std::fs::File::options()
        .write(true)
        .open(vacant.dir.path().join("files/a.db"))
        .unwrap();
    file.write_all_at(&old[old.len() - 8 * 4096..], (old.len() - 8 * 4096) as u64)
        .unwrap();
    noted[11 * 8..13 * 8].copy_from_slice(&begun[11 * 8..13 * 8]);
    std::fs::write(vacant.scratch(), noted).unwrap();
    // The kernel is told before the record is written once more, and after.
    let (sender, looks) = std::sync::mpsc::channel();
    let mut reader = Some(reader);
    vacant.on_invalidate = Some(Box::new(move |_| {
        if let Some(reader) = reader.take() {
            let found = reader.try_exec("SELECT count(*) FROM t");
            let _ = sender.send((reader, found));
        }
    }));
    let node = vacant.resume(Role::Replica);
    let (reader, found) = looks.recv().unwrap();
    assert!(found.is_err(), "{found:?} while it is half written");
    wait_applied(&node);
    reader.exec("PRAGMA busy_timeout=5000");
    integrity(&reader);
    same(&source, &node);
}

#[test]
fn the_kernel_is_told_of_what_was_written_before_anybody_reads() {
    let (source, client) = primary(Coherence::Passthrough, "PRAGMA journal_mode=DELETE");
    client.exec(ROWS);
    let (node, reader) = follower(Coherence::Passthrough, &source);
    client.exec("DELETE FROM t WHERE x > 20");
    node.kernel.on_invalidate(die_at_call(&node, 0));
    dies(&node, || send_last(&source, &node));
    let node = node.vacate().resume(Role::Replica);
    wait_applied(&node);
    assert_eq!(count(&reader), 20);
    same(&source, &node);
}

#[test]
fn a_removal_that_was_cut_off_is_finished() {
    for mode in ["WAL", "DELETE"] {
        let (source, client) = primary(Coherence::Passthrough, &format!("PRAGMA journal_mode={mode}"));
        client.exec(ROWS);
        let (node, reader) = follower(Coherence::Passthrough, &source);
        drop((client, reader));
        let home = common::homes(node.dir.path()).remove(0);
        let noted = std::fs::read(home.join("scratch")).unwrap();
        source.store.drop_database(&name()).unwrap();
        replicate(&source, &node);
        let vacant = node.vacate();
        std::fs::write(vacant.scratch(), noted).unwrap();
        let node = vacant.resume(Role::Replica);
        wait_applied(&node);
        assert!(!node.path().exists(), "{mode}");
        let client = source.mount();
        client.exec("CREATE TABLE t(x INTEGER PRIMARY KEY, y); INSERT INTO t VALUES(1, 1)");
        same(&source, &node);
    }
}

#[test]
fn a_snapshot_that_waits_is_applied_by_the_successor() {
    for mode in ["WAL", "DELETE"] {
        let (source, client) = primary(Coherence::Passthrough, &format!("PRAGMA journal_mode={mode}"));
        client.exec(ROWS);
        let (node, reader) = follower(Coherence::Passthrough, &source);
        client.exec("DELETE FROM t WHERE x > 20");
        node.kernel.on_store(die_at_call(&node, 0));
        node.kernel.on_invalidate(die_at_call(&node, 0));
        dies(&node, || send_snapshot(&source, &node));
        let node = node.vacate().resume(Role::Replica);
        wait_applied(&node);
        assert_eq!(count(&reader), 20, "{mode}");
        same(&source, &node);
    }
}

#[test]
fn a_record_that_clients_kept_waiting_is_applied_by_the_successor() {
    let (source, client) = primary(Coherence::Passthrough, "PRAGMA journal_mode=DELETE");
    client.exec(ROWS);
    let (node, reader) = follower(Coherence::Passthrough, &source);
    reader.exec("BEGIN; SELECT count(*) FROM t");
    client.exec("DELETE FROM t WHERE x > 20");
    send_last(&source, &node);
    let node = node.replace();
    assert_eq!(count(&reader), 60);
    assert_ne!(node.db().position(), source.db().position());
    let node = node.replace();
    reader.exec("COMMIT");
    wait_applied(&node);
    assert_eq!(count(&reader), 20);
    same(&source, &node);
}

/// A former primary with its client, and the primary after it.
fn succeeded() -> (Node, Node, Client) {
    let (node, client) = primary(Coherence::Passthrough, NORMAL);
    client.exec(ROWS);
    let new = Node::new();
    same(&node, &new);
    node.store.set_role(Role::Replica).unwrap();
    new.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    (node, new, client)
}

#[test]
fn a_fence_has_no_gap() {
    let (node, new, client) = succeeded();
    let over = Arc::new(AtomicBool::new(false));
    let stop = over.clone();
    let writer = std::thread::spawn(move || {
        let mut refused = 0;
        while !stop.load(Ordering::SeqCst) {
            client.try_exec("INSERT INTO t(y) VALUES('unheard')").unwrap_err();
            refused += 1;
        }
        (client, refused)
    });
    let mut node = node;
    for _ in 0..5 {
        node = node.replace();
        new.mount().exec("INSERT INTO t(y) VALUES('heard')");
        same(&new, &node);
    }
    over.store(true, Ordering::SeqCst);
    let (client, refused) = writer.join().unwrap();
    assert!(refused > 5);
    assert_eq!(count(&client), 65);
    node.store.set_role(Role::Primary { epoch: 3 }).unwrap();
    client.exec("INSERT INTO t(y) VALUES('again')");
    let node = node.replace();
    client.exec("INSERT INTO t(y) VALUES('and again')");
    same(&node, &Node::new());
}

/// It was the primary, and died before its demotion was complete: what is committed until everybody is fenced counts.
#[test]
fn a_demotion_that_was_cut_off_is_completed_before_another_primary_is_heard() {
    let (node, client) = primary(Coherence::Passthrough, NORMAL);
    client.exec(ROWS);
    let new = Node::new();
    same(&node, &new);
    let vacant = node.vacate();
    client.exec("INSERT INTO t VALUES(100, 'committed')");
    let before = new.db().position();
    let node = vacant.resume(Role::Replica);
    new.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    new.mount().exec("INSERT INTO t VALUES(200, 'heard')");
    let last = new.db().drain().unwrap();
    let record = new.db().record(last.txid).unwrap().unwrap();
    // The commit is in the log, so the record does not follow.
    let refused = node.store.receive(&name(), &mut record.reader());
    assert!(
        matches!(refused, Err(Error::PositionMismatch { .. })),
        "{refused:?}"
    );
    assert_eq!(node.db().received().txid, Txid(before.txid.0 + 1));
    client
        .try_exec("INSERT INTO t VALUES(101, 'unheard')")
        .unwrap_err();
    assert!(node.store.archive_tail(&name(), before.txid).unwrap().is_some());
    send_snapshot(&new, &node);
    wait_applied(&node);
    same(&new, &node);
}

/// Opener and daemon of a former primary die together: what clients commit before the next daemon has fenced them is not thrown away.
#[test]
fn a_fence_that_ended_with_the_opener_is_renewed() {
    let (node, new, client) = succeeded();
    client
        .try_exec("INSERT INTO t VALUES(100, 'unheard')")
        .unwrap_err();
    let before = new.db().position();
    let vacant = node.vacate().lose_opener();
    client.exec("INSERT INTO t VALUES(101, 'in the gap')");
    let node = vacant.resume(Role::Replica);
    let deadline = Instant::now() + Duration::from_secs(10);
    while client.try_exec("INSERT INTO t VALUES(NULL, 'more')").is_ok() {
        assert!(Instant::now() < deadline, "nobody fences the client");
    }
    let seen = count(&client) as u64;
    while node.db().received().txid.0 - before.txid.0 < seen - 60 {
        assert!(Instant::now() < deadline, "acknowledged and not in the log");
    }
    new.mount().exec("INSERT INTO t VALUES(200, 'heard')");
    assert!(node.store.archive_tail(&name(), before.txid).unwrap().is_some());
    send_snapshot(&new, &node);
    wait_applied(&node);
    same(&new, &node);
    client
        .try_exec("INSERT INTO t VALUES(102, 'unheard')")
        .unwrap_err();
}

fn with_all_locks(vacant: Vacant) -> Vacant {
    let locks = vacant.kept_locks();
    for (side, start, len) in [(Side::Database, 0x4000_0000, 512), (Side::Shm, 120, 9)] {
        assert!(locks.try_lock(side, start, len, true).unwrap());
    }
    vacant
}

#[test]
fn what_a_dead_daemon_had_locked_is_released() {
    for mode in ["DELETE", "WAL"] {
        for role in [PRIMARY, Role::Replica] {
            let (node, client) = primary(Coherence::Passthrough, &format!("PRAGMA journal_mode={mode}"));
            client.exec(ROWS);
            // Lock files are open.
            node.store.set_role(Role::Replica).unwrap();
            node.store.set_role(PRIMARY).unwrap();
            node.db().reconcile().unwrap();
            checkpoint(&client, "PASSIVE");
            let path = node.path();
            if role == Role::Replica {
                node.store.set_role(role).unwrap();
            }
            drop(client);
            let _ = std::fs::File::create_new(path.with_file_name("a.db-shm"));
            let _ = engine::Kernel::open_locks(&*node.kernel, &name()).unwrap();
            let node = with_all_locks(node.vacate()).resume(role);
            let client = node.mount();
            assert_eq!(count(&client), 60, "{mode} {role:?}");
            if role.is_primary() {
                client.exec("INSERT INTO t VALUES(1000, 1)");
                same(&node, &Node::new());
            }
        }
    }
}

/// A disk whose syncs of the log fail on command.
#[derive(Debug, Clone, Default)]
struct Faulty(Arc<AtomicBool>);

impl Watch for Faulty {
    fn syncing(&self, op: Op, path: &std::path::Path) -> Result<()> {
        match self.0.load(Ordering::SeqCst) && op.starts_with("log.") {
            true => Err(DiskError::new(op, path, io::Error::from_raw_os_error(libc::EIO))),
            false => Ok(()),
        }
    }
}

#[test]
fn a_database_whose_sync_failed_is_not_written_after_a_takeover() {
    let disk = Faulty::default();
    let options = StoreOptions {
        disk: Arc::new(Watched(disk.clone())),
        ..StoreOptions::default()
    };
    let node = Node::kept(Coherence::Passthrough, options);
    node.store.set_role(PRIMARY).unwrap();
    let client = node.mount();
    client.exec("CREATE TABLE t(x INTEGER PRIMARY KEY, y); INSERT INTO t VALUES(0, 0)");
    disk.0.store(true, Ordering::SeqCst);
    let _ = client.try_exec("INSERT INTO t VALUES(1, 1)");
    disk.0.store(false, Ordering::SeqCst);
    let mut node = node;
    for _ in 0..2 {
        node = node.replace();
        assert_eq!(node.store.closed_databases(), [name()]);
        client.try_exec("INSERT INTO t VALUES(2, 2)").unwrap_err();
        assert!(count(&client) >= 1);
    }
    drop(client);
    let node = Node::open(node.kill());
    node.store.set_role(PRIMARY).unwrap();
    let client = node.mount();
    client.exec("INSERT INTO t VALUES(3, 3)");
    same(&node, &Node::new());
}

#[test]
fn a_replica_that_diverged_does_not_follow_on_after_a_takeover() {
    let (old, client) = primary(Coherence::Passthrough, "PRAGMA journal_mode=WAL");
    client.exec(ROWS);
    let new = Node::new();
    same(&old, &new);
    client.exec("BEGIN; UPDATE t SET y='unheard' WHERE x < 40");
    old.store.set_role(Role::Replica).unwrap();
    new.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    client.exec("COMMIT");
    new.mount().exec("DELETE FROM t WHERE x > 50");
    send_last(&new, &old);
    let deadline = Instant::now() + Duration::from_secs(10);
    while old.db().status().quarantine.is_none() {
        assert!(Instant::now() < deadline, "it is noticed");
        std::thread::sleep(Duration::from_millis(2));
    }
    let old = old.replace();
    assert!(old.db().status().quarantine.is_some());
    assert!(old.db().received().is_zero());
    send_snapshot(&new, &old);
    wait_applied(&old);
    assert_eq!(old.db().status().quarantine, None);
    assert_eq!(count(&client), 50);
    same(&new, &old);
}

#[test]
fn wal_and_index_stay_while_clients_need_them() {
    let (node, client) = primary(Coherence::Passthrough, NORMAL);
    client.exec(ROWS);
    let other = node.mount();
    assert_eq!(count(&other), 60);
    let db = node.db();
    // Lock files are open.
    node.store.set_role(Role::Replica).unwrap();
    node.store.set_role(PRIMARY).unwrap();
    let beside = |suffix: &str| node.path().with_file_name(format!("a.db{suffix}"));
    let remove = |suffix: &str| std::fs::remove_file(beside(suffix));
    let wal = std::fs::File::options().write(true).open(beside("-wal")).unwrap();
    let shm = std::fs::File::options().write(true).open(beside("-shm")).unwrap();
    let busy = |outcome: engine::Result<()>| {
        assert!(matches!(outcome, Err(Error::Busy { .. })), "{outcome:?}");
    };
    busy(db.unlink_wal(&mut || remove("-wal")));
    busy(db.unlink_shm(&mut || remove("-shm")));
    busy(db.truncate_wal(&wal, 0));
    busy(db.truncate_shm(&shm, 0));
    // Longer takes nothing away.
    db.truncate_shm(&shm, shm.metadata().unwrap().len()).unwrap();
    checkpoint(&client, "TRUNCATE");
    assert_eq!(beside("-wal").metadata().unwrap().len(), 0);
    client.exec("INSERT INTO t VALUES(1000, 1)");
    drop(client);
    other.exec("PRAGMA journal_mode=DELETE");
    assert!(!beside("-wal").exists());
    db.unlink_shm(&mut || Ok(())).unwrap();
    same(&node, &Node::new());
}

/// The daemon stops in order, and clients hold on to the mount.
#[test]
fn a_clean_stop_lets_nobody_commit_who_holds_on() {
    for setup in [
        "PRAGMA journal_mode=DELETE",
        "PRAGMA journal_mode=MEMORY",
        "PRAGMA journal_mode=OFF",
        NORMAL,
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout=0",
    ] {
        let (node, client) = primary(Coherence::Passthrough, setup);
        client.exec(ROWS);
        node.store.set_role(Role::Replica).unwrap();
        let expected = node.digest();
        let refused = || client.try_exec("INSERT INTO t VALUES(1000, 1)").unwrap_err();
        refused();
        node.store.flush().unwrap();
        refused();
        assert_eq!(count(&client), 60, "{setup}");
        drop(client);
        node.store.close().unwrap();
        let again = Node::open(node.kill());
        again.store.set_role(PRIMARY).unwrap();
        assert_eq!(again.digest(), expected, "{setup}");
    }
}

/// Whom only the seal keeps from committing it keeps through a takeover, and no longer than it must.
#[test]
fn a_seal_holds_through_a_takeover() {
    let options = StoreOptions {
        seal: true,
        ..StoreOptions::default()
    };
    let node = Node::kept(Coherence::Passthrough, options);
    node.store.set_role(PRIMARY).unwrap();
    let client = node.mount();
    client.exec("PRAGMA journal_mode=WAL; PRAGMA busy_timeout=10; CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    client.exec(ROWS);
    client.exec("PRAGMA locking_mode=EXCLUSIVE; PRAGMA synchronous=NORMAL; INSERT INTO t VALUES(500, 1)");
    let new = Node::new();
    replicate(&node, &new);
    node.store.set_role(Role::Replica).unwrap();
    if client.try_exec("INSERT INTO t VALUES(1000, 'unheard')").is_ok() {
        eprintln!("skipped: this file system or process cannot seal");
        return;
    }
    let mut node = node;
    for _ in 0..2 {
        let vacant = node.vacate();
        client
            .try_exec("INSERT INTO t VALUES(1001, 'unheard')")
            .unwrap_err();
        node = vacant.resume(Role::Replica);
        client
            .try_exec("INSERT INTO t VALUES(1002, 'unheard')")
            .unwrap_err();
        assert_eq!(count(&client), 61);
    }
    node.store.flush().unwrap();
    client
        .try_exec("INSERT INTO t VALUES(1003, 'unheard')")
        .unwrap_err();
    let node = node.replace();
    node.store.set_role(Role::Primary { epoch: 3 }).unwrap();
    client.exec("INSERT INTO t VALUES(1004, 'heard')");
    node.db().drain().unwrap();
    assert_eq!(count(&client), 62);
    client.exec("PRAGMA locking_mode=NORMAL; SELECT count(*) FROM t");
    same(&node, &Node::new());
}

/// What is under way when a daemon dies goes on, and is committed, or rolled back, before the next one and behind it.
#[test]
fn a_transaction_goes_on_over_several_daemons() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "WAL"] {
        for end in ["COMMIT", "ROLLBACK"] {
            let setup = format!("PRAGMA journal_mode={mode}; PRAGMA cache_size=1; PRAGMA cache_spill=1");
            let (mut node, client) = primary(Coherence::Passthrough, &setup);
            client.exec(ROWS);
            let before = node.db().drain().unwrap();
            client.exec("BEGIN");
            for part in 0..3 {
                client.exec(&format!("UPDATE t SET y=randomblob(900) WHERE x % 3 = {part}"));
                node = node.replace();
                assert_eq!(node.db().drain().unwrap(), before, "{mode}");
            }
            client.exec(end);
            let after = node.db().drain().unwrap().txid.0 - before.txid.0;
            // A rollback without a journal file may be captured, if it changed something and was seen half done: never here.
            assert_eq!(after, u64::from(end == "COMMIT"), "{mode} {end}");
            same(&node, &Node::new());
            integrity(&client);
        }
    }
}

/// The node changes its role, and is replaced before and after.
#[test]
fn roles_change_around_takeovers() {
    for mode in ["DELETE", "TRUNCATE", "MEMORY", "WAL"] {
        let (mut a, client) = primary(Coherence::Passthrough, &format!("PRAGMA journal_mode={mode}"));
        client.exec(ROWS);
        let mut b = Node::kept(Coherence::Passthrough, StoreOptions::default());
        same(&a, &b);
        let other = b.mount();
        let mut rows = count(&other);
        for round in 0..3u64 {
            a = a.replace();
            client.exec(&format!("INSERT INTO t VALUES({}, 'a')", 1000 + round));
            a.db().drain().unwrap();
            a.store.set_role(Role::Replica).unwrap();
            a = a.replace();
            same(&a, &b);
            b = b.replace();
            b.store.set_role(Role::Primary { epoch: 2 * round + 2 }).unwrap();
            b = b.replace();
            other.exec(&format!("INSERT INTO t VALUES({}, 'b')", 2000 + round));
            same(&b, &a);
            b.store.set_role(Role::Replica).unwrap();
            a.store.set_role(Role::Primary { epoch: 2 * round + 3 }).unwrap();
            rows += 2;
            assert_eq!((count(&client), count(&other)), (rows, rows), "{mode} {round}");
        }
    }
}
