//! A mount for tests, served by a process of its own.
//!
//! The daemon must never wait for its own mount, and tests are its clients: so the test program runs itself once more as the daemon, and
//! talks to it over a pipe, one line for a question and one for the answer. Needs root and /dev/fuse.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(unreachable_pub, reason = "a module of several programs")]

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use engine::disk::failing::FailingDisk;
use engine::disk::sim::Fault;
use engine::{CheckpointMode, DbName, Kernel, Role, Side, Store, StoreOptions};
use litefs::companion::{Companion, Keeper, KeeperOptions};
use litefs::fuse::{Beside, Lag, Mount, MountOptions, Passthrough, Presence};
use litefs::metrics::Metrics;
use rusqlite::{Connection, ErrorCode};
use tempfile::TempDir;

const ROLE_OF_PROCESS: &str = "LITEFS_TEST_DAEMON";
/// As on a kernel before 6.9.
const NO_RESEND: &str = "LITEFS_TEST_NO_RESEND";
const TAKEOVER_TIMEOUT: &str = "LITEFS_TEST_TAKEOVER_TIMEOUT_MS";

/// K or D.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    K,
    D,
}

pub const MODES: [Mode; 2] = [Mode::K, Mode::D];

/// In the rig's directory: its daemons follow a primary elsewhere.
const FOLLOWS: &str = "follows";

/// A served mount.
pub struct Rig {
    dir: TempDir,
    daemon: Daemon,
    pub mode: Mode,
    takeover_timeout: Duration,
    resend: bool,
}

struct Daemon {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Rig {
    pub fn start(mode: Mode) -> Rig {
        Rig::start_in(TempDir::with_prefix("edge-mount-").unwrap(), mode)
    }

    /// With the data directory, `data` below `dir`, on whatever file system that is.
    pub fn start_in(dir: TempDir, mode: Mode) -> Rig {
        Rig::start_with(dir, mode, Duration::from_secs(30))
    }

    /// `takeover_timeout`: how long clients wait for the next daemon.
    pub fn start_with(dir: TempDir, mode: Mode, takeover_timeout: Duration) -> Rig {
        let daemon = Daemon::spawn(dir.path(), mode, takeover_timeout, true);
        Rig {
            dir,
            daemon,
            mode,
            takeover_timeout,
            resend: true,
        }
    }

    /// As on a kernel that does not deliver requests again.
    pub fn start_old(mode: Mode) -> Rig {
        let dir = TempDir::with_prefix("edge-mount-").unwrap();
        let takeover_timeout = Duration::from_secs(30);
        let daemon = Daemon::spawn(dir.path(), mode, takeover_timeout, false);
        Rig {
            dir,
            daemon,
            mode,
            takeover_timeout,
            resend: false,
        }
    }

    pub fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.mount().join(name)
    }

    pub fn backing(&self, name: &str) -> PathBuf {
        self.dir.path().join("data/files").join(name)
    }

    pub fn ask(&mut self, question: &str) -> String {
        self.daemon.ask(question)
    }

    /// Requests so far, by `op.file`.
    pub fn requests(&mut self) -> Counts {
        Counts::parse(&self.ask("requests"))
    }

    pub fn pid(&self) -> u32 {
        self.daemon.child.id()
    }

    /// The processes beside the daemon, by the words of their command lines.
    pub fn companions(&self, part: &str) -> Vec<u32> {
        let data = self.dir.path().canonicalize().unwrap().join("data");
        let wanted = format!("litefs\0companion\0{part}\0{}\0", data.display());
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid: &u32| {
                std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words == wanted.as_bytes())
            })
            .collect()
    }

    /// Kills processes beside the daemon, and waits until they are gone.
    pub fn kill_companions(&self, part: &str) {
        for pid in self.companions(part) {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid.cast_signed()),
                nix::sys::signal::SIGKILL,
            );
            eventually("it is gone", || {
                std::fs::read_to_string(format!("/proc/{pid}/stat"))
                    .map_or(true, |stat| stat.contains(") Z "))
            });
        }
    }

    /// Files that clients have open.
    pub fn client_handles(&mut self) -> usize {
        self.ask("clients").parse().unwrap()
    }

    /// Kills the daemon without warning; nobody serves the mount from now on.
    pub fn kill(&mut self) {
        self.daemon.child.kill().unwrap();
        self.daemon.child.wait().unwrap();
    }

    /// Starts another daemon on the same data and mount point.
    pub fn restart(&mut self) {
        self.daemon = Daemon::spawn(self.dir.path(), self.mode, self.takeover_timeout, self.resend);
    }

    /// As [`Rig::restart`], with a daemon that follows a primary elsewhere, from here on.
    pub fn restart_as_replica(&mut self) {
        std::fs::write(self.dir.path().join(FOLLOWS), "").unwrap();
        self.restart();
    }

    pub fn stop(mut self) {
        assert_eq!(self.ask("stop"), "stopped");
        let status = self.daemon.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Ok(None) = self.daemon.child.try_wait() {
            // A daemon that is killed leaves its mount behind; one that reads the end of its input detaches it.
            let _ = writeln!(self.daemon.questions, "stop");
            let deadline = Instant::now() + Duration::from_secs(10);
            while let Ok(None) = self.daemon.child.try_wait() {
                if Instant::now() > deadline {
                    let _ = self.daemon.child.kill();
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        for part in ["keeper", "opener"] {
            for pid in self.companions(part) {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid.cast_signed()),
                    nix::sys::signal::SIGKILL,
                );
            }
        }
        let _ = nix::mount::umount2(&self.mount(), nix::mount::MntFlags::MNT_DETACH);
    }
}

impl Daemon {
    fn spawn(dir: &Path, mode: Mode, takeover_timeout: Duration, resend: bool) -> Daemon {
        let mut command = Command::new(std::env::current_exe().unwrap());
        if !resend {
            command.env(NO_RESEND, "1");
        }
        let mut child = command
            .args(["--exact", "daemon_process", "--nocapture", "--test-threads=1"])
            .env(ROLE_OF_PROCESS, format!("{mode:?}"))
            .env(TAKEOVER_TIMEOUT, takeover_timeout.as_millis().to_string())
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let questions = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut daemon = Daemon {
            child,
            questions,
            answers,
        };
        assert_eq!(daemon.answer(), format!("mounted {mode:?}"));
        daemon
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.questions, "{question}").unwrap();
        self.answer()
    }

    /// The test framework of the child prints lines of its own.
    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            let length = self.answers.read_line(&mut line).unwrap();
            assert!(length > 0, "the daemon ended");
            if let Some((_, answer)) = line.split_once("> ") {
                return answer.trim_end().to_owned();
            }
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts(pub BTreeMap<String, u64>);

impl Counts {
    fn parse(text: &str) -> Counts {
        let cells = text
            .trim_matches(['{', '}'])
            .split(", ")
            .filter(|cell| !cell.is_empty());
        let parse = |cell: &str| {
            let (key, count) = cell.split_once(": ").unwrap();
            (key.to_owned(), count.parse().unwrap())
        };
        Counts(cells.map(parse).collect())
    }

    pub fn since(&self, earlier: &Counts) -> Counts {
        let then = |key: &str| earlier.0.get(key).copied().unwrap_or(0);
        let left = self.0.iter().map(|(key, now)| (key.clone(), now - then(key)));
        Counts(
            left.filter(|(key, count)| *count > 0 && !key.starts_with("forget"))
                .collect(),
        )
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

/// Body of the test `daemon_process` that every test program with a [`Rig`] has: the daemon's main loop, if this is the daemon.
pub fn serve_if_daemon() {
    let Ok(mode) = std::env::var(ROLE_OF_PROCESS) else {
        return;
    };
    let passthrough = if mode == "K" {
        Passthrough::On
    } else {
        Passthrough::Off
    };
    let data = PathBuf::from("data");
    std::fs::create_dir_all(&data).unwrap();
    let data = data.canonicalize().unwrap();
    Metrics::start();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_litefs"));
    let keeping = KeeperOptions {
        program: program.clone(),
        ..KeeperOptions::new(takeover_timeout())
    };
    let (keeper, mut inheritance) = Keeper::connect(&data, keeping).unwrap();
    if let Some(inheritance) = &mut inheritance {
        inheritance
            .pin(keeper.ledger(), &Store::files_below(&data))
            .unwrap();
    }
    let companion = Companion::start(&keeper, &program).unwrap();
    // A time as primary without an end, as with a static lease.
    keeper.ledger().deadline().store(u64::MAX, Ordering::Release);
    let disk = FailingDisk::default();
    let options = StoreOptions {
        disk: Arc::new(disk.clone()),
        seal: true,
        ..StoreOptions::default()
    };
    let role = match Path::new(FOLLOWS).exists() {
        true => Role::Replica,
        false => Role::Primary { epoch: 1 },
    };
    let store = match keeper.has_clients() {
        true => Store::resume(&data, options, role).unwrap(),
        false => {
            companion.settled();
            let store = Store::open(&data, options).unwrap();
            store.set_role(role).unwrap();
            store
        }
    };
    let presence = Arc::new(Presence::default());
    presence.set_lag(Lag::Behind(Duration::ZERO));
    let options = MountOptions {
        passthrough,
        allow_other: true,
        resend: std::env::var_os(NO_RESEND).is_none(),
        ..MountOptions::new("mnt")
    };
    let beside = Beside {
        keeper: keeper.clone(),
        companion: companion.clone(),
    };
    let mount = Mount::start(store.clone(), beside, presence.clone(), &options, inheritance).unwrap();
    companion.settled();
    println!("> mounted {mode}");
    for question in std::io::stdin().lines() {
        let question = question.unwrap();
        let words: Vec<&str> = question.split(' ').collect();
        let answer = match words[..] {
            ["stop"] => break,
            ["requests"] => format!("{:?}", mount.requests().snapshot()),
            ["keepers", "replaced"] => keeper.replaced().to_string(),
            ["clients"] => mount.client_handles().to_string(),
            ["coherence"] => format!("{:?}", mount.coherence()),
            ["role", "primary"] => result(store.set_role(Role::Primary { epoch: 2 })),
            ["role", "replica"] => result(store.set_role(Role::Replica)),
            ["primary", name] => {
                presence.set_primary(Some(name.to_owned()));
                mount.primary_changed();
                "ok".into()
            }
            ["checkpoint", name] => {
                format!(
                    "{:?}",
                    mount
                        .kernel()
                        .checkpoint(&database(name), CheckpointMode::Truncate)
                )
            }
            ["lock", name, seconds] => hold_write_lock(&*mount.kernel(), name, seconds),
            ["digest", name] => digest(&store, name),
            // As if the primary had `to` with the content of `from`.
            ["receive", from, to] => {
                let snapshot = store.database(&database(from)).unwrap().snapshot().unwrap();
                let received = store.receive(&database(to), &mut snapshot.ltx(7).unwrap());
                result(received.map(drop))
            }
            // The next call of that kind fails.
            ["break", "log.append.sync"] => {
                disk.inject(Fault::on("log.append.sync", libc::EIO));
                "ok".into()
            }
            ["closed"] => {
                let names = store.closed_databases();
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                names.join(",")
            }
            ["damaged"] => {
                let told = store.damaged();
                let told: Vec<String> = told.iter().map(|(name, why)| format!("{name}: {why}")).collect();
                told.join(",")
            }
            ["refused"] => metric("litefs_refused_writes_total"),
            ["databases"] => {
                let names = store
                    .databases()
                    .iter()
                    .map(|db| db.name().to_string())
                    .collect::<Vec<_>>();
                names.join(",")
            }
            _ => panic!("question {question:?}"),
        };
        println!("> {answer}");
    }
    companion.stop_worker();
    mount.detach().unwrap();
    store.close().unwrap();
    mount.stop().unwrap();
    println!("> stopped");
    std::process::exit(0);
}

/// How long clients wait for the next daemon.
fn takeover_timeout() -> Duration {
    let timeout = std::env::var(TAKEOVER_TIMEOUT).ok();
    Duration::from_millis(timeout.map_or(30_000, |text| text.parse().unwrap()))
}

fn database(name: &str) -> DbName {
    DbName::from_str(name).unwrap()
}

fn result<E: std::fmt::Debug>(result: Result<(), E>) -> String {
    match result {
        Ok(()) => "ok".into(),
        Err(error) => format!("{error:?}"),
    }
}

/// Position and content of a database as a reader would see it.
fn digest(store: &Store, name: &str) -> String {
    let snapshot = store.database(&database(name)).unwrap().snapshot().unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut snapshot.database().unwrap(), &mut bytes).unwrap();
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{} {:016x}", snapshot.pos, hasher.finish())
}

/// The value of a metric without labels.
fn metric(name: &str) -> String {
    let text = Metrics::start().render();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or("0").to_owned()
}

/// Holds WAL_WRITE of a database for some seconds, or says that it could not get it.
fn hold_write_lock(kernel: &dyn Kernel, name: &str, milliseconds: &str) -> String {
    let locks = kernel.open_locks(&database(name)).unwrap();
    let taken = locks.try_lock(Side::Shm, 120, 1, true).unwrap();
    if taken {
        let pause = Duration::from_millis(milliseconds.parse().unwrap());
        std::thread::spawn(move || {
            std::thread::sleep(pause);
            locks.unlock(Side::Shm, 120, 1).unwrap();
        });
    }
    taken.to_string()
}

/// Rows of the table `t`.
pub fn count(db: &Connection) -> i64 {
    db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap()
}

pub fn check(db: &Connection) {
    let verdict: String = db
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(verdict, "ok");
}

/// Awaits a condition that comes about without our doing.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Opens a database with a table `t` in a journal mode.
pub fn open(rig: &Rig, name: &str, journal: &str) -> Connection {
    let db = Connection::open(rig.path(name)).unwrap();
    db.busy_timeout(Duration::from_secs(10)).unwrap();
    let mode: String = db
        .query_row(&format!("PRAGMA journal_mode={journal}"), [], |row| row.get(0))
        .unwrap();
    assert_eq!(mode, journal);
    db.execute_batch("PRAGMA synchronous=normal; CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    db
}

/// A transaction of one row.
pub fn insert(db: &Connection) -> Result<(), ErrorCode> {
    db.execute("INSERT INTO t(b) VALUES ('x')", [])
        .map(drop)
        .map_err(|error| error.sqlite_error_code().unwrap())
}

/// Where the database is, by its position file.
pub fn txid(rig: &Rig, name: &str) -> u64 {
    let position = std::fs::read_to_string(rig.path(&format!("{name}-pos"))).unwrap();
    u64::from_str_radix(&position[..16], 16).unwrap()
}
