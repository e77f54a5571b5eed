//! The daemon behind the mount: capture, roles, its own locks, how files are open. Needs root and /dev/fuse.

mod mount_support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::{Child, Command};
use std::time::Duration;

use mount_support::{MODES, Mode, Rig, check, count, eventually, insert, open, txid};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rusqlite::{Connection, ErrorCode};

const WRITER: &str = "LITEFS_TEST_WRITER";

#[test]
fn daemon_process() {
    mount_support::serve_if_daemon();
}

/// A client in a process of its own: so many inserts, one transaction each.
#[test]
fn writer_process() {
    let Ok(task) = std::env::var(WRITER) else { return };
    let (count, path) = task.split_once(' ').unwrap();
    let db = Connection::open(path).unwrap();
    db.busy_timeout(Duration::from_secs(60)).unwrap();
    for _ in 0..count.parse().unwrap() {
        db.execute("INSERT INTO t(b) VALUES (zeroblob(100))", []).unwrap();
    }
}

fn writer(rig: &Rig, name: &str, count: u32) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer_process", "--test-threads=1", "--quiet"])
        .env(WRITER, format!("{count} {}", rig.path(name).display()))
        .spawn()
        .unwrap()
}

#[test]
fn several_processes_write_and_every_commit_is_a_transaction() {
    for mode in MODES {
        let rig = Rig::start(mode);
        for journal in ["wal", "delete", "truncate", "persist"] {
            let name = format!("{journal}.db");
            let db = open(&rig, &name, journal);
            let before = txid(&rig, &name);
            let writers: Vec<Child> = (0..3).map(|_| writer(&rig, &name, 40)).collect();
            for mut writer in writers {
                assert!(writer.wait().unwrap().success());
            }
            assert_eq!(count(&db), 120, "{journal} {mode:?}");
            assert_eq!(txid(&rig, &name) - before, 120, "{journal} {mode:?}");
            check(&db);
        }
        rig.stop();
    }
}

#[test]
fn the_first_transaction_of_a_database_is_one() {
    for mode in MODES {
        let rig = Rig::start(mode);
        for journal in ["delete", "persist", "wal"] {
            let name = format!("{journal}.db");
            let db = Connection::open(rig.path(&name)).unwrap();
            let switch = if journal == "wal" { 1 } else { 0 };
            db.execute_batch(&format!("PRAGMA journal_mode={journal}"))
                .unwrap();
            // Many pages in one transaction, before anything else is known of the database.
            db.execute_batch("BEGIN; CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE TABLE u(x);")
                .unwrap();
            db.execute_batch("INSERT INTO u VALUES (zeroblob(200000)); COMMIT")
                .unwrap();
            assert_eq!(txid(&rig, &name), 1 + switch, "{journal} {mode:?}");
        }
        rig.stop();
    }
}

#[test]
fn exclusive_locking_needs_no_wal_index() {
    for mode in MODES {
        let rig = Rig::start(mode);
        let db = Connection::open(rig.path("e.db")).unwrap();
        db.execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=wal; CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
            .unwrap();
        let before = txid(&rig, "e.db");
        for _ in 0..50 {
            insert(&db).unwrap();
        }
        assert!(!rig.path("e.db-shm").exists());
        assert_eq!(txid(&rig, "e.db") - before, 50, "{mode:?}");
        check(&db);
        drop(db);
        rig.stop();
    }
}

#[test]
fn a_transaction_without_a_journal_that_has_outgrown_the_cache_is_captured_when_it_commits() {
    for mode in MODES {
        let rig = Rig::start(mode);
        for (name, setup) in [
            ("shared.db", ""),
            ("exclusive.db", "PRAGMA locking_mode=EXCLUSIVE;"),
        ] {
            let db = Connection::open(rig.path(name)).unwrap();
            db.execute_batch(&format!(
                "{setup} PRAGMA journal_mode=memory; PRAGMA cache_size=10; BEGIN"
            ))
            .unwrap();
            db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
                .unwrap();
            for _ in 0..100 {
                db.execute("INSERT INTO t(b) VALUES (randomblob(3000))", [])
                    .unwrap();
            }
            db.execute_batch("COMMIT").unwrap();
            eventually("the first transaction is captured", || txid(&rig, name) == 1);
            let before = fs::read(rig.backing(name)).unwrap();
            db.execute_batch("BEGIN; UPDATE t SET b = randomblob(3000)")
                .unwrap();
            assert!(
                fs::read(rig.backing(name)).unwrap() != before,
                "it is all in the cache"
            );
            // The client thinks. That nothing is captured meanwhile cannot be awaited.
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(txid(&rig, name), 1, "{name} {mode:?}: a part of a transaction");
            db.execute_batch("COMMIT").unwrap();
            eventually("the second transaction is captured", || txid(&rig, name) == 2);
            drop(db);
        }
        rig.stop();
    }
}

#[test]
fn a_copied_database_becomes_one_when_it_is_closed() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        let outside = tempfile::tempdir().unwrap();
        let path = outside.path().join("source.db");
        let source = Connection::open(&path).unwrap();
        source
            .execute_batch(
                "CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES (zeroblob(300000))",
            )
            .unwrap();
        drop(source);
        fs::copy(&path, rig.path("copy.db")).unwrap();
        fs::write(rig.path("text.db"), b"SQLite format 3 is what this is not").unwrap();
        fs::copy(&path, rig.path("temporary-name-journal")).unwrap();
        fs::rename(rig.path("temporary-name-journal"), rig.path("renamed.db")).unwrap();
        fs::create_dir(rig.path("dir")).unwrap();
        fs::copy(&path, rig.path("dir/below.db")).unwrap();
        assert_eq!(rig.ask("databases"), "copy.db,dir/below.db,renamed.db");
        assert_eq!(fs::read(&path).unwrap(), fs::read(rig.path("copy.db")).unwrap());
        eventually("the copy is captured", || txid(&rig, "copy.db") == 1);
        // Copied over while it is a database: visible at once, and a transaction.
        fs::copy(&path, rig.path("copy.db")).unwrap();
        let db = Connection::open(rig.path("copy.db")).unwrap();
        check(&db);
        assert_eq!(count(&db), 1);
        fs::rename(rig.path("dir"), rig.path("moved")).unwrap();
        eventually("a renamed directory takes its database along", || {
            rig.path("moved/below.db-pos").exists() && txid(&rig, "moved/below.db") == 1
        });
        rig.stop();
    }
}

#[test]
fn a_replica_refuses_writes_and_a_promoted_one_takes_them() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        let wal = open(&rig, "w.db", "wal");
        let rollback = open(&rig, "r.db", "delete");
        for db in [&wal, &rollback] {
            db.busy_timeout(Duration::from_millis(50)).unwrap();
            insert(db).unwrap();
        }
        assert_eq!(rig.ask("role replica"), "ok");
        for (name, old) in [("w.db", &wal), ("r.db", &rollback)] {
            assert_eq!(count(old), 1, "{name} {mode:?}");
            let refusal = insert(old).unwrap_err();
            let fenced = matches!(
                refusal,
                ErrorCode::DatabaseBusy | ErrorCode::ReadOnly | ErrorCode::SystemIoFailure
            );
            assert!(fenced, "{name} {mode:?}: {refusal:?}");
            let new = Connection::open(rig.path(name)).unwrap();
            assert_eq!(count(&new), 1, "{name} {mode:?}");
            assert!(insert(&new).is_err(), "{name} {mode:?}");
            assert_eq!(count(&new), 1, "{name} {mode:?}");
        }
        let fresh = Connection::open(rig.path("new.db")).unwrap();
        assert!(fresh.execute_batch("CREATE TABLE t(x)").is_err(), "{mode:?}");
        fs::write(rig.path("note"), b"ordinary files are local").unwrap();
        assert_eq!(rig.ask("role primary"), "ok");
        for (name, old) in [("w.db", &wal), ("r.db", &rollback)] {
            old.busy_timeout(Duration::from_secs(5)).unwrap();
            insert(old).unwrap_or_else(|error| panic!("{name} {mode:?}: {error:?}"));
            let new = Connection::open(rig.path(name)).unwrap();
            new.busy_timeout(Duration::from_secs(5)).unwrap();
            insert(&new).unwrap();
            assert_eq!(count(old), 3, "{name} {mode:?}");
            check(&new);
        }
        drop((wal, rollback));
        rig.stop();
    }
}

#[test]
fn the_daemon_locks_like_any_client() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        let db = open(&rig, "a.db", "wal");
        insert(&db).unwrap();
        db.busy_timeout(Duration::ZERO).unwrap();
        assert_eq!(rig.ask("lock a.db 300"), "true");
        assert_eq!(insert(&db), Err(ErrorCode::DatabaseBusy), "{mode:?}");
        assert_eq!(count(&db), 1, "readers go on");
        db.busy_timeout(Duration::from_secs(10)).unwrap();
        insert(&db).unwrap();
        db.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_eq!(
            rig.ask("lock a.db 1"),
            "false",
            "{mode:?}: a client's lock holds against the daemon"
        );
        db.execute_batch("COMMIT").unwrap();
        drop(db);
        rig.stop();
    }
}

#[test]
fn the_worker_checkpoints_and_a_client_rolls_back() {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        let db = open(&rig, "a.db", "wal");
        for _ in 0..10 {
            insert(&db).unwrap();
        }
        let result = rig.ask("checkpoint a.db");
        assert!(result.contains("busy: false"), "{result}");
        assert_eq!(fs::metadata(rig.path("a.db-wal")).unwrap().len(), 0);
        insert(&db).unwrap();
        check(&db);

        // A hot journal, as a crashed client leaves it.
        let db = open(&rig, "h.db", "delete");
        insert(&db).unwrap();
        db.execute_batch("PRAGMA cache_size=1; BEGIN").unwrap();
        for _ in 0..200 {
            db.execute("INSERT INTO t(b) VALUES (zeroblob(3000))", [])
                .unwrap();
        }
        fs::copy(rig.path("h.db-journal"), rig.path("c.db-journal")).unwrap();
        fs::copy(rig.path("h.db"), rig.path("c.db")).unwrap();
        db.execute_batch("ROLLBACK").unwrap();
        let copy = Connection::open(rig.path("c.db")).unwrap();
        assert_eq!(count(&copy), 1);
        assert!(!rig.path("c.db-journal").exists());
        check(&copy);
        drop((db, copy));
        rig.stop();
    }
}

/// SQLite removes a WAL beside an empty main file without reading it: what it holds is nobody's transaction, until the
/// database that it belongs to is there.
#[test]
fn a_wal_counts_only_beside_its_database() {
    for mode in MODES {
        let rig = Rig::start(mode);
        let outside = tempfile::tempdir().unwrap();
        let kept = |side: &str| outside.path().join(format!("kept{side}"));
        let db = open(&rig, "a.db", "wal");
        db.execute_batch("PRAGMA wal_autocheckpoint=0").unwrap();
        for _ in 0..3 {
            insert(&db).unwrap();
        }
        for side in ["", "-wal"] {
            fs::copy(rig.path(&format!("a.db{side}")), kept(side)).unwrap();
        }
        for side in ["", "-wal", "-shm"] {
            fs::remove_file(rig.path(&format!("a.db{side}"))).unwrap();
        }
        drop(db);
        eventually("the removal is captured", || txid(&rig, "a.db") == 6);

        fs::copy(kept("-wal"), rig.path("a.db-wal")).unwrap();
        let empty = Connection::open(rig.path("a.db")).unwrap();
        let tables = empty.query_row("SELECT count(*) FROM sqlite_schema", [], |row| {
            row.get::<_, i64>(0)
        });
        assert_eq!(tables, Ok(0));
        assert!(!rig.path("a.db-wal").exists());
        drop(empty);
        assert_eq!(txid(&rig, "a.db"), 6);

        fs::copy(kept("-wal"), rig.path("a.db-wal")).unwrap();
        fs::copy(kept(""), rig.path("a.db")).unwrap();
        eventually("database and WAL are captured", || txid(&rig, "a.db") > 6);
        let whole = Connection::open(rig.path("a.db")).unwrap();
        assert_eq!(count(&whole), 3);
        check(&whole);
        drop(whole);

        // Somebody damages the first frame: SQLite takes the WAL for empty, and removes it.
        fs::copy(kept("-wal"), rig.path("b.db-wal")).unwrap();
        fs::copy(kept(""), rig.path("b.db")).unwrap();
        eventually("database and WAL are captured", || txid(&rig, "b.db") == 1);
        let wal = OpenOptions::new().write(true).open(rig.path("b.db-wal")).unwrap();
        wal.write_all_at(&[0xa5; 8], 48).unwrap();
        drop(wal);
        let damaged = Connection::open(rig.path("b.db")).unwrap();
        let tables = damaged.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0));
        assert_eq!(tables, Ok(0));
        drop(damaged);
        assert!(!rig.path("b.db-wal").exists());
        assert_eq!(
            txid(&rig, "b.db"),
            2,
            "the database went back to what the main file says"
        );
        rig.stop();
    }
}

/// Such a client asks for no lock, and in mode K for nothing else.
#[test]
fn an_exclusive_client_commits_nothing_after_a_demotion_and_loses_nothing_from_before() {
    const HEAP_INDEX: &str = "PRAGMA locking_mode=exclusive; PRAGMA journal_mode=wal";
    const SHARED_INDEX: &str =
        "PRAGMA journal_mode=wal; CREATE TABLE other(x); PRAGMA locking_mode=exclusive; SELECT * FROM other";
    for (mode, setup) in MODES
        .iter()
        .flat_map(|mode| [(*mode, HEAP_INDEX), (*mode, SHARED_INDEX)])
    {
        let mut rig = Rig::start(mode);
        let db = Connection::open(rig.path("a.db")).unwrap();
        db.execute_batch(setup).unwrap();
        db.execute_batch("PRAGMA synchronous=normal; CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
            .unwrap();
        for _ in 0..10 {
            insert(&db).unwrap();
        }
        assert_eq!(rig.ask("role replica"), "ok");
        let last = txid(&rig, "a.db");
        for _ in 0..3 {
            assert!(
                insert(&db).is_err(),
                "{mode:?} {setup}: a commit that no other node sees"
            );
        }
        assert_eq!(txid(&rig, "a.db"), last, "{mode:?} {setup}");
        drop(db);
        let fresh = Connection::open(rig.path("a.db")).unwrap();
        assert_eq!(count(&fresh), 10, "{mode:?} {setup}");
        check(&fresh);
        drop(fresh);
        assert_eq!(rig.ask("role primary"), "ok");
        let fresh = open(&rig, "a.db", "wal");
        insert(&fresh).unwrap();
        assert_eq!(count(&fresh), 11, "{mode:?} {setup}");
        assert_eq!(txid(&rig, "a.db"), last + 1, "{mode:?} {setup}");
        drop(fresh);
        rig.stop();
    }
}

#[test]
fn how_a_wal_is_open_follows_the_role() {
    let mut rig = Rig::start(Mode::K);
    let db = open(&rig, "a.db", "wal");
    insert(&db).unwrap();
    let path = rig.path("a.db-wal");
    let reads = |rig: &mut Rig, file: &File| {
        let before = rig.requests();
        let mut head = [0; 4];
        file.read_exact_at(&mut head, 0).unwrap();
        assert_eq!(head[..3], [0x37, 0x7f, 0x06], "the magic of a WAL");
        rig.requests()
            .since(&before)
            .0
            .get("read.wal")
            .copied()
            .unwrap_or(0)
    };
    let rw = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
    assert_eq!(reads(&mut rig, &rw()), 0, "passed through");
    assert_eq!(rig.ask("role replica"), "ok");
    let intercepted = rw();
    assert_eq!(
        reads(&mut rig, &intercepted),
        1,
        "intercepted although others pass through"
    );
    let refused = intercepted.write_all_at(b"x", 0).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    drop((db, intercepted));
    let alone = rw();
    for _ in 0..2 {
        assert_eq!(
            reads(&mut rig, &alone),
            1,
            "what the daemon appends is not cached"
        );
    }
    assert!(alone.write_all_at(b"x", 0).is_err());
    drop(alone);
    // The last handle's release is not waited for.
    assert_eq!(rig.ask("role primary"), "ok");
    eventually("and passes through again", || {
        let passed = rw();
        passed.write_all_at(b"\x37", 0).is_ok() && reads(&mut rig, &passed) == 0
    });
    rig.stop();
}

#[test]
fn a_mount_over_ours_survives_our_end() {
    let mut rig = Rig::start(Mode::D);
    let point = rig.mount();
    mount(
        Some("stranger"),
        &point,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    fs::write(point.join("theirs"), b"x").unwrap();
    rig.ask("stop");
    assert_eq!(fs::read(point.join("theirs")).unwrap(), b"x");
    umount2(&point, MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn opening_and_closing_from_all_sides_never_fails() {
    for mode in MODES {
        let rig = Rig::start(mode);
        let path = rig.path("busy.db-wal");
        File::create(&path).unwrap().write_all_at(b"content", 0).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        std::thread::scope(|scope| {
            for write in [true, false, true, false] {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..500 {
                        let file = OpenOptions::new().read(true).write(write).open(path).unwrap();
                        let mut buffer = [0; 7];
                        file.read_exact_at(&mut buffer, 0).unwrap();
                        assert_eq!(&buffer, b"content");
                        if write {
                            file.write_all_at(b"content", 0).unwrap();
                        }
                        assert_eq!(file.metadata().unwrap().ino(), inode);
                    }
                });
            }
        });
        rig.stop();
    }
}

/// Between a CREATE by root and SQLite's chown after it another user would find a file that is closed to him.
#[test]
fn a_wal_that_root_creates_belongs_to_the_owner_of_the_database_from_the_first() {
    const NOBODY: u32 = 65534;
    for mode in MODES {
        let rig = Rig::start(mode);
        drop(open(&rig, "app.db", "delete"));
        let main = rig.path("app.db");
        std::os::unix::fs::chown(&main, Some(NOBODY), Some(NOBODY)).unwrap();
        fs::set_permissions(&main, fs::Permissions::from_mode(0o640)).unwrap();
        for side in ["app.db-wal", "app.db-shm"] {
            File::create_new(rig.path(side)).unwrap();
            let again = File::create_new(rig.path(side)).unwrap_err();
            assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
            let made = fs::metadata(rig.path(side)).unwrap();
            assert_eq!(
                (made.uid(), made.gid(), made.mode() & 0o7777),
                (NOBODY, NOBODY, 0o640),
                "{side}"
            );
        }
        File::create_new(rig.path("other-wal")).unwrap();
        assert_eq!(fs::metadata(rig.path("other-wal")).unwrap().uid(), 0);
        rig.stop();
    }
}

#[test]
fn passthrough_works_on_a_stacked_backing_file_system() {
    let dir = tempfile::TempDir::with_prefix("edge-overlay-").unwrap();
    for part in ["lower", "upper", "work", "data"] {
        fs::create_dir(dir.path().join(part)).unwrap();
    }
    let at = |part: &str| dir.path().join(part).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("lower"),
        at("upper"),
        at("work")
    );
    let data = dir.path().join("data");
    mount(
        Some("overlay"),
        &data,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .unwrap();
    let mut rig = Rig::start_in(dir, Mode::K);
    let db = open(&rig, "a.db", "wal");
    let before = txid(&rig, "a.db");
    for _ in 0..10 {
        insert(&db).unwrap();
    }
    assert_eq!(txid(&rig, "a.db") - before, 10);
    check(&db);
    drop(db);
    assert_eq!(rig.ask("stop"), "stopped");
    // Before the directories go.
    umount2(&data, MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn without_privileges_the_mount_falls_back_to_interception() {
    let dir = tempfile::TempDir::with_prefix("edge-userns-").unwrap();
    let output = Command::new("unshare")
        .args(["-Urm"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "daemon_process", "--nocapture", "--test-threads=1"])
        .env("LITEFS_TEST_DAEMON", "auto")
        .current_dir(dir.path())
        .stdin(std::process::Stdio::piped())
        .output_with(b"coherence\nstop\n");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("> Intercepted") && text.contains("> stopped"),
        "{text}"
    );
}

trait OutputWith {
    fn output_with(&mut self, input: &[u8]) -> std::process::Output;
}

impl OutputWith for Command {
    fn output_with(&mut self, input: &[u8]) -> std::process::Output {
        use std::io::Write;
        use std::process::Stdio;
        let mut child = self.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }
}

/// The file is what it was; what replicas know of the two names is another matter.
#[test]
fn a_renamed_database_is_dropped_under_its_old_name_and_begins_under_the_new_one() {
    for mode in MODES {
        for journal in ["delete", "wal"] {
            let story = format!("{journal} {mode:?}");
            let rig = Rig::start(mode);
            let create = |name: &str, rows: u32| {
                let db = open(&rig, name, journal);
                for _ in 0..rows {
                    insert(&db).unwrap();
                }
                drop(db);
                txid(&rig, name)
            };
            let (old, taken) = (create("a.db", 3), create("taken.db", 1));

            fs::rename(rig.path("a.db"), rig.path("b.db")).unwrap();
            eventually("the old name is dropped", || txid(&rig, "a.db") == old + 1);
            eventually("the new one begins", || txid(&rig, "b.db") == 1);
            let db = open(&rig, "b.db", journal);
            assert_eq!(count(&db), 3, "{story}");
            insert(&db).unwrap();
            assert_eq!(txid(&rig, "b.db"), 2, "{story}: nothing was written but a row");
            drop(db);

            fs::rename(rig.path("b.db"), rig.path("taken.db")).unwrap();
            eventually("a name that had a database goes on counting", || {
                txid(&rig, "taken.db") == taken + 1
            });
            eventually("the name between is dropped", || txid(&rig, "b.db") == 3);
            assert_eq!(count(&open(&rig, "taken.db", journal)), 4, "{story}");

            assert_eq!(create("a.db", 1), old + 1 + create("fresh.db", 1), "{story}");
            rig.stop();
        }
    }
}
