//! A primary that cannot renew its lease: when its time is up nothing is committed any more, through whatever handle, and when it has the
//! lease again its clients write on. Needs root and /dev/fuse.

mod support;

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use litefs_dev::binary::Wanted;
use litefs_dev::lease::LeaseServer;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rusqlite::Connection;
use support::eventually;

const TTL: Duration = Duration::from_secs(2);
/// Commits are tried for so long after the lease's end.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// A lease server with all its connections, gone at once when dropped.
struct Lease {
    runtime: Option<tokio::runtime::Runtime>,
    _server: LeaseServer,
    address: SocketAddr,
}

impl Lease {
    fn start(address: SocketAddr, file: &Path) -> Lease {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let server = runtime
            .block_on(LeaseServer::start(address, Some(file.to_owned())))
            .unwrap();
        Lease {
            address: server.address(),
            runtime: Some(runtime),
            _server: server,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
}

impl Daemon {
    fn start(lease: SocketAddr, passthrough: &str) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        let port = free_port();
        let config = format!(
            "fuse: {{dir: {root}/mnt, passthrough: \"{passthrough}\"}}\ndata: {{dir: {root}/data}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n\
             lease:\n  type: consul\n  hostname: one\n  advertise-url: http://127.0.0.1:{port}\n  reconnect-delay: 100ms\n  \
             consul: {{url: 'http://{lease}', key: litefs/primary, ttl: {}s, lock-delay: 100ms}}\n",
            TTL.as_secs()
        );
        std::fs::write(dir.path().join("litefs.yml"), config).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new(Wanted::default().find().unwrap())
            .args(["mount", "-config"])
            .arg(dir.path().join("litefs.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Daemon { child, dir }
    }

    fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// How often the node has become primary.
    fn terms(&self) -> usize {
        self.log().matches("primary lease acquired").count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Not reaped yet, so that the process ID is its own.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
        let _ = umount2(&self.mount(), MntFlags::MNT_DETACH);
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// How the lease server is not there.
#[derive(Debug, Clone, Copy)]
enum Absence {
    /// Connections are refused.
    Refused,
    /// Connections are made and nothing is ever answered, as by a server that is paused.
    Silent,
}

#[test]
fn nothing_is_committed_after_the_end_of_the_lease_and_everything_after_it_is_back() {
    if support::impossible() {
        return;
    }
    for (passthrough, absence) in [
        ("on", Absence::Refused),
        ("on", Absence::Silent),
        ("off", Absence::Silent),
    ] {
        lose_the_lease(passthrough, absence);
    }
}

fn lose_the_lease(passthrough: &str, absence: Absence) {
    let story = format!("passthrough {passthrough}, {absence:?}");
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("lease");
    let lease = Lease::start((Ipv4Addr::LOCALHOST, 0).into(), &file);
    let address = lease.address;
    let daemon = Daemon::start(address, passthrough);
    eventually("the node is primary", || daemon.terms() == 1);
    let clients: Vec<Connection> = ["wal", "delete"]
        .into_iter()
        .map(|journal| create(&daemon, journal))
        .collect();

    drop(lease);
    let cut = Instant::now();
    let silent = match absence {
        Absence::Refused => None,
        Absence::Silent => Some(TcpListener::bind(address).unwrap()),
    };
    // The last renewal was received before the cut.
    let end = cut + TTL;
    let mut committed = vec![0u32; clients.len()];
    let mut last = vec![cut; clients.len()];
    while Instant::now() < end + AFTERWARDS {
        for (number, client) in clients.iter().enumerate() {
            if insert(client) {
                committed[number] += 1;
                last[number] = Instant::now();
            }
        }
    }
    for (number, last) in last.iter().enumerate() {
        assert!(committed[number] > 0, "{story}: the test wrote nothing");
        assert!(
            *last < end,
            "{story}: client {number} committed {:?} after the end of the lease",
            *last - end
        );
        println!(
            "{story}: client {number} stopped {:?} before the end",
            end - *last
        );
    }
    assert!(daemon.log().contains("primary lease lost"), "{story}");

    drop(silent);
    let _lease = Lease::start(address, &file);
    eventually("the node is primary again", || daemon.terms() == 2);
    for (client, committed) in clients.iter().zip(committed) {
        client.busy_timeout(Duration::from_secs(10)).unwrap();
        assert!(insert(client), "{story}: after the node is primary again");
        let rows: u32 = client
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, committed + 1, "{story}: what was acknowledged is there");
        let verdict: String = client
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(verdict, "ok", "{story}");
    }
}

fn create(daemon: &Daemon, journal: &str) -> Connection {
    let db = Connection::open(daemon.mount().join(format!("{journal}.db"))).unwrap();
    db.busy_timeout(Duration::ZERO).unwrap();
    db.query_row(&format!("PRAGMA journal_mode={journal}"), [], |_| Ok(()))
        .unwrap();
    db.execute_batch("PRAGMA synchronous=NORMAL; CREATE TABLE t(x)")
        .unwrap();
    db
}

fn insert(db: &Connection) -> bool {
    db.execute("INSERT INTO t VALUES (1)", []).is_ok()
}
