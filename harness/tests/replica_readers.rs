//! Clients of a replica that come and go all the time while transactions are applied: each that leaves last checkpoints and removes the
//! WAL, and each that comes first builds the wal-index anew.

mod support;

use std::io::{Read, Write};
use std::process::{Child, Stdio};

use litefs_dev::{Cluster, ClusterOptions, Condition, Passthrough};
use rusqlite::{Connection, OpenFlags};
use support::{PATIENCE, daemons};

const DB: &str = "app.db";
const READER: &str = "LITEFS_TEST_READER";
const TRANSACTIONS: usize = 2000;
const PER_CALL: usize = 250;
const READERS: usize = 3;

#[test]
fn readers_that_come_and_go_meet_no_error_and_cause_none() {
    for passthrough in [Passthrough::On, Passthrough::Off] {
        let options = ClusterOptions {
            nodes: 2,
            passthrough,
            ..ClusterOptions::default()
        };
        let Some(cluster) = daemons(options) else { return };
        come_and_go(&cluster, &format!("{passthrough:?}"));
    }
}

fn come_and_go(cluster: &Cluster, story: &str) {
    let primary = cluster.primary().unwrap();
    let create = "PRAGMA journal_mode = wal; CREATE TABLE t (a INTEGER PRIMARY KEY, b)";
    primary.sql(DB, create).unwrap();
    let caught_up = Condition::CaughtUp { node: None };
    cluster.wait(&caught_up, PATIENCE).unwrap();
    let replica = cluster.replicas().unwrap()[0];
    let readers: Vec<Child> = (0..READERS)
        .map(|number| {
            replica
                .exec(std::env::current_exe().unwrap())
                .unwrap()
                .args(["--exact", "reader_process", "--nocapture", "--test-threads=1"])
                .env(READER, number.to_string())
                .current_dir(replica.mount())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for call in 0..TRANSACTIONS / PER_CALL {
        // Grows, and shrinks now and then.
        let mut sql = "INSERT INTO t (b) VALUES (hex(randomblob(1500)));".repeat(PER_CALL - 1);
        sql += match call % 3 {
            2 => "DELETE FROM t WHERE a % 3 = 0; VACUUM;",
            _ => "UPDATE t SET b = 'x' WHERE a % 50 = 0;",
        };
        primary.sql(DB, &sql).unwrap();
    }
    cluster.wait(&caught_up, PATIENCE).unwrap();
    for mut reader in readers {
        drop(reader.stdin.take());
        let mut said = String::new();
        reader.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        reader.wait().unwrap();
        let outcome = said.lines().find_map(|line| line.split_once("reader> "));
        let (visits, errors) = outcome.and_then(|(_, told)| told.split_once(' ')).unwrap();
        println!("{story}: {visits} visits");
        assert_eq!(errors, "none", "{story}");
        assert!(visits.parse::<u32>().unwrap() > 10, "{story}: {visits} visits");
    }
    let log = std::fs::read_to_string(replica.log()).unwrap();
    let trouble: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .collect();
    assert!(trouble.is_empty(), "{story}: {trouble:#?}");
    let result = cluster.verify(PATIENCE).unwrap();
    assert!(result.is_clean(), "{story}: {:#?}", result.problems);
}

/// Not a test by itself: opens, reads and closes until its input ends, then tells how often, and the first error.
#[test]
fn reader_process() {
    let Ok(number) = std::env::var(READER) else { return };
    let over = std::thread::spawn(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    let mut visits = 0u32;
    let mut outcome = Ok(());
    while outcome.is_ok() && (visits == 0 || !over.is_finished()) {
        outcome = visit(number != "0");
        visits += 1;
    }
    let errors = outcome.map_or_else(|error| error.to_string(), |()| "none".to_owned());
    let mut out = std::io::stdout();
    writeln!(out, "reader> {visits} {errors}").unwrap();
    out.flush().unwrap();
}

fn visit(writable: bool) -> rusqlite::Result<()> {
    let flags = match writable {
        true => OpenFlags::SQLITE_OPEN_READ_WRITE,
        false => OpenFlags::SQLITE_OPEN_READ_ONLY,
    };
    let db = Connection::open_with_flags(DB, flags)?;
    db.busy_timeout(std::time::Duration::from_secs(20))?;
    let count: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
    let verdict: String = db.query_row("PRAGMA quick_check", [], |row| row.get(0))?;
    assert_eq!(verdict, "ok", "at {count} rows");
    db.close().map_err(|(_, error)| error)
}
