//! What clients of a replica meet when they try to write, and what becomes of their connections. Needs root and /dev/fuse.

mod mount_support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use engine::{LockFiles, OfdLocks, Side};
use mount_support::{MODES, Mode, Rig, check, count, eventually};
use rusqlite::{Connection, ffi};

#[test]
fn daemon_process() {
    mount_support::serve_if_daemon();
}

const JOURNALS: [&str; 6] = ["delete", "truncate", "persist", "memory", "off", "wal"];

/// A connection in that journal mode, which none of these needs a write to enter if the database is in it already.
fn connect(rig: &Rig, name: &str, journal: &str) -> Connection {
    let db = Connection::open(rig.path(name)).unwrap();
    db.busy_timeout(Duration::from_millis(20)).unwrap();
    let mode: String = db
        .query_row(&format!("PRAGMA journal_mode={journal}"), [], |row| row.get(0))
        .unwrap();
    assert_eq!(mode, journal);
    db
}

fn insert(db: &Connection) -> Result<(), i32> {
    outcome(db.execute("INSERT INTO t(b) VALUES ('x')", []))
}

/// The extended result code of a failure.
fn outcome<T>(result: rusqlite::Result<T>) -> Result<(), i32> {
    result
        .map(drop)
        .map_err(|error| error.sqlite_error().unwrap().extended_code)
}

fn names(rig: &Rig) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(rig.mount())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    names
}

/// A database with one row that nobody has open.
fn prepare(rig: &Rig, name: &str, journal: &str) {
    let header = if journal == "wal" { "wal" } else { "delete" };
    let db = connect(rig, name, header);
    db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    insert(&db).unwrap();
}

/// What SQLite makes of the refusal. A journal that cannot be created means a read-only database; a write that fails is a disk error,
/// whatever the reason. The journal of a former primary is there already, and its WAL is fenced.
fn refusal(journal: &str, former: bool) -> i32 {
    match journal {
        "delete" => ffi::SQLITE_READONLY_DIRECTORY,
        "truncate" | "persist" if !former => ffi::SQLITE_READONLY_DIRECTORY,
        "wal" if former => ffi::SQLITE_BUSY,
        _ => ffi::SQLITE_IOERR_WRITE,
    }
}

#[test]
fn a_write_is_refused_in_every_journal_mode_and_nothing_changes() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        for (journal, former) in JOURNALS
            .iter()
            .flat_map(|journal| [(*journal, true), (*journal, false)])
        {
            let name = format!("{journal}-{former}.db");
            let story = format!("{journal}, former primary: {former}, {mode:?}");
            prepare(&rig, &name, journal);
            let mut clients = Vec::new();
            if former {
                clients.push(connect(&rig, &name, journal));
                insert(&clients[0]).unwrap();
            }
            assert_eq!(rig.ask("role replica"), "ok");
            clients.push(connect(&rig, &name, journal));
            let rows = count(&clients[0]);
            let before = rig.ask(&format!("digest {name}"));
            for client in &clients {
                for _ in 0..2 {
                    assert_eq!(insert(client), Err(refusal(journal, former)), "{story}");
                    assert_eq!(
                        outcome(client.execute_batch("UPDATE t SET b = zeroblob(10000)")),
                        Err(refusal(journal, former)),
                        "{story}"
                    );
                    for reader in &clients {
                        assert_eq!(count(reader), rows, "{story}");
                        check(reader);
                    }
                }
            }
            assert_eq!(rig.ask(&format!("digest {name}")), before, "{story}");
            assert_eq!(rig.ask("role primary"), "ok");
            for client in &clients {
                client.busy_timeout(Duration::from_secs(10)).unwrap();
                insert(client).unwrap_or_else(|code| panic!("{story}: {code} after the promotion"));
            }
            assert_eq!(count(&clients[0]), rows + clients.len() as i64, "{story}");
            check(&clients[0]);
        }
        rig.stop();
    }
}

#[test]
fn another_journal_mode_is_a_write_too() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        prepare(&rig, "r.db", "delete");
        prepare(&rig, "w.db", "wal");
        assert_eq!(rig.ask("role replica"), "ok");
        for (name, from, to) in [("r.db", "delete", "wal"), ("w.db", "wal", "delete")] {
            let before = rig.ask(&format!("digest {name}"));
            let db = connect(&rig, name, from);
            let switched = db.query_row(&format!("PRAGMA journal_mode={to}"), [], |row| {
                row.get::<_, String>(0)
            });
            assert_eq!(
                outcome(switched),
                Err(ffi::SQLITE_READONLY_DIRECTORY),
                "{name} {mode:?}"
            );
            assert_eq!(count(&db), 1, "{name} {mode:?}");
            drop(db);
            assert_eq!(rig.ask(&format!("digest {name}")), before, "{name} {mode:?}");
            let db = connect(&rig, name, from);
            assert_eq!(count(&db), 1, "{name} {mode:?}");
            check(&db);
        }
        rig.stop();
    }
}

#[test]
fn a_new_database_is_refused_and_leaves_nothing_behind() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        assert_eq!(rig.ask("role replica"), "ok");
        for journal in JOURNALS {
            let path = rig.path("new.db");
            let db = Connection::open(&path).unwrap();
            let expected = match journal {
                "memory" | "off" => ffi::SQLITE_IOERR_WRITE,
                _ => ffi::SQLITE_READONLY_DIRECTORY,
            };
            let set = db.query_row(&format!("PRAGMA journal_mode={journal}"), [], |_| Ok(()));
            let refused = match journal {
                "wal" => outcome(set),
                _ => outcome(set.and_then(|()| db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))),
            };
            assert_eq!(refused, Err(expected), "{journal} {mode:?}");
            let text = db.execute_batch("CREATE TABLE t(x)").unwrap_err().to_string();
            if expected == ffi::SQLITE_READONLY_DIRECTORY {
                assert_eq!(text, "attempt to write a readonly database", "{journal} {mode:?}");
            }
            drop(db);
            // Closing a file is told to the daemon when it has happened.
            eventually("the empty file goes", || names(&rig).is_empty());
            eventually("the kernel knows", || !path.exists());
            assert!(!rig.backing("new.db").exists());
            assert_eq!(rig.ask("databases"), "", "{journal} {mode:?}");
        }
        rig.stop();
    }
}

#[test]
fn a_connection_that_was_refused_creates_the_database_after_the_promotion() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        assert_eq!(rig.ask("role replica"), "ok");
        for journal in JOURNALS {
            let name = format!("{journal}.db");
            let clients = [(); 2].map(|()| Connection::open(rig.path(&name)).unwrap());
            for client in &clients {
                client.busy_timeout(Duration::from_secs(5)).unwrap();
                client
                    .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
                    .unwrap_err();
            }
            // The other client still has the file.
            let [first, second] = clients;
            drop(first);
            assert_eq!(rig.ask("role primary"), "ok");
            let now: String = second
                .query_row(&format!("PRAGMA journal_mode={journal}"), [], |row| row.get(0))
                .unwrap();
            assert_eq!(now, journal, "{mode:?}");
            second
                .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
                .unwrap();
            insert(&second).unwrap();
            drop(second);
            let again = Connection::open(rig.path(&name)).unwrap();
            assert_eq!(count(&again), 1, "{journal} {mode:?}");
            check(&again);
            assert_eq!(rig.ask("role replica"), "ok");
        }
        rig.stop();
    }
}

#[test]
fn ordinary_files_of_a_replica_stay_what_they_are() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        let outside = tempfile::tempdir().unwrap();
        let source = outside.path().join("source.db");
        Connection::open(&source)
            .unwrap()
            .execute_batch("CREATE TABLE t(x)")
            .unwrap();
        assert_eq!(rig.ask("role replica"), "ok");
        fs::write(rig.path("touched.db"), b"").unwrap();
        fs::write(rig.path("text"), b"no database").unwrap();
        fs::write(rig.path("text-journal"), b"no journal").unwrap();
        fs::write(rig.path("alone-journal"), b"no journal either").unwrap();
        let db = Connection::open(rig.path("touched.db")).unwrap();
        let refused = outcome(db.execute_batch("CREATE TABLE t(x)"));
        assert_eq!(refused, Err(ffi::SQLITE_READONLY_DIRECTORY), "{mode:?}");
        drop(db);
        let refused = fs::copy(&source, rig.path("copy.db")).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES), "{mode:?}");
        eventually("the copy goes", || !rig.path("copy.db").exists());
        assert_eq!(
            names(&rig),
            ["alone-journal", "text", "text-journal", "touched.db"],
            "{mode:?}"
        );
        assert_eq!(fs::metadata(rig.path("touched.db")).unwrap().len(), 0);
        assert_eq!(rig.ask("databases"), "", "{mode:?}");
        rig.stop();
    }
}

#[test]
fn an_empty_file_that_is_replicated_meanwhile_is_not_taken_away() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        prepare(&rig, "a.db", "delete");
        assert_eq!(rig.ask("role replica"), "ok");
        let waiting = Connection::open(rig.path("new.db")).unwrap();
        waiting.execute_batch("CREATE TABLE t(x)").unwrap_err();
        assert_eq!(rig.ask("receive a.db new.db"), "ok");
        assert_eq!(count(&waiting), 1, "{mode:?}");
        drop(waiting);
        let again = Connection::open(rig.path("new.db")).unwrap();
        assert_eq!(count(&again), 1, "{mode:?}");
        assert_eq!(insert(&again), Err(ffi::SQLITE_READONLY_DIRECTORY), "{mode:?}");
        rig.stop();
    }
}

#[test]
fn refusals_are_counted() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        for journal in JOURNALS {
            prepare(&rig, &format!("{journal}.db"), journal);
        }
        assert_eq!(rig.ask("refused"), "0");
        assert_eq!(rig.ask("role replica"), "ok");
        for journal in JOURNALS {
            let db = connect(&rig, &format!("{journal}.db"), journal);
            let before: u64 = rig.ask("refused").parse().unwrap();
            insert(&db).unwrap_err();
            let after: u64 = rig.ask("refused").parse().unwrap();
            assert!(after > before, "{journal} {mode:?}");
        }
        rig.stop();
    }
}

/// What has moved from the WAL to the main file is in the kernel's page cache, and locks are the kernel's.
#[test]
fn reading_the_main_file_of_a_replica_costs_no_request() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        for journal in ["delete", "wal"] {
            let name = format!("{journal}.db");
            assert_eq!(rig.ask("role primary"), "ok");
            prepare(&rig, &name, journal);
            assert_eq!(rig.ask("role replica"), "ok");
            let db = connect(&rig, &name, journal);
            let read = || {
                for _ in 0..100 {
                    assert_eq!(count(&db), 1);
                }
            };
            read();
            let before = rig.requests();
            read();
            let counts = rig.requests().since(&before);
            // The daemon itself opens a file now and then to look at its locks.
            assert!(counts.total() <= 10, "{journal} {mode:?}: {counts:?}");
        }
        rig.stop();
    }
}

/// Locks of SQLite's wal-index.
const WAL_WRITE: u64 = 120;
const DMS: u64 = 128;

/// A client between two calls of its first access to a database in WAL mode: the WAL is open, and the wal-index is not.
struct Connecting {
    main: File,
    wal: File,
}

impl Connecting {
    fn to(rig: &Rig, name: &str) -> Connecting {
        Connecting {
            main: read_and_write(rig, name),
            wal: read_and_write(rig, &format!("{name}-wal")),
        }
    }

    /// Goes on as SQLite does, up to its commit frame: as the first one it has the wal-index for itself, then it asks for WAL_WRITE. Whether
    /// it has written the WAL then.
    fn commits(self, shm: &Path) -> bool {
        let shm = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(shm)
            .unwrap();
        let locks = OfdLocks::new(self.main, shm).unwrap();
        if locks.try_lock(Side::Shm, DMS, 1, true).unwrap() {
            locks.try_lock(Side::Shm, DMS, 1, false).unwrap();
        }
        locks.try_lock(Side::Shm, WAL_WRITE, 1, true).unwrap() && self.wal.write_all_at(b"frame", 0).is_ok()
    }
}

fn read_and_write(rig: &Rig, name: &str) -> File {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(rig.path(name))
        .unwrap()
}

/// Its WAL was opened for writing past the daemon, and it holds no lock by which it could be known.
#[test]
fn who_was_about_to_connect_when_the_time_as_primary_ended_commits_nothing() {
    let mut rig = Rig::start(Mode::K);
    prepare(&rig, "a.db", "wal");
    prepare(&rig, "b.db", "wal");
    let (first, second) = (Connecting::to(&rig, "a.db"), Connecting::to(&rig, "a.db"));
    let third = Connecting::to(&rig, "a.db");
    assert_eq!(rig.ask("role replica"), "ok");
    let shm = rig.path("a.db-shm");
    assert!(!first.commits(&shm));
    assert_eq!(rig.ask("receive b.db a.db"), "ok");
    assert!(!second.commits(&shm));
    assert_eq!(rig.ask("role primary"), "ok");
    assert!(third.commits(&shm), "it may, and has nothing to lose");
    rig.stop();
}

/// As above, where the time as primary ends with its daemon: the client waits for an answer that the next one gives.
#[test]
fn who_was_about_to_connect_when_its_daemon_died_commits_nothing_to_a_replica() {
    for _ in 0..10 {
        let mut rig = Rig::start(Mode::K);
        prepare(&rig, "a.db", "wal");
        let client = Connecting::to(&rig, "a.db");
        rig.kill();
        let shm = rig.path("a.db-shm");
        let connecting = std::thread::spawn(move || client.commits(&shm));
        rig.restart_as_replica();
        assert!(!connecting.join().unwrap(), "a commit that no other node has");
        rig.stop();
    }
}
