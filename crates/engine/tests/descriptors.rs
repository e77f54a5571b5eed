//! As many files are open as may be: what is asked fails where it needs one more, no disk is taken for failed, and all goes on afterwards.

mod common;

use std::sync::Arc;

use common::{Node, ROWS, count, homes, integrity, name, replicate, send_snapshot, wait_applied};
use engine::disk::failing::FailingDisk;
use engine::{Coherence, Role, Store, StoreOptions};

/// More than any step opens.
const MOST_OPENS: u64 = 40;

/// With a segment for each record, so that each needs files.
fn options(disk: &FailingDisk) -> StoreOptions {
    StoreOptions {
        disk: Arc::new(disk.clone()),
        segment_bytes: 1,
        ..StoreOptions::default()
    }
}

fn replica_on(disk: &FailingDisk) -> Node {
    let dir = tempfile::tempdir().unwrap();
    Node::open_with(dir, Coherence::Passthrough, options(disk))
}

fn same(primary: &Node, replica: &Node) {
    assert_eq!(primary.digest(), replica.digest());
    integrity(&replica.connect());
}

/// Nothing of what an attempt left behind is in the way of a start.
fn starts_again(replica: Node, primary: &Node) {
    let again = Node::open(replica.stop());
    assert_eq!(again.store.damaged(), []);
    assert_eq!(homes(again.dir.path()).len(), 1, "a name has one home");
    same(primary, &again);
}

#[test]
fn commits_go_on_when_files_can_be_opened_again() {
    for mode in ["DELETE", "MEMORY", "WAL"] {
        let disk = FailingDisk::default();
        let primary = Node::primary_with(options(&disk));
        let client = primary.mount();
        client.exec(&format!(
            "PRAGMA journal_mode={mode}; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=5; CREATE TABLE t(x INTEGER PRIMARY KEY, y)"
        ));
        let replica = Node::new();
        replicate(&primary, &replica);
        let (mut committed, mut failed) = (0, 0);
        for opens in 0..8 {
            disk.exhaust(opens);
            match client.try_exec("INSERT INTO t(y) VALUES (randomblob(5000))") {
                Ok(_) => committed += 1,
                Err(_) => failed += 1,
            }
            let _ = primary.db().drain();
            primary.store.maintain(&engine::Retention::default());
            disk.heal();
            client.exec("INSERT INTO t(y) VALUES (randomblob(5000))");
            committed += 1;
            assert_eq!(primary.store.closed_databases(), [], "{mode}, {opens} opens");
        }
        assert!(mode == "WAL" || failed > 0, "{mode}: there was want of files");
        assert_eq!(count(&client), committed, "{mode}");
        replicate(&primary, &replica);
        same(&primary, &replica);
    }
}

#[test]
fn a_replica_takes_and_applies_records_when_files_can_be_opened_again() {
    for mode in ["DELETE", "WAL"] {
        let primary = Node::primary();
        let client = primary.mount();
        client.exec(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(x INTEGER PRIMARY KEY, y); {ROWS}"
        ));
        primary.db().drain().unwrap();
        let disk = FailingDisk::default();
        let replica = replica_on(&disk);
        let mut failed = 0;
        for opens in 0..MOST_OPENS {
            client.exec("INSERT INTO t(y) VALUES (randomblob(5000))");
            primary.db().drain().unwrap();
            disk.exhaust(opens);
            let snapshot = primary.db().snapshot().unwrap();
            let mut source = snapshot.ltx(7).unwrap();
            let taken = replica.store.receive(&name(), &mut source);
            failed += u64::from(taken.is_err());
            disk.heal();
            if replica.store.database(&name()).is_some() {
                assert_eq!(replica.store.closed_databases(), [], "{mode}, {opens} opens");
                // The snapshot was not taken by halves.
                client.exec("INSERT INTO t(y) VALUES (randomblob(50))");
                replicate(&primary, &replica);
                same(&primary, &replica);
            }
        }
        assert!((4..MOST_OPENS).contains(&failed), "{mode}: {failed}");
        starts_again(replica, &primary);
    }
}

/// What waits in the log for its turn is applied by the worker, which tries again.
#[test]
fn the_worker_applies_when_files_can_be_opened_again() {
    let primary = Node::primary();
    let client = primary.mount();
    client.exec("PRAGMA journal_mode=WAL; CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    let disk = FailingDisk::default();
    let replica = replica_on(&disk);
    replicate(&primary, &replica);
    // Six are enough for the log, and applying reads it.
    for opens in 0..12 {
        client.exec("INSERT INTO t(y) VALUES (randomblob(5000))");
        primary.db().drain().unwrap();
        let next = replica.db().received().txid.next().unwrap();
        let record = primary.db().record(next).unwrap().unwrap();
        disk.exhaust(opens);
        let taken = replica.store.receive(&name(), &mut record.reader());
        disk.heal();
        if taken.is_err() {
            replicate(&primary, &replica);
        }
        wait_applied(&replica);
        same(&primary, &replica);
    }
    starts_again(replica, &primary);
}

/// A replica that has what its primary lacks sets it aside, step by step; no step may be left half done.
#[test]
fn a_tail_is_set_aside_when_files_can_be_opened_again() {
    let mut failed = 0;
    for opens in 0..16 {
        let disk = FailingDisk::default();
        let former = Node::primary_with(options(&disk));
        let client = former.mount();
        client.exec("PRAGMA journal_mode=DELETE; CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
        let primary = Node::new();
        replicate(&former, &primary);
        let common = former.db().drain().unwrap();
        for _ in 0..3 {
            client.exec("INSERT INTO t(y) VALUES (randomblob(5000))");
        }
        drop(client);
        former.store.set_role(Role::Replica).unwrap();
        primary.store.set_role(Role::Primary { epoch: 2 }).unwrap();
        let writer = primary.mount();
        writer.exec("INSERT INTO t(y) VALUES (1)");
        primary.db().drain().unwrap();
        disk.exhaust(opens);
        let first = former.store.archive_tail(&name(), common.txid);
        failed += u64::from(first.is_err());
        disk.heal();
        assert_eq!(former.store.closed_databases(), [], "{opens} opens");
        if first.is_err() {
            former
                .store
                .archive_tail(&name(), common.txid)
                .unwrap_or_else(|error| panic!("{opens} opens: {error}"));
        }
        send_snapshot(&primary, &former);
        wait_applied(&former);
        same(&primary, &former);
        starts_again(former, &primary);
    }
    assert!(failed > 0);
}

/// A start that cannot read a name says so: to go on as if there were no such database is to begin it anew under the same name.
#[test]
fn no_start_passes_over_a_database() {
    let primary = Node::primary();
    let client = primary.mount();
    client.exec(&format!(
        "PRAGMA journal_mode=WAL; CREATE TABLE t(x INTEGER PRIMARY KEY, y); {ROWS}"
    ));
    primary.db().drain().unwrap();
    let before = primary.digest();
    drop(client);
    let dir = primary.stop();
    let disk = FailingDisk::default();
    let mut failed = 0;
    for opens in 0..MOST_OPENS {
        disk.exhaust(opens);
        match Store::open(dir.path(), options(&disk)) {
            Ok(store) => {
                let known = store.databases().len() + store.damaged().len();
                assert_eq!(known, 1, "{opens} opens");
                store.abandon();
            }
            Err(error) => {
                assert!(error.is_out_of_descriptors(), "{opens} opens: {error}");
                failed += 1;
            }
        }
        disk.heal();
    }
    assert!(failed > 0);
    let again = Node::open(dir);
    assert_eq!(again.digest().1, before.1);
}
