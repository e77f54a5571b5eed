//! The daemon is killed again and again while a client commits, in every journal mode. Whatever COMMIT returned for is there
//! afterwards, the database is sound, what the log says is what the files hold, and nothing hangs.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use litefs_dev::binary::Wanted;
use litefs_dev::solo::{Solo, SoloOptions};
use rusqlite::{Connection, OpenFlags};

const CYCLES: usize = 20;
/// Commits that a cycle must see before the daemon is killed.
const COMMITS: usize = 25;
const PATIENCE: Duration = Duration::from_secs(30);

const CLIENT_OF: &str = "KILL_CYCLES_CLIENT_OF";
const SETUP: &str = "KILL_CYCLES_SETUP";
const MARK: &str = "committed ";
/// The client commits nothing new until it may go on: SQLite lets a writer in a hurry starve everybody else.
const PAUSE: &str = "pause";
const GO_ON: &str = "go on";

fn kill_cycles(setup: &str, passthrough: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let binary = Wanted::default().find().unwrap();
    let options = SoloOptions {
        binary,
        dir: dir.path().to_owned(),
        passthrough,
        durability: "follow",
    };
    let mut solo = Solo::start(options).unwrap();
    let path = solo.mount().join("load.db");
    let mut client = Client::start(&path, setup);
    let visitor = Visitor::start(&path);
    let mut committed = BTreeSet::new();
    for cycle in 0..CYCLES {
        client.await_commits(COMMITS, &mut committed, cycle);
        solo.kill().unwrap();
        client.drain(&mut committed);
        solo.restart().unwrap();
        client.drain(&mut committed);
        client.say(PAUSE);
        check(&path, &committed, cycle);
        client.drain(&mut committed);
        client.say(GO_ON);
    }
    client.await_commits(1, &mut committed, CYCLES);
    client.end(&mut committed);
    drop(visitor);
    check(&path, &committed, CYCLES);
    let status: serde_json::Value = serde_json::from_str(&solo.get("/status").unwrap()).unwrap();
    let database = &status["databases"][0];
    assert_eq!(database["name"], "load.db", "{status}");
    assert_eq!(database["quarantine"], serde_json::Value::Null, "{status}");
    // The export is made from the files and checked page by page against the checksums of the log.
    let exported = solo.get("/export?name=load.db").unwrap();
    assert!(
        exported.starts_with("SQLite format 3\0"),
        "the export is no database"
    );
    solo.stop().unwrap();
    // A daemon that takes a mount point over never uncovers the directory below.
    let below: Vec<_> = std::fs::read_dir(path.parent().unwrap())
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert!(
        below.is_empty(),
        "clients wrote into the directory below the mount point: {below:?}"
    );
}

fn check(path: &Path, committed: &BTreeSet<i64>, cycle: usize) {
    assert!(
        is_on_mount(path),
        "cycle {cycle}: the daemon is up and its mount is not"
    );
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    let verdict: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(verdict, "ok", "cycle {cycle}");
    let mut select = connection.prepare("SELECT id FROM t").unwrap();
    let found: BTreeSet<i64> = select
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let missing: Vec<&i64> = committed.difference(&found).collect();
    assert!(
        missing.is_empty(),
        "cycle {cycle}: of {} commits that returned {} are missing, {:?} to {:?}; {} rows are there",
        committed.len(),
        missing.len(),
        missing.first(),
        missing.last(),
        found.len()
    );
}

/// A process that commits, reports, and starts over with a new connection after any error.
struct Client {
    child: Child,
    lines: Receiver<i64>,
}

impl Client {
    fn start(path: &Path, setup: &str) -> Client {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["client_process", "--exact", "--nocapture"])
            .env(CLIENT_OF, path)
            .env(SETUP, setup)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some((_, id)) = line.split_once(MARK) {
                    let _ = sender.send(id.trim().parse().unwrap());
                }
            }
        });
        Client { child, lines }
    }

    fn await_commits(&mut self, count: usize, committed: &mut BTreeSet<i64>, cycle: usize) {
        let deadline = Instant::now() + PATIENCE;
        for _ in 0..count {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(id) => committed.insert(id),
                Err(RecvTimeoutError::Timeout) => panic!("cycle {cycle}: the client hangs"),
                Err(RecvTimeoutError::Disconnected) => panic!("cycle {cycle}: the client ended"),
            };
        }
    }

    fn say(&mut self, word: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{word}").unwrap();
    }

    fn drain(&mut self, committed: &mut BTreeSet<i64>) {
        committed.extend(self.lines.try_iter());
    }

    fn end(mut self, committed: &mut BTreeSet<i64>) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the client does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        while let Ok(id) = self.lines.recv_timeout(Duration::from_secs(1)) {
            committed.insert(id);
        }
    }
}

/// Connects, reads a row and closes, again and again: the client is never alone with its database.
struct Visitor {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Visitor {
    fn start(path: &Path) -> Visitor {
        let over = Arc::new(AtomicBool::new(false));
        let (ended, path) = (over.clone(), path.to_owned());
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                // Fails while no daemon runs, and while the client holds its lock.
                let _ = visit(&path);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Visitor {
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("joined once");
        assert!(thread.join().is_ok() || std::thread::panicking());
    }
}

fn visit(path: &Path) -> rusqlite::Result<()> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.query_row("SELECT max(id) FROM t", [], |_| Ok(()))
}

/// Not a test by itself: the client.
#[test]
fn client_process() {
    let (Some(path), Ok(setup)) = (std::env::var_os(CLIENT_OF), std::env::var(SETUP)) else {
        return;
    };
    let told: &Told = Box::leak(Box::default());
    std::thread::spawn(|| {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            told.paused.store(line == PAUSE, Ordering::Relaxed);
        }
        told.over.store(true, Ordering::Relaxed);
    });
    let mut id = 0;
    while !told.over.load(Ordering::Relaxed) {
        let _ = commit_until_error(Path::new(&path), &setup, &mut id, told);
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What the test told its client.
#[derive(Default)]
struct Told {
    paused: AtomicBool,
    over: AtomicBool,
}

fn commit_until_error(path: &Path, setup: &str, id: &mut i64, told: &Told) -> rusqlite::Result<()> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(1))?;
    if !is_on_mount(path) {
        return Ok(());
    }
    connection.execute_batch(setup)?;
    connection.execute_batch("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v BLOB)")?;
    let mut insert = connection.prepare("INSERT INTO t VALUES(?, randomblob(300))")?;
    while !told.over.load(Ordering::Relaxed) {
        if told.paused.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        *id += 1;
        insert.execute([*id])?;
        let mut out = std::io::stdout();
        let _ = writeln!(out, "{MARK}{id}").and_then(|()| out.flush());
    }
    Ok(())
}

/// While no daemon runs, the path leads into the directory below the mount point.
fn is_on_mount(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev()).ok();
    let below = path.parent().and_then(Path::parent).and_then(device);
    device(path).is_some_and(|dev| Some(dev) != below)
}

macro_rules! modes {
    ($($name:ident: $setup:literal;)*) => {$(
        mod $name {
            #[test]
            fn passthrough() {
                super::kill_cycles($setup, "on");
            }

            #[test]
            fn intercepted() {
                super::kill_cycles($setup, "off");
            }
        }
    )*};
}

modes! {
    wal_normal: "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=50";
    wal_full: "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL";
    wal_off: "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF";
    delete_full: "PRAGMA journal_mode=DELETE; PRAGMA synchronous=FULL";
    delete_off: "PRAGMA journal_mode=DELETE; PRAGMA synchronous=OFF";
    truncate: "PRAGMA journal_mode=TRUNCATE; PRAGMA synchronous=NORMAL";
    memory: "PRAGMA journal_mode=MEMORY; PRAGMA synchronous=NORMAL";
    no_journal: "PRAGMA journal_mode=OFF; PRAGMA synchronous=FULL";
    persist: "PRAGMA journal_mode=PERSIST; PRAGMA synchronous=FULL";
}
