//! The life of a cluster: elections, crashes, partitions, down and up, and what is left behind. With stand-ins instead of daemons, so that
//! a failure here is the harness's.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use litefs_dev::binary::Wanted;
use litefs_dev::{Cluster, ClusterOptions, Condition, Keep, NodeRole, Station};
use serde_json::Value;
use support::{PATIENCE, eventually, fail, impossible, stand_in, stand_ins, stand_ins_with, succeed};

#[test]
fn a_killed_primary_is_replaced_and_returns_as_a_replica() {
    let Some(cluster) = stand_ins(3) else { return };
    let old = cluster.primary().unwrap().station();
    cluster.at(old).kill().unwrap();
    let waited = cluster
        .wait(
            &Condition::Role {
                node: None,
                role: NodeRole::Primary,
            },
            PATIENCE,
        )
        .unwrap();
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    assert_ne!(cluster.primary().unwrap().station(), old);
    assert_eq!(cluster.status().unwrap().node(old).unwrap().role, NodeRole::Down);
    cluster.at(old).start().unwrap();
    cluster
        .wait(
            &Condition::Role {
                node: Some(old),
                role: NodeRole::Replica,
            },
            PATIENCE,
        )
        .unwrap();
    cluster.wait(&Condition::Settled, PATIENCE).unwrap();
}

#[test]
fn a_primary_cut_off_from_the_lease_is_replaced_but_its_api_still_answers() {
    let Some(cluster) = stand_ins(3) else { return };
    let old = cluster.primary().unwrap().station();
    cluster.partition(&[vec![old]], false).unwrap();
    eventually("another node is primary", || {
        let status = cluster.status().unwrap();
        assert!(
            status.node(old).unwrap().error.is_none(),
            "the API is reached past the wires"
        );
        status.primaries().any(|node| node.name != old)
    });
    cluster.heal(true).unwrap();
    cluster.wait(&Condition::Settled, PATIENCE).unwrap();
    assert!(cluster.status().unwrap().links.is_empty());
}

#[test]
fn a_paused_node_is_down_until_it_is_resumed() {
    let Some(cluster) = stand_ins(2) else { return };
    let replica = cluster.replicas().unwrap()[0].station();
    cluster.at(replica).pause().unwrap();
    assert_eq!(
        cluster.status().unwrap().node(replica).unwrap().role,
        NodeRole::Down
    );
    assert!(cluster.at(replica).pause().is_err());
    cluster.at(replica).resume().unwrap();
    cluster.wait(&Condition::Settled, PATIENCE).unwrap();
    cluster.at(replica).pause().unwrap();
    cluster.at(replica).stop().unwrap();
}

#[test]
fn without_the_lease_server_no_primary_is_elected() {
    let Some(cluster) = stand_ins(2) else { return };
    let primary = cluster.primary().unwrap();
    cluster.at(Station::LEASE).kill().unwrap();
    primary.kill().unwrap();
    let elected = cluster.wait(
        &Condition::Role {
            node: None,
            role: NodeRole::Primary,
        },
        Duration::from_secs(3),
    );
    assert!(elected.is_err(), "{elected:?}");
    cluster.at(Station::LEASE).start().unwrap();
    cluster
        .wait(
            &Condition::Role {
                node: None,
                role: NodeRole::Primary,
            },
            PATIENCE,
        )
        .unwrap();
}

#[test]
fn programs_and_sql_run_where_the_node_lives() {
    let Some(cluster) = stand_ins(2) else { return };
    let node = cluster.node(2).unwrap();
    let output = node
        .exec("cat")
        .unwrap()
        .arg("/proc/net/fib_trie")
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("10.77.0.2"));
    let output = node.exec("pwd").unwrap().output().unwrap();
    assert_eq!(
        Path::new(String::from_utf8_lossy(&output.stdout).trim()),
        node.mount()
    );
    node.sql("a.db", "CREATE TABLE t (a); INSERT INTO t VALUES (1), (2)")
        .unwrap();
    assert_eq!(
        node.sql("a.db", "SELECT count(*) FROM t").unwrap().single(),
        Some(&Value::from(2))
    );
    let error = node.sql("a.db", "SELECT * FROM missing").unwrap_err().to_string();
    assert!(error.contains("no such table"), "{error}");
}

#[test]
fn the_command_line_leads_through_a_life() {
    if impossible() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (root, stand_in) = (root.path(), stand_in());
    let up = [
        "up",
        "2",
        "--name",
        "a",
        "--ttl",
        "1s",
        "--json",
        "--binary",
        stand_in.to_str().unwrap(),
    ];
    let before: Value = serde_json::from_str(&succeed(root, &up)).unwrap();
    assert_eq!(before["name"], "a");
    let roles = |status: &Value| -> Vec<String> {
        let nodes = status["nodes"].as_array().unwrap().iter();
        nodes
            .map(|node| node["role"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        roles(&before),
        ["primary", "replica"],
        "the first node of a new cluster is its first primary"
    );
    succeed(root, &["wait", "--role", "n2=replica"]);
    assert!(succeed(root, &["exec", "primary", "--", "sh", "-c", "echo $LITEFS_NODE"]).contains("n1"));
    assert!(fail(root, &up).contains("is running already"));

    succeed(root, &["link", "n1", "n2", "--delay", "20ms", "--loss", "1%"]);
    succeed(root, &["partition", "n1", "/", "n2"]);
    assert!(succeed(root, &["status"]).contains("cut, delay 20ms, loss 1%"));
    succeed(root, &["heal"]);
    succeed(root, &["wait", "--timeout", "20s"]);
    succeed(root, &["verify"]);
    assert_eq!(
        succeed(
            root,
            &[
                "sql",
                "n1",
                "x.db",
                "CREATE TABLE t(a); INSERT INTO t VALUES(NULL),(7); SELECT 1, a FROM t"
            ]
        ),
        "1|\n1|7\n"
    );
    assert!(succeed(root, &["exec", "n2", "--", "sh", "-c", "echo $LITEFS_NODE"]).contains("n2"));
    assert!(fail(root, &["kill", "n9"]).contains("no n9"));
    succeed(root, &["logs", "lease"]);

    succeed(root, &["down"]);
    let list: Value = serde_json::from_str(&succeed(root, &["ls", "--json"])).unwrap();
    assert_eq!(list[0]["running"], false);
    let down: Value = serde_json::from_str(&succeed(root, &["status", "--json"])).unwrap();
    assert_eq!(roles(&down), ["down", "down"]);
    let after: Value = serde_json::from_str(&succeed(root, &["up", "--name", "a", "--json"])).unwrap();
    assert_eq!(
        after["nodes"][1]["api"], before["nodes"][1]["api"],
        "the URLs stay"
    );
    assert_eq!(
        succeed(root, &["sql", "n1", "x.db", "SELECT max(a) FROM t"]),
        "7\n",
        "the data stays"
    );

    let other = [
        "up",
        "1",
        "--name",
        "b",
        "--ttl",
        "1s",
        "--binary",
        stand_in.to_str().unwrap(),
    ];
    succeed(root, &other);
    assert!(fail(root, &["status"]).contains("a, b"), "which one is not clear");
    succeed(root, &["status", "--name", "b"]);
    assert!(fail(root, &["status", "--name", "c"]).contains("there are: a, b"));
    succeed(root, &["destroy", "--name", "a"]);
    succeed(root, &["destroy"]);
    assert!(fail(root, &["status"]).contains("litefs-dev up"));
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 0);
}

#[test]
fn a_crashed_supervisor_leaves_no_daemon_and_the_next_up_cures_the_rest() {
    // The leases of the dead would outlast the test.
    let ttl = 4 * PATIENCE;
    let Some(cluster) = stand_ins_with(2, ttl) else {
        return;
    };
    let status = cluster.status().unwrap();
    let pids: Vec<_> = status
        .nodes
        .iter()
        .filter_map(|node| node.process.pid())
        .collect();
    let mount = status.nodes[0].mount.clone();
    let root = nix::unistd::geteuid().is_root();
    if root {
        // Stands for the mount of a daemon that died.
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("none"), &mount, Some("tmpfs"), flags, None::<&str>).unwrap();
    }
    let supervisor = nix::unistd::Pid::from_raw(status.supervisor.unwrap());
    nix::sys::signal::kill(supervisor, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("the daemons end with their supervisor", || {
        pids.iter().all(|pid| !is_alive(*pid))
    });
    assert!(!cluster.status().unwrap().running);

    let name = cluster.name();
    let options = ClusterOptions {
        name,
        nodes: 2,
        litefs: Wanted {
            binary: Some(stand_in()),
            release: false,
        },
        ttl,
        root: Some(support::root()),
        ..ClusterOptions::default()
    };
    let again = Cluster::up(options).unwrap();
    again.wait_until_ready(PATIENCE).unwrap();
    if root {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !table.contains(mount.to_str().unwrap()),
            "the left-over mount is detached"
        );
    }
}

fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie waits for whoever inherited it.
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn a_cluster_ends_with_the_process_that_owns_it() {
    if impossible() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let mut owner = Command::new(std::env::current_exe().unwrap());
    owner
        .args(["--exact", "owns_a_cluster_and_waits", "--ignored"])
        .env("OWNER_ROOT", root.path());
    let mut owner = owner.stdout(Stdio::null()).spawn().unwrap();
    eventually("the cluster is up", || root.path().join("owned/ready").exists());
    owner.kill().unwrap();
    owner.wait().unwrap();
    eventually("the cluster is gone", || !root.path().join("owned").exists());
}

#[test]
#[ignore = "the other process of a_cluster_ends_with_the_process_that_owns_it"]
fn owns_a_cluster_and_waits() {
    let Some(root) = std::env::var_os("OWNER_ROOT") else {
        return;
    };
    let options = ClusterOptions {
        name: "owned".into(),
        nodes: 1,
        keep: Keep::No,
        litefs: Wanted {
            binary: Some(stand_in()),
            release: false,
        },
        root: Some(root.into()),
        ..ClusterOptions::default()
    };
    let cluster = Cluster::up(options).unwrap();
    std::fs::write(cluster.directory().path().join("ready"), "").unwrap();
    std::thread::sleep(PATIENCE);
}

#[test]
fn a_node_that_ends_at_its_start_is_reported_with_its_log() {
    if impossible() {
        return;
    }
    let options = ClusterOptions {
        nodes: 1,
        litefs: Wanted {
            binary: Some("/bin/false".into()),
            release: false,
        },
        root: Some(support::root()),
        ..ClusterOptions::default()
    };
    let cluster = Cluster::up(options).unwrap();
    let error = cluster.wait_until_ready(PATIENCE).unwrap_err().to_string();
    assert!(error.contains("n1: ended (exit status: 1)"), "{error}");
}
