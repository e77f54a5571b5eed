//! What a start makes of a data directory that a crash left at the worst moment: files of an earlier moment than the log,
//! after a kill or after a power loss.

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use common::{Client, Node, count, homes, integrity, list, lose_power, name, replicate, send_snapshot};
use engine::{LockFiles, OfdLocks, Retention, Role, Side, Store, StoreOptions};
use sqlite_format::locks::RESERVED_BYTE;
use tempfile::TempDir;

/// The files and what was noted about them, at some moment; the log is not in it.
struct Moment(TempDir);

impl Moment {
    fn of(dir: &Path) -> Moment {
        let copy = tempfile::tempdir().unwrap();
        for path in volatile(dir) {
            let to = copy.path().join(path.strip_prefix(dir).unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(&path, to).unwrap();
        }
        Moment(copy)
    }

    fn restore(&self, dir: &Path) {
        for path in volatile(dir) {
            fs::remove_file(path).unwrap();
        }
        for path in volatile(self.0.path()) {
            fs::copy(&path, dir.join(path.strip_prefix(self.0.path()).unwrap())).unwrap();
        }
    }
}

fn volatile(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = list(&dir.join("files"));
    paths.extend(homes(dir).into_iter().map(|home| home.join("scratch")));
    paths.retain(|path| path.is_file());
    paths
}

fn wal_primary() -> (Node, Client) {
    let primary = Node::primary();
    let client = primary.mount();
    client.exec(
        "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(x INTEGER PRIMARY KEY, y)",
    );
    client.exec("INSERT INTO t VALUES(1, 'one')");
    (primary, client)
}

fn reopen(dir: TempDir) -> Node {
    let node = Node::open(dir);
    node.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    node
}

/// Position, content and what replicas get agree.
fn check(node: &Node, rows: i64) {
    let client = node.mount();
    integrity(&client);
    assert_eq!(count(&client), rows);
    client.exec("INSERT INTO t VALUES(1000, 'after')");
    let replica = Node::new();
    replicate(node, &replica);
    assert_eq!(node.digest(), replica.digest());
    assert_eq!(count(&replica.connect()), rows + 1);
    integrity(&replica.connect());
}

/// The log was synced, for another database's sake or by rotation, and the WAL was not.
#[test]
fn a_wal_that_lost_what_the_log_has_is_made_up_for_by_the_log() {
    for lost in [1, 24, 4000, 4120, 9000, 13000] {
        let (primary, client) = wal_primary();
        for x in 2..6 {
            client.exec(&format!("INSERT INTO t VALUES({x}, randomblob(3000))"));
        }
        let position = primary.db().drain().unwrap();
        let wal = name().file_in(primary.store.files_dir(), Side::Wal);
        client.kill();
        let dir = primary.kill();
        let len = fs::metadata(&wal).unwrap().len();
        let file = fs::OpenOptions::new().write(true).open(&wal).unwrap();
        file.set_len(len - lost).unwrap();
        lose_power(dir.path());
        let again = reopen(dir);
        assert_eq!(again.db().position(), position, "{lost} bytes lost");
        check(&again, 5);
    }
}

/// Blocks reach the disk in any order: a later frame may be there when an earlier one is not.
#[test]
fn frames_that_never_reached_the_disk_are_not_believed() {
    let (primary, client) = wal_primary();
    for x in 2..6 {
        client.exec(&format!("INSERT INTO t VALUES({x}, randomblob(3000))"));
    }
    let position = primary.db().drain().unwrap();
    let wal = name().file_in(primary.store.files_dir(), Side::Wal);
    client.kill();
    let dir = primary.kill();
    let mut bytes = fs::read(&wal).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0);
    fs::write(&wal, bytes).unwrap();
    lose_power(dir.path());
    let again = reopen(dir);
    assert_eq!(again.db().position(), position);
    check(&again, 5);
}

/// With `synchronous=NORMAL` the log has not more than the page cache either.
#[test]
fn what_the_log_lost_is_derived_from_the_wal_with_the_same_positions() {
    let (primary, client) = wal_primary();
    let mut positions = vec![primary.db().drain().unwrap()];
    let log = homes(primary.dir.path())[0].join("log");
    let segment = list(&log)[0].clone();
    let durable = fs::metadata(&segment).unwrap().len();
    for x in 2..6 {
        client.exec(&format!("INSERT INTO t VALUES({x}, randomblob(3000))"));
        positions.push(primary.db().drain().unwrap());
    }
    client.kill();
    let dir = primary.kill();
    let file = fs::OpenOptions::new().write(true).open(&segment).unwrap();
    file.set_len(durable).unwrap();
    lose_power(dir.path());
    let again = reopen(dir);
    assert_eq!(again.db().position(), *positions.last().unwrap());
    for position in positions {
        let record = again.db().record(position.txid).unwrap().unwrap();
        assert_eq!(record.info.pos(), position);
    }
    check(&again, 5);
}

/// The clean stop that the file tells of may be an old one: that the process started again was never written back.
#[test]
fn a_clean_stop_counts_only_until_the_machine_restarts() {
    let primary = Node::primary();
    primary.mount().exec("CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    let primary = reopen(primary.stop());
    let client = primary.mount();
    let before = Moment::of(primary.dir.path());
    client.exec("PRAGMA synchronous=OFF; INSERT INTO t VALUES(1, 'one')");
    let position = primary.db().drain().unwrap();
    client.kill();
    let dir = primary.kill();
    // Nothing but the log reached the disk.
    before.restore(dir.path());
    for home in homes(dir.path()) {
        let path = home.join("scratch");
        let mut bytes = fs::read(&path).unwrap();
        bytes[24..32].copy_from_slice(&1u64.to_ne_bytes());
        fs::write(path, bytes).unwrap();
    }
    lose_power(dir.path());
    let again = reopen(dir);
    assert_eq!(again.db().position(), position);
    check(&again, 1);
}

/// Without syncs a page may reach the disk, and the record of its transaction not.
#[test]
fn pages_that_the_log_lost_are_captured_once_they_are_found() {
    let primary = Node::primary();
    let client = primary.mount();
    client.exec("PRAGMA synchronous=OFF; CREATE TABLE t(x INTEGER PRIMARY KEY, y); INSERT INTO t VALUES(1, randomblob(9000))");
    let before = primary.db().drain().unwrap();
    // From here on a start takes the files for right, up to this transaction.
    primary.store.maintain(&Retention::default());
    let segment = list(&homes(primary.dir.path())[0].join("log"))[0].clone();
    let durable = fs::metadata(&segment).unwrap().len();
    client.exec("UPDATE t SET y=zeroblob(9000)");
    assert_eq!(primary.db().drain().unwrap().txid.0, before.txid.0 + 1);
    client.kill();
    let dir = primary.kill();
    let file = fs::OpenOptions::new().write(true).open(&segment).unwrap();
    file.set_len(durable).unwrap();
    lose_power(dir.path());
    let again = reopen(dir);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while again.db().drain().unwrap() == before {
        assert!(std::time::Instant::now() < deadline, "nobody found the pages");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    check(&again, 1);
}

/// A replica's record is in its log before it is in its files.
#[test]
fn a_received_record_is_applied_by_the_next_start() {
    for (setup, power) in [("DELETE", false), ("DELETE", true), ("WAL", false), ("WAL", true)] {
        let primary = Node::primary();
        let client = primary.mount();
        client.exec(&format!(
            "PRAGMA journal_mode={setup}; CREATE TABLE t(x INTEGER PRIMARY KEY, y); INSERT INTO t VALUES(1, 1)"
        ));
        let replica = Node::new();
        replicate(&primary, &replica);
        let before = Moment::of(replica.dir.path());
        for x in 2..5 {
            client.exec(&format!(
                "INSERT INTO t VALUES({x}, randomblob(9000)); DELETE FROM t WHERE x={}",
                x - 1
            ));
        }
        client.exec("INSERT INTO t VALUES(9, 9); VACUUM");
        replicate(&primary, &replica);
        let digest = replica.digest();
        let dir = replica.kill();
        before.restore(dir.path());
        if power {
            lose_power(dir.path());
        }
        let again = Node::open(dir);
        assert_eq!(again.digest(), digest, "{setup}, power lost: {power}");
        integrity(&again.connect());
        client.exec("INSERT INTO t VALUES(10, 10)");
        replicate(&primary, &again);
        assert_eq!(again.digest(), primary.digest());
        check(&primary, 3);
    }
}

/// Its name stays taken: a new log would use its transaction IDs again.
#[test]
fn a_database_whose_log_is_damaged_is_read_only_until_a_primary_sends_it() {
    let (primary, client) = wal_primary();
    for x in 2..12 {
        client.exec(&format!("INSERT INTO t VALUES({x}, randomblob(3000))"));
    }
    let replica = Node::new();
    replicate(&primary, &replica);
    drop(client);
    let dir = primary.stop();
    let home = homes(dir.path()).remove(0);
    let log = list(&home.join("log")).remove(0);
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 6000].fill(0);
    fs::write(&log, bytes).unwrap();

    let damaged = Node::open(dir);
    let before = fs::read(damaged.path()).unwrap();
    for epoch in 2..4 {
        damaged.store.set_role(Role::Primary { epoch }).unwrap();
        assert!(damaged.store.database(&name()).is_none());
        assert!(damaged.store.attach(&name()).is_err());
        assert_eq!(damaged.store.damaged()[0].0, name());
        damaged.store.set_role(Role::Replica).unwrap();
    }
    assert_eq!(fs::read(damaged.path()).unwrap(), before);

    replica.store.set_role(Role::Primary { epoch: 4 }).unwrap();
    replica.mount().exec("INSERT INTO t VALUES(12, 12)");
    send_snapshot(&replica, &damaged);
    common::wait_applied(&damaged);
    assert_eq!(damaged.digest(), replica.digest());
    assert_eq!(count(&damaged.connect()), 12);
    assert!(damaged.store.damaged().is_empty());
    // What was there is not lost.
    let archive = damaged.dir.path().join("archive").join(name().as_str());
    let aside = archive.join(home.file_name().unwrap());
    assert!(aside.join("log").is_dir());
    assert_eq!(fs::read(aside.join("database")).unwrap(), before);
}

/// What a node knew before the machine restarted is gone, also that it had no WAL; its first own commits are in one.
#[test]
fn the_first_commits_after_a_restart_of_the_machine_and_a_promotion_are_kept() {
    let (primary, client) = wal_primary();
    let replica = Node::new();
    replicate(&primary, &replica);
    drop(client);
    // The last client to close removes the WAL.
    assert_eq!(count(&replica.mount()), 1);
    let wal = name().file_in(replica.store.files_dir(), Side::Wal);
    assert!(!wal.exists());
    let dir = replica.stop();
    lose_power(dir.path());
    let promoted = reopen(dir);
    // Nothing tells the engine of the commit before the daemon is killed.
    let client = promoted.connect();
    client.exec("PRAGMA wal_autocheckpoint=0; INSERT INTO t VALUES(2, 'two')");
    let dir = promoted.kill();
    client.kill();
    let again = reopen(dir);
    check(&again, 2);
}

#[test]
fn a_removal_that_was_received_is_finished_by_the_next_start() {
    let primary = Node::primary();
    primary.mount().exec("CREATE TABLE t(x)");
    let replica = Node::new();
    replicate(&primary, &replica);
    let before = Moment::of(replica.dir.path());
    primary.store.drop_database(&name()).unwrap();
    replicate(&primary, &replica);
    let dir = replica.kill();
    before.restore(dir.path());
    let again = Node::open(dir);
    assert!(!again.path().exists());
    primary.mount().exec("CREATE TABLE t(x); INSERT INTO t VALUES(1)");
    replicate(&primary, &again);
    assert_eq!(again.digest(), primary.digest());
}

/// The record of a removal comes before the removal.
#[test]
fn a_removal_that_was_not_finished_leaves_a_new_database() {
    for mode in ["DELETE", "WAL"] {
        let primary = Node::primary();
        let client = primary.mount();
        client.exec(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(x INTEGER PRIMARY KEY, y); INSERT INTO t VALUES(1, 1)"
        ));
        let before = primary.db().drain().unwrap();
        let stopped = primary
            .db()
            .unlink_database(&mut || Err(std::io::Error::from_raw_os_error(libc::EIO)));
        assert!(stopped.is_err());
        assert_eq!(
            primary.db().record(before.txid).unwrap().unwrap().info.pos(),
            before
        );
        client.kill();
        let again = reopen(primary.kill());
        again.db().drain().unwrap();
        assert!(again.db().position().txid > before.txid);
        check(&again, 1);
    }
}

/// The imported content is in the log, and nothing of it in the files.
#[test]
fn an_import_that_was_logged_is_finished_by_the_next_start() {
    for mode in ["DELETE", "WAL"] {
        let primary = Node::primary();
        let client = primary.mount();
        client.exec(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(x INTEGER PRIMARY KEY, y)"
        ));
        for x in 0..5 {
            client.exec(&format!("INSERT INTO t VALUES({x}, {x})"));
        }
        primary.db().drain().unwrap();
        let other = tempfile::NamedTempFile::new().unwrap();
        let source = rusqlite::Connection::open(other.path()).unwrap();
        source
            .execute_batch("CREATE TABLE t(x INTEGER PRIMARY KEY, y); INSERT INTO t VALUES(77, 'imported')")
            .unwrap();
        drop(source);
        let before = Moment::of(primary.dir.path());
        let position = primary
            .store
            .import(&name(), &mut File::open(other.path()).unwrap())
            .unwrap();
        client.kill();
        let dir = primary.kill();
        before.restore(dir.path());
        let again = reopen(dir);
        assert_eq!(again.db().position(), position, "{mode}");
        check(&again, 1);
    }
}

/// A start moves the WAL out of the mount and waits for no disk. Until its pages are durable in the main file they can be
/// copied again, whatever part of them was lost: by another kill, or with the power.
#[test]
fn what_a_start_copies_from_a_wal_is_copied_again_until_it_is_durable() {
    for power in [false, true] {
        let (primary, client) = wal_primary();
        for x in 2..40 {
            client.exec(&format!("INSERT INTO t VALUES({x}, randomblob(1000))"));
        }
        let digest = primary.digest();
        // No record is replayed by the next start: only the WAL has the pages.
        primary.store.maintain(&Retention::default());
        let main = fs::read(primary.path()).unwrap();
        let path = primary.path();
        client.kill();
        let dir = primary.kill();
        // Nothing runs that could flush.
        Store::open(dir.path(), StoreOptions::default())
            .unwrap()
            .abandon();
        assert_eq!(set_aside(dir.path()), 1);
        assert_ne!(
            fs::read(&path).unwrap(),
            main,
            "the content of the WAL is in the main file"
        );
        fs::write(&path, main).unwrap();
        if power {
            lose_power(dir.path());
        }
        let again = reopen(dir);
        assert_eq!(again.digest(), digest, "power lost: {power}");
        again.store.maintain(&Retention::default());
        assert_eq!(
            set_aside(again.dir.path()),
            0,
            "kept only until the main file is durable"
        );
        check(&again, 39);
    }
}

/// WALs that starts took out of the mount.
fn set_aside(dir: &Path) -> usize {
    let files = homes(dir).into_iter().flat_map(|home| list(&home));
    files
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("wal-"))
        .count()
}

/// The log begins with the whole database, so the main file can be written from it.
#[test]
fn a_lost_main_file_is_written_from_a_complete_log() {
    let primary = Node::primary();
    primary
        .mount()
        .exec("CREATE TABLE t(x INTEGER PRIMARY KEY, y); INSERT INTO t VALUES(1, randomblob(30000))");
    let digest = primary.digest();
    let path = primary.path();
    let dir = primary.kill();
    fs::remove_file(path).unwrap();
    let again = reopen(dir);
    assert_eq!(again.digest(), digest);
    check(&again, 1);
}

/// The process died between the two steps that make a database's home, and its successor makes another one.
#[test]
fn a_home_that_was_never_finished_is_removed() {
    let node = Node::primary();
    node.mount().exec("CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    let dir = node.kill();
    let databases = dir.path().join("databases");
    fs::create_dir(databases.join("empty")).unwrap();
    fs::create_dir(databases.join("half")).unwrap();
    fs::write(databases.join("half/name.tmp"), "b.").unwrap();
    fs::create_dir(databases.join("strange")).unwrap();
    fs::write(databases.join("strange/note"), "whatever this is, it is not ours").unwrap();
    let again = reopen(dir);
    check(&again, 0);
    let left = list(&again.dir.path().join("databases"));
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.iter().any(|home| home.ends_with("strange")), "{left:?}");
}

/// A database that came with a WAL, put in place while nobody looked.
#[test]
fn a_database_that_is_found_with_a_wal_begins_with_one_consistent_transaction() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("files")).unwrap();
    let path = name().file_in(&dir.path().join("files"), Side::Database);
    let writer = Client::connect(&path);
    writer.exec(
        "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(x INTEGER PRIMARY KEY, y)",
    );
    writer
        .exec("INSERT INTO t VALUES(1, randomblob(9000)); INSERT INTO t VALUES(2, 2); PRAGMA wal_checkpoint");
    writer.exec("INSERT INTO t VALUES(3, randomblob(9000)); DELETE FROM t WHERE x=1");
    let node = Node::open(dir);
    node.store.set_role(Role::Primary { epoch: 1 }).unwrap();
    assert_eq!(node.db().drain().unwrap().txid, ltx::Txid(1));
    writer.exec("INSERT INTO t VALUES(4, 4)");
    node.db().drain().unwrap();
    check(&node, 3);
}

/// Locks as a writer does: what it writes is not captured while it lives.
fn lock_as_writer(file: &File) -> OfdLocks {
    let shm = tempfile::tempfile().unwrap();
    let locks = OfdLocks::new(file.try_clone().unwrap(), shm).unwrap();
    assert!(locks.try_lock(Side::Database, RESERVED_BYTE, 1, true).unwrap());
    locks
}

/// How far a client without a journal came before the daemon was killed.
#[derive(PartialEq)]
enum Came {
    Written,
    /// And another client closed the database meanwhile.
    OtherClosed,
    Synced,
    /// SQLite cuts the file off after the sync, as the last step of a COMMIT that makes the database smaller.
    CutOff,
}

fn write_without_journal(came: Came) -> (Node, ltx::Pos, bool) {
    let node = Node::primary();
    let client = node.mount();
    client.exec("PRAGMA journal_mode=MEMORY; CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    client.exec("INSERT INTO t VALUES(1, randomblob(30000))");
    drop(client);
    let pos = node.db().drain().unwrap();
    let before = fs::read(node.path()).unwrap();
    let file = File::options().read(true).write(true).open(node.path()).unwrap();
    let lock = lock_as_writer(&file);
    for page in 3..5 {
        node.db().write_database(&file, page * 4096, &[7; 4096]).unwrap();
    }
    match came {
        Came::Written => {}
        Came::OtherClosed => node.db().close_database(),
        Came::Synced | Came::CutOff => node.db().sync_database(&file, true).unwrap(),
    }
    if came == Came::CutOff {
        let size = file.metadata().unwrap().len();
        node.db().truncate_database(&file, size).unwrap();
    }
    let home = node.kill();
    drop((lock, file));
    let node = Node::open(home);
    let same = fs::read(node.path()).unwrap() == before;
    (node, pos, same)
}

/// A client without a journal cannot roll back what it was writing when the daemon was killed; the log can.
#[test]
fn an_unfinished_transaction_without_a_journal_is_taken_back() {
    for came in [Came::Written, Came::OtherClosed] {
        let (node, pos, same) = write_without_journal(came);
        assert!(same);
        assert_eq!(node.db().position(), pos);
        integrity(&node.connect());
    }
}

/// The sync is the last thing that it does before COMMIT returns.
#[test]
fn a_transaction_without_a_journal_that_was_synced_is_kept() {
    for came in [Came::Synced, Came::CutOff] {
        let (node, pos, same) = write_without_journal(came);
        assert!(!same);
        assert_eq!(node.db().position().txid, pos.txid.next().unwrap());
    }
}
