//! `litefs mount` and what it starts, over the ends of each process and under clients that keep their connections. Needs root and
//! /dev/fuse.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use litefs::companion::Inhabitants;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rusqlite::{Connection, ErrorCode};

const PATIENCE: Duration = Duration::from_secs(20);
const PRIMARY: &str = "{type: static, hostname: one, advertise-url: 'http://127.0.0.1:1'}";

/// A node in a directory of its own, started as a user does.
struct Node {
    dir: tempfile::TempDir,
    launcher: Option<Child>,
}

impl Node {
    fn start() -> Node {
        let mut node = Node {
            dir: tempfile::tempdir().unwrap(),
            launcher: None,
        };
        node.configure(PRIMARY);
        node.begin();
        node
    }

    fn configure(&self, lease: &str) {
        let root = self.dir.path().display();
        let text = format!(
            "data: {{dir: {root}/data}}\nfuse: {{dir: {root}/mnt}}\nlease: {lease}\nhttp: {{addr: '127.0.0.1:0'}}\n"
        );
        fs::write(self.dir.path().join("litefs.yml"), text).unwrap();
    }

    /// Starts it, and waits until it serves as the primary.
    fn begin(&mut self) {
        let served = self
            .log()
            .matches("waiting for signal or subprocess to exit")
            .count();
        self.spawn();
        self.eventually("it serves", |node| {
            node.log()
                .matches("waiting for signal or subprocess to exit")
                .count()
                > served
        });
    }

    fn spawn(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        self.spawn_telling(log.try_clone().unwrap(), log);
    }

    fn spawn_telling(&mut self, stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) {
        let mut litefs = self.litefs("mount");
        litefs.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        self.launcher = Some(litefs.spawn().unwrap());
    }

    fn litefs(&self, command: &str) -> Command {
        let mut litefs = Command::new(env!("CARGO_BIN_EXE_litefs"));
        litefs
            .args([command, "-config"])
            .arg(self.dir.path().join("litefs.yml"));
        litefs
    }

    fn reload(&self) -> Output {
        self.litefs("reload").output().unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
            + &fs::read_to_string(self.dir.path().join("data/keeper.log")).unwrap_or_default()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("mnt").join(name)
    }

    fn inhabitants(&self) -> Inhabitants {
        Inhabitants::of(&self.dir.path().join("data"))
    }

    fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let path = self.dir.path().join("mnt");
        mounts
            .lines()
            .any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == path))
    }

    /// SIGTERM to what the user started; waits for its end.
    fn stop(&mut self) -> Option<i32> {
        self.signal_launcher(Signal::SIGTERM)
    }

    fn signal_launcher(&mut self, signal: Signal) -> Option<i32> {
        let mut launcher = self.launcher.take().unwrap();
        kill(Pid::from_raw(launcher.id().cast_signed()), signal).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = launcher.try_wait().unwrap() {
                return status.code().or(status.signal().map(|signal| -signal));
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The process that keeps the locks.
    fn opener(&self) -> Option<Pid> {
        let data = self.dir.path().join("data");
        let is_opener = |process: &fs::DirEntry| {
            let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let mut arguments = arguments.split(|byte| *byte == 0);
            arguments.nth(2) == Some(b"opener") && arguments.next() == Some(data.as_os_str().as_bytes())
        };
        let mut processes = fs::read_dir("/proc").unwrap().flatten();
        let opener = processes.find(is_opener)?;
        opener.file_name().to_str()?.parse().ok().map(Pid::from_raw)
    }

    /// Kills the daemon, and waits until another one serves.
    fn kill_daemon(&self) {
        let old = self.inhabitants().daemon.unwrap();
        kill(Pid::from_raw(old.cast_signed()), Signal::SIGKILL).unwrap();
        self.eventually("another daemon is there", |node| {
            node.inhabitants().daemon.is_some_and(|new| new != old)
        });
    }

    /// Kills everything that serves the mount.
    fn kill_all(&mut self) {
        let Inhabitants { keeper, daemon, .. } = self.inhabitants();
        assert_eq!(self.signal_launcher(Signal::SIGKILL), Some(-9));
        for process in [keeper, daemon].into_iter().flatten() {
            // The daemon may have ended with what started it.
            let _ = kill(Pid::from_raw(process.cast_signed()), Signal::SIGKILL);
        }
        let mount = self.dir.path().join("mnt");
        self.eventually("the mount is dead", |_| {
            nix::sys::statfs::statfs(&mount).err() == Some(nix::errno::Errno::ENOTCONN)
        });
    }

    #[track_caller]
    fn eventually(&self, what: &str, condition: impl Fn(&Node) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "{what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn open(&self, name: &str, journal: &str) -> Connection {
        let db = Connection::open(self.path(name)).unwrap();
        db.busy_timeout(Duration::from_secs(10)).unwrap();
        db.execute_batch(&format!(
            "PRAGMA journal_mode={journal}; PRAGMA synchronous=NORMAL; CREATE TABLE IF NOT EXISTS t(x)"
        ))
        .unwrap();
        db
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut launcher) = self.launcher.take() {
            let _ = launcher.kill();
            let _ = launcher.wait();
        }
        let left = self.inhabitants();
        for process in [left.daemon, left.keeper].into_iter().flatten() {
            let _ = kill(Pid::from_raw(process.cast_signed()), Signal::SIGKILL);
        }
        let _ = nix::mount::umount2(&self.dir.path().join("mnt"), nix::mount::MntFlags::MNT_DETACH);
    }
}

fn insert(db: &Connection) -> Result<(), ErrorCode> {
    db.execute("INSERT INTO t VALUES (1)", [])
        .map(drop)
        .map_err(|error| error.sqlite_error_code().unwrap())
}

fn count(db: &Connection) -> i64 {
    db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap()
}

#[test]
fn a_daemon_that_dies_is_started_again_and_its_clients_go_on() {
    let mut node = Node::start();
    let (wal, delete) = (node.open("a.db", "wal"), node.open("b.db", "delete"));
    for _ in 0..5 {
        for db in [&wal, &delete] {
            insert(db).unwrap();
        }
        node.kill_daemon();
        for db in [&wal, &delete] {
            insert(db).unwrap();
        }
    }
    assert_eq!((count(&wal), count(&delete)), (10, 10));
    drop((wal, delete));
    assert_eq!(node.stop(), Some(0));
    assert!(!node.is_mounted());
    assert_eq!(node.inhabitants(), Inhabitants::default(), "nobody is left");
}

#[test]
fn what_the_user_started_is_killed_and_started_again_and_clients_go_on() {
    let mut node = Node::start();
    let db = node.open("a.db", "wal");
    for _ in 0..3 {
        insert(&db).unwrap();
        let daemon = node.inhabitants().daemon.unwrap();
        assert_eq!(node.signal_launcher(Signal::SIGKILL), Some(-9));
        node.eventually("the daemon ends with it", |_| {
            !Path::new(&format!("/proc/{daemon}")).exists()
        });
        insert(&db).unwrap();
        node.begin();
        insert(&db).unwrap();
    }
    assert_eq!(count(&db), 9);
    drop(db);
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn a_reload_replaces_the_daemon_and_clients_meet_no_error() {
    let mut node = Node::start();
    let (wal, delete) = (node.open("a.db", "wal"), node.open("b.db", "delete"));
    let inode = fs::metadata(node.path("a.db")).unwrap().ino();
    for round in 1..=3 {
        let before = node.inhabitants();
        let output = node.reload();
        assert!(output.status.success(), "{output:?}");
        let after = node.inhabitants();
        assert_eq!((after.keeper, after.launcher), (before.keeper, before.launcher));
        assert_ne!(after.daemon, before.daemon);
        for db in [&wal, &delete] {
            insert(db).unwrap();
            assert_eq!(count(db), round);
        }
    }
    assert_eq!(fs::metadata(node.path("a.db")).unwrap().ino(), inode);
    drop((wal, delete));
    assert_eq!(node.stop(), Some(0));
}

/// Copies main file and WAL of a database, as a client that keeps no connection; returns the number of rows.
fn copy_with_wal(node: &Node) -> i64 {
    let db = node.open("a.db", "wal");
    db.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    insert(&db).unwrap();
    for end in ["", "-wal"] {
        let bytes = fs::read(node.path(&format!("a.db{end}"))).unwrap();
        fs::write(node.path(&format!("copy.db{end}")), bytes).unwrap();
    }
    count(&db)
}

/// The start after a crash takes the WAL of a database that nobody has open out of the mount, and leaves one that belongs to no database.
#[test]
fn a_takeover_with_nobody_there_leaves_neither_old_names_nor_immutable_files() {
    let mut node = Node::start();
    let (main, wal) = (node.path("copy.db"), node.path("copy.db-wal"));

    let rows = copy_with_wal(&node);
    node.eventually("a daemon dies with nobody there", |node| {
        node.kill_daemon();
        // A close waits for no daemon, so the first one may have died before it knew of it.
        fs::read(&wal).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    });
    let db = Connection::open(&main).unwrap();
    assert_eq!(count(&db), rows);
    insert(&db).unwrap();
    drop(db);

    copy_with_wal(&node);
    fs::remove_file(&main).unwrap();
    for _ in 0..2 {
        node.kill_daemon();
    }
    fs::remove_file(&wal).unwrap();
    assert_eq!(node.stop(), Some(0));
}

/// There is nothing that the next daemon would have to look into.
#[test]
fn a_reload_leaves_every_file_where_it_is() {
    let mut node = Node::start();
    let rows = copy_with_wal(&node);
    let files = || {
        ["copy.db", "copy.db-wal"].map(|name| {
            let path = node.path(name);
            (fs::metadata(&path).unwrap().ino(), fs::read(path).unwrap())
        })
    };
    let before = files();
    for _ in 0..3 {
        assert!(node.reload().status.success());
        assert!(files() == before);
    }
    let db = Connection::open(node.path("copy.db")).unwrap();
    assert_eq!(count(&db), rows);
    insert(&db).unwrap();
    drop(db);
    assert!(node.reload().status.success());
    assert_eq!(count(&Connection::open(node.path("copy.db")).unwrap()), rows + 1);
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn a_reload_with_a_configuration_that_is_wrong_changes_nothing() {
    let mut node = Node::start();
    let db = node.open("a.db", "wal");
    let before = node.inhabitants();
    node.configure("{type: nonsense}");
    let output = node.reload();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    // As a signal does it, which cannot look first.
    kill(
        Pid::from_raw(before.launcher.unwrap().cast_signed()),
        Signal::SIGHUP,
    )
    .unwrap();
    node.eventually("it says so", |node| {
        node.log().contains("the new daemon did not start") && node.log().contains("the running one goes on")
    });
    assert_eq!(node.inhabitants(), before);
    insert(&db).unwrap();
    node.configure(PRIMARY);
    assert!(node.reload().status.success());
    insert(&db).unwrap();
    drop(db);
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn a_reload_where_nothing_runs_says_what_to_do() {
    let mut node = Node::start();
    assert_eq!(node.stop(), Some(0));
    let output = node.reload();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr.contains("no litefs serves") && stderr.contains("hint: start one"),
        "{stderr}"
    );
}

#[test]
fn clients_of_a_stopped_node_read_and_do_not_commit_and_go_on_after_the_next_start() {
    for journal in ["wal", "delete", "truncate", "persist"] {
        let mut node = Node::start();
        let db = node.open("a.db", journal);
        db.busy_timeout(Duration::ZERO).unwrap();
        let inode = fs::metadata(node.path("a.db")).unwrap().ino();
        for round in 1..=3 {
            insert(&db).unwrap();
            assert_eq!(node.stop(), Some(0), "{journal}");
            assert!(!node.is_mounted());
            for _ in 0..5 {
                insert(&db).expect_err("a commit was acknowledged after the stop");
            }
            // In rollback mode SQLite looks for a journal by its path, where the mount is not.
            assert_eq!(count(&db), round, "{journal}");
            node.begin();
            assert_eq!(fs::metadata(node.path("a.db")).unwrap().ino(), inode);
            assert_eq!(count(&db), round, "{journal}");
        }
        let other = node.open("a.db", journal);
        other.busy_timeout(Duration::from_secs(5)).unwrap();
        insert(&other).unwrap();
        insert(&db).unwrap();
        assert_eq!((count(&db), count(&other)), (5, 5), "{journal}");
        assert!(
            node.log().contains("clients have files of the mount open")
                && node.log().contains(&format!("{} (", std::process::id())),
            "who holds on is named: {}",
            node.log()
        );
        drop((db, other));
        assert_eq!(node.stop(), Some(0));
    }
}

/// The locks that keep clients out are the opener's, and it may have died a moment before.
#[test]
fn clients_of_a_stopped_node_stay_fenced_when_the_opener_died_before() {
    let mut node = Node::start();
    let db = node.open("a.db", "wal");
    db.busy_timeout(Duration::ZERO).unwrap();
    insert(&db).unwrap();
    node.eventually("the locks are open", |node| {
        let opener = node.opener().unwrap();
        let files = fs::read_dir(format!("/proc/{opener}/fd")).unwrap().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|file| file == node.path("a.db-shm"))
    });
    kill(node.opener().unwrap(), Signal::SIGKILL).unwrap();
    assert_eq!(node.stop(), Some(0));
    node.configure("{type: static, candidate: false, hostname: one, advertise-url: 'http://127.0.0.1:1'}");
    let before = node.inhabitants().daemon;
    node.spawn();
    let deadline = Instant::now() + PATIENCE;
    while node.inhabitants().daemon == before || !node.is_mounted() {
        insert(&db).expect_err("a commit was acknowledged by a node that is no primary");
        assert!(Instant::now() < deadline, "{}", node.log());
    }
    for _ in 0..100 {
        insert(&db).expect_err("a commit was acknowledged by a node that is no primary");
    }
    assert_eq!(count(&db), 1);
    drop(db);
    assert_eq!(node.stop(), Some(0));
}

/// Also while the next daemon is taking over.
#[test]
fn keeper_and_opener_that_die_together_are_replaced() {
    let mut node = Node::start();
    let db = node.open("a.db", "wal");
    for round in 1..=10 {
        // One that a keeper did not live to hand over is about to end.
        node.eventually("an opener is there", |node| node.opener().is_some());
        kill(node.opener().unwrap(), Signal::SIGKILL).unwrap();
        let keeper = node.inhabitants().keeper.unwrap();
        kill(Pid::from_raw(keeper.cast_signed()), Signal::SIGKILL).unwrap();
        node.eventually("the mount is kept", |node| {
            node.log()
                .matches("the keeper process died; another one has")
                .count()
                == round
        });
        insert(&db).unwrap();
        node.kill_daemon();
        insert(&db).unwrap();
        assert_eq!(count(&db), 2 * round as i64);
    }
    drop(db);
    assert_eq!(node.stop(), Some(0));
}

/// What the client process is told: a database, and a journal mode.
const CLIENT: &str = "LITEFS_TEST_CLIENT";

/// In the middle of a transaction that outgrows its page cache, until it is killed.
#[test]
fn client_process() {
    let Ok(text) = std::env::var(CLIENT) else { return };
    let (journal, path) = text.split_once(' ').unwrap();
    let db = Connection::open(path).unwrap();
    db.execute_batch(&format!(
        "PRAGMA journal_mode={journal}; PRAGMA cache_size=1; BEGIN;
        WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s WHERE x < 20000) INSERT INTO t SELECT x FROM s",
    ))
    .unwrap();
    println!("written");
    loop {
        std::thread::park();
    }
}

/// Starts it, and waits until it has written.
fn client_in_a_transaction(path: &Path, journal: &str) -> Child {
    let mut client = Command::new(std::env::current_exe().unwrap())
        .args(["client_process", "--exact", "--nocapture"])
        .env(CLIENT, format!("{journal} {}", path.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let wrote = lines.map_while(Result::ok).any(|line| line.ends_with("written"));
    assert!(wrote, "the client ended");
    client
}

/// The mount is detached, and SQLite finds no journal by its path: it would take what is half written for committed, and keep it for as
/// long as the change counter stays the same.
#[test]
fn half_a_transaction_that_a_stop_cuts_off_is_read_by_nobody() {
    for journal in ["delete", "truncate", "persist", "memory"] {
        let mut node = Node::start();
        let reader = node.open("a.db", journal);
        reader.busy_timeout(Duration::ZERO).unwrap();
        insert(&reader).unwrap();
        let mut writer = client_in_a_transaction(&node.path("a.db"), journal);
        assert_eq!(node.stop(), Some(0), "{journal}");
        writer.kill().unwrap();
        writer.wait().unwrap();
        let read = reader.query_row("SELECT sum(x) FROM t", [], |row| row.get::<_, i64>(0));
        let error = read.as_ref().err().and_then(rusqlite::Error::sqlite_error_code);
        assert_eq!(
            error,
            Some(ErrorCode::SystemIoFailure),
            "{read:?}, {journal}: {}",
            node.log()
        );
        assert!(
            node.log()
                .contains("the database cannot be read until litefs starts again")
        );
        node.begin();
        assert_eq!(count(&reader), 1, "{journal}");
        insert(&reader).unwrap();
        for db in [&reader, &node.open("a.db", journal)] {
            assert_eq!(count(db), 2, "{journal}");
            let check: String = db
                .query_row("PRAGMA integrity_check", [], |row| row.get(0))
                .unwrap();
            assert_eq!(check, "ok", "{journal}");
        }
        drop(reader);
        assert_eq!(node.stop(), Some(0));
    }
}

#[test]
fn what_is_left_of_a_stopped_node_ends_with_its_last_client() {
    let mut node = Node::start();
    let db = node.open("a.db", "wal");
    insert(&db).unwrap();
    assert_eq!(node.stop(), Some(0));
    assert!(node.inhabitants().daemon.is_some(), "it stays for its client");
    drop(db);
    node.eventually("all end", |node| node.inhabitants() == Inhabitants::default());
    node.begin();
    assert_eq!(count(&node.open("a.db", "wal")), 1);
    assert_eq!(node.stop(), Some(0));
}

/// Whoever keeps connections to a mount that is dead has new ones, too: SQLite tells them apart by the main file alone.
#[test]
fn connections_to_a_mount_that_was_killed_fail_and_hurt_nobody_on_the_next_one() {
    for journal in ["delete", "truncate", "persist"] {
        let mut node = Node::start();
        let names = ["idle.db", "begun.db", "written.db"];
        let old = names.map(|name| node.open(name, journal));
        for db in &old {
            insert(db).unwrap();
        }
        let [idle, begun, written] = &old;
        for db in [begun, written] {
            db.execute_batch("BEGIN IMMEDIATE").unwrap();
        }
        insert(written).unwrap();
        node.kill_all();
        node.begin();
        let journal_of_idle = || fs::symlink_metadata(node.path("idle.db-journal")).unwrap_err();
        assert_eq!(
            journal_of_idle().raw_os_error(),
            Some(libc::EIO),
            "a journal that is gone is a transaction that was committed"
        );
        let new = names.map(|name| node.open(name, journal));
        for db in &new {
            insert(db).unwrap();
        }
        idle.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))
            .expect_err("something was read of a mount that is dead");
        for db in [idle, begun] {
            insert(db).expect_err("a row was taken by a mount that is dead");
        }
        written
            .execute_batch("COMMIT")
            .expect_err("a commit was acknowledged that the start had rolled back");
        for (name, db) in names.iter().zip(&new) {
            let other = node.open(name, journal);
            for db in [db, &other] {
                assert_eq!(count(db), 2, "{name}, {journal}");
                let check: String = db
                    .query_row("PRAGMA integrity_check", [], |row| row.get(0))
                    .unwrap();
                assert_eq!(check, "ok", "{name}, {journal}");
            }
            insert(db).unwrap();
            insert(&other).unwrap();
        }
        assert!(
            node.log()
                .contains("connections to a mount whose daemon and keeper were killed")
                && node.log().contains(&format!("process={}", std::process::id())),
            "who holds on is named: {}",
            node.log()
        );
        drop((old, new));
        assert_eq!(node.stop(), Some(0));
    }
}

/// The process that collects its words has died.
#[test]
fn a_node_that_nobody_hears_goes_on() {
    let mut node = Node {
        dir: tempfile::tempdir().unwrap(),
        launcher: None,
    };
    node.configure(PRIMARY);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    node.spawn_telling(writer.try_clone().unwrap(), writer);
    node.eventually("it serves as the primary", |node| {
        node.is_mounted()
            && Connection::open(node.path("a.db"))
                .and_then(|db| db.execute_batch("CREATE TABLE IF NOT EXISTS t(x)"))
                .is_ok()
    });
    let db = node.open("a.db", "wal");
    insert(&db).unwrap();
    node.kill_daemon();
    insert(&db).unwrap();
    kill(node.opener().unwrap(), Signal::SIGKILL).unwrap();
    let output = node.reload();
    assert!(output.status.success(), "{output:?}");
    insert(&db).unwrap();
    assert_eq!(count(&db), 3);
    drop(db);
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn a_reload_goes_on_when_the_opener_dies_before_it() {
    let mut node = Node::start();
    let db = node.open("a.db", "wal");
    for round in 1..=5 {
        // One that was started for a daemon which has ended meanwhile is about to end, too.
        node.eventually("an opener is there", |node| node.opener().is_some());
        kill(node.opener().unwrap(), Signal::SIGKILL).unwrap();
        let output = node.reload();
        assert!(output.status.success(), "{output:?}: {}", node.log());
        insert(&db).unwrap();
        assert_eq!(count(&db), round);
    }
    drop(db);
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn files_below_the_mount_point_are_told_of() {
    let mut node = Node {
        dir: tempfile::tempdir().unwrap(),
        launcher: None,
    };
    node.configure(PRIMARY);
    fs::create_dir(node.dir.path().join("mnt")).unwrap();
    fs::write(node.path("app.db"), "hidden").unwrap();
    node.begin();
    assert!(
        node.log()
            .contains("the directory below the mount point is not empty"),
        "{}",
        node.log()
    );
    assert!(!node.path("app.db").exists());
    assert_eq!(node.stop(), Some(0));
    assert_eq!(fs::read(node.path("app.db")).unwrap(), b"hidden");
}

#[test]
fn a_second_daemon_is_told_at_once_who_has_the_directory() {
    let node = Node::start();
    let daemon = node.inhabitants().daemon.unwrap();
    let started = Instant::now();
    let output = node.litefs("mount").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains(&format!("is in use by litefs, process {daemon}")) && stderr.contains("hint: "),
        "{stderr}"
    );
    assert!(started.elapsed() < PATIENCE);
    assert!(node.is_mounted());
}
