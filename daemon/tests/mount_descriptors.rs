//! Nodes with more databases than files may be open, and users with more nodes than inotify instances. Needs root and /dev/fuse.

mod command_support;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use command_support::{Daemon, PRIMARY, configure, limit_files, litefs};
use litefs_api::{Client, DatabaseStatus, Status};
use nix::sys::signal::Signal;
use rusqlite::Connection;

const PATIENCE: Duration = Duration::from_secs(60);

/// A node whose processes are known by their environment, and its API.
struct Node {
    daemon: Daemon,
    url: String,
    client: Client,
}

const MARK: &str = "LITEFS_TEST_NODE";

impl Node {
    /// `limit`: soft and hard limit of open files.
    fn start(dir: tempfile::TempDir, url: &str, limit: (u64, Option<u64>)) -> Node {
        let mut command = litefs(dir.path());
        limit_files(&mut command, limit.0, limit.1);
        Node::spawn(command, dir, url)
    }

    fn spawn(mut command: Command, dir: tempfile::TempDir, url: &str) -> Node {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(dir.path().join("log"));
        command.env(MARK, dir.path()).stderr(log.unwrap());
        let child = command.spawn().unwrap();
        Node {
            daemon: Daemon { child, dir },
            url: url.to_owned(),
            client: Client::new(url).unwrap(),
        }
    }

    fn dir(&self) -> &Path {
        self.daemon.dir.path()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir().join("log")).unwrap()
    }

    fn open(&self, name: &str) -> Connection {
        Connection::open(self.daemon.mount().join(name)).unwrap()
    }

    fn eventually(&mut self, what: &str, mut holds: impl FnMut(&mut Node) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "{what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn status(&self) -> Option<Status> {
        runtime().block_on(self.client.status()).ok()
    }

    fn is_primary(&mut self) -> bool {
        let is_primary = |status: Status| status.role == litefs_api::Role::Primary;
        self.daemon.is_mounted() && self.status().is_some_and(is_primary)
    }

    /// Transactions that clients of the node see, by database.
    fn positions(&self) -> BTreeMap<String, u64> {
        let databases = self.status().map(|status| status.databases).unwrap_or_default();
        let position = |db: DatabaseStatus| (db.name, db.txid.0);
        databases.into_iter().map(position).collect()
    }

    fn stop(mut self) -> tempfile::TempDir {
        self.daemon.signal(Signal::SIGTERM);
        self.eventually("it obeys the signal", |node| {
            node.daemon.child.try_wait().unwrap().is_some()
        });
        let code = self.daemon.child.wait().unwrap().code();
        assert_eq!(code, Some(0), "{}", self.log());
        let empty = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.daemon.dir, empty)
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// A free address. Nobody else is given it so soon.
fn address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn configured(lease: &str, address: &str) -> tempfile::TempDir {
    configure(lease, &format!("http: {{addr: '{address}'}}"))
}

fn follows(address: &str) -> String {
    format!("{{type: static, candidate: false, hostname: one, advertise-url: 'http://{address}'}}")
}

/// Creates databases, or adds a row to each.
fn write(primary: &Node, count: usize) {
    for number in 0..count {
        let db = primary.open(&format!("{number:03}.db"));
        db.execute_batch(
            "PRAGMA synchronous=OFF; PRAGMA journal_mode=MEMORY; \
             CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES (1)",
        )
        .unwrap();
    }
}

/// Directories in `/proc` of the processes of the node.
fn processes(node: &Node) -> Vec<PathBuf> {
    let mark = format!("{MARK}={}", node.dir().display());
    let dirs = std::fs::read_dir("/proc")
        .unwrap()
        .map(|entry| entry.unwrap().path());
    dirs.filter(|dir| {
        let words = std::fs::read_to_string(dir.join("environ")).unwrap_or_default();
        words.split('\0').any(|word| word == mark)
    })
    .collect()
}

/// Inotify instances of all processes of the node.
fn inotify_instances(node: &Node) -> usize {
    let of = |dir: &PathBuf| {
        let files = std::fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
        let links = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        links
            .filter(|link| link == Path::new("anon_inode:inotify"))
            .count()
    };
    processes(node).iter().map(of).sum()
}

/// Words of the command line and soft limit of open files, of each process of the node.
fn soft_limits(node: &Node) -> BTreeMap<String, u64> {
    let mut limits = BTreeMap::new();
    for dir in processes(node) {
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        let words: Vec<String> = read("cmdline").split('\0').map(str::to_owned).collect();
        let part = ["keeper", "opener", "worker", "daemon", "mount"]
            .into_iter()
            .find(|part| words.iter().take(3).any(|word| word == part));
        let limit = read("limits")
            .lines()
            .find(|line| line.starts_with("Max open files"))
            .and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
        if let Some((part, limit)) = part.zip(limit) {
            limits.insert(part.to_owned(), limit);
        }
    }
    limits
}

const DATABASES: usize = 450;

#[test]
fn a_replica_applies_to_hundreds_of_databases_under_a_soft_limit_of_1024() {
    let at = address();
    let mut primary = Node::start(configured(PRIMARY, &at), &format!("http://{at}"), (1024, None));
    primary.eventually("the node is primary", Node::is_primary);
    write(&primary, DATABASES);
    let own = address();
    let dir = configured(&follows(&at), &own);
    let mut replica = Node::start(dir, &format!("http://{own}"), (1024, None));
    let caught_up = |replica: &mut Node| replica.positions() == primary.positions();
    replica.eventually("it has all databases", caught_up);
    assert_eq!(replica.positions().len(), DATABASES);
    // Records of databases that clients of the replica use need its locks, and files for them.
    let clients: Vec<Connection> = (0..DATABASES)
        .map(|number| replica.open(&format!("{number:03}.db")))
        .collect();
    let rows = |db: &Connection| db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
    assert!(clients.iter().all(|db| rows(db).unwrap() >= 1));
    write(&primary, DATABASES);
    replica.eventually("it applies", caught_up);
    assert!(clients.iter().all(|db| rows(db).unwrap() >= 2));

    let limits = soft_limits(&replica);
    for part in ["daemon", "keeper", "opener", "worker"] {
        assert!(limits[part] > 1024, "{part}: {limits:?}");
    }
    // It opens a handful, and has nothing to raise its limit for.
    assert_eq!(limits["mount"], 1024);
    drop(clients);
    replica.stop();
    primary.stop();
}

/// The node says so, does what it can, stops when told to, and is none the worse for it.
#[test]
fn a_replica_that_may_not_open_enough_files_is_not_taken_for_one_with_a_failed_disk() {
    let at = address();
    let mut primary = Node::start(configured(PRIMARY, &at), &format!("http://{at}"), (1024, None));
    primary.eventually("the node is primary", Node::is_primary);
    // Each takes the replica several files.
    write(&primary, 150);
    let own = address();
    let url = format!("http://{own}");
    let dir = configured(&follows(&at), &own);
    let mut replica = Node::start(dir, &url, (256, Some(256)));
    replica.eventually("it is short of files", |node| {
        node.log().contains("Too many open files")
    });
    replica.eventually("it tries again", |node| {
        node.log().matches("following the primary").count() >= 3
    });
    let log = replica.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("Too many open files"))
        .count();
    assert!(lines < 60, "{lines} lines\n{log}");
    for wrong in ["the disk failed", "process died", "no opener"] {
        assert!(!log.contains(wrong), "{wrong}\n{log}");
    }
    let stopping = Instant::now();
    let dir = replica.stop();
    assert!(
        stopping.elapsed() < Duration::from_secs(20),
        "{:?}",
        stopping.elapsed()
    );
    assert!(!dir.path().join("data/archive").exists(), "nothing was set aside");

    let mut replica = Node::start(dir, &url, (1024, None));
    replica.eventually("it has all databases", |node| {
        node.positions() == primary.positions()
    });
    let status = replica.status().unwrap();
    let suspended: Vec<_> = status
        .databases
        .iter()
        .filter(|db| db.quarantine.is_some())
        .collect();
    assert!(suspended.is_empty(), "{suspended:?}");
    replica.stop();
    primary.stop();
}

/// No other process has this user ID, and none is to be short of instances for the sake of a test.
const LONELY_USER: libc::uid_t = 54_321;

/// The user of the process has no inotify instance left: the process has them all, which its children do not need to know.
fn use_up_inotify(command: &mut Command) {
    // The machine may give a user more of them than a process has files at first.
    limit_files(command, 1 << 16, None);
    // SAFETY: these are system calls and touch no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            keep_capabilities()?;
            if libc::setresuid(LONELY_USER, LONELY_USER, LONELY_USER) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // Not closed at the exec.
            while libc::inotify_init1(0) >= 0 {}
            let error = std::io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EMFILE) => Ok(()),
                _ => Err(error),
            }
        });
    }
}

/// Over a change of the user ID and the exec.
fn keep_capabilities() -> std::io::Result<()> {
    const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    const VERSION_3: u32 = 0x2008_0522;
    let done = |result: libc::c_long| match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    let header = [VERSION_3, 0];
    // Effective, permitted and inheritable ones, the lower 32 and the upper.
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: the structures have the layout that the version stands for, and live as long as the calls.
    unsafe {
        done(libc::prctl(libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP).into())?;
        done(libc::syscall(
            libc::SYS_capget,
            header.as_ptr(),
            sets.as_mut_ptr(),
        ))?;
        for set in &mut sets {
            set[2] = set[1];
        }
        done(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()))?;
        for capability in 0..64 {
            // Those that this machine lacks are not missed.
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0);
        }
    }
    Ok(())
}

/// As [`configured`], with a kernel that serves WALs.
fn configured_past_the_daemon(address: &str) -> tempfile::TempDir {
    let dir = configured(PRIMARY, address);
    let path = dir.path().join("litefs.yml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("fuse: {", "fuse: {allow-other: true, passthrough: on, ");
    std::fs::write(&path, text).unwrap();
    dir
}

#[test]
fn a_node_has_one_inotify_instance_from_its_first_wal_on() {
    let at = address();
    let dir = configured_past_the_daemon(&at);
    let mut node = Node::start(dir, &format!("http://{at}"), (1024, None));
    node.eventually("the node is primary", Node::is_primary);
    node.open("rollback.db")
        .execute_batch("CREATE TABLE t(x)")
        .unwrap();
    assert_eq!(inotify_instances(&node), 0);
    let clients = ["a.db", "b.db", "c.db"].map(|name| {
        let db = node.open(name);
        db.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x)")
            .unwrap();
        db
    });
    assert_eq!(inotify_instances(&node), 1);
    drop(clients);
    node.stop();
}

#[test]
fn a_node_whose_user_has_no_inotify_instance_left_starts_and_replicates() {
    let at = address();
    let dir = configured_past_the_daemon(&at);
    std::os::unix::fs::chown(dir.path(), Some(LONELY_USER), None).unwrap();
    let mut command = litefs(dir.path());
    use_up_inotify(&mut command);
    let mut node = Node::spawn(command, dir, &format!("http://{at}"));
    node.eventually("the node is primary", Node::is_primary);
    let names = ["a.db", "b.db"];
    let clients = names.map(|name| {
        let db = node.open(name);
        // A commit with a sync would be noticed by the sync.
        db.execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE IF NOT EXISTS t(x)",
        )
        .unwrap();
        db
    });
    // Has everything captured that there is so far.
    assert_eq!(node.positions().len(), 2);
    let mut events = Events::subscribe(&node.url);
    for (name, db) in names.iter().zip(&clients) {
        db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        // Nobody asks for the position, so that nothing but the commit itself is there to be noticed.
        assert_eq!(events.next_transaction(), *name);
    }
    let log = node.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("inotify")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].contains("fs.inotify.max_user_instances"), "{log}");
    drop(clients);
    node.stop();
}

/// The event stream of a node.
struct Events {
    runtime: tokio::runtime::Runtime,
    stream: litefs_api::EventStream,
}

impl Events {
    fn subscribe(url: &str) -> Events {
        let runtime = runtime();
        let client = Client::new(url).unwrap();
        let stream = runtime.block_on(client.events()).unwrap();
        let mut events = Events { runtime, stream };
        let first = events.next();
        assert!(matches!(first, litefs_api::Event::Init { .. }), "{first:?}");
        events
    }

    fn next(&mut self) -> litefs_api::Event {
        let next = futures_util::StreamExt::next(&mut self.stream);
        let next = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, next).await });
        next.expect("in time").unwrap().unwrap()
    }

    /// The database it was in.
    fn next_transaction(&mut self) -> String {
        loop {
            if let litefs_api::Event::Tx { db, .. } = self.next() {
                return db;
            }
        }
    }
}
