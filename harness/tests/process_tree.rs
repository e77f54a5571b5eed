//! A node that is a tree of processes: what each way to end it ends, what it leaves, and that nothing is left in the end. The node is a
//! stand-in without a mount; a tmpfs stands for the mount that its keeper holds.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use litefs_dev::binary::Wanted;
use litefs_dev::processes::{self, Companion, Holder};
use litefs_dev::{Cluster, ClusterOptions, Victims};
use support::{PATIENCE, eventually, impossible, root, stand_in};

/// A cluster of one node, with a tmpfs on its mount point.
fn tree() -> Option<Cluster> {
    if impossible() {
        return None;
    }
    let cluster = Cluster::up(ClusterOptions {
        nodes: 1,
        litefs: Wanted {
            binary: Some(stand_in().with_file_name("stand_in_tree")),
            release: false,
        },
        ttl: Duration::from_secs(1),
        lock_delay: Duration::from_millis(100),
        root: Some(root()),
        ..ClusterOptions::default()
    })
    .unwrap();
    cluster.wait_until_ready(PATIENCE).unwrap();
    let mut mounted = in_cluster(&cluster, "mount", &["-t", "tmpfs", "none", "."]);
    assert!(mounted.status().unwrap().success());
    Some(cluster)
}

/// A command in the node's namespaces, where its mount is seen.
fn in_cluster(cluster: &Cluster, program: &str, arguments: &[&str]) -> Command {
    let mut command = cluster.node(1).unwrap().exec(program).unwrap();
    command.args(arguments);
    command
}

fn is_mounted(cluster: &Cluster) -> bool {
    let output = in_cluster(cluster, "cat", &["/proc/self/mountinfo"])
        .output()
        .unwrap();
    let mount = cluster.node(1).unwrap().mount().canonicalize().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .contains(mount.to_str().unwrap())
}

fn data(cluster: &Cluster) -> PathBuf {
    cluster.node(1).unwrap().data().canonicalize().unwrap()
}

fn keeper(data: &Path) -> i32 {
    match processes::holder(data) {
        Holder::Keeper(Some(pid)) => pid,
        other => panic!("{other:?}"),
    }
}

fn launcher(cluster: &Cluster) -> i32 {
    cluster.status().unwrap().nodes[0].process.pid().unwrap()
}

fn daemon(cluster: &Cluster) -> i32 {
    let below = processes::daemons_of(launcher(cluster));
    assert_eq!(below.len(), 1, "{below:?}");
    below[0]
}

#[test]
fn a_node_that_is_killed_or_stopped_keeps_its_keeper_and_mount_and_takes_them_over() {
    let Some(cluster) = tree() else { return };
    let (node, data) = (cluster.node(1).unwrap(), data(&cluster));
    let (kept, below) = (keeper(&data), daemon(&cluster));
    assert_eq!(processes::companions(&data, Companion::Keeper), [kept]);
    node.kill().unwrap();
    eventually("the daemon ends with its launcher", || !processes::lives(below));
    for end in ["kill", "stop"] {
        if end == "stop" {
            node.stop().unwrap();
        }
        assert!(processes::lives(kept) && is_mounted(&cluster), "{end}");
        node.start().unwrap();
        cluster.wait_until_ready(PATIENCE).unwrap();
        assert!(keeper(&data) == kept && is_mounted(&cluster), "{end}");
    }
}

#[test]
fn the_daemon_alone_is_killed_or_replaced_and_the_launcher_stays() {
    let Some(cluster) = tree() else { return };
    let (node, above) = (cluster.node(1).unwrap(), launcher(&cluster));
    for reload in [false, true] {
        let before = daemon(&cluster);
        match reload {
            true => node.reload().unwrap(),
            false => node.kill_of(Victims::Daemon).unwrap(),
        }
        eventually("another daemon runs", || {
            processes::daemons_of(above)
                .first()
                .is_some_and(|&pid| pid != before)
        });
        cluster.wait_until_ready(PATIENCE).unwrap();
        assert_eq!(launcher(&cluster), above);
    }
}

#[test]
fn a_node_that_is_killed_with_all_it_has_leaves_nothing_and_its_mount_is_detached_by_the_next_start() {
    let Some(cluster) = tree() else { return };
    let (node, data) = (cluster.node(1).unwrap(), data(&cluster));
    let all = [keeper(&data), daemon(&cluster), launcher(&cluster)];
    node.kill_of(Victims::All).unwrap();
    assert!(all.iter().all(|&pid| !processes::lives(pid)));
    assert_eq!(processes::holder(&data), Holder::Nobody);
    node.start().unwrap();
    assert!(!is_mounted(&cluster));
}

#[test]
fn a_cluster_that_is_down_leaves_no_keeper_and_no_mount() {
    let Some(cluster) = tree() else { return };
    let data = data(&cluster);
    let kept = keeper(&data);
    cluster.down().unwrap();
    assert!(!processes::lives(kept));
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(cluster.directory().path().to_str().unwrap()));
    assert!(processes::left_behind(&data).is_empty());
}

#[test]
fn a_cluster_is_destroyed_with_what_a_killed_supervisor_left() {
    let Some(cluster) = tree() else { return };
    let kept = keeper(&data(&cluster));
    let supervisor = cluster.status().unwrap().supervisor.unwrap();
    assert!(processes::end(&[supervisor]).is_empty());
    cluster.destroy().unwrap();
    assert!(!processes::lives(kept));
}

#[test]
fn a_supervisor_ends_what_one_that_was_killed_left() {
    let Some(cluster) = tree() else { return };
    let data = data(&cluster);
    let kept = keeper(&data);
    let supervisor = cluster.status().unwrap().supervisor.unwrap();
    assert!(processes::end(&[supervisor]).is_empty());
    let again = Cluster::up(ClusterOptions {
        name: cluster.name(),
        nodes: 1,
        litefs: Wanted {
            binary: Some(stand_in()),
            release: false,
        },
        root: Some(root()),
        ..ClusterOptions::default()
    })
    .unwrap();
    assert!(!processes::lives(kept));
    again.destroy().unwrap();
}
