//! What clients of a former primary do while it becomes a replica, and after: their commits are in the log, or fail, or are found.

mod common;

use std::time::Duration;

use common::{Node, ROWS, checkpoint, count, integrity, name, replicate, send_snapshot, wait_applied};
use engine::{Role, StoreOptions};

/// Its client keeps the lock for ever, and without a journal nothing tells a commit from a part of one. With `synchronous=FULL` it does.
#[test]
fn a_commit_in_exclusive_mode_just_before_a_demotion_is_in_the_log() {
    for synchronous in ["FULL", "OFF"] {
        let old = Node::primary();
        let client = old.mount();
        client.exec(&format!(
            "PRAGMA journal_mode=MEMORY; PRAGMA synchronous={synchronous}; CREATE TABLE t(x)"
        ));
        old.db().drain().unwrap();
        client.exec("PRAGMA locking_mode=EXCLUSIVE");
        client.exec("INSERT INTO t VALUES(1)");
        old.store.set_role(Role::Replica).unwrap();
        let replica = Node::new();
        replicate(&old, &replica);
        assert_eq!(count(&replica.connect()), 1, "synchronous={synchronous}");
    }
}

/// A record with another page size needs the WAL emptied, which the seal is in the way of.
#[test]
fn a_sealed_wal_stays_sealed_until_its_client_has_let_go() {
    let options = StoreOptions {
        seal: true,
        ..StoreOptions::default()
    };
    let old = Node::primary_with(options);
    let client = old.mount();
    client.exec("PRAGMA journal_mode=WAL; PRAGMA busy_timeout=10; CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    client.exec(ROWS);
    client.exec("PRAGMA locking_mode=EXCLUSIVE; INSERT INTO t VALUES(500, 1)");
    let new = Node::new();
    replicate(&old, &new);
    old.store.set_role(Role::Replica).unwrap();
    new.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    if client.try_exec("INSERT INTO t VALUES(1000, 'unheard')").is_ok() {
        eprintln!("skipped: this file system or process cannot seal");
        return;
    }
    new.mount()
        .exec("PRAGMA journal_mode=DELETE; PRAGMA page_size=8192; VACUUM");
    send_snapshot(&new, &old);
    std::thread::sleep(Duration::from_millis(300));
    let outcome = client.try_exec("INSERT INTO t VALUES(1001, 'unheard')");
    assert!(
        outcome.is_err(),
        "a commit returned on a replica, and nobody hears of it"
    );
    client.kill();
    wait_applied(&old);
    assert_eq!(old.digest(), new.digest());
    integrity(&old.mount());
}

/// WAL_WRITE of the next database under the name is not held on account of a client of this one.
#[test]
fn a_removal_forgets_who_held_out() {
    let old = Node::primary();
    let client = old.mount();
    client.exec("PRAGMA journal_mode=WAL; CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    let new = Node::new();
    replicate(&old, &new);
    client.exec("BEGIN IMMEDIATE; INSERT INTO t VALUES(1, 1)");
    old.store.set_role(Role::Replica).unwrap();
    new.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    new.store.drop_database(&name()).unwrap();
    replicate(&new, &old);
    drop(client);
    let writer = new.mount();
    writer.exec("PRAGMA journal_mode=WAL");
    replicate(&new, &old);
    let reader = old.mount();
    reader.exec("SELECT count(*) FROM sqlite_schema");
    writer.exec("CREATE TABLE t(x INTEGER PRIMARY KEY, y); INSERT INTO t VALUES(1, 1)");
    replicate(&new, &old);
    checkpoint(&reader, "TRUNCATE");
    assert_eq!(count(&reader), 1);
}
