//! Stores on plain directories with real SQLite: what the kernel edge would report is called by hand.

#![allow(dead_code, unreachable_pub)]

pub mod disk;
pub mod edge;
mod kernel;
mod vfs;

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use edge::Edge;
use engine::{Coherence, Database, DbName, LockFiles, Role, Side, Store, StoreOptions};
pub use kernel::{Opener, TestKernel};
use ltx::{Pos, Txid};
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

pub struct Node {
    pub dir: TempDir,
    pub store: Arc<Store>,
    pub kernel: Arc<TestKernel>,
    pub edge: Arc<Edge>,
    options: StoreOptions,
}

/// Name of the socket of a mount that outlives its daemon.
const KEPT: &str = "kept.sock";

/// Whether clients of this socket wait for the next daemon.
pub fn outlives(socket: &Path) -> bool {
    socket.ends_with(KEPT)
}

/// Connects to the daemon that listens next.
pub fn reconnect(socket: &Path) -> UnixStream {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            // The test is over.
            Err(_) if std::time::Instant::now() > deadline || !socket.parent().is_some_and(Path::exists) => {
                std::process::exit(0)
            }
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(1)),
        }
    }
}

/// Makes a table `t` of 15 pages or more.
pub const ROWS: &str = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < 60) \
    INSERT INTO t SELECT n, randomblob(900) FROM c";

pub fn name() -> DbName {
    "a.db".parse().unwrap()
}

/// A mount that nobody serves.
pub struct Vacant {
    pub dir: TempDir,
    opener: Opener,
    coherence: Coherence,
    options: StoreOptions,
    /// See [`TestKernel::on_invalidate`], of the next daemon.
    pub on_invalidate: Option<Box<dyn FnMut(Side) + Send>>,
}

impl Vacant {
    /// The descriptors that the dead daemon may hold locks through.
    pub fn kept_locks(&self) -> Arc<dyn LockFiles> {
        self.opener.kept(&self.dir.path().join("files"), &name()).unwrap()
    }

    /// The opener dies too, and with it all locks.
    pub fn lose_opener(mut self) -> Vacant {
        self.opener = Opener::default();
        self
    }

    /// What was noted for a successor.
    pub fn scratch(&self) -> PathBuf {
        homes(self.dir.path()).remove(0).join("scratch")
    }

    /// The next daemon takes it over.
    pub fn resume(self, role: Role) -> Node {
        let Vacant {
            dir,
            opener,
            coherence,
            options,
            on_invalidate,
        } = self;
        let store = Store::resume(dir.path(), options.clone(), role).unwrap();
        let socket = dir.path().join(KEPT);
        let kernel = TestKernel::new(store.files_dir(), coherence, socket.clone(), opener);
        let kernel = Arc::new(kernel);
        if let Some(run) = on_invalidate {
            kernel.on_invalidate(run);
        }
        store.start(kernel.clone()).unwrap();
        let edge = Edge::serve(store.clone(), socket);
        Node {
            dir,
            store,
            kernel,
            edge,
            options,
        }
    }
}

impl Node {
    pub fn new() -> Node {
        Node::open(tempfile::tempdir().unwrap())
    }

    pub fn primary() -> Node {
        Node::primary_with(StoreOptions::default())
    }

    pub fn primary_with(options: StoreOptions) -> Node {
        let node = Node::open_with(tempfile::tempdir().unwrap(), Coherence::Passthrough, options);
        node.store.set_role(Role::Primary { epoch: 1 }).unwrap();
        node
    }

    pub fn open(dir: TempDir) -> Node {
        Node::open_with(dir, Coherence::Passthrough, StoreOptions::default())
    }

    pub fn open_with(dir: TempDir, coherence: Coherence, options: StoreOptions) -> Node {
        Node::open_at(dir, coherence, options, "edge.sock")
    }

    /// A node whose mount outlives its daemon, see [`Node::replace`].
    pub fn kept(coherence: Coherence, options: StoreOptions) -> Node {
        Node::open_at(tempfile::tempdir().unwrap(), coherence, options, KEPT)
    }

    fn open_at(dir: TempDir, coherence: Coherence, options: StoreOptions, socket: &str) -> Node {
        let store = Store::open(dir.path(), options.clone()).unwrap();
        let socket = dir.path().join(socket);
        let edge = Edge::serve(store.clone(), socket.clone());
        let kernel = TestKernel::new(store.files_dir(), coherence, socket, Opener::default());
        let kernel = Arc::new(kernel);
        store.start(kernel.clone()).unwrap();
        Node {
            dir,
            store,
            kernel,
            edge,
            options,
        }
    }

    /// The daemon is killed, and the next one takes its mount over in the same role.
    pub fn replace(self) -> Node {
        let role = self.store.role();
        self.vacate().resume(role)
    }

    /// The daemon is killed, and nobody serves its mount.
    pub fn vacate(self) -> Vacant {
        let Node {
            dir,
            store,
            kernel,
            edge,
            options,
        } = self;
        edge.die();
        kernel.die();
        store.abandon();
        let noted = edge.noted.lock().unwrap().take();
        let (opener, coherence) = (kernel.opener.clone(), kernel.coherence);
        // What its threads are at they finish, as system calls of a process that is killed do.
        let rest = Arc::downgrade(&store);
        let databases: Vec<_> = store.databases().iter().map(Arc::downgrade).collect();
        drop((store, edge, kernel));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while rest.strong_count() > 0 || databases.iter().any(|db| db.strong_count() > 0) {
            assert!(std::time::Instant::now() < deadline, "the daemon does not die");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        if let Some((noted, home)) = noted.zip(homes(dir.path()).pop()) {
            std::fs::write(home.join("scratch"), noted).unwrap();
        }
        Vacant {
            dir,
            opener,
            coherence,
            options,
            on_invalidate: None,
        }
    }

    /// The process ends without a word.
    pub fn kill(self) -> TempDir {
        let Node { dir, store, edge, .. } = self;
        edge.die();
        store.abandon();
        dir
    }

    /// The process ends in order.
    pub fn stop(self) -> TempDir {
        let Node { dir, store, edge, .. } = self;
        edge.die();
        store.close().unwrap();
        dir
    }

    /// A client whose requests the engine sees, as on a mount.
    pub fn mount(&self) -> Client {
        let intercepted = self.kernel.coherence == Coherence::Intercepted;
        Client::start(&self.path(), Some((self.edge.socket(), intercepted)))
    }

    pub fn path(&self) -> PathBuf {
        name().file_in(self.store.files_dir(), Side::Database)
    }

    pub fn connect(&self) -> Client {
        Client::connect(&self.path())
    }

    pub fn db(&self) -> Arc<Database> {
        self.store.database(&name()).unwrap()
    }

    /// Begins to replicate what is in the file.
    pub fn attach(&self) -> Arc<Database> {
        let db = self.store.attach(&name()).unwrap();
        db.reconcile().unwrap();
        db
    }

    pub fn digest(&self) -> (Pos, u64) {
        self.try_digest().unwrap()
    }

    pub fn try_digest(&self) -> engine::Result<(Pos, u64)> {
        let snapshot = self.db().snapshot()?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut snapshot.database().unwrap(), &mut bytes).unwrap();
        let mut digest = crc64fast::Digest::new();
        digest.write(&bytes);
        Ok((snapshot.pos, digest.sum64()))
    }
}

/// Brings the replica to the primary's position, by records where the log has them, else by a snapshot.
pub fn replicate(from: &Node, to: &Node) {
    from.db().drain().unwrap();
    let target = from.db().received();
    loop {
        let have = to.store.database(&name()).map_or(Pos::ZERO, |db| db.received());
        if have == target {
            break;
        }
        let next = Txid(have.txid.0 + 1);
        let record = from
            .db()
            .record(next)
            .unwrap()
            .filter(|record| record.info.pre == have.post_apply || next.0 == 1);
        match record {
            Some(record) => drop(to.store.receive(&name(), &mut record.reader()).unwrap()),
            None => send_snapshot(from, to),
        };
    }
    wait_applied(to);
}

/// Waits until all received records are applied.
pub fn wait_applied(node: &Node) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while node.db().position() != node.db().received() {
        assert!(
            std::time::Instant::now() < deadline,
            "records are not applied: {:?}",
            node.db().status()
        );
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Sends the last transaction of one node to another, which need not apply it at once.
pub fn send_last(from: &Node, to: &Node) {
    let last = from.db().drain().unwrap();
    let record = from.db().record(last.txid).unwrap().unwrap();
    to.store.receive(&name(), &mut record.reader()).unwrap();
}

/// Sends all of a database, which the other node need not apply at once.
pub fn send_snapshot(from: &Node, to: &Node) {
    let snapshot = from.db().snapshot().unwrap();
    to.store.receive(&name(), &mut snapshot.ltx(7).unwrap()).unwrap();
}

pub fn list(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

/// Homes of the databases in a data directory.
pub fn homes(dir: &Path) -> Vec<PathBuf> {
    list(&dir.join("databases"))
}

/// The machine starts again: what was noted in memory means nothing any more.
pub fn lose_power(dir: &Path) {
    for home in homes(dir) {
        let path = home.join("scratch");
        let mut bytes = std::fs::read(&path).unwrap();
        for byte in &mut bytes[8..24] {
            *byte ^= 0x5a;
        }
        std::fs::write(path, bytes).unwrap();
    }
}

pub fn integrity(client: &Client) {
    assert_eq!(client.query("PRAGMA integrity_check"), "ok");
}

/// A checkpoint that runs to its end, which it cannot while one of the engine runs.
pub fn checkpoint(client: &Client, mode: &str) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while client.query(&format!("PRAGMA wal_checkpoint({mode})")) != "0" {
        assert!(std::time::Instant::now() < deadline, "the WAL stays busy");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

pub fn count(client: &Client) -> i64 {
    client.query("SELECT count(*) FROM t").parse().unwrap()
}

const CLIENT_OF: &str = "ENGINE_TEST_CLIENT_OF";
const CLIENT_SOCKET: &str = "ENGINE_TEST_CLIENT_SOCKET";
const CLIENT_INTERCEPTED: &str = "ENGINE_TEST_CLIENT_INTERCEPTED";
const MARK: &str = "client> ";

/// A connection in a process of its own: POSIX locks belong to processes, and the engine opens and closes the same files
/// in this one.
pub struct Client {
    child: Child,
    pipes: RefCell<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Client {
    pub fn connect(path: &Path) -> Client {
        Client::start(path, None)
    }

    pub fn start(path: &Path, mount: Option<(&Path, bool)>) -> Client {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["common::client_process", "--exact", "--nocapture"])
            .env(CLIENT_OF, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some((socket, intercepted)) = mount {
            command.env(CLIENT_SOCKET, socket);
            command.env(CLIENT_INTERCEPTED, if intercepted { "1" } else { "0" });
        }
        let mut child = command.spawn().unwrap();
        let pipes = (
            child.stdin.take().unwrap(),
            BufReader::new(child.stdout.take().unwrap()),
        );
        Client {
            child,
            pipes: RefCell::new(pipes),
        }
    }

    pub fn try_exec(&self, sql: &str) -> Result<String, String> {
        self.send(sql);
        self.receive()
    }

    /// Begins to run statements; [`Client::receive`] waits for the outcome.
    pub fn send(&self, sql: &str) {
        // If it is dead, that shows when the answer is read.
        let _ = writeln!(self.pipes.borrow_mut().0, "{sql}");
    }

    pub fn receive(&self) -> Result<String, String> {
        let mut pipes = self.pipes.borrow_mut();
        let mut line = String::new();
        loop {
            line.clear();
            if pipes.1.read_line(&mut line).unwrap() == 0 {
                return Err("the client process ended".to_owned());
            }
            if let Some((_, answer)) = line.trim_end_matches('\n').split_once(MARK) {
                return match answer.split_once(' ') {
                    Some(("ok", value)) => Ok(value.to_owned()),
                    _ => Err(answer.to_owned()),
                };
            }
        }
    }

    /// Runs statements.
    pub fn exec(&self, sql: &str) {
        self.try_exec(sql).unwrap();
    }

    /// First column of the last row.
    pub fn query(&self, sql: &str) -> String {
        self.try_exec(sql).unwrap()
    }

    /// Waits for the process to end by itself.
    pub fn await_death(mut self) {
        self.child.wait().unwrap();
    }

    /// The process ends without a word.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = writeln!(self.pipes.borrow_mut().0, ".quit");
        let _ = self.child.wait();
    }
}

fn run_all(connection: &Connection, sql: &str) -> rusqlite::Result<String> {
    let mut last = String::new();
    let mut batch = rusqlite::Batch::new(connection, sql);
    while let Some(mut statement) = batch.next()? {
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if columns == 0 {
                continue;
            }
            last = match row.get_ref(0)? {
                rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                rusqlite::types::ValueRef::Integer(value) => value.to_string(),
                other => format!("{other:?}"),
            };
        }
    }
    Ok(last)
}

/// Not a test by itself: the other end of [`Client`].
#[test]
fn client_process() {
    let Some(path) = std::env::var_os(CLIENT_OF) else {
        return;
    };
    let connection = match std::env::var_os(CLIENT_SOCKET) {
        Some(socket) => {
            let socket = PathBuf::from(socket);
            let stream = match outlives(&socket) {
                true => reconnect(&socket),
                // The test is over before its client began.
                false => UnixStream::connect(&socket).unwrap_or_else(|_| std::process::exit(0)),
            };
            let intercepted = std::env::var(CLIENT_INTERCEPTED).is_ok_and(|value| value == "1");
            vfs::register(stream, socket, intercepted);
            Connection::open_with_flags_and_vfs(path, OpenFlags::default(), vfs::NAME).unwrap()
        }
        None => Connection::open(path).unwrap(),
    };
    connection
        .busy_timeout(std::time::Duration::from_secs(5))
        .unwrap();
    for line in std::io::stdin().lines() {
        let sql = line.unwrap();
        if sql == ".quit" {
            break;
        }
        let answer = match run_all(&connection, &sql) {
            Ok(value) => format!("ok {value}"),
            Err(error) => format!("error {error}"),
        };
        let mut out = std::io::stdout();
        if writeln!(out, "{MARK}{answer}")
            .and_then(|()| out.flush())
            .is_err()
        {
            break;
        }
    }
    drop(connection);
    // The other end may be gone, and the summary of the tests is nobody's here.
    std::process::exit(0);
}
