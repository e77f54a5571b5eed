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
    runner(&always(fault, nth), results.path())
        .args([file, "--layout", "root"])
        .output()
        .expect("the runner runs")
}

/// The command of a mount with a fault.
fn always(fault: &str, nth: u32) -> String {
    format!(
        "{} {{source}} {{mountpoint}} {fault} {nth}",
        faulty_mount().display()
    )
}

/// The command of a mount that is good when a file is run again.
fn at_first(fault: &str, nth: u32) -> String {
    let bad = always(fault, nth);
    let good = always("none", 1);
    format!("sh -c 'case {{source}} in */ag/*) exec {good};; *) exec {bad};; esac'")
}

fn runner(mount: &str, results: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_litefs-tcl"));
    command
        .args(["run", "--jobs", "1", "--mount-command", mount, "--results"])
        .arg(results);
    command
}

fn text(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr];
    parts
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .concat()
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

/// The file that comes first loses a write, in whatever order they run. Its second try, alone and on a good mount, equals
/// native; what the first one showed stays.
#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_write_dropped_once_is_noticed_although_the_second_try_is_good() {
    let results = tempfile::tempdir().expect("a directory for results");
    let output = runner(&at_first("drop-write", 4), results.path())
        .args(["autovacuum2.test", "index.test"])
        .output()
        .expect("the runner runs");
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("flaky and not listed") || text.contains("flaky (no case ran)"),
        "{text}"
    );
    assert!(!text.contains("the mount equals native"), "{text}");
    let csv = std::fs::read_to_string(results.path().join("results.csv")).expect("the CSV file");
    assert!(
        csv.lines().any(|line| line.contains(".test,flaky,false")),
        "{csv}"
    );
    let junit = std::fs::read_to_string(results.path().join("junit.xml")).expect("the JUnit file");
    assert!(junit.contains("failure message=\"flaky: "), "{junit}");
}

/// No test begins there, on either side: both would be the same, and nothing shown.
#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_work_directory_that_the_test_user_cannot_enter_is_refused() {
    let closed = tempfile::tempdir().expect("a directory");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(closed.path(), mode).expect("chmod");
    let results = tempfile::tempdir().expect("a directory for results");
    let output = runner(&always("none", 1), results.path())
        .arg("select1.test")
        .arg("--work")
        .arg(closed.path())
        .output()
        .expect("the runner runs");
    let text = text(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("cannot enter"), "{text}");
    let left = std::fs::read_dir(closed.path())
        .expect("the work directory")
        .count();
    assert_eq!(left, 0);
}

/// busy2 takes six seconds.
#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn what_takes_too_long_natively_is_not_run_on_the_mount() {
    let results = tempfile::tempdir().expect("a directory for results");
    let output = runner(&always("none", 1), results.path())
        .args(["busy2.test", "--timeout", "1"])
        .output()
        .expect("the runner runs");
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("native-fail and not listed") && text.contains("not run on the mount"),
        "{text}"
    );
    assert!(!text.contains("again, alone"), "{text}");
}

/// When the mount starts, the log of the second file's native run is made impossible.
#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn an_error_of_the_runner_does_not_discard_what_it_has() {
    let results = tempfile::tempdir().expect("a directory for results");
    let mount = format!(
        "sh -c 'case {{source}} in */00/*) cd {{source}}/../.. && rm native.log && mkdir native.log;; esac; exec {}'",
        always("none", 1)
    );
    let output = runner(&mount, results.path())
        .args(["index.test", "select1.test"])
        .output()
        .expect("the runner runs");
    let text = text(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("the runner: "), "{text}");
    let csv = std::fs::read_to_string(results.path().join("results.csv")).expect("the CSV file");
    assert_eq!(csv.lines().count(), 2, "{csv}");
    let junit = std::fs::read_to_string(results.path().join("junit.xml")).expect("the JUnit file");
    assert!(junit.contains("the whole run"), "{junit}");
}

/// A thousand of them fill a disk.
#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_mount_for_each_file_leaves_no_data_behind() {
    let results = tempfile::tempdir().expect("a directory for results");
    let seen = results.path().join("seen");
    let mount = format!(
        "sh -c 'ls {{source}}/../.. >> {}; exec {}'",
        seen.display(),
        always("none", 1)
    );
    let output = runner(&mount, results.path())
        .args(["index.test", "select1.test", "--layout", "root"])
        .output()
        .expect("the runner runs");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let seen = std::fs::read_to_string(seen).expect("what the mounts saw");
    let count = |name: &str| seen.lines().filter(|line| *line == name).count();
    assert_eq!((count("m0001"), count("m0002")), (1, 1), "{seen}");
}

#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_dead_mount_leaves_its_log_and_with_keep_its_data() {
    let base = tempfile::tempdir().expect("a base");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(base.path(), open).expect("chmod");
    let results = base.path().join("results");
    let output = runner(&always("end", 40), &results)
        .args(["index.test", "--layout", "root", "--keep", "--work"])
        .arg(base.path())
        .output()
        .expect("the runner runs");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(results.join("logs/index.test.daemon.log").exists());
    let entries = std::fs::read_dir(base.path()).expect("the base").flatten();
    let kept = entries
        .map(|entry| entry.path().join("00/m0001/data"))
        .find(|data| data.exists());
    assert!(kept.is_some(), "the data of the mount is kept");
}
