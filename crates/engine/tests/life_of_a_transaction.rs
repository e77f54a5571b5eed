//! From a commit of SQLite on one node to what SQLite reads on another.

mod common;

use common::{Node, count, integrity, name, replicate, send_snapshot, wait_applied};
use engine::{Role, Side};
use ltx::Txid;

fn wal_primary() -> (Node, common::Client) {
    let primary = Node::primary();
    let connection = primary.connect();
    connection.exec("PRAGMA journal_mode=WAL; CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    primary.attach().wal_opened();
    primary.db().drain().unwrap();
    (primary, connection)
}

#[test]
fn each_wal_commit_becomes_one_transaction() {
    let (primary, connection) = wal_primary();
    let start = primary.db().drain().unwrap().txid;
    for i in 0..50 {
        connection.exec(&format!("INSERT INTO t VALUES({}, randomblob(100))", i));
    }
    assert_eq!(primary.db().drain().unwrap().txid, Txid(start.0 + 50));
    let replica = Node::new();
    replicate(&primary, &replica);
    assert_eq!(primary.digest(), replica.digest());
    let reader = replica.connect();
    assert_eq!(count(&reader), 50);
    integrity(&reader);
}

#[test]
fn an_open_read_transaction_on_a_replica_neither_delays_nor_sees_what_is_applied() {
    let (primary, connection) = wal_primary();
    connection.exec("PRAGMA wal_autocheckpoint=0; INSERT INTO t VALUES(1, 'a')");
    let replica = Node::new();
    replicate(&primary, &replica);
    let reader = replica.connect();
    reader.exec("BEGIN");
    assert_eq!(count(&reader), 1);
    for i in 2..3000 {
        connection.exec(&format!("INSERT INTO t VALUES({}, randomblob(500))", i));
        if i % 500 == 0 {
            replicate(&primary, &replica);
        }
    }
    replicate(&primary, &replica);
    assert_eq!(count(&reader), 1, "the snapshot of the reader moved");
    let other = replica.connect();
    assert_eq!(count(&other), 2999);
    reader.exec("COMMIT");
    assert_eq!(count(&reader), 2999);
    integrity(&reader);
    assert_eq!(primary.digest(), replica.digest());
}

#[test]
fn checkpoints_and_restarts_of_the_wal_lose_nothing() {
    let (primary, connection) = wal_primary();
    connection.exec("PRAGMA wal_autocheckpoint=0");
    let start = primary.db().drain().unwrap().txid;
    let replica = Node::new();
    for round in 0..10 {
        for i in 0..20 {
            connection.exec(&format!(
                "INSERT INTO t VALUES({}, randomblob(2000))",
                round * 100 + i
            ));
        }
        // On a mount the first page that the checkpoint writes has this effect.
        primary.db().drain().unwrap();
        connection.exec("PRAGMA wal_checkpoint(RESTART)");
        replicate(&primary, &replica);
    }
    assert_eq!(primary.db().drain().unwrap().txid, Txid(start.0 + 200));
    assert_eq!(primary.digest(), replica.digest());
    integrity(&replica.connect());
}

#[test]
fn clients_of_a_replica_may_checkpoint_and_close() {
    let (primary, connection) = wal_primary();
    let replica = Node::new();
    for i in 0..300 {
        connection.exec(&format!("INSERT INTO t VALUES({}, randomblob(3000))", i));
        if i % 30 == 0 {
            replicate(&primary, &replica);
            let reader = replica.connect();
            assert_eq!(count(&reader), i + 1);
            if i % 60 == 0 {
                reader.exec("PRAGMA wal_checkpoint(TRUNCATE)");
            }
        }
    }
    replicate(&primary, &replica);
    assert_eq!(primary.digest(), replica.digest());
    integrity(&replica.connect());
}

#[test]
fn rollback_mode_transactions_are_applied_under_the_exclusive_lock() {
    for page_size in [512, 4096, 65536] {
        let primary = Node::primary();
        let connection = primary.connect();
        connection.exec(&format!(
            "PRAGMA page_size={page_size}; CREATE TABLE t(x INTEGER PRIMARY KEY, y)"
        ));
        primary.attach();
        let replica = Node::new();
        for i in 0..20 {
            connection.exec(&format!("INSERT INTO t VALUES({}, randomblob(1000))", i));
            primary.db().reconcile().unwrap();
            replicate(&primary, &replica);
            assert_eq!(count(&replica.connect()), i + 1);
        }
        connection.exec("DELETE FROM t WHERE x < 15; VACUUM");
        primary.db().reconcile().unwrap();
        replicate(&primary, &replica);
        assert_eq!(primary.digest(), replica.digest());
        integrity(&replica.connect());
        let position = primary.db().position();
        assert_eq!(
            primary.db().reconcile().unwrap(),
            position,
            "nothing changed, so nothing is a transaction"
        );
    }
}

/// SQLite cuts the file off after it removed the journal.
#[test]
fn a_vacuum_is_one_transaction() {
    for mode in ["DELETE", "TRUNCATE", "MEMORY", "WAL"] {
        let primary = Node::primary();
        let client = primary.mount();
        client.exec(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(x INTEGER PRIMARY KEY, y)"
        ));
        client.exec("INSERT INTO t VALUES(1, randomblob(90000))");
        client.exec("DELETE FROM t");
        let before = primary.db().drain().unwrap();
        client.exec("VACUUM");
        drop(client);
        let after = primary.db().drain().unwrap();
        assert_eq!(after.txid, Txid(before.txid.0 + 1), "{mode}");
        assert_eq!(primary.db().reconcile().unwrap(), after, "{mode}");
        assert_eq!(primary.db().status().pages, 2, "{mode}");
    }
}

#[test]
fn a_reader_in_rollback_mode_delays_the_apply_and_not_the_reception() {
    let primary = Node::primary();
    let connection = primary.connect();
    connection.exec("CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    primary.attach();
    let replica = Node::new();
    replicate(&primary, &replica);
    let reader = replica.connect();
    reader.exec("BEGIN; SELECT * FROM t");
    assert_eq!(count(&reader), 0);
    connection.exec("INSERT INTO t VALUES(1, 2)");
    let target = primary.db().reconcile().unwrap();
    let record = primary.db().record(target.txid).unwrap().unwrap();
    assert_eq!(
        replica.store.receive(&name(), &mut record.reader()).unwrap(),
        target
    );
    assert_ne!(replica.db().position(), target);
    reader.exec("COMMIT");
    wait_applied(&replica);
    assert_eq!(count(&reader), 1);
}

#[test]
fn the_journal_mode_and_the_page_size_may_change() {
    let primary = Node::primary();
    let connection = primary.connect();
    connection.exec("PRAGMA page_size=1024; CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    primary.attach();
    let replica = Node::new();
    let mut rows = 0;
    for (step, sql) in [
        "PRAGMA journal_mode=WAL",
        "PRAGMA journal_mode=DELETE",
        "PRAGMA page_size=8192; VACUUM",
        "PRAGMA journal_mode=WAL",
        "PRAGMA journal_mode=TRUNCATE; PRAGMA page_size=512; VACUUM",
        "PRAGMA journal_mode=WAL",
    ]
    .into_iter()
    .enumerate()
    {
        primary.db().drain().unwrap();
        connection.exec(sql);
        primary.db().reconcile().unwrap();
        connection.exec("INSERT INTO t(y) VALUES(randomblob(3000))");
        rows += 1;
        primary.db().wal_opened();
        primary.db().reconcile().unwrap();
        replicate(&primary, &replica);
        assert_eq!(primary.digest(), replica.digest(), "step {step}");
        assert_eq!(count(&replica.connect()), rows);
    }
}

#[test]
fn a_dropped_database_goes_and_its_name_goes_on_counting() {
    let primary = Node::primary();
    primary.connect().exec("CREATE TABLE t(x)");
    primary.attach();
    let replica = Node::new();
    replicate(&primary, &replica);
    let before = primary.db().position().txid;
    let after = primary.store.drop_database(&name()).unwrap();
    assert_eq!(after.txid, Txid(before.0 + 1));
    replicate(&primary, &replica);
    assert!(!replica.path().exists());
    primary
        .connect()
        .exec("PRAGMA page_size=16384; CREATE TABLE t(x); INSERT INTO t VALUES(7)");
    primary.attach();
    assert!(primary.db().position().txid > after.txid);
    replicate(&primary, &replica);
    assert_eq!(primary.digest(), replica.digest());
    assert_eq!(count(&replica.connect()), 1);
}

#[test]
fn a_promoted_replica_captures_what_its_clients_commit() {
    let (primary, connection) = wal_primary();
    let replica = Node::new();
    connection.exec("INSERT INTO t VALUES(1, 'a')");
    replicate(&primary, &replica);
    let client = replica.connect();
    assert_eq!(count(&client), 1);
    primary.store.set_role(Role::Replica).unwrap();
    replica.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    replica.db().wal_opened();
    for i in 2..20 {
        client.exec(&format!("INSERT INTO t VALUES({}, 'b')", i));
    }
    replicate(&replica, &primary);
    assert_eq!(primary.digest(), replica.digest());
    assert_eq!(count(&connection), 19);
    assert!(
        connection
            .try_exec("PRAGMA busy_timeout=10; INSERT INTO t VALUES(99, 'c')")
            .is_err(),
        "the old primary is fenced"
    );
}

#[test]
fn an_import_replaces_the_content_and_connections_notice() {
    for wal in [false, true] {
        let primary = Node::primary();
        let connection = primary.connect();
        connection.exec("CREATE TABLE t(x); INSERT INTO t VALUES(1)");
        primary.attach();
        if wal {
            connection.exec("PRAGMA journal_mode=WAL; INSERT INTO t VALUES(2)");
            primary.db().wal_opened();
            primary.db().reconcile().unwrap();
        }
        assert_eq!(count(&connection), 1 + i64::from(wal));
        let other = tempfile::NamedTempFile::new().unwrap();
        let source = rusqlite::Connection::open(other.path()).unwrap();
        source
            .execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES(1),(2),(3),(4)")
            .unwrap();
        drop(source);
        let position = primary
            .store
            .import(&name(), &mut std::fs::File::open(other.path()).unwrap())
            .unwrap();
        assert_eq!(primary.db().position(), position);
        assert_eq!(count(&connection), 4);
        integrity(&connection);
        let replica = Node::new();
        replicate(&primary, &replica);
        assert_eq!(primary.digest(), replica.digest());
        connection.exec("INSERT INTO t VALUES(5)");
        primary.db().reconcile().unwrap();
        replicate(&primary, &replica);
        assert_eq!(count(&replica.connect()), 5);
        assert!(primary.store.import(&name(), &mut &b"no database"[..]).is_err());
        assert_eq!(count(&connection), 5);
    }
}

#[test]
fn a_snapshot_is_consistent_while_a_client_writes() {
    let (primary, connection) = wal_primary();
    connection.exec("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < 2000) INSERT INTO t SELECT n, randomblob(900) FROM c");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let writer = primary.connect();
            let mut i = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                writer.exec(&format!(
                    "UPDATE t SET y=randomblob(900) WHERE x={}",
                    i % 2000 + 1
                ));
                // A mount reports each write of a checkpoint; here the WAL must not start over unseen.
                primary.db().drain().unwrap();
                i += 37;
            }
        });
        for _ in 0..10 {
            let snapshot = primary.db().snapshot().unwrap();
            let mut file = tempfile::NamedTempFile::new().unwrap();
            std::io::copy(&mut snapshot.database().unwrap(), file.as_file_mut()).unwrap();
            integrity(&common::Client::connect(file.path()));
            let summary = ltx::verify(&mut snapshot.ltx(1).unwrap()).unwrap();
            assert_eq!(summary.trailer.post_apply, snapshot.pos.post_apply);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// Pages that a transaction has written to the main file already are taken from its journal, or from the log; so they are
/// when its client has died and nobody has rolled it back.
#[test]
fn a_snapshot_does_not_wait_for_a_transaction_under_way() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"] {
        let primary = Node::primary();
        let client = primary.mount();
        client.exec(&format!(
            "PRAGMA journal_mode={mode}; PRAGMA cache_size=2; CREATE TABLE t(x INTEGER PRIMARY KEY, y)"
        ));
        client.exec("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < 100) INSERT INTO t SELECT n, randomblob(900) FROM c");
        let before = primary.digest();
        let main = std::fs::read(primary.path()).unwrap();
        client.exec("BEGIN; UPDATE t SET y=randomblob(900)");
        assert_ne!(
            std::fs::read(primary.path()).unwrap(),
            main,
            "{mode}: nothing spilled"
        );
        assert_eq!(primary.digest(), before, "{mode}");
        client.kill();
        if mode != "MEMORY" {
            assert_eq!(primary.digest(), before, "{mode}, its client dead");
        }
    }
}

#[test]
fn what_was_committed_before_the_process_died_is_captured_by_the_next() {
    let (primary, connection) = wal_primary();
    for i in 0..10 {
        connection.exec(&format!("INSERT INTO t VALUES({}, 'captured')", i));
    }
    let captured = primary.db().drain().unwrap();
    let digest = {
        for i in 10..20 {
            connection.exec(&format!("INSERT INTO t VALUES({}, 'not captured')", i));
        }
        captured
    };
    // A client that dies with the machine does not checkpoint either.
    connection.kill();
    let dir = primary.kill();
    let again = Node::open(dir);
    let position = again.db().position();
    assert_eq!(position.txid, Txid(digest.txid.0 + 10));
    assert!(!name().file_in(again.store.files_dir(), Side::Wal).exists());
    assert_eq!(count(&again.connect()), 20);
    let replica = Node::new();
    again.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    replicate(&again, &replica);
    assert_eq!(again.digest(), replica.digest());
}

#[test]
fn a_clean_stop_leaves_nothing_to_do() {
    let (primary, connection) = wal_primary();
    connection.exec("INSERT INTO t VALUES(1, 1)");
    let before = primary.digest();
    drop(connection);
    let again = Node::open(primary.stop());
    assert_eq!(again.digest(), before);
}

#[test]
fn a_diverged_tail_is_archived_before_a_snapshot_replaces_it() {
    let (primary, connection) = wal_primary();
    let old = Node::new();
    replicate(&primary, &old);
    let common = primary.db().position();
    // Both go on alone.
    connection.exec("INSERT INTO t VALUES(1, 'new primary')");
    old.store.set_role(Role::Primary { epoch: 1 }).unwrap();
    let client = old.connect();
    client.exec("INSERT INTO t VALUES(2, 'lost tail')");
    old.db().wal_opened();
    old.db().drain().unwrap();
    old.store.set_role(Role::Replica).unwrap();
    let events = old.store.subscribe();
    let archive = old.store.archive_tail(&name(), common.txid).unwrap().unwrap();
    let next = Txid(common.txid.0 + 1);
    assert!(
        matches!(events.recv().unwrap(), engine::Event::Diverged { first, last, .. } if first == next && last == next)
    );
    ltx::verify(std::fs::File::open(archive.join(ltx::file_name(next, next))).unwrap()).unwrap();
    primary.db().drain().unwrap();
    send_snapshot(&primary, &old);
    wait_applied(&old);
    assert_eq!(primary.digest(), old.digest());
    let rows = old.connect().query("SELECT y FROM t");
    assert_eq!(rows, "new primary");
}

#[test]
fn damaged_records_are_refused_and_change_nothing() {
    let (primary, connection) = wal_primary();
    connection.exec("INSERT INTO t VALUES(1, 1)");
    let replica = Node::new();
    replicate(&primary, &replica);
    connection.exec("INSERT INTO t VALUES(2, 2)");
    let target = primary.db().drain().unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(
        &mut primary.db().record(target.txid).unwrap().unwrap().reader(),
        &mut bytes,
    )
    .unwrap();
    let before = replica.digest();
    for at in (0..bytes.len()).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        // Bytes that the format does not define may differ.
        if (80..100).contains(&at) {
            continue;
        }
        assert!(
            replica.store.receive(&name(), &mut &damaged[..]).is_err(),
            "flipped byte {at}"
        );
        assert!(
            replica.store.receive(&name(), &mut &bytes[..at]).is_err(),
            "cut at {at}"
        );
    }
    assert_eq!(replica.digest(), before);
    replica.store.receive(&name(), &mut &bytes[..]).unwrap();
    wait_applied(&replica);
    assert_eq!(replica.digest(), primary.digest());
}

#[test]
fn the_wal_of_a_dropped_database_brings_nothing_back() {
    let (primary, connection) = wal_primary();
    connection.exec("INSERT INTO t VALUES(1, randomblob(5000))");
    primary.db().drain().unwrap();
    connection.kill();
    let file = |side| name().file_in(primary.store.files_dir(), side);
    primary
        .db()
        .unlink_database(&mut || std::fs::remove_file(file(Side::Database)))
        .unwrap();
    let dropped = primary.db().position();
    assert_eq!(primary.db().status().pages, 0);
    primary
        .db()
        .unlink_wal(&mut || std::fs::remove_file(file(Side::Wal)))
        .unwrap();
    assert_eq!(primary.db().drain().unwrap(), dropped);
    let replica = Node::new();
    replicate(&primary, &replica);
    assert!(!replica.path().exists());
}
