//! What `litefs-dev` tells whoever types it, and what is left when it does not get through. With stand-ins instead of daemons.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, SigHandler, Signal, kill};
use nix::unistd::Pid;
use support::{eventually, fail, impossible, litefs_dev, stand_in, succeed};

/// Far less than a command that hangs takes, and far more than one that looks at its node first.
const AT_ONCE: Duration = Duration::from_secs(4);

/// A program that is started like a daemon and never becomes one.
fn sluggard(directory: &Path) -> PathBuf {
    script(directory, "sluggard", "exec sleep 1000")
}

fn script(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn up(root: &Path, nodes: &str, binary: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_litefs-dev"));
    command
        .args(["up", nodes, "--name", "a", "--ttl", "1s", "--binary"])
        .arg(binary)
        .env("LITEFS_DEV_DIR", root)
        .stdout(Stdio::null());
    command
}

/// Starts `up` with nodes that are never of use, and waits until one of them runs.
fn up_for_ever(root: &Path, binary: &Path) -> Child {
    let mut command = up(root, "2", binary);
    // SAFETY: between fork and exec only these system calls are made; nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            // Tests that run in the background ignore it, and whoever types the command does not.
            for heard in [Signal::SIGINT, Signal::SIGHUP] {
                signal::signal(heard, SigHandler::SigDfl)?;
            }
            Ok(())
        });
    }
    let mut up = command.spawn().unwrap();
    eventually("a node is started", || {
        assert!(up.try_wait().unwrap().is_none(), "it gave up");
        in_nodes(root) > 0
    });
    up
}

/// How many processes work in the directories of nodes below `root`.
fn in_nodes(root: &Path) -> usize {
    let nodes = root.join("a/nodes");
    let works_there = |process: &PathBuf| {
        std::fs::read_link(process.join("cwd")).is_ok_and(|directory| directory.starts_with(&nodes))
    };
    processes().filter(works_there).count()
}

/// The directories of all processes below /proc.
fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let is_process = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().parse::<i32>().is_ok();
    entries.filter(is_process).map(|entry| entry.path())
}

/// Ends the cluster of a test, however that ends.
struct Ended<'a>(&'a Path);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if self.0.join("a").exists() {
            litefs_dev(self.0, &["destroy"]);
        }
    }
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

fn is_down(root: &Path) -> bool {
    let list: serde_json::Value = serde_json::from_str(&succeed(root, &["ls", "--json"])).unwrap();
    list[0]["running"] == false
}

#[test]
fn an_interrupted_up_leaves_nothing_of_a_new_cluster() {
    if impossible() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let clusters = root.path().canonicalize().unwrap().join("clusters");
    let _ended = Ended(&clusters);
    for end in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut up = up_for_ever(&clusters, &sluggard(root.path()));
        send(&up, end);
        assert_eq!(up.wait().unwrap().code(), Some(130), "{end}");
        assert_eq!(in_nodes(&clusters), 0, "{end}");
        assert_eq!(std::fs::read_dir(&clusters).unwrap().count(), 0, "{end}");
    }
}

#[test]
fn an_interrupted_up_leaves_a_cluster_that_was_there_stopped_with_its_data() {
    if impossible() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let clusters = root.path().canonicalize().unwrap().join("clusters");
    let _ended = Ended(&clusters);
    assert!(up(&clusters, "2", &stand_in()).status().unwrap().success());
    succeed(
        &clusters,
        &["sql", "n1", "x.db", "CREATE TABLE t(a); INSERT INTO t VALUES (7)"],
    );
    succeed(&clusters, &["down"]);
    for end in [Signal::SIGINT, Signal::SIGKILL] {
        let mut up = up_for_ever(&clusters, &sluggard(root.path()));
        send(&up, end);
        up.wait().unwrap();
        eventually("nothing runs any more", || {
            in_nodes(&clusters) == 0 && is_down(&clusters)
        });
    }
    assert!(up(&clusters, "2", &stand_in()).status().unwrap().success());
    assert_eq!(
        succeed(&clusters, &["sql", "n1", "x.db", "SELECT a FROM t"]),
        "7\n"
    );
    succeed(&clusters, &["destroy"]);
}

#[test]
fn whoever_is_late_does_not_end_the_cluster_of_another() {
    if impossible() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let _ended = Ended(root.path());
    let mut ups: Vec<_> = (0..3)
        .map(|_| {
            let mut up = up(root.path(), "1", &stand_in());
            up.stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let ends: Vec<_> = ups.iter_mut().map(|up| up.wait().unwrap().success()).collect();
    assert_eq!(ends.iter().filter(|made| **made).count(), 1, "{ends:?}");
    succeed(root.path(), &["wait"]);
    succeed(root.path(), &["destroy"]);
}

#[test]
fn an_up_that_fails_stops_the_cluster_and_leaves_its_logs() {
    if impossible() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let broken = script(root, "broken", "echo no such lease; exit 1");
    let clusters = root.join("clusters");
    let _ended = Ended(&clusters);
    let output = up(&clusters, "2", &broken).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no such lease"), "{said}");
    assert!(is_down(&clusters));
    assert!(succeed(&clusters, &["status"]).contains("not running"));
    assert!(succeed(&clusters, &["logs", "n1"]).contains("no such lease"));
    // The next one makes it anew, and is not refused because the cluster runs.
    assert!(up(&clusters, "2", &stand_in()).status().unwrap().success());
    succeed(&clusters, &["destroy"]);
    let output = up(&clusters, "2", Path::new("/etc/passwd")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("/etc/passwd") && said.contains("Permission denied"),
        "{said}"
    );
    assert_eq!(
        std::fs::read_dir(&clusters).unwrap().count(),
        0,
        "no node ever ran"
    );
}

#[test]
fn sql_on_a_node_that_serves_nobody_fails_at_once_and_says_what_to_type() {
    let Some(cluster) = support::stand_ins(2) else {
        return;
    };
    let (root, name) = (support::root(), cluster.name());
    let node = cluster.node(2).unwrap();
    node.sql("a.db", "CREATE TABLE t (a)").unwrap();
    let hint = |command: &str| {
        format!(
            "hint: {} {command} --name {name} n2",
            env!("CARGO_BIN_EXE_litefs-dev")
        )
    };

    node.pause().unwrap();
    for command in [
        &["sql", "--name", &name, "n2", "a.db", "SELECT 1"][..],
        &["exec", "--name", &name, "n2", "--", "true"],
        &["reload", "--name", &name, "n2"],
    ] {
        let start = Instant::now();
        let said = fail(&root, command);
        assert!(start.elapsed() < AT_ONCE, "{command:?}: {:?}", start.elapsed());
        assert!(
            said.contains("n2 is paused") && said.contains(&hint("resume")),
            "{said}"
        );
    }
    node.resume().unwrap();
    node.sql("a.db", "SELECT * FROM t").unwrap();

    node.stop().unwrap();
    let said = fail(
        &root,
        &["sql", "--name", &name, "n2", "b.db", "CREATE TABLE t (a)"],
    );
    assert!(
        said.contains("n2 is not running") && said.contains(&hint("start")),
        "{said}"
    );
    assert!(
        !node.mount().join("b.db").exists(),
        "nothing is written below a mount that is not there"
    );
}

#[test]
fn sql_that_is_under_way_when_its_node_is_paused_ends() {
    let Some(cluster) = support::stand_ins(1) else {
        return;
    };
    let (root, name) = (support::root(), cluster.name());
    let node = cluster.node(1).unwrap();
    // Another one holds the database, as a mount that nobody serves does.
    node.sql("a.db", "CREATE TABLE t (a)").unwrap();
    let blocker = rusqlite::Connection::open(node.mount().join("a.db"));
    let Some(blocker) = blocker.ok().filter(|_| nix::unistd::geteuid().is_root()) else {
        return;
    };
    blocker.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let mut sql = Command::new(env!("CARGO_BIN_EXE_litefs-dev"))
        .args([
            "sql",
            "--name",
            &name,
            "n1",
            "a.db",
            "SELECT * FROM t",
            "--busy-timeout",
            "1h",
        ])
        .env("LITEFS_DEV_DIR", &root)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("it has the database open", || {
        opened(&node.mount().join("a.db")) >= 2
    });
    node.pause().unwrap();
    eventually("it ends", || sql.try_wait().unwrap().is_some());
    let said = String::from_utf8(sql.wait_with_output().unwrap().stderr).unwrap();
    assert!(said.contains("n1 is paused"), "{said}");
    eventually("its child ends too", || opened(&node.mount().join("a.db")) < 2);
    node.resume().unwrap();
}

/// How many processes have the file open.
fn opened(file: &Path) -> usize {
    let has_open = |process: &PathBuf| {
        let open = std::fs::read_dir(process.join("fd")).into_iter().flatten();
        open.flatten()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == file))
    };
    processes().filter(has_open).count()
}

#[test]
fn each_cause_of_an_error_is_told_once() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let said = fail(&file.path().join("x"), &["ls"]);
    assert_eq!(said.matches("Not a directory").count(), 1, "{said}");
}

#[test]
fn hints_name_the_program_as_it_was_typed() {
    let root = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_litefs-dev"));
    let said = |mut command: Command| {
        let output = command
            .arg("status")
            .env("LITEFS_DEV_DIR", root.path())
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let by_path = said(Command::new(program));
    assert!(
        by_path.contains(&format!("hint: {} up 3", program.display())),
        "{by_path}"
    );
    let mut command = Command::new("litefs-dev");
    command.env("PATH", program.parent().unwrap());
    let by_name = said(command);
    assert!(by_name.contains("hint: litefs-dev up 3"), "{by_name}");
    let mut command = Command::new("./litefs-dev");
    command.current_dir(program.parent().unwrap());
    let by_relative_path = said(command);
    assert!(
        by_relative_path.contains("hint: ./litefs-dev up 3"),
        "{by_relative_path}"
    );
}

#[test]
fn where_there_is_no_sqlite3_nobody_is_told_to_type_it() {
    if impossible() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let _ended = Ended(root.path());
    let output = up(root.path(), "1", &stand_in())
        .env("PATH", "/nowhere")
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    succeed(root.path(), &["destroy"]);
    let line = format!("{} sql --name a n1 app.db", env!("CARGO_BIN_EXE_litefs-dev"));
    assert!(said.contains(&line) && !said.contains("sqlite3"), "{said}");
    assert!(
        said.contains(stand_in().to_str().unwrap()),
        "it tells what it runs: {said}"
    );
}

#[test]
fn a_reader_that_goes_away_ends_a_command_without_a_word() {
    let root = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_litefs-dev"))
        .arg("ls")
        .env("LITEFS_DEV_DIR", root.path())
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(128 + 13));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn the_daemon_is_built_with_the_profile_of_the_program_that_builds_it() {
    if impossible() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (workspace, clusters) = (directory.path().join("clone"), directory.path().join("clusters"));
    std::fs::create_dir_all(workspace.join("daemon")).unwrap();
    std::fs::write(workspace.join("Cargo.toml"), "[workspace]\n").unwrap();
    std::fs::write(workspace.join("daemon/Cargo.toml"), "").unwrap();
    let _ended = Ended(&clusters);
    let built = serde_json::json!({"executable": stand_in()});
    let text = format!(
        "echo \"$@\" > {}/words\necho '{built}'",
        directory.path().display()
    );
    let cargo = script(directory.path(), "cargo", &text);
    for (options, release) in [(&[][..], !cfg!(debug_assertions)), (&["--release"], true)] {
        let mut up = Command::new(env!("CARGO_BIN_EXE_litefs-dev"));
        up.args(["up", "1", "--name", "a", "--ttl", "1s"]).args(options);
        up.current_dir(&workspace)
            .env("CARGO", &cargo)
            .env_remove("LITEFS_BINARY");
        let output = up.env("LITEFS_DEV_DIR", &clusters).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let words = std::fs::read_to_string(directory.path().join("words")).unwrap();
        assert_eq!(words.contains("--release"), release, "{words}");
        succeed(&clusters, &["destroy"]);
    }
}
