//! A real application's schema and data, replayed as SQL on the primary's mount and then worked on by several processes at once, in each
//! journal mode, while other processes audit every node.
//!
//! * Each snapshot that a node shows is one that the application could have left: its books balance.
//! * After the last COMMIT all nodes hold the same bytes, SQLite finds no fault in them, and the content is what the same statements
//!   lead to in a plain directory.
//! * Where SQLite keeps a journal on disk, each COMMIT that returned took one TXID, and nothing else did.

mod clients;
mod package;
mod shop;
#[path = "../support/mod.rs"]
mod support;

use std::time::Instant;

use clients::{Client, Reports, Role, Task};
use litefs_dev::{Cluster, ClusterOptions, Condition, Node, Passthrough};
use rusqlite::Connection;
use serde_json::Value;
use shop::CLERKS;
use support::{PATIENCE, daemons};

const DB: &str = "shop.db";
/// What a clerk does on average at least, and what each auditor sees of it.
const STEPS: u64 = 32;
const SNAPSHOTS: usize = 5;

/// How the clerks' connections are set up, and what follows from it.
struct Mode {
    setup: &'static str,
    /// `locking_mode=EXCLUSIVE`: there is one clerk, and nobody reads on the primary.
    exclusive: bool,
    /// A journal that a rollback needs; OFF has none.
    rollback: bool,
    passthrough: Passthrough,
    /// Each commit is a transaction by itself (semantics, statements 7 and 8).
    exact: bool,
}

fn real_input(mode: &Mode) {
    let options = ClusterOptions {
        passthrough: mode.passthrough,
        ..ClusterOptions::default()
    };
    let Some(cluster) = daemons(options) else { return };
    let script = shop::as_sql(package::chinook());
    let start = Instant::now();
    let primary = cluster.primary().unwrap();
    for part in &script {
        primary.sql(DB, &format!("{};{part}", mode.setup)).unwrap();
    }
    let loaded = start.elapsed();
    let before = await_position(&cluster);

    let mut reports = Reports::new();
    let clerks = employ_clerks(&reports, primary, mode);
    let auditors = employ_auditors(&reports, &cluster, mode);
    let clerk_count = if mode.exclusive { 1 } else { CLERKS as usize };
    let auditor_count = auditors.len();
    reports.await_until("work on the primary that all nodes show", |reports| {
        reports.confirmed.len() == clerk_count
            && reports.confirmed.values().sum::<u64>() >= STEPS * clerk_count as u64
            && reports.seen.len() == auditor_count
            && reports
                .seen
                .values()
                .all(|(snapshots, _)| *snapshots >= SNAPSHOTS)
    });
    reports.dismiss(clerks);
    let plain = Plain::new(&script, &reports, mode);
    let entries = plain.entries();
    reports.await_until("the last commit on all nodes", |reports| {
        reports.seen.values().all(|(_, last)| *last == entries)
    });
    reports.dismiss(auditors);
    println!(
        "loaded in {loaded:?}; steps {:?}, snapshots {:?}, all in {:?}",
        reports.confirmed.values(),
        reports.seen.values().map(|(snapshots, _)| snapshots),
        start.elapsed()
    );

    let after = await_position(&cluster);
    if mode.exact {
        let commits: u64 = reports.confirmed.values().sum();
        assert_eq!(after - before, commits, "one TXID per commit that returned");
    }
    judge(&cluster, &plain);
}

fn employ_clerks(reports: &Reports, primary: Node<'_>, mode: &Mode) -> Vec<Client> {
    let of = |clerks: &[u64]| {
        let role = Role::Clerks {
            clerks: clerks.to_vec(),
            setup: mode.setup.to_owned(),
            refusals: mode.rollback,
        };
        let database = DB.to_owned();
        reports.employ(primary, Task { database, role })
    };
    let all: Vec<_> = (0..CLERKS).collect();
    match mode.exclusive {
        true => vec![of(&all[..1])],
        false => all.chunks(2).map(of).collect(),
    }
}

fn employ_auditors(reports: &Reports, cluster: &Cluster, mode: &Mode) -> Vec<Client> {
    let mut nodes = cluster.replicas().unwrap();
    if !mode.exclusive {
        nodes.push(cluster.primary().unwrap());
    }
    let employ = |node: &Node<'_>| {
        let role = Role::Auditor(node.station().to_string());
        let database = DB.to_owned();
        reports.employ(*node, Task { database, role })
    };
    nodes.iter().map(employ).collect()
}

/// Waits until all nodes are where the primary is; returns its TXID, which is not behind any commit that returned.
fn await_position(cluster: &Cluster) -> u64 {
    let mut cat = cluster.primary().unwrap().exec("cat").unwrap();
    let output = cat.arg(format!("{DB}-pos")).output().unwrap();
    let position = String::from_utf8(output.stdout).unwrap();
    let (txid, _) = position.split_once('/').expect("the file is TXID/checksum");
    let condition = Condition::Position {
        node: None,
        database: DB.to_owned(),
        txid: txid.parse().unwrap(),
    };
    cluster.wait(&condition, PATIENCE).unwrap();
    u64::from_str_radix(txid, 16).unwrap()
}

fn judge(cluster: &Cluster, plain: &Plain) {
    let verification = cluster.verify(PATIENCE).unwrap();
    assert!(verification.is_clean(), "{:#?}", verification.problems);
    assert_eq!(verification.nodes.len(), 3);
    assert_eq!(verification.databases.len(), 1, "{:?}", verification.databases);
    for (node, _) in cluster.status().unwrap().live() {
        let node = cluster.at(node.name);
        let violations = node.sql(DB, "PRAGMA foreign_key_check").unwrap();
        assert!(violations.rows.is_empty(), "{}: {violations:?}", node.station());
        for (table, query) in shop::contents(&plain.connection) {
            let found = node.sql(DB, &query).unwrap();
            let found = found.single().and_then(Value::as_str);
            assert!(
                found == Some(plain.text(&query).as_str()),
                "{}: {table} is not what the same statements lead to in a plain directory",
                node.station()
            );
        }
    }
}

/// The same statements in a plain directory, one clerk after the other.
struct Plain {
    connection: Connection,
    _directory: tempfile::TempDir,
}

impl Plain {
    fn new(script: &[String], reports: &Reports, mode: &Mode) -> Plain {
        let directory = tempfile::tempdir().unwrap();
        let mut connection = Connection::open(directory.path().join(DB)).unwrap();
        connection.execute_batch("PRAGMA synchronous = OFF").unwrap();
        for part in script {
            connection.execute_batch(part).unwrap();
        }
        for (clerk, steps) in &reports.confirmed {
            for step in 0..*steps {
                shop::work(&mut connection, *clerk, step, mode.rollback).unwrap();
            }
        }
        Plain {
            connection,
            _directory: directory,
        }
    }

    fn entries(&self) -> i64 {
        let count = "SELECT count(*) FROM Ledger";
        self.connection.query_row(count, [], |row| row.get(0)).unwrap()
    }

    fn text(&self, query: &str) -> String {
        self.connection.query_row(query, [], |row| row.get(0)).unwrap()
    }
}

const SHARED: Mode = Mode {
    setup: "",
    exclusive: false,
    rollback: true,
    passthrough: Passthrough::Auto,
    exact: true,
};

macro_rules! modes {
    ($($name:ident: $mode:expr;)*) => {$(
        #[test]
        fn $name() {
            real_input(&$mode);
        }
    )*};
}

modes! {
    delete: Mode { setup: "PRAGMA journal_mode = DELETE", ..SHARED };
    truncate: Mode { setup: "PRAGMA page_size = 1024; PRAGMA journal_mode = TRUNCATE", ..SHARED };
    persist: Mode { setup: "PRAGMA journal_mode = PERSIST; PRAGMA synchronous = NORMAL", ..SHARED };
    wal: Mode { setup: "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 100", ..SHARED };
    wal_normal: Mode { setup: "PRAGMA page_size = 1024; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL", ..SHARED };
    wal_intercepted: Mode { setup: "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 100", passthrough: Passthrough::Off, ..SHARED };
    persist_intercepted: Mode { setup: "PRAGMA journal_mode = PERSIST", passthrough: Passthrough::Off, ..SHARED };
    memory: Mode { setup: "PRAGMA journal_mode = MEMORY", exact: false, ..SHARED };
    off: Mode { setup: "PRAGMA journal_mode = OFF", exact: false, rollback: false, ..SHARED };
    delete_exclusive: Mode { setup: "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = DELETE", exclusive: true, ..SHARED };
    wal_exclusive: Mode { setup: "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL", exclusive: true, ..SHARED };
    memory_exclusive: Mode {
        setup: "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = MEMORY", exclusive: true, exact: false, ..SHARED
    };
}
