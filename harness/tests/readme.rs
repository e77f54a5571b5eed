//! The walk that README.md invites to, by the commands it names and with real daemons.

mod support;

use std::collections::{BTreeMap, BTreeSet};
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

/// The repository this package is in.
fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn readme() -> String {
    std::fs::read_to_string(repository().join("README.md")).unwrap()
}

#[test]
fn the_walk_as_it_is_written_leaves_all_nodes_alive() {
    if impossible() {
        return;
    }
    let readme = readme();
    let walk: Vec<_> = readme.lines().filter(|line| line.starts_with("dev ")).collect();
    let (last, walk) = walk.split_last().unwrap();
    assert!(walk.len() > 5 && *last == "dev destroy", "{walk:?}");
    let (root, litefs) = (tempfile::tempdir().unwrap(), litefs());
    let root = root.path();
    let _destroyed = Destroyed(root);
    let up = ["up", "3", "--name", CLUSTER, "--ttl", "3s", "--binary"];
    succeed(root, &[&up[..], &[litefs.to_str().unwrap()]].concat());
    let program = env!("CARGO_BIN_EXE_litefs-dev");
    let script = format!("set -ex\ndev() {{ '{program}' \"$@\"; }}\n{}\n", walk.join("\n"));
    let mut shell = std::process::Command::new("bash");
    shell.args(["-c", &script]).env("LITEFS_DEV_DIR", root);
    let output = shell.env_remove("LITEFS_DEV_CLUSTER").output().unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
    let status = json(root, &["status", "--json"]);
    let mut roles = roles(&status);
    roles.sort_unstable();
    assert_eq!(roles, ["primary", "replica", "replica"], "{said}");
    succeed(root, &["destroy"]);
}

#[test]
fn every_page_of_the_documentation_is_linked() {
    let readme = readme();
    let read = &readme[readme.find("\n## Read\n").unwrap()..];
    for entry in std::fs::read_dir(repository().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let link = if name.ends_with(".md") {
            format!("(docs/{name})")
        } else {
            format!("(docs/{name}/README.md)")
        };
        assert!(read.contains(&link), "{link}");
    }
}

/// What a package is made of for this machine: each package with the features that are compiled.
fn made_of(package: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut cargo = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([
        "tree",
        "--package",
        package,
        "--edges",
        "normal,no-proc-macro",
        "--prefix",
        "none",
    ]);
    cargo.args(["--format", "{p}|{f}", "--no-dedupe", "--locked"]);
    let output = cargo.current_dir(repository()).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut found = BTreeMap::<_, BTreeSet<_>>::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let Some((name, features)) = line.split_once('|') else {
            continue;
        };
        found
            .entry(name.to_owned())
            .or_default()
            .insert(features.to_owned());
    }
    found
}

/// The README has `litefs-dev` compiled, which then has `litefs` compiled. Cargo compiles a package anew for other features, and
/// whatever depends on it.
#[test]
fn what_litefs_dev_and_litefs_are_both_made_of_is_compiled_once() {
    let (tool, daemon) = (made_of("litefs-dev"), made_of("litefs"));
    let shared: Vec<_> = tool
        .iter()
        .filter(|(name, _)| daemon.contains_key(*name))
        .collect();
    assert!(shared.len() > 50, "{}", shared.len());
    for (name, features) in shared {
        assert_eq!(
            *features, daemon[name],
            "{name}: give harness/Cargo.toml what `litefs` has"
        );
    }
}
