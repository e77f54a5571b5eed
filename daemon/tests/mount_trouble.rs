//! Disks that fail and disks that are full, as clients of the mount see them. Needs root and /dev/fuse.

mod mount_support;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mount_support::{MODES, Rig, check, count, eventually};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rusqlite::{Connection, ErrorCode};
use tempfile::TempDir;

#[test]
fn daemon_process() {
    mount_support::serve_if_daemon();
}

fn open(rig: &Rig, name: &str, journal: &str, synchronous: &str) -> Connection {
    let db = Connection::open(rig.path(name)).unwrap();
    db.busy_timeout(Duration::ZERO).unwrap();
    db.query_row(&format!("PRAGMA journal_mode={journal}"), [], |_| Ok(()))
        .unwrap();
    db.execute_batch(&format!("PRAGMA synchronous={synchronous}"))
        .unwrap();
    db
}

fn create(rig: &Rig, name: &str, journal: &str, synchronous: &str) -> Connection {
    let db = open(rig, name, journal, synchronous);
    db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    insert(&db).unwrap();
    db
}

fn insert(db: &Connection) -> Result<(), ErrorCode> {
    db.execute("INSERT INTO t(b) VALUES ('x')", [])
        .map(drop)
        .map_err(|error| error.sqlite_error_code().unwrap())
}

#[test]
fn a_database_whose_log_cannot_be_synced_is_read_and_not_written_until_the_next_start() {
    for mode in MODES {
        for (journal, synchronous) in [
            ("wal", "normal"),
            ("wal", "full"),
            ("delete", "full"),
            ("truncate", "full"),
            ("persist", "full"),
        ] {
            let story = format!("{journal} {synchronous} {mode:?}");
            let mut rig = Rig::start(mode);
            let other = create(&rig, "other.db", "wal", "normal");
            let old = create(&rig, "a.db", journal, synchronous);
            assert_eq!(rig.ask("break log.append.sync"), "ok");
            // The sync comes with the commit in rollback mode, and before a checkpoint in WAL mode.
            let failed = match journal {
                "wal" => old.query_row("PRAGMA wal_checkpoint", [], |_| Ok(())),
                _ => old.execute_batch("INSERT INTO t(b) VALUES ('lost')"),
            };
            failed.expect_err(&story);
            assert_eq!(rig.ask("closed"), "a.db", "{story}");
            let mut rows = count(&old);
            eventually("a writer that needs no request is fenced", || {
                let inserted = insert(&old);
                rows += i64::from(inserted.is_ok());
                inserted.is_err()
            });
            let new = open(&rig, "a.db", journal, synchronous);
            for client in [&old, &new] {
                for _ in 0..3 {
                    insert(client).expect_err(&story);
                    assert_eq!(count(client), rows, "{story}");
                }
            }
            drop(old);
            drop(new);
            // What was complete before its sync failed is found by whoever opens the database anew, as on any disk. One at most, as it
            // is the same frames that are written again.
            let unknown = i64::from(synchronous == "full");
            let plausible = |found: i64, rows: i64| (rows..=rows + unknown).contains(&found);
            // The fence is lifted when everybody has left; who comes then is refused all the same.
            eventually("it is not the fence that refuses", || {
                let newest = open(&rig, "a.db", journal, synchronous);
                let refused = insert(&newest).expect_err(&story);
                assert!(plausible(count(&newest), rows), "{story}");
                refused != ErrorCode::DatabaseBusy
            });
            insert(&other).unwrap();
            drop(other);

            // A start finds out what is on the disk where nobody has files open.
            eventually("the last file is closed", || rig.client_handles() == 0);
            rig.kill();
            rig.restart();
            assert_eq!(rig.ask("closed"), "", "{story}");
            let db = open(&rig, "a.db", journal, synchronous);
            db.busy_timeout(Duration::from_secs(10)).unwrap();
            let found = count(&db);
            assert!(plausible(found, rows), "{story}: {found} of {rows}");
            insert(&db).unwrap();
            check(&db);
            let other = open(&rig, "other.db", "wal", "normal");
            assert_eq!(count(&other), 2, "{story}");
            drop((db, other));
            rig.stop();
        }
    }
}

/// A file system with so little room that it is soon full. Unmounted when dropped, after what uses it.
struct SmallDisk(TempDir);

const ROOM: &str = "size=48m";
const BALLAST: usize = 36 << 20;

impl SmallDisk {
    fn mount() -> SmallDisk {
        let point = TempDir::with_prefix("edge-small-").unwrap();
        let (none, flags) = (None::<&str>, MsFlags::empty());
        mount(none, point.path(), Some("tmpfs"), flags, Some(ROOM)).unwrap();
        SmallDisk(point)
    }

    fn ballast(&self) -> PathBuf {
        self.0.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

fn insert_much(db: &Connection) -> Result<(), ErrorCode> {
    db.execute("INSERT INTO t(b) VALUES (randomblob(150000))", [])
        .map(drop)
        .map_err(|error| error.sqlite_error_code().unwrap())
}

#[test]
fn a_full_disk_fails_commits_and_loses_none() {
    for mode in MODES {
        for (journal, synchronous) in [
            ("wal", "normal"),
            ("wal", "full"),
            ("delete", "full"),
            ("persist", "normal"),
            ("memory", "normal"),
        ] {
            let story = format!("{journal} {synchronous} {mode:?}");
            let disk = SmallDisk::mount();
            std::fs::write(disk.ballast(), vec![1; BALLAST]).unwrap();
            let mut rig = Rig::start_in(TempDir::new_in(disk.0.path()).unwrap(), mode);
            let other = create(&rig, "other.db", "wal", "normal");
            let db = create(&rig, "a.db", journal, synchronous);
            db.busy_timeout(Duration::from_secs(5)).unwrap();
            let mut rows = 1;
            let full = loop {
                match insert_much(&db) {
                    Ok(()) => rows += 1,
                    Err(code) => break code,
                }
                assert!(rows < 10_000, "{story}: the disk is never full");
            };
            println!("{story}: {full:?} after {rows} rows");
            assert!(
                matches!(
                    full,
                    ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::CannotOpen
                ),
                "{story}: {full:?}"
            );
            // Small ones may still fit.
            for _ in 0..20 {
                rows += i64::from(insert_much(&db).is_ok());
            }
            assert_eq!(count(&other), 1, "{story}");
            let seen = count(&db);
            assert!((rows..=rows + 1).contains(&seen), "{story}: {seen} of {rows}");
            assert_eq!(rig.ask("closed"), "", "{story}: a full disk is no broken one");

            std::fs::remove_file(disk.ballast()).unwrap();
            insert(&other).unwrap_or_else(|code| panic!("{story}: {code:?}"));
            let before = count(&db);
            for _ in 0..10 {
                insert_much(&db).unwrap_or_else(|code| panic!("{story}: {code:?} with room again"));
            }
            assert_eq!(count(&db), before + 10, "{story}");
            assert!((rows..=rows + 1).contains(&before), "{story}: {before} of {rows}");
            check(&db);
            // What the log says is what the file holds.
            let position = std::fs::read_to_string(rig.path("a.db-pos")).unwrap();
            let digest = rig.ask("digest a.db");
            assert!(
                digest.starts_with(position.trim()),
                "{story}: {digest} {position}"
            );
            drop((db, other));
            rig.kill();
            rig.restart();
            assert_eq!(rig.ask("digest a.db"), digest, "{story}");
            let db = open(&rig, "a.db", journal, synchronous);
            assert_eq!(count(&db), before + 10, "{story}");
            check(&db);
            drop(db);
            rig.stop();
        }
    }
}

/// The log of a database, damaged in the middle: a start cannot open it.
fn damage_log(rig: &Rig, name: &str) {
    let homes = rig.backing("../databases");
    let home = std::fs::read_dir(homes)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|home| std::fs::read_to_string(home.join("name")).is_ok_and(|found| found.trim() == name))
        .unwrap();
    let log = std::fs::read_dir(home.join("log")).unwrap().next().unwrap();
    let log = log.unwrap().path();
    let mut bytes = std::fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 6000].fill(0);
    std::fs::write(log, bytes).unwrap();
}

/// What clients wrote there would be in no log.
#[test]
fn a_database_whose_log_is_damaged_is_not_written() {
    for mode in MODES {
        for journal in ["wal", "delete", "truncate", "persist", "memory"] {
            let story = format!("{journal} {mode:?}");
            let mut rig = Rig::start(mode);
            let other = create(&rig, "other.db", "wal", "full");
            let db = create(&rig, "a.db", journal, "full");
            for _ in 0..10 {
                insert_much(&db).unwrap();
            }
            drop((db, other));
            assert_eq!(rig.ask("stop"), "stopped");
            damage_log(&rig, "a.db");
            let before = std::fs::read(rig.backing("a.db")).unwrap();
            rig.restart();
            let reason = rig.ask("damaged");
            assert!(reason.starts_with("a.db: "), "{story}: {reason}");

            let reader = Connection::open(rig.path("a.db")).unwrap();
            let read = || {
                // A WAL cannot be read where the wal-index cannot be made.
                if journal != "wal" {
                    assert_eq!(count(&reader), 11, "{story}");
                }
            };
            read();
            assert_eq!(insert(&reader), Err(ErrorCode::ReadOnly), "{story}");
            std::fs::write(rig.path("a.db"), b"something else").expect_err(&story);
            nix::unistd::truncate(&rig.path("a.db"), 0).expect_err(&story);
            std::fs::remove_file(rig.path("a.db")).expect_err(&story);
            std::fs::rename(rig.path("a.db"), rig.path("b.db")).expect_err(&story);
            std::fs::rename(rig.path("other.db"), rig.path("a.db")).expect_err(&story);
            read();
            drop(reader);
            assert!(std::fs::read(rig.backing("a.db")).unwrap() == before, "{story}");
            insert(&open(&rig, "other.db", "wal", "full")).unwrap();
            rig.stop();
        }
    }
}

/// The kernel forgets names only when nobody is creating a file beside them, and who creates one waits for the daemon.
#[test]
fn a_primary_replaces_such_a_database_while_clients_create_files_beside_it() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        let other = create(&rig, "other.db", "delete", "full");
        let db = create(&rig, "a.db", "delete", "full");
        for _ in 0..10 {
            insert_much(&db).unwrap();
        }
        drop((db, other));
        assert_eq!(rig.ask("stop"), "stopped");
        damage_log(&rig, "a.db");
        rig.restart();
        assert!(rig.ask("damaged").starts_with("a.db: "), "{mode:?}");
        assert_eq!(rig.ask("role replica"), "ok");
        let (file, wal) = (rig.path("file"), rig.path("a.db-wal"));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // Refused or not, each asks the daemon with the directory in hand.
                    let _ = std::fs::File::create(&wal);
                    std::fs::File::create(&file).unwrap();
                    std::fs::remove_file(&file).unwrap();
                }
            });
            let answer = rig.ask("receive other.db a.db");
            done.store(true, Ordering::Relaxed);
            assert_eq!(answer, "ok", "{mode:?}");
        });
        assert_eq!(rig.ask("damaged"), "", "{mode:?}");
        assert_eq!(count(&Connection::open(rig.path("a.db")).unwrap()), 1, "{mode:?}");
        rig.stop();
    }
}
