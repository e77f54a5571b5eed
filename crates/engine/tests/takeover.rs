//! A daemon dies and the next one takes its mount over, while clients hold connections, locks and transactions: they notice nothing, and
//! log, table and files agree as if there had been one daemon.

mod common;

use std::sync::mpsc::channel;

use common::edge::Moment;
use common::{Client, Node, replicate};
use engine::{Coherence, Durability, Role, StoreOptions};
use ltx::{Pos, Txid};

/// How a client works.
#[derive(Clone, Copy)]
struct Workload {
    setup: &'static str,
    coherence: Coherence,
    /// Each commit is a transaction, whoever looks when.
    exact: bool,
    durability: Durability,
}

const STATEMENTS: [&str; 15] = [
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
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "VACUUM",
    "INSERT INTO t VALUES(4, 'last')",
];

const ROWS: &str = "SELECT coalesce(group_concat(x || ':' || length(y) || substr(y, -3), ' '), '') FROM (SELECT * FROM t ORDER BY x)";

/// What the client sees after each statement.
fn views() -> Vec<String> {
    let connection = rusqlite::Connection::open_in_memory().unwrap();
    connection
        .execute_batch("CREATE TABLE t(x INTEGER PRIMARY KEY, y)")
        .unwrap();
    let run = |sql: &&str| {
        connection.execute_batch(sql).unwrap();
        connection.query_row(ROWS, [], |row| row.get(0)).unwrap()
    };
    STATEMENTS.iter().map(run).collect()
}

fn start(workload: &Workload) -> (Node, Client) {
    let options = StoreOptions {
        durability: workload.durability,
        ..StoreOptions::default()
    };
    let node = Node::kept(workload.coherence, options);
    node.store.set_role(Role::Primary { epoch: 1 }).unwrap();
    let client = node.mount();
    client.exec(workload.setup);
    client.exec("CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    (node, client)
}

/// The log has every transaction once. Returns the last.
fn check_log(node: &Node, context: &str) -> Txid {
    let mut at = Pos::ZERO;
    for record in node.db().records(Txid::FIRST) {
        let info = record.unwrap().info;
        assert_eq!(
            (info.min, info.max),
            (Txid(at.txid.0 + 1), Txid(at.txid.0 + 1)),
            "{context}"
        );
        assert!(at.is_zero() || info.pre == at.post_apply, "{context}");
        at = info.pos();
    }
    at.txid
}

/// Everything is as if there had been one daemon. Returns the last transaction.
fn check(node: &Node, client: &Client, context: &str) -> Txid {
    let replica = Node::new();
    replicate(node, &replica);
    assert_eq!(client.query("PRAGMA integrity_check"), "ok", "{context}");
    assert_eq!(node.digest(), replica.digest(), "{context}");
    assert_eq!(replica.connect().query(ROWS), client.query(ROWS), "{context}");
    assert_eq!(node.db().status().quarantine, None, "{context}");
    replica.kill();
    check_log(node, context)
}

/// Runs the workload, with the daemon replaced at `deaths`, each counted from the takeover before. Returns whether all of them came, and
/// the last transaction.
fn run(workload: &Workload, deaths: &[(u64, Moment)]) -> (bool, Txid) {
    let (mut node, client) = start(workload);
    let mut deaths = deaths.iter();
    let mut context = format!("{} {:?}: {deaths:?}", workload.setup, workload.coherence);
    let (sender, receiver) = channel();
    let mut plan = |node: &Node| {
        let death = deaths.next();
        if let Some((request, moment)) = death {
            node.edge.tell(sender.clone());
            node.edge.die_at(*request, *moment);
        }
        death.is_some()
    };
    let mut pending = plan(&node);
    let told = sender.clone();
    let failure = context.clone();
    let worker = std::thread::spawn(move || {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (sql, view) in STATEMENTS.iter().zip(views()) {
                let outcome = client.try_exec(sql);
                assert!(outcome.is_ok(), "{sql}: {outcome:?}: {failure}");
                assert_eq!(client.query(ROWS), view, "{sql}: {failure}");
            }
        }));
        let _ = told.send(());
        (client, outcome)
    });
    loop {
        receiver.recv().unwrap();
        if !node.edge.is_dead() {
            break;
        }
        context += &format!("\n{:#?}", node.edge.history());
        node = node.replace();
        pending = plan(&node);
    }
    let (client, outcome) = worker.join().unwrap();
    if let Err(panic) = outcome {
        eprintln!("{context}");
        std::panic::resume_unwind(panic);
    }
    node.edge.spare();
    if node.edge.is_dead() {
        node = node.replace();
        pending = false;
    }
    let last = check(&node, &client, &context);
    drop(client);
    node.kill();
    (!pending, last)
}

const MOMENTS: [Moment; 4] = [Moment::Before, Moment::During, Moment::After, Moment::Unnoted];

fn replaced_everywhere(setup: &'static str, coherence: Coherence, exact: bool) {
    replace_at_each(&Workload {
        setup,
        coherence,
        exact,
        durability: Durability::Follow,
    });
}

fn replace_at_each(workload: &Workload) {
    let Workload { setup, coherence, .. } = workload;
    let (_, expected) = run(workload, &[]);
    let step: u64 = std::env::var("ENGINE_TAKEOVER_STEP").map_or(7, |step| step.parse().unwrap());
    let (mut request, mut turn) = (0, 0);
    loop {
        let moment = MOMENTS[turn % 4];
        let (died, last) = run(workload, &[(request, moment)]);
        if workload.exact {
            assert_eq!(
                last, expected,
                "{setup} {coherence:?}: request {request} {moment:?}"
            );
        }
        if !died {
            return;
        }
        turn += 1;
        request += if step == 1 { u64::from(turn % 4 == 0) } else { step };
    }
}

#[test]
fn delete_journal() {
    replaced_everywhere(
        "PRAGMA journal_mode=DELETE; PRAGMA cache_size=2",
        Coherence::Passthrough,
        true,
    );
}

#[test]
fn delete_journal_intercepted() {
    replaced_everywhere(
        "PRAGMA journal_mode=DELETE; PRAGMA cache_size=2",
        Coherence::Intercepted,
        true,
    );
}

#[test]
fn truncate_journal() {
    replaced_everywhere("PRAGMA journal_mode=TRUNCATE", Coherence::Passthrough, true);
}

#[test]
fn persist_journal() {
    replaced_everywhere(
        "PRAGMA journal_mode=PERSIST; PRAGMA cache_size=2",
        Coherence::Passthrough,
        true,
    );
}

#[test]
fn memory_journal() {
    replaced_everywhere(
        "PRAGMA journal_mode=MEMORY; PRAGMA cache_size=2",
        Coherence::Passthrough,
        false,
    );
}

#[test]
fn no_journal() {
    // A rollback is undefined there, so nothing spills.
    replaced_everywhere(
        "PRAGMA journal_mode=OFF; PRAGMA cache_size=1000",
        Coherence::Passthrough,
        false,
    );
}

#[test]
fn delete_journal_in_exclusive_mode() {
    replaced_everywhere(
        "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=DELETE; PRAGMA cache_size=2",
        Coherence::Passthrough,
        true,
    );
}

#[test]
fn wal_full() {
    replaced_everywhere(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL",
        Coherence::Passthrough,
        true,
    );
}

#[test]
fn wal_normal() {
    replaced_everywhere(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        Coherence::Passthrough,
        true,
    );
}

#[test]
fn wal_off_with_small_cache() {
    replaced_everywhere(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; PRAGMA cache_size=2; PRAGMA wal_autocheckpoint=3",
        Coherence::Passthrough,
        true,
    );
}

#[test]
fn wal_in_exclusive_mode() {
    replaced_everywhere(
        "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL",
        Coherence::Passthrough,
        true,
    );
}

#[test]
fn intercepted_wal() {
    replaced_everywhere(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        Coherence::Intercepted,
        true,
    );
}

#[test]
fn intercepted_wal_full() {
    replaced_everywhere(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=2",
        Coherence::Intercepted,
        true,
    );
}

/// Every commit waits for its record, also one that the dead daemon captured and did not make durable.
#[test]
fn wal_with_durable_records() {
    replace_at_each(&Workload {
        setup: "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL",
        // Where records have to be durable, writes to the WAL are intercepted.
        coherence: Coherence::Intercepted,
        exact: true,
        durability: Durability::Commit,
    });
}

/// The next one dies at the request that it is sent again, and so on.
#[test]
fn daemons_that_die_one_after_the_other() {
    for (setup, coherence) in [
        (
            "PRAGMA journal_mode=DELETE; PRAGMA cache_size=2",
            Coherence::Passthrough,
        ),
        ("PRAGMA journal_mode=PERSIST", Coherence::Intercepted),
        (
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL",
            Coherence::Passthrough,
        ),
        (
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
            Coherence::Intercepted,
        ),
    ] {
        let workload = Workload {
            setup,
            coherence,
            exact: true,
            durability: Durability::Follow,
        };
        let (_, expected) = run(&workload, &[]);
        for first in [9, 20, 31, 42] {
            for moments in [
                MOMENTS,
                [Moment::Unnoted, Moment::After, Moment::During, Moment::Before],
            ] {
                let deaths: Vec<(u64, Moment)> = moments
                    .iter()
                    .enumerate()
                    .map(|(at, moment)| (if at == 0 { first } else { at as u64 / 2 }, *moment))
                    .collect();
                let (_, last) = run(&workload, &deaths);
                assert_eq!(last, expected, "{setup} {coherence:?}: {deaths:?}");
            }
        }
    }
}
