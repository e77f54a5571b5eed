//! What the tests of clusters share.
#![allow(dead_code)] // each test program uses its part

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use litefs_dev::binary::Wanted;
use litefs_dev::net::Network;
use litefs_dev::{Cluster, ClusterOptions};

/// Far more than anything here takes; a test that needs it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Why this machine cannot run a cluster, if so; printed once per skipped test.
pub(crate) fn impossible() -> bool {
    let fuse = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    let reason = match (fuse, Network::build(1, 1)) {
        (Err(error), _) => format!("/dev/fuse: {error}"),
        (_, Err(error)) => error.to_string(),
        (Ok(_), Ok(_)) => return false,
    };
    eprintln!("skipped: {reason}");
    true
}

/// `examples/stand_in.rs`, which cargo puts two levels from the test programs.
pub(crate) fn stand_in() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let path = program.ancestors().nth(2).unwrap().join("examples/stand_in");
    assert!(
        path.is_file(),
        "{} is missing: cargo build -p litefs-dev --examples",
        path.display()
    );
    path
}

/// A cluster of stand-ins with a short lease, gone with its value.
pub(crate) fn stand_ins(nodes: usize) -> Option<Cluster> {
    stand_ins_with(nodes, Duration::from_secs(1))
}

/// As [`stand_ins`], with a lease of that length.
pub(crate) fn stand_ins_with(nodes: usize, ttl: Duration) -> Option<Cluster> {
    if impossible() {
        return None;
    }
    let cluster = Cluster::up(ClusterOptions {
        nodes,
        litefs: Wanted {
            binary: Some(stand_in()),
            release: false,
        },
        ttl,
        lock_delay: Duration::from_millis(100),
        root: Some(root()),
        ..ClusterOptions::default()
    })
    .unwrap();
    cluster.wait_until_ready(PATIENCE).unwrap();
    Some(cluster)
}

/// A cluster of real daemons, ready, gone with its value.
pub(crate) fn daemons(options: ClusterOptions) -> Option<Cluster> {
    if impossible() {
        return None;
    }
    let litefs = Wanted {
        binary: Some(litefs()),
        release: false,
    };
    let cluster = Cluster::up(ClusterOptions {
        litefs,
        root: Some(root()),
        ..options
    })
    .unwrap();
    cluster.wait_until_ready(PATIENCE).unwrap();
    Some(cluster)
}

/// The workspace's `litefs`, built once per test program.
pub(crate) fn litefs() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| Wanted::default().find().unwrap()).clone()
}

/// Where these tests keep their clusters; each has a name of its own.
pub(crate) fn root() -> PathBuf {
    std::env::temp_dir().join("litefs-dev-tests")
}

/// Runs the `litefs-dev` command on the clusters below `root`.
pub(crate) fn litefs_dev(root: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_litefs-dev"));
    command
        .args(arguments)
        .env("LITEFS_DEV_DIR", root)
        .env_remove("LITEFS_DEV_CLUSTER");
    command.output().unwrap()
}

/// Standard output of a command that succeeds.
pub(crate) fn succeed(root: &std::path::Path, arguments: &[&str]) -> String {
    let output = litefs_dev(root, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a command that fails.
pub(crate) fn fail(root: &std::path::Path, arguments: &[&str]) -> String {
    let output = litefs_dev(root, arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8(output.stderr).unwrap()
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
