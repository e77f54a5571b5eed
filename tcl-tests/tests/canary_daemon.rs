//! As `canaries`, with the daemon itself: a build of it that does one thing wrong at the kernel edge or in the engine, in both
//! modes. Each fault has to make a run fail, and none without.
//!
//! On request: `cargo test -p litefs-tcl --test canary_daemon -- --ignored`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The daemon with faults. The features of the whole workspace, so that dependencies are those of its tests.
fn daemon() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "-q", "--workspace", "--bin", "litefs-canary"])
            .args(["--features", "litefs/canary"])
            .status()
            .expect("cargo runs");
        assert!(built.success());
        Path::new(env!("CARGO_BIN_EXE_litefs-tcl")).with_file_name("litefs-canary")
    })
}

/// The modes that this kernel has, as the caller knows.
fn modes() -> Vec<String> {
    let words = std::env::var("LITEFS_TCL_MODES").unwrap_or_else(|_| "passthrough intercepted".to_owned());
    words.split_whitespace().map(str::to_owned).collect()
}

/// Runs a test file on a fresh mount of a daemon with a fault.
fn run(fault: &str, mode: &str, file: &str, replica: bool) -> Output {
    let results = tempfile::tempdir().expect("a directory for results");
    let mut command = Command::new(env!("CARGO_BIN_EXE_litefs-tcl"));
    command
        .args(["run", file, "--jobs", "1", "--mode", mode, "--litefs"])
        .arg(daemon())
        .arg("--results")
        .arg(results.path());
    if replica {
        command.arg("--replica");
    }
    if !fault.is_empty() {
        command.env("LITEFS_CANARY", fault);
    }
    command.output().expect("the runner runs")
}

fn text(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr];
    parts
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .concat()
}

/// In both modes; `what` is how the run tells, so that a daemon that dies of its fault does not count as one that was seen through.
fn noticed(fault: &str, file: &str, replica: bool, what: &str) {
    for mode in modes() {
        noticed_in(&mode, fault, file, replica, what);
    }
}

fn noticed_in(mode: &str, fault: &str, file: &str, replica: bool, what: &str) {
    let output = run(fault, mode, file, replica);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{fault}, {mode}: {text}");
    assert!(
        text.contains("DIFFERS") && text.contains(what),
        "{fault}, {mode}: {text}"
    );
}

#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn without_a_fault_the_same_files_equal_native() {
    for mode in modes() {
        for file in [
            "index.test",
            "vacuum.test",
            "lock2.test",
            "select2.test",
            "walmode.test",
        ] {
            let output = run("", &mode, file, true);
            assert_eq!(output.status.code(), Some(0), "{file}, {mode}: {}", text(&output));
        }
    }
}

#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_dropped_write_is_noticed() {
    noticed("drop-write:3", "index.test", false, "index.test: abort");
}

/// Where the kernel serves the WAL, no write of it comes by that could be dropped.
#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_dropped_write_of_the_wal_is_noticed() {
    noticed_in(
        "intercepted",
        "drop-wal-write:30",
        "wal.test",
        false,
        "wal.test: fail",
    );
}

#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_lost_truncation_is_noticed() {
    noticed("lose-truncate:1", "vacuum.test", false, "vacuum.test: fail");
}

#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_lock_granted_to_two_is_noticed() {
    noticed("grant-locks", "lock2.test", false, "lock2.test: fail");
}

/// SQLite's tests pass: only the replica and the log lack the page.
#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_page_missing_in_a_transaction_is_noticed() {
    noticed("lose-page:800", "select2.test", true, "finding: select2/test.db");
}

/// The replica's export takes the page from the log: only what its mount holds tells.
#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_page_that_the_replica_loses_from_its_file_is_noticed() {
    let finding = "of the replica's file differs from the export's";
    noticed("lose-applied-page:200", "index.test", true, finding);
}

#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_deletion_that_the_replica_does_not_follow_is_noticed() {
    let finding = "the replica's mount still has index/test.db";
    noticed("keep-removed", "index.test", true, finding);
}

#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_healthy_database_that_is_not_replicated_is_noticed() {
    let finding = "index/test.db: SQLite finds nothing wrong, but it is not replicated";
    noticed("quarantine", "index.test", true, finding);
}
