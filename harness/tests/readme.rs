//! The walk that README.md invites to, by the commands it names and with real daemons.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{fail, impossible, litefs, litefs_dev, succeed};

/// How long `up` may take with everything built.
const READY: Duration = Duration::from_secs(5);
const DB: &str = "app.db";
const CLUSTER: &str = "readme";

/// What a command prints with `--json`.
fn json(root: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&succeed(root, arguments)).unwrap()
}

/// The roles of n1, n2, …
fn roles(status: &Value) -> Vec<&str> {
    let nodes = status["nodes"].as_array().unwrap().iter();
    nodes.map(|node| node["role"].as_str().unwrap()).collect()
}

/// A member of what `status --json` says of node number `number`.
fn told<'a>(status: &'a Value, number: usize, member: &str) -> &'a str {
    status["nodes"][number - 1][member].as_str().unwrap()
}

/// What each node reads, once all that run have what the primary has.
fn all_read(root: &Path, nodes: &[&str], expected: &str) {
    succeed(root, &["wait", "--caught-up"]);
    for node in nodes {
        let read = succeed(root, &["sql", node, DB, "SELECT group_concat(x) FROM t"]);
        assert_eq!(read.trim(), expected, "{node}");
    }
}

fn insert(root: &Path, node: &str, value: u32) {
    succeed(
        root,
        &["sql", node, DB, &format!("INSERT INTO t VALUES ({value})")],
    );
}

fn verify_is_clean(root: &Path) {
    let verified = json(root, &["verify", "--json"]);
    assert_eq!(verified["nodes"], serde_json::json!(["n1", "n2", "n3"]));
    assert_eq!(verified["databases"][0]["name"], DB);
    assert_eq!(verified["problems"], serde_json::json!([]));
}

/// Ends the cluster's processes and mounts, however the test ends.
struct Destroyed<'a>(&'a Path);

impl Drop for Destroyed<'_> {
    fn drop(&mut self) {
        if !self.0.join(CLUSTER).exists() {
            return;
        }
        if std::thread::panicking() {
            for station in ["n1", "n2", "n3"] {
                let log = litefs_dev(self.0, &["logs", station]).stdout;
                eprintln!("---- log of {station}\n{}", String::from_utf8_lossy(&log));
            }
        }
        litefs_dev(self.0, &["destroy"]);
    }
}

#[test]
fn the_readme_leads_through_a_cluster() {
    if impossible() {
        return;
    }
    let (root, litefs) = (tempfile::tempdir().unwrap(), litefs());
    let root = root.path();
    let _destroyed = Destroyed(root);
    let up = [
        "up",
        "3",
        "--name",
        CLUSTER,
        "--ttl",
        "3s",
        "--json",
        "--binary",
        litefs.to_str().unwrap(),
    ];
    let start = Instant::now();
    let status = json(root, &up);
    let waited = start.elapsed();
    println!("ready after {waited:?}");
    assert!(waited < READY, "{waited:?}");
    assert_eq!(roles(&status), ["primary", "replica", "replica"]);

    succeed(
        root,
        &["sql", "n1", DB, "CREATE TABLE t(x); INSERT INTO t VALUES (1)"],
    );
    all_read(root, &["n1", "n2", "n3"], "1");
    let rows = json(root, &["sql", "n2", DB, "SELECT * FROM t", "--json"]);
    assert_eq!(rows, serde_json::json!([{"x": 1}]));
    let status = json(root, &["status", "--json"]);
    assert_eq!(roles(&status), ["primary", "replica", "replica"]);
    let here = succeed(root, &["exec", "n3", "--", "sh", "-c", "pwd; ls"]);
    let expected = format!("{}\n", told(&status, 3, "mount"));
    assert!(here.starts_with(&expected) && here.contains(DB), "{here}");
    verify_is_clean(root);
    let log = succeed(root, &["logs", "n1"]);
    assert!(log.contains("primary"), "{log}");

    succeed(root, &["stop", "n3"]);
    insert(root, "n1", 2);
    assert_eq!(
        roles(&json(root, &["status", "--json"])),
        ["primary", "replica", "down"]
    );
    succeed(root, &["start", "n3"]);
    succeed(root, &["wait", "--role", "n3=replica"]);
    all_read(root, &["n3"], "1,2");

    succeed(root, &["kill", "n1"]);
    succeed(root, &["wait", "--role", "primary"]);
    let status = json(root, &["status", "--json"]);
    assert_eq!(told(&status, 1, "role"), "down");
    insert(root, "primary", 3);
    succeed(root, &["start", "n1"]);
    succeed(root, &["wait", "--role", "n1=replica"]);
    all_read(root, &["n1", "n2", "n3"], "1,2,3");
    verify_is_clean(root);

    let (primary, other) = match told(&status, 2, "role") {
        "primary" => ("n2", "n3"),
        _ => ("n3", "n2"),
    };
    succeed(root, &["partition", &format!("n1,{primary}"), "/", other]);
    insert(root, primary, 4);
    succeed(root, &["wait", "n1", "--caught-up"]);
    let output = litefs_dev(root, &["verify", "--timeout", "0s"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let problem = format!("PROBLEM {DB}: {other} is at");
    assert!(said.contains(&problem), "{said}");
    succeed(root, &["heal"]);
    succeed(root, &["link", "n1", "n2", "--delay", "20ms", "--loss", "1%"]);
    succeed(root, &["wait"]);
    insert(root, "primary", 5);
    all_read(root, &["n1", "n2", "n3"], "1,2,3,4,5");

    succeed(root, &["down"]);
    let status = json(root, &["up", "--name", CLUSTER, "--json"]);
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3);
    all_read(root, &["n1", "n2", "n3"], "1,2,3,4,5");
    verify_is_clean(root);
    succeed(root, &["destroy"]);
    assert!(fail(root, &["status"]).contains("litefs-dev up"));
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 0);
}
