//! A comparison that does not notice a bad mount is worth nothing. These tests run real test files of SQLite on a loopback
//! file system that does one thing wrong, and on the same file system without a fault.
//!
//! They need root, /dev/fuse and a built testfixture (`litefs-tcl build`), so they run on request:
//! `cargo test -p litefs-tcl --test canaries -- --ignored`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The loopback is an example, which cargo does not build for a single test target.
fn faulty_mount() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "-q", "-p", "litefs-tcl", "--example", "faulty_mount"])
            .status()
            .expect("cargo runs");
        assert!(built.success());
        let runner = Path::new(env!("CARGO_BIN_EXE_litefs-tcl"));
        runner.with_file_name("examples").join("faulty_mount")
    })
}

/// Runs a test file on a fresh mount with a fault; `nth` is the operation that goes wrong.
fn run(file: &str, fault: &str, nth: u32) -> Output {
    let results = tempfile::tempdir().expect("a directory for results");
    let mount = format!(
        "{} {{source}} {{mountpoint}} {fault} {nth}",
        faulty_mount().display()
    );
    Command::new(env!("CARGO_BIN_EXE_litefs-tcl"))
        .args([
            "run",
            file,
            "--jobs",
            "1",
            "--layout",
            "root",
            "--mount-command",
            &mount,
            "--results",
        ])
        .arg(results.path())
        .output()
        .expect("the runner runs")
}

fn noticed(file: &str, fault: &str, nth: u32) {
    let output = run(file, fault, nth);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("DIFFERS"), "{text}");
}

#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_mount_without_fault_equals_native() {
    for file in ["index.test", "vacuum.test", "lock2.test"] {
        let output = run(file, "none", 1);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(text.contains("the mount equals native"), "{text}");
    }
}

#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_mount_that_drops_one_write_is_noticed() {
    noticed("index.test", "drop-write", 3);
}

#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_mount_that_loses_a_truncate_is_noticed() {
    noticed("vacuum.test", "lose-truncate", 1);
}

#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_mount_that_grants_every_lock_is_noticed() {
    noticed("lock2.test", "grant-locks", 1);
}

#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_mount_whose_process_ends_is_noticed() {
    let output = run("index.test", "end", 40);
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}{errors}");
    assert!(text.contains("mount-died"), "{text}{errors}");
}
