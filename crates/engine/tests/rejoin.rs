//! A former primary is killed, or stops, while records of the new one wait for what its own clients have not finished. The next start
//! follows the log.

mod common;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use common::{
    Client, Node, ROWS, checkpoint, count, integrity, name, replicate, send_last, send_snapshot, wait_applied,
};
use engine::{LockFiles, OfdLocks, Retention, Role, Side, StoreOptions};
use sqlite_format::Pgno;
use sqlite_format::locks::RESERVED_BYTE;
use tempfile::TempDir;

/// The worker that tries to apply the record ends within its patience, which a process that is killed does not wait for.
fn kill(node: Node) -> TempDir {
    let dir = node.kill();
    std::thread::sleep(Duration::from_millis(400));
    dir
}

/// A former primary with a hot journal, and its client in the middle of the transaction; and the new primary.
fn demoted_in_a_transaction() -> (Node, Node, Client) {
    let options = StoreOptions {
        segment_bytes: 4096,
        ..StoreOptions::default()
    };
    let old = Node::primary_with(options);
    let client = old.mount();
    client.exec("PRAGMA cache_size=1; PRAGMA cache_spill=1; CREATE TABLE t(x INTEGER PRIMARY KEY, y); CREATE TABLE u(x INTEGER PRIMARY KEY, y)");
    client.exec(&ROWS.replace("INTO t", "INTO u"));
    client.exec("INSERT INTO u VALUES(100, 'in the next segment of the log')");
    let new = Node::new();
    replicate(&old, &new);
    client.exec("BEGIN IMMEDIATE; UPDATE u SET y='never'");
    let mut first = [0; 1];
    let journal = name().file_in(old.store.files_dir(), Side::Journal);
    File::open(journal).unwrap().read_exact(&mut first).unwrap();
    assert!(first[0] != 0, "the journal is hot");
    old.store.set_role(Role::Replica).unwrap();
    new.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    (old, new, client)
}

fn record_waits_for_a_hot_journal(end: fn(Node) -> TempDir) {
    let (old, new, client) = demoted_in_a_transaction();
    let writer = new.mount();
    writer.exec("INSERT INTO t VALUES(1, 'one')");
    send_last(&new, &old);
    assert!(old.db().position() != old.db().received(), "it waits");
    let dir = end(old);
    client.kill();
    let again = Node::open(dir);
    assert_eq!(again.db().position(), new.db().position());
    let reader = again.mount();
    assert_eq!(count(&reader), 1, "silently behind at the same position");
    writer.exec("INSERT INTO u VALUES(500, 'five')");
    send_last(&new, &again);
    wait_applied(&again);
    assert_eq!(again.digest(), new.digest());
    assert_eq!(count(&reader), 1);
    integrity(&reader);
}

#[test]
fn a_record_that_waited_for_a_hot_journal_is_in_the_files_after_a_kill() {
    record_waits_for_a_hot_journal(kill);
}

#[test]
fn a_record_that_waited_for_a_hot_journal_is_in_the_files_after_a_stop() {
    record_waits_for_a_hot_journal(Node::stop);
}

/// The start itself may be killed, and the next one finds its work half done.
#[test]
fn a_start_that_made_the_journal_give_way_counts_once() {
    let (old, new, client) = demoted_in_a_transaction();
    new.mount().exec("INSERT INTO t VALUES(1, 'one')");
    send_last(&new, &old);
    let dir = kill(old);
    client.kill();
    let dir = Node::open(dir).kill();
    let again = Node::open(dir);
    // A transaction without a journal that is committed now is newer than the log.
    again.store.set_role(Role::Primary { epoch: 3 }).unwrap();
    let writer = again.mount();
    writer.exec("PRAGMA journal_mode=MEMORY; PRAGMA synchronous=OFF");
    again.store.abandon();
    writer.exec("INSERT INTO t VALUES(2, 'two')");
    let dir = again.kill();
    writer.kill();
    let again = Node::open(dir);
    let reader = again.mount();
    assert_eq!(count(&reader), 2);
    integrity(&reader);
}

/// The state is made by hand: the journal is gone, as if its directory entry had never been on disk, and so are the older records.
#[test]
fn a_page_that_neither_log_nor_journal_has_makes_the_node_ask_for_a_snapshot() {
    let (old, new, client) = demoted_in_a_transaction();
    let everything = Retention {
        max_bytes: Some(0),
        ..Retention::default()
    };
    old.store.maintain(&everything);
    new.mount().exec("INSERT INTO t VALUES(1, 'one')");
    send_last(&new, &old);
    let dir = kill(old);
    client.kill();
    std::fs::remove_file(name().file_in(&dir.path().join("files"), Side::Journal)).unwrap();
    let again = Node::open(dir);
    assert!(again.db().status().quarantine.is_some());
    send_snapshot(&new, &again);
    wait_applied(&again);
    assert_eq!(again.digest(), new.digest());
    integrity(&again.mount());
}

/// What a client without a journal has half written at a demotion becomes no transaction on top of the new primary's. The client is
/// made by hand: a page is written under its lock, as when its cache spills.
#[test]
fn half_a_transaction_is_not_captured_on_top_of_the_new_primarys() {
    let old = Node::primary();
    let client = old.mount();
    client
        .exec("PRAGMA journal_mode=MEMORY; PRAGMA synchronous=OFF; CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    client.exec(ROWS);
    drop(client);
    let new = Node::new();
    replicate(&old, &new);
    let file = File::options().read(true).write(true).open(old.path()).unwrap();
    let locks = OfdLocks::new(file.try_clone().unwrap(), tempfile::tempfile().unwrap()).unwrap();
    assert!(locks.try_lock(Side::Database, RESERVED_BYTE, 1, true).unwrap());
    old.db().write_database(&file, 5 * 4096, &[7; 4096]).unwrap();
    old.store.set_role(Role::Replica).unwrap();
    new.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    new.mount().exec("DELETE FROM t WHERE x=1");
    send_last(&new, &old);
    let dir = kill(old);
    drop((locks, file));
    let again = Node::open(dir);
    assert_eq!(again.db().received(), new.db().position());
    assert_eq!(again.digest(), new.digest());
    integrity(&again.mount());
}

/// How far apply had come when everything that served the node was killed.
#[derive(Clone, Copy, Debug)]
enum Behind {
    /// The record waits for the client.
    Received,
    /// Its frames are there, and that was not noted.
    Applied,
    /// And the WAL had begun anew with them.
    AppliedAnew,
}

/// A primary and a node that follows it, with a client each. No client of the second checkpoints.
fn followed_in_wal_mode() -> ((Node, Client), (Node, Client)) {
    let source = Node::primary();
    let primary = source.mount();
    primary.exec("PRAGMA journal_mode=WAL; CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    primary.exec(ROWS);
    let node = Node::new();
    replicate(&source, &node);
    let client = node.mount();
    client.exec("PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0");
    ((source, primary), (node, client))
}

/// With everything that served the node the fence is gone, and a client with a handle of its own on the WAL commits behind a log that is
/// ahead of the files. The client is one that was never fenced.
#[test]
fn what_clients_commit_where_the_log_is_ahead_of_the_files_is_archived() {
    for behind in [Behind::Received, Behind::Applied, Behind::AppliedAnew] {
        let ((source, primary), (node, client)) = followed_in_wal_mode();
        assert_eq!(count(&client), 60);
        if let Behind::AppliedAnew = behind {
            checkpoint(&node.connect(), "RESTART");
        }
        let home = common::homes(node.dir.path()).remove(0);
        let noted = std::fs::read(home.join("scratch")).unwrap();
        let statement = "UPDATE t SET y='unheard of' WHERE x < 50; DELETE FROM t WHERE x > 55";
        if let Behind::Received = behind {
            client.exec(&format!("BEGIN IMMEDIATE; {statement}"));
        }
        primary.exec("BEGIN; UPDATE t SET y=randomblob(800) WHERE x > 40; DELETE FROM t WHERE x < 5; COMMIT");
        let base = match behind {
            Behind::Received => {
                let base = node.db().position();
                send_last(&source, &node);
                base
            }
            Behind::Applied | Behind::AppliedAnew => {
                replicate(&source, &node);
                client.exec(&format!("BEGIN IMMEDIATE; {statement}"));
                node.db().position()
            }
        };
        let files = node.store.files_dir().to_owned();
        let dir = kill(node);
        std::fs::write(home.join("scratch"), noted).unwrap();
        client.exec("COMMIT; INSERT INTO t VALUES(2000, 'nor of this')");
        let seen = content(&files);
        client.kill();
        let node = Node::open(dir);
        let archive = node.dir.path().join("archive").join(name().as_str());
        let open = |back: u64| {
            let txid = ltx::Txid(base.txid.0 + back);
            File::open(archive.join(ltx::file_name(txid, txid))).unwrap()
        };
        let first = ltx::verify(open(1)).unwrap();
        let second = ltx::verify(open(2)).unwrap();
        assert_eq!(first.header.pre_apply, base.post_apply, "{behind:?}");
        assert_eq!(second.header.pre_apply, first.trailer.post_apply, "{behind:?}");
        assert_eq!(second.trailer.post_apply, seen, "{behind:?}");
        assert_eq!(common::list(&archive).len(), 2, "{behind:?}");
        // The node follows on.
        primary.exec("INSERT INTO t VALUES(3000, 1)");
        replicate(&source, &node);
        assert_eq!(node.digest(), source.digest(), "{behind:?}");
        let reader = node.connect();
        integrity(&reader);
        assert_eq!(count(&reader), count(&primary), "{behind:?}");
    }
}

/// What such a client wrote hides frames of transactions that are older than the last flush of the table, and that the main file does not
/// have: a reader has kept checkpoints out.
#[test]
fn strays_do_not_hide_what_the_wal_had_before_them() {
    let ((source, primary), (node, client)) = followed_in_wal_mode();
    let reader = node.mount();
    reader.exec("BEGIN");
    assert_eq!(count(&reader), 60);
    primary.exec("UPDATE t SET y=randomblob(900); DELETE FROM t WHERE x=7");
    replicate(&source, &node);
    node.store.maintain(&Retention::default());
    client.exec("BEGIN IMMEDIATE; UPDATE t SET y='unheard of' WHERE x > 10");
    primary.exec("UPDATE t SET y='one' WHERE x=1");
    send_last(&source, &node);
    let dir = kill(node);
    client.exec("COMMIT");
    client.kill();
    reader.kill();
    let node = Node::open(dir);
    assert_eq!(node.digest(), source.digest());
    let reader = node.connect();
    integrity(&reader);
    assert_eq!(count(&reader), 59);
    assert_eq!(
        common::list(&node.dir.path().join("archive").join(name().as_str())).len(),
        1
    );
}

/// Checksum of what a client that opens copies of the files reads.
fn content(files: &Path) -> ltx::Checksum {
    let copies = tempfile::tempdir().unwrap();
    for side in [Side::Database, Side::Wal] {
        std::fs::copy(name().file_in(files, side), name().file_in(copies.path(), side)).unwrap();
    }
    let path = name().file_in(copies.path(), Side::Database);
    checkpoint(&Client::connect(&path), "TRUNCATE");
    let bytes = std::fs::read(path).unwrap();
    (1..)
        .zip(bytes.chunks(4096))
        .map(|(number, page)| ltx::page_checksum(Pgno::new(number).unwrap(), page))
        .fold(ltx::Checksum::EMPTY_DATABASE, ltx::Checksum::xor)
}
