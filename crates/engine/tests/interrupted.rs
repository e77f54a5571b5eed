//! Steps that a kill, a damaged disk or a lost file interrupts half-way: the next start or the next record leads on from there.

mod common;

use std::fs::{self, File};

use common::{Client, Node, count, homes, list, name, replicate, send_snapshot, wait_applied};
use engine::{Coherence, Role, Side, StoreOptions};
use tempfile::TempDir;

fn sealing() -> StoreOptions {
    StoreOptions {
        seal: true,
        ..StoreOptions::default()
    }
}

/// A former primary that was killed and whose log is damaged by hand, and a node that has all it had.
fn damaged() -> (Node, TempDir, Client) {
    let old = Node::primary_with(sealing());
    let client = old.mount();
    client.exec(
        "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(x INTEGER PRIMARY KEY, y)",
    );
    for x in 1..8 {
        client.exec(&format!("INSERT INTO t VALUES({x}, randomblob(3000))"));
    }
    let new = Node::new();
    replicate(&old, &new);
    let dir = old.kill();
    let log = list(&homes(dir.path()).remove(0).join("log")).remove(0);
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    for byte in &mut bytes[middle..middle + 64] {
        *byte ^= 0x55;
    }
    fs::write(&log, bytes).unwrap();
    new.store.set_role(Role::Primary { epoch: 4 }).unwrap();
    new.mount().exec("INSERT INTO t VALUES(12, 12)");
    (new, dir, client)
}

fn comes_from_the_primary(damaged: &Node, new: &Node) {
    send_snapshot(new, damaged);
    wait_applied(damaged);
    assert_eq!(damaged.digest(), new.digest());
    assert_eq!(count(&damaged.mount()), 8);
}

/// The damage shows only in a record's payload, when the WAL is sealed already.
#[test]
fn a_damaged_database_with_a_wal_comes_from_the_primary() {
    let (new, dir, client) = damaged();
    client.kill();
    let damaged = Node::open_with(dir, Coherence::Passthrough, sealing());
    assert_eq!(damaged.store.damaged().len(), 1);
    let wal = name().file_in(damaged.store.files_dir(), Side::Wal);
    assert!(
        File::options().write(true).open(&wal).is_ok(),
        "nobody could remove it"
    );
    comes_from_the_primary(&damaged, &new);
}

/// As if the kill had come after the main file was moved: its state is made by hand.
#[test]
fn a_damaged_database_that_is_set_aside_in_part_comes_from_the_primary() {
    let (new, dir, client) = damaged();
    client.kill();
    let main = name().file_in(&dir.path().join("files"), Side::Database);
    fs::rename(main, homes(dir.path()).remove(0).join("database")).unwrap();
    let damaged = Node::open_with(dir, Coherence::Passthrough, sealing());
    assert_eq!(damaged.store.damaged().len(), 1);
    comes_from_the_primary(&damaged, &new);
    let archive = damaged.dir.path().join("archive").join(name().as_str());
    let aside = list(&archive).remove(0);
    for file in ["database", "database-wal", "log"] {
        assert!(aside.join(file).exists(), "{file}");
    }
}

/// As if the kill had come between the removal of the main file and that of the WAL: the WAL is put back by hand.
#[test]
fn a_removal_that_was_killed_leaves_no_wal_for_the_next_database() {
    let primary = Node::primary();
    let client = primary.mount();
    client.exec("PRAGMA journal_mode=WAL; CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    let replica = Node::new();
    replicate(&primary, &replica);
    client.exec("INSERT INTO t VALUES(1, randomblob(9000))");
    replicate(&primary, &replica);
    let wal = name().file_in(replica.store.files_dir(), Side::Wal);
    let bytes = fs::read(&wal).unwrap();
    assert!(!bytes.is_empty());
    client.kill();
    primary.store.drop_database(&name()).unwrap();
    replicate(&primary, &replica);
    let dir = replica.kill();
    fs::write(&wal, bytes).unwrap();
    let again = Node::open(dir);
    assert!(!wal.exists());
    let client = primary.mount();
    client.exec("CREATE TABLE other(x); INSERT INTO other VALUES(1)");
    replicate(&primary, &again);
    assert_eq!(again.mount().query("SELECT count(*) FROM other"), "1");
}

/// Its clients were told that it is committed, and nobody had captured it yet when the daemon was killed.
#[test]
fn a_database_that_is_made_anew_after_a_removal_is_not_removed_again() {
    let primary = Node::primary();
    primary.mount().exec("CREATE TABLE t(x)");
    let replica = Node::new();
    replicate(&primary, &replica);
    primary.store.drop_database(&name()).unwrap();
    replicate(&primary, &replica);
    replica.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    replica.store.abandon();
    let client = replica.mount();
    client.exec(
        "PRAGMA journal_mode=MEMORY; PRAGMA synchronous=OFF; CREATE TABLE t(x); INSERT INTO t VALUES(1)",
    );
    let dir = replica.kill();
    client.kill();
    let again = Node::open(dir);
    again.store.set_role(Role::Primary { epoch: 3 }).unwrap();
    assert_eq!(count(&again.mount()), 1);
}
