//! The mount outlives its daemon: what clients see of a daemon that dies and of the next one. Needs root and /dev/fuse.

mod mount_support;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mount_support::{MODES, Mode, Rig, check, count, eventually, insert, open, txid};
use rusqlite::{Connection, ErrorCode};
use tempfile::TempDir;

const JOURNALS: [&str; 4] = ["wal", "delete", "truncate", "persist"];

#[test]
fn daemon_process() {
    mount_support::serve_if_daemon();
}

/// Names the database that [`visitor_process`] opens and closes.
const VISITED: &str = "EDGE_MOUNT_VISITED";

/// Connects, commits and closes, again and again, until its input ends. Not a thread of the process that starts daemons: a mapping that is
/// unmapped waits for a daemon, and with it whatever needs memory in the same process.
#[test]
fn visitor_process() {
    let Ok(path) = std::env::var(VISITED) else { return };
    let over = std::thread::spawn(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let mut rows = 0;
    while !over.is_finished() {
        let db = Connection::open(&path).unwrap();
        db.busy_timeout(Duration::from_secs(10)).unwrap();
        db.execute("INSERT INTO t(b) VALUES ('x')", []).unwrap();
        rows += 1;
        assert_eq!(count(&db), rows);
        println!("> visits");
    }
}

fn rig_with_timeout(mode: Mode, timeout: Duration) -> Rig {
    Rig::start_with(TempDir::with_prefix("edge-mount-").unwrap(), mode, timeout)
}

/// Kills the daemon and starts the next one while `client` is at work; returns what that says.
fn replace_during<T>(rig: &mut Rig, client: impl FnOnce() -> T) -> T {
    rig.kill();
    std::thread::scope(|scope| {
        scope.spawn(|| rig.restart());
        client()
    })
}

#[test]
fn a_connection_goes_on_when_its_daemon_was_killed() {
    for mode in MODES {
        for journal in JOURNALS {
            let story = format!("{journal} {mode:?}");
            let mut rig = Rig::start(mode);
            let db = open(&rig, "a.db", journal);
            let inode = fs::metadata(rig.path("a.db")).unwrap().ino();
            let mut rows = 0;
            for _ in 0..3 {
                for _ in 0..5 {
                    insert(&db).unwrap();
                }
                let inserted = replace_during(&mut rig, || (0..5).map(|_| insert(&db)).collect::<Vec<_>>());
                assert!(inserted.iter().all(Result::is_ok), "{story}: {inserted:?}");
                rows += 10;
                assert_eq!(count(&db), rows, "{story}");
            }
            assert_eq!(fs::metadata(rig.path("a.db")).unwrap().ino(), inode);
            let other = open(&rig, "a.db", journal);
            insert(&other).unwrap();
            insert(&db).unwrap();
            assert_eq!((count(&other), count(&db)), (rows + 2, rows + 2), "{story}");
            check(&other);
            // The table, and every row.
            eventually("every commit is a transaction", || {
                txid(&rig, "a.db") > rows as u64 + 2
            });
            drop((db, other));
            rig.stop();
        }
    }
}

#[test]
fn a_transaction_that_is_open_when_the_daemon_dies_commits_or_rolls_back_as_its_client_says() {
    for mode in MODES {
        for journal in JOURNALS {
            let mut rig = Rig::start(mode);
            let db = open(&rig, "a.db", journal);
            insert(&db).unwrap();
            for (end, rows) in [("COMMIT", 301), ("ROLLBACK", 301)] {
                db.execute_batch(
                    "PRAGMA cache_size=5; PRAGMA cache_spill=1; BEGIN IMMEDIATE;
                     WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < 300)
                     INSERT INTO t(b) SELECT hex(randomblob(500)) FROM c",
                )
                .unwrap();
                replace_during(&mut rig, || db.execute_batch(end)).unwrap();
                assert_eq!(count(&db), rows, "{journal} {mode:?} {end}");
                check(&db);
            }
            drop(db);
            rig.stop();
        }
    }
}

/// It never gives up its locks, and has no wal-index.
#[test]
fn an_exclusive_client_of_a_killed_daemon_goes_on() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        let db = Connection::open(rig.path("a.db")).unwrap();
        db.execute_batch(
            "PRAGMA locking_mode=exclusive; PRAGMA journal_mode=wal; PRAGMA synchronous=normal;
             CREATE TABLE t(a INTEGER PRIMARY KEY, b)",
        )
        .unwrap();
        for _ in 0..3 {
            replace_during(&mut rig, || (0..10).for_each(|_| insert(&db).unwrap()));
        }
        drop(db);
        let db = open(&rig, "a.db", "wal");
        assert_eq!(count(&db), 30, "{mode:?}");
        eventually("every commit is a transaction", || txid(&rig, "a.db") >= 31);
        drop(db);
        rig.stop();
    }
}

#[test]
fn commits_that_need_no_request_count_while_nobody_serves() {
    let mut rig = Rig::start(Mode::K);
    let db = open(&rig, "a.db", "wal");
    insert(&db).unwrap();
    rig.kill();
    for _ in 0..20 {
        insert(&db).unwrap();
    }
    assert_eq!(count(&db), 21);
    rig.restart();
    eventually("they are captured", || txid(&rig, "a.db") >= 22);
    let other = open(&rig, "a.db", "wal");
    assert_eq!(count(&other), 21);
    drop((db, other));
    rig.stop();
}

#[test]
fn a_file_without_a_name_is_still_that_file() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        let path = rig.path("notes");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .unwrap();
        file.write_all(b"before").unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"another one").unwrap();
        for round in 0..2 {
            rig.kill();
            rig.restart();
            file.write_all(b" and after").unwrap();
            let mut text = String::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(
                text,
                "before".to_owned() + &" and after".repeat(round + 1),
                "{mode:?}"
            );
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "another one");
        drop(file);
        eventually("it is closed", || rig.client_handles() == 0);
        rig.stop();
    }
}

#[test]
fn the_virtual_files_that_are_open_go_on_telling() {
    let mut rig = Rig::start(Mode::K);
    let db = open(&rig, "a.db", "wal");
    let mut position = File::open(rig.path("a.db-pos")).unwrap();
    let mut read = || {
        let mut text = String::new();
        position.seek(SeekFrom::Start(0)).unwrap();
        position.read_to_string(&mut text).unwrap();
        u64::from_str_radix(&text[..16], 16).unwrap()
    };
    let before = read();
    rig.kill();
    rig.restart();
    insert(&db).unwrap();
    assert_eq!(read(), before + 1);
    drop((db, position));
    rig.stop();
}

/// Names are made, moved and taken away as fast as can be, and what each call says is held against a model of the tree. A request that the
/// dead daemon had carried out is delivered again: it must be found done, and not be done twice.
#[test]
fn names_are_made_moved_and_removed_once_however_often_the_daemon_dies() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        let root = rig.mount();
        let over = AtomicBool::new(false);
        let turns = std::thread::scope(|scope| {
            let working = scope.spawn(|| work_with_names(&root, &over));
            for _ in 0..25 {
                rig.kill();
                rig.restart();
                std::thread::sleep(Duration::from_millis(20));
            }
            over.store(true, Ordering::Relaxed);
            working.join().unwrap()
        });
        assert!(turns > 25, "{mode:?}: the client did nothing");
        rig.stop();
    }
}

fn work_with_names(root: &Path, over: &AtomicBool) -> usize {
    let mut turn = 0;
    while !over.load(Ordering::Relaxed) {
        turn += 1;
        let dir = root.join(format!("d{turn}"));
        let (one, two, three) = (dir.join("one"), dir.join("two"), dir.join("three"));
        fs::create_dir(&dir).unwrap();
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&one)
            .unwrap();
        file.write_all(turn.to_string().as_bytes()).unwrap();
        drop(file);
        fs::hard_link(&one, &three).unwrap();
        fs::rename(&one, &two).unwrap();
        std::os::unix::fs::symlink("two", &one).unwrap();
        let names: BTreeMap<_, _> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                (
                    path.file_name().unwrap().to_owned(),
                    fs::read_to_string(&path).unwrap(),
                )
            })
            .collect();
        let expected = ["one", "three", "two"].map(|name| (name.into(), turn.to_string()));
        assert_eq!(names, BTreeMap::from(expected));
        OpenOptions::new()
            .append(true)
            .open(&two)
            .unwrap()
            .write_all(b"!")
            .unwrap();
        assert_eq!(fs::read_to_string(&three).unwrap(), format!("{turn}!"));
        File::options()
            .write(true)
            .open(&two)
            .unwrap()
            .set_len(1)
            .unwrap();
        assert_eq!(fs::metadata(&three).unwrap().len(), 1);
        for path in [&one, &two, &three] {
            fs::remove_file(path).unwrap();
        }
        fs::remove_dir(&dir).unwrap();
        assert!(fs::metadata(&dir).is_err());
    }
    turn
}

/// SQLite connects, writes and closes; each step of the way the daemon may die.
#[test]
fn clients_that_come_and_go_meet_no_error_however_often_the_daemon_dies() {
    for mode in MODES {
        for journal in ["wal", "delete"] {
            let mut rig = Rig::start(mode);
            drop(open(&rig, "a.db", journal));
            let mut visitor = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "visitor_process", "--nocapture", "--test-threads=1"])
                .env(VISITED, rig.path("a.db"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let visits = AtomicUsize::new(0);
            let said = BufReader::new(visitor.stdout.take().unwrap());
            std::thread::scope(|scope| {
                let counting = scope.spawn(|| {
                    for line in said.lines() {
                        visits.fetch_add(usize::from(line.unwrap().contains("> visits")), Ordering::Relaxed);
                    }
                });
                for _ in 0..15 {
                    let before = visits.load(Ordering::Relaxed);
                    rig.kill();
                    rig.restart();
                    eventually("the client goes on", || {
                        counting.is_finished() || visits.load(Ordering::Relaxed) > before + 2
                    });
                }
                drop(visitor.stdin.take());
            });
            assert!(visitor.wait().unwrap().success(), "{journal} {mode:?}");
            rig.stop();
        }
    }
}

/// A program with files of the mount open may be the one that starts the next daemon: it forks, and the child closes them all.
#[test]
fn a_close_waits_for_no_daemon() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        let db = open(&rig, "a.db", "wal");
        insert(&db).unwrap();
        let again = File::options()
            .read(true)
            .write(true)
            .open(rig.path("a.db"))
            .unwrap();
        let (notes, log) = (File::create(rig.path("notes")).unwrap(), rig.path("log"));
        fs::write(&log, b"x").unwrap();
        rig.kill();
        let (closed, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop((again, notes));
            closed.send(()).unwrap();
        });
        told.recv_timeout(Duration::from_secs(10))
            .unwrap_or_else(|_| panic!("{mode:?}: a close waits for a daemon that is not there"));
        assert!(Command::new("true").status().unwrap().success());
        rig.restart();
        insert(&db).unwrap();
        drop(db);
        rig.stop();
    }
}

/// Before Linux 6.9 the kernel does not deliver requests again. Those that a daemon died with fail; nothing hangs, and all others go on.
#[test]
fn without_second_deliveries_what_a_daemon_died_with_fails_and_the_rest_goes_on() {
    for mode in MODES {
        let mut rig = Rig::start_old(mode);
        let db = open(&rig, "a.db", "wal");
        let path = rig.path("b.db");
        drop(open(&rig, "b.db", "delete"));
        let (over, rows, failed) = (AtomicBool::new(false), AtomicI64::new(0), AtomicI64::new(0));
        std::thread::scope(|scope| {
            let working = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let inserted = Connection::open(&path).and_then(|db| {
                        db.busy_timeout(Duration::from_secs(10))?;
                        db.execute("INSERT INTO t(b) VALUES ('x')", [])
                    });
                    match inserted {
                        Ok(_) => rows.fetch_add(1, Ordering::Relaxed),
                        Err(_) => failed.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
            for _ in 0..10 {
                let before = rows.load(Ordering::Relaxed);
                rig.kill();
                rig.restart();
                insert(&db).unwrap();
                eventually("the client goes on", || {
                    working.is_finished() || rows.load(Ordering::Relaxed) > before + 2
                });
            }
            over.store(true, Ordering::Relaxed);
        });
        let (rows, failed) = (rows.into_inner(), failed.into_inner());
        assert!(
            failed <= 10,
            "{mode:?}: {failed} failed, one a death at the most is expected"
        );
        let found = count(&Connection::open(&path).unwrap());
        assert!(
            (rows..=rows + failed).contains(&found),
            "{mode:?}: {found} of {rows}, {failed} failed"
        );
        assert_eq!(count(&db), 10);
        drop(db);
        rig.stop();
    }
}

#[test]
fn a_keeper_or_an_opener_that_dies_is_replaced_and_the_mount_outlives_its_daemon_all_the_same() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        let db = open(&rig, "a.db", "wal");
        insert(&db).unwrap();
        for part in ["keeper", "opener", "keeper"] {
            let replaced: u32 = rig.ask("keepers replaced").parse().unwrap();
            rig.kill_companions(part);
            eventually("another keeper has all that the dead one had", || {
                part != "keeper" || rig.ask("keepers replaced").parse::<u32>().unwrap() > replaced
            });
            assert_eq!(insert(&db), Ok(()), "{mode:?}: after {part}");
            let inserted = replace_during(&mut rig, || insert(&db));
            assert_eq!(inserted, Ok(()), "{mode:?}: after {part} and the daemon");
        }
        assert_eq!(count(&db), 7, "{mode:?}");
        drop(db);
        rig.stop();
    }
}

#[test]
fn clients_are_cut_off_for_good_when_nobody_comes_to_serve_them() {
    for mode in MODES {
        let mut rig = rig_with_timeout(mode, Duration::from_millis(300));
        let db = open(&rig, "a.db", "wal");
        db.busy_timeout(Duration::ZERO).unwrap();
        insert(&db).unwrap();
        rig.kill();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut acknowledged = 1;
        while insert(&db).is_ok() {
            acknowledged += 1;
            assert!(Instant::now() < deadline, "{mode:?}: it still commits");
        }
        eventually("the keeper ends", || rig.companions("keeper").is_empty());
        rig.restart();
        let fresh = open(&rig, "a.db", "wal");
        // A commit may fail after its frames were complete, when the checkpoint behind it finds no daemon.
        let found = count(&fresh);
        assert!(
            (acknowledged..=acknowledged + 1).contains(&found),
            "{mode:?}: {found} of {acknowledged}"
        );
        insert(&fresh).unwrap();
        assert!(insert(&db).is_err(), "{mode:?}: the old connection is cut off");
        drop(db);
        insert(&fresh).unwrap();
        assert_eq!(
            count(&fresh),
            found + 2,
            "its close takes nothing away from the new mount"
        );
        check(&fresh);
        drop(fresh);
        eventually("the opener of the dead mount has left", || {
            rig.companions("opener").len() == 1
        });
        rig.stop();
    }
}

/// As an out-of-memory kill of a whole group does. Nobody is left to fence the client; the file system itself keeps it from committing.
#[test]
fn a_client_whose_daemon_died_with_all_companions_is_heard_until_the_next_start_and_refused_afterwards() {
    let mut rig = Rig::start(Mode::K);
    let db = open(&rig, "a.db", "wal");
    db.busy_timeout(Duration::ZERO).unwrap();
    insert(&db).unwrap();
    rig.kill_companions("opener");
    rig.kill();
    rig.kill_companions("keeper");
    rig.kill_companions("opener");
    for _ in 0..5 {
        insert(&db).unwrap();
    }
    rig.restart();
    let fresh = open(&rig, "a.db", "wal");
    assert_eq!(count(&fresh), 6);
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline {
        let refused = insert(&db).expect_err("a commit into a file that nobody reads was acknowledged");
        assert_ne!(refused, ErrorCode::DatabaseCorrupt);
        insert(&fresh).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    check(&fresh);
    drop((db, fresh));
    rig.stop();
}
