//! What a sudden end means: of the daemon, of a start, of a companion. Needs root and /dev/fuse.

mod mount_support;

use std::fs::{self, OpenOptions};
use std::process::Command;
use std::time::{Duration, Instant};

use mount_support::{MODES, Mode, Rig, check, count, eventually, insert, open, txid};
use rusqlite::{Connection, ErrorCode};

#[test]
fn daemon_process() {
    mount_support::serve_if_daemon();
}

#[test]
fn after_a_sudden_death_nothing_acknowledged_is_lost() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        let db = open(&rig, "a.db", "wal");
        db.busy_timeout(Duration::ZERO).unwrap();
        let mut acknowledged = 0;
        for _ in 0..10 {
            insert(&db).unwrap();
            acknowledged += 1;
        }
        if mode == Mode::K {
            eventually("the wal-index is kept for the guardian", || {
                has_open(opener(&rig), "a.db-shm")
            });
        }
        rig.kill();
        // Commits may go on until the guardian has fenced the dead mount, and no longer.
        let deadline = Instant::now() + Duration::from_secs(10);
        let refusal = loop {
            match insert(&db) {
                Ok(()) => acknowledged += 1,
                Err(refusal) => break refusal,
            }
            assert!(
                Instant::now() < deadline,
                "{mode:?}: the dead mount still takes commits"
            );
        };
        // A commit may fail after its frames were complete, when the checkpoint behind it finds no daemon.
        let unknown = i64::from(refusal != ErrorCode::DatabaseBusy);
        rig.restart();
        let fresh = Connection::open(rig.path("a.db")).unwrap();
        let found = count(&fresh);
        assert!(
            (acknowledged..=acknowledged + unknown).contains(&found),
            "{mode:?}: {found} of {acknowledged}, {refusal:?}"
        );
        check(&fresh);
        fresh.busy_timeout(Duration::from_secs(5)).unwrap();
        insert(&fresh).unwrap();
        assert!(insert(&db).is_err(), "{mode:?}: the old connection is cut off");
        assert_eq!(count(&fresh), found + 1);
        eventually("every commit is a transaction", || {
            txid(&rig, "a.db") > found as u64
        });
        drop((db, fresh));
        rig.stop();
    }
}

/// A client that never gives up its locks cannot be fenced with locks. What it commits on the dead mount before the next
/// daemon takes over is kept; after that it is told that it cannot write.
#[test]
fn an_exclusive_client_of_a_dead_daemon_is_heard_until_it_is_cut_off() {
    let mut rig = Rig::start(Mode::K);
    let db = Connection::open(rig.path("a.db")).unwrap();
    db.execute_batch(
        "PRAGMA locking_mode=exclusive; PRAGMA journal_mode=wal; PRAGMA synchronous=normal; PRAGMA wal_autocheckpoint=0;
         CREATE TABLE t(a INTEGER PRIMARY KEY, b)",
    )
    .unwrap();
    for _ in 0..10 {
        insert(&db).unwrap();
    }
    rig.kill();
    let writer = std::thread::spawn(move || {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut acknowledged = 10;
        while insert(&db).is_ok() {
            acknowledged += 1;
            assert!(Instant::now() < deadline, "the dead mount still takes commits");
            // Not so many that the next start is busy with them for long.
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(insert(&db).is_err());
        (acknowledged, db)
    });
    rig.restart();
    let (acknowledged, db) = writer.join().unwrap();
    let fresh = Connection::open(rig.path("a.db")).unwrap();
    let found = count(&fresh);
    // The last commit may have been cut off between its frames and its answer.
    assert!(
        (acknowledged..=acknowledged + 1).contains(&found),
        "{found} of {acknowledged}"
    );
    assert!(acknowledged > 10, "nothing was committed on the dead mount");
    check(&fresh);
    drop((db, fresh));
    rig.stop();
}

/// It is sealed for the moment that a start needs to take it away.
#[test]
fn a_wal_that_a_killed_start_left_sealed_is_no_obstacle() {
    let mut rig = Rig::start(Mode::K);
    let db = open(&rig, "a.db", "wal");
    for _ in 0..10 {
        insert(&db).unwrap();
    }
    rig.kill();
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

#[test]
fn the_guardian_leaves_when_the_last_client_has_gone() {
    let mut rig = Rig::start(Mode::K);
    let db = open(&rig, "a.db", "wal");
    insert(&db).unwrap();
    let guardian = opener(&rig);
    eventually("the wal-index is kept for the guardian", || {
        has_open(guardian, "a.db-shm")
    });
    rig.kill();
    rig.restart();
    assert!(
        command_line(guardian).contains("opener"),
        "it stays while a client has files open"
    );
    drop(db);
    eventually("the guardian ends", || !command_line(guardian).contains("opener"));
    rig.stop();
}

fn opener(rig: &Rig) -> u32 {
    let mut children = children(rig.pid()).into_iter();
    children
        .find(|pid| command_line(*pid).contains("opener"))
        .unwrap()
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
fn the_guardian_forgets_a_wal_index_with_its_name() {
    let rig = Rig::start(Mode::K);
    for _ in 0..20 {
        drop(open(&rig, "a.db", "wal"));
    }
    let db = open(&rig, "b.db", "wal");
    eventually("a later request is done", || has_open(opener(&rig), "b.db-shm"));
    let files = open_files(opener(&rig));
    assert!(!files.iter().any(|path| path.contains("a.db-shm")), "{files:?}");
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

#[test]
fn a_companion_that_dies_is_replaced() {
    let mut rig = Rig::start(Mode::K);
    let db = open(&rig, "a.db", "wal");
    for _ in 0..3 {
        for pid in children(rig.pid())
            .into_iter()
            .filter(|pid| command_line(*pid).contains("companion"))
        {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::SIGKILL)
                .unwrap();
        }
        assert_eq!(rig.ask("lock a.db 1"), "true");
        eventually("the lock is released", || insert(&db).is_ok());
        assert!(rig.ask("checkpoint a.db").contains("busy: false"));
    }
    drop(db);
    rig.stop();
}
