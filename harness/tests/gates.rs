//! Exact counts that hold on any machine.

use litefs_dev::binary::Wanted;
use litefs_dev::solo::{Solo, SoloOptions};
use rusqlite::Connection;

fn solo(dir: &std::path::Path, durability: &'static str) -> Solo {
    let binary = Wanted::default().find().unwrap();
    let options = SoloOptions {
        binary,
        dir: dir.to_owned(),
        passthrough: "auto",
        durability,
    };
    Solo::start(options).unwrap()
}

fn log_syncs(solo: &Solo) -> f64 {
    let metrics = solo.get("/metrics").unwrap();
    let line = metrics
        .lines()
        .find(|line| line.starts_with("litefs_log_sync_total"));
    line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

/// Syncs of the log that `commits` single-row transactions cause, checkpoints apart.
fn syncs_of_commits(solo: &Solo, synchronous: &str, commits: u32) -> f64 {
    let connection = Connection::open(solo.mount().join("count.db")).unwrap();
    connection
        .query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))
        .unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA wal_autocheckpoint=0; PRAGMA synchronous={synchronous}"
        ))
        .unwrap();
    connection
        .execute_batch("CREATE TABLE IF NOT EXISTS t(x)")
        .unwrap();
    // The position is read through the mount, so what came before is captured.
    std::fs::read(solo.mount().join("count.db-pos")).unwrap();
    let before = log_syncs(solo);
    for i in 0..commits {
        connection.execute("INSERT INTO t VALUES(?)", [i]).unwrap();
    }
    log_syncs(solo) - before
}

#[test]
fn a_wal_commit_costs_no_sync_but_sqlites_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut solo = solo(dir.path(), "follow");
    assert_eq!(syncs_of_commits(&solo, "FULL", 20), 0.0);
    assert_eq!(syncs_of_commits(&solo, "NORMAL", 20), 0.0);
    solo.stop().unwrap();
}

#[test]
fn with_durability_commit_every_commit_waits_for_its_record() {
    let dir = tempfile::tempdir().unwrap();
    let mut solo = solo(dir.path(), "commit");
    assert!(syncs_of_commits(&solo, "NORMAL", 20) >= 20.0);
    solo.stop().unwrap();
}
