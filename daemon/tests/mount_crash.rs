//! What a sudden end means: of the daemon, of a start, of a companion. Needs root and /dev/fuse.

mod mount_support;

use std::fs::{self, OpenOptions};
use std::process::Command;

use mount_support::{Mode, Rig, count, eventually, insert, open};

#[test]
fn daemon_process() {
    mount_support::serve_if_daemon();
}

/// It is sealed for the moment that a start needs to take it away.
#[test]
fn a_wal_that_a_killed_start_left_sealed_is_no_obstacle() {
    let mut rig = Rig::start(Mode::K);
    let db = open(&rig, "a.db", "wal");
    for _ in 0..10 {
        insert(&db).unwrap();
    }
    rig.kill_companions("opener");
    rig.kill();
    rig.kill_companions("keeper");
    rig.kill_companions("opener");
    let wal = rig.backing("a.db-wal");
    let sealed = Command::new("chattr").arg("+i").arg(&wal).status().unwrap();
    assert!(sealed.success());
    assert!(OpenOptions::new().write(true).open(&wal).is_err());
    rig.restart();
    let fresh = open(&rig, "a.db", "wal");
    assert_eq!(count(&fresh), 10);
    insert(&fresh).unwrap();
    drop((db, fresh));
    rig.stop();
}

fn has_open(pid: u32, name: &str) -> bool {
    open_files(pid).iter().any(|path| path.ends_with(name))
}

fn open_files(pid: u32) -> Vec<String> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = descriptors.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    links.map(|path| path.to_string_lossy().into_owned()).collect()
}

#[test]
fn the_opener_forgets_a_wal_index_with_its_name() {
    let rig = Rig::start(Mode::K);
    for _ in 0..20 {
        drop(open(&rig, "a.db", "wal"));
    }
    let db = open(&rig, "b.db", "wal");
    eventually("a later request is done", || {
        has_open(rig.companions("opener")[0], "b.db-shm")
    });
    let files = open_files(rig.companions("opener")[0]);
    assert!(!files.iter().any(|path| path.contains("a.db-shm")), "{files:?}");
    drop(db);
    rig.stop();
}

#[test]
fn a_worker_that_dies_is_replaced() {
    let mut rig = Rig::start(Mode::K);
    let db = open(&rig, "a.db", "wal");
    for _ in 0..3 {
        for pid in children(rig.pid())
            .into_iter()
            .filter(|pid| command_line(*pid).contains("worker"))
        {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::SIGKILL)
                .unwrap();
        }
        assert!(rig.ask("checkpoint a.db").contains("busy: false"));
        assert_eq!(rig.ask("lock a.db 1"), "true");
        eventually("the lock is released", || insert(&db).is_ok());
    }
    drop(db);
    rig.stop();
}

fn children(parent: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let mut pids: Vec<u32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    // Started by a thread of the test framework.
    for task in fs::read_dir(format!("/proc/{parent}/task")).unwrap() {
        let text = fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
        pids.extend(text.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
    }
    pids
}

fn command_line(pid: u32) -> String {
    fs::read(format!("/proc/{pid}/cmdline"))
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .unwrap_or_default()
}
