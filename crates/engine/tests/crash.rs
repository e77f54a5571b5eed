//! The daemon is killed at every request of a workload, before, in the middle of, and after it: the next start has all
//! that was committed, and log, table and files agree.

mod common;

use common::edge::Moment;
use common::{Client, Node, replicate};
use engine::{Coherence, Role, StoreOptions};

/// How a client works.
struct Workload {
    setup: &'static str,
    coherence: Coherence,
}

const STATEMENTS: [&str; 14] = [
    "INSERT INTO t VALUES(1, printf('%03000d', 1))",
    "INSERT INTO t SELECT x + 10, printf('%05000d', x) FROM t",
    "INSERT INTO t VALUES(2, 'x')",
    "PRAGMA wal_checkpoint(RESTART)",
    "UPDATE t SET y=printf('%0100d', 5) WHERE x=1",
    "PRAGMA wal_checkpoint(PASSIVE)",
    "BEGIN",
    "INSERT INTO t SELECT x + 100, printf('%09000d', x) FROM t",
    "DELETE FROM t WHERE x > 100",
    "ROLLBACK",
    "INSERT INTO t VALUES(3, printf('%020000d', 3))",
    "DELETE FROM t WHERE x=3",
    "VACUUM",
    "INSERT INTO t VALUES(4, 'last')",
];

fn start(dir: tempfile::TempDir, coherence: Coherence) -> Node {
    let node = Node::open_with(dir, coherence, StoreOptions::default());
    node.store.set_role(Role::Primary { epoch: 1 }).unwrap();
    node
}

const ROWS: &str = "SELECT coalesce(group_concat(x || ':' || length(y) || substr(y, -3), ' '), '') FROM (SELECT * FROM t ORDER BY x)";

/// What is committed before the first statement and after each of them.
fn states() -> Vec<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let writer = rusqlite::Connection::open(file.path()).unwrap();
    writer
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x INTEGER PRIMARY KEY, y)")
        .unwrap();
    let reader = rusqlite::Connection::open(file.path()).unwrap();
    let read = || reader.query_row(ROWS, [], |row| row.get(0)).unwrap();
    let mut states = vec![read()];
    for sql in STATEMENTS {
        writer.execute_batch(sql).unwrap();
        states.push(read());
    }
    states
}

/// Runs the workload until the daemon is dead. Returns what the rows may be afterwards.
fn run(node: &Node, client: &Client) -> Vec<String> {
    let states = states();
    for (at, sql) in STATEMENTS.iter().enumerate() {
        let outcome = client.try_exec(sql);
        if outcome.is_ok() && node.edge.is_dead() {
            return vec![states[at + 1].clone()];
        }
        if node.edge.is_dead() {
            return states[at..at + 2].to_vec();
        }
        outcome.unwrap_or_else(|error| panic!("{sql}: {error}\n{:#?}", node.edge.history()));
    }
    vec![states[STATEMENTS.len()].clone()]
}

fn crash_at(workload: &Workload, request: u64, moment: Moment) -> bool {
    let node = start(tempfile::tempdir().unwrap(), workload.coherence);
    let client = node.mount();
    client.exec(workload.setup);
    client.exec("CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    let replica = Node::new();
    node.edge.die_at(request, moment);
    let may_be = run(&node, &client);
    let died = node.edge.is_dead();
    let context = format!(
        "{}: request {request} {moment:?}\n{:#?}",
        workload.setup,
        node.edge.history()
    );
    client.kill();
    let before = node.db().position();
    let again = start(node.kill(), workload.coherence);
    let reader = again.mount();
    if !workload.setup.contains("MEMORY") {
        // Without a journal SQLite itself loses the database when its process dies in the middle of a commit.
        assert_eq!(reader.query("PRAGMA integrity_check"), "ok", "{context}");
        let found = reader.query(ROWS);
        assert!(
            may_be.contains(&found),
            "found {found} instead of {may_be:?}: {context}"
        );
    }
    assert!(again.db().drain().unwrap().txid >= before.txid, "{context}");
    // The position's checksum is that of the content, which a snapshot verifies page by page.
    let snapshot = again.db().snapshot();
    assert!(snapshot.is_ok(), "{:?}: {context}", snapshot.err());
    let inserted = reader.try_exec("INSERT INTO t VALUES(5000, 'after')");
    assert!(inserted.is_ok() || workload.setup.contains("MEMORY"), "{context}");
    replicate(&again, &replica);
    assert_eq!(again.digest(), replica.digest(), "{context}");
    let other = replica.connect();
    assert_eq!(other.try_exec(ROWS), reader.try_exec(ROWS), "{context}");
    died
}

fn crash_everywhere(setup: &'static str, coherence: Coherence) {
    let workload = Workload { setup, coherence };
    let moments = [Moment::Before, Moment::During, Moment::After];
    let step: u64 = std::env::var("ENGINE_CRASH_STEP").map_or(7, |step| step.parse().unwrap());
    let mut request = 0;
    let mut turn = 0;
    while crash_at(&workload, request, moments[turn % 3]) {
        turn += 1;
        request += if step == 1 { u64::from(turn % 3 == 0) } else { step };
    }
}

#[test]
fn delete_journal() {
    crash_everywhere("PRAGMA journal_mode=DELETE", Coherence::Passthrough);
}

#[test]
fn truncate_journal() {
    crash_everywhere("PRAGMA journal_mode=TRUNCATE", Coherence::Passthrough);
}

#[test]
fn persist_journal() {
    crash_everywhere(
        "PRAGMA journal_mode=PERSIST; PRAGMA synchronous=NORMAL",
        Coherence::Passthrough,
    );
}

#[test]
fn persist_journal_without_syncs() {
    crash_everywhere(
        "PRAGMA journal_mode=PERSIST; PRAGMA synchronous=OFF",
        Coherence::Passthrough,
    );
}

#[test]
fn memory_journal() {
    crash_everywhere(
        "PRAGMA journal_mode=MEMORY; PRAGMA cache_size=1000",
        Coherence::Passthrough,
    );
}

#[test]
fn wal_full() {
    crash_everywhere(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL",
        Coherence::Passthrough,
    );
}

#[test]
fn wal_normal() {
    crash_everywhere(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        Coherence::Passthrough,
    );
}

#[test]
fn wal_off_with_small_cache() {
    crash_everywhere(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; PRAGMA cache_size=2; PRAGMA wal_autocheckpoint=3",
        Coherence::Passthrough,
    );
}

#[test]
fn wal_in_exclusive_mode() {
    crash_everywhere(
        "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        Coherence::Passthrough,
    );
}

#[test]
fn intercepted_wal() {
    crash_everywhere(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        Coherence::Intercepted,
    );
}
