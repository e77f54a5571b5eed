//! Clerks and auditors as processes on the nodes, so that SQLite's locks are those between processes; each process has a connection per
//! clerk. They report on standard output and end when their standard input does.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use litefs_dev::Node;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use crate::shop;
use crate::support::PATIENCE;

const TASK: &str = "REAL_INPUT_TASK";
const MARK: &str = "report ";
/// Between two customers.
const THOUGHT: Duration = Duration::from_millis(5);
/// Snapshots that an auditor takes through one connection.
const SNAPSHOTS: usize = 8;

/// What a process is to do; handed over in its environment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) database: String,
    pub(crate) role: Role,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    Clerks {
        clerks: Vec<u64>,
        setup: String,
        refusals: bool,
    },
    /// Names the auditor.
    Auditor(String),
}

#[derive(Debug, Serialize, Deserialize)]
enum Report {
    /// COMMIT returned for this step and all before it.
    Confirmed {
        clerk: u64,
        step: u64,
    },
    /// A sound snapshot in which the ledger has so many entries.
    Seen {
        auditor: String,
        entries: i64,
    },
    Failed(String),
    /// Said by the parent's side: there will be no more.
    Ended,
}

/// The processes' reports so far.
pub(crate) struct Reports {
    sender: Sender<Report>,
    receiver: Receiver<Report>,
    /// How many steps of each clerk are confirmed.
    pub(crate) confirmed: BTreeMap<u64, u64>,
    /// How many different snapshots each auditor saw, and the entries of the last one.
    pub(crate) seen: BTreeMap<String, (usize, i64)>,
}

/// A process, and the thread that reads its reports.
pub(crate) struct Client {
    task: Task,
    child: Child,
    stdin: Option<ChildStdin>,
    reader: JoinHandle<()>,
}

impl Reports {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = channel();
        Self {
            sender,
            receiver,
            confirmed: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
    }

    /// Starts a process on a node that reports here.
    pub(crate) fn employ(&self, node: Node<'_>, task: Task) -> Client {
        let mut command = node.exec(std::env::current_exe().unwrap()).unwrap();
        let mut child = command
            .args(["clients::client_process", "--exact", "--nocapture"])
            .env(TASK, serde_json::to_string(&task).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let sender = self.sender.clone();
        let reader = std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some((_, report)) = line.split_once(MARK) {
                    // Nobody listens any more when the test has failed.
                    let _ = sender.send(serde_json::from_str(report).unwrap());
                }
            }
            let _ = sender.send(Report::Ended);
        });
        Client {
            task,
            child,
            stdin,
            reader,
        }
    }

    /// Takes reports in until `holds`.
    pub(crate) fn await_until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receiver.recv_timeout(left) {
                Ok(Report::Ended) => panic!("waited for {what}, and a client ended"),
                Ok(report) => self.take(report),
                Err(_) => panic!(
                    "waited for {what}; confirmed steps {:?}, seen {:?}",
                    self.confirmed, self.seen
                ),
            }
        }
    }

    /// Lets clients finish what they are at, and takes in all they have said.
    pub(crate) fn dismiss(&mut self, clients: Vec<Client>) {
        clients.into_iter().for_each(Client::end);
        let rest: Vec<_> = self.receiver.try_iter().collect();
        rest.into_iter().for_each(|report| self.take(report));
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Confirmed { clerk, step } => {
                let steps = self.confirmed.entry(clerk).or_default();
                assert_eq!(step, *steps, "clerk {clerk} skipped a step");
                *steps += 1;
            }
            Report::Seen { auditor, entries } => {
                let (snapshots, last) = self.seen.entry(auditor.clone()).or_insert((0, 0));
                assert!(entries > *last, "{auditor}: {last} entries, then {entries}");
                *snapshots += 1;
                *last = entries;
            }
            Report::Failed(message) => panic!("{message}"),
            Report::Ended => {}
        }
    }
}

impl Client {
    fn end(mut self) {
        drop(self.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "does not end: {:?}", self.task),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "{status}: {:?}", self.task);
        self.reader.join().unwrap();
    }
}

static OVER: AtomicBool = AtomicBool::new(false);

/// Not a test by itself: the other side of [`Reports::employ`].
#[test]
fn client_process() {
    let Ok(task) = std::env::var(TASK) else { return };
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        OVER.store(true, Ordering::Relaxed);
    });
    let Task { database, role } = serde_json::from_str(&task).unwrap();
    match role {
        Role::Clerks {
            clerks,
            setup,
            refusals,
        } => std::thread::scope(|scope| {
            for clerk in clerks {
                let (database, setup) = (&database, &setup);
                scope.spawn(move || {
                    attempt(&format!("clerk {clerk}"), || {
                        serve(database, setup, clerk, refusals)
                    })
                });
            }
        }),
        Role::Auditor(name) => attempt(&name, || watch(&database, &name)),
    }
}

fn attempt(who: &str, work: impl FnOnce() -> rusqlite::Result<()>) {
    if let Err(error) = work() {
        report(&Report::Failed(format!("{who}: {error}")));
    }
}

fn report(report: &Report) {
    let line = format!("{MARK}{}\n", serde_json::to_string(report).unwrap());
    let mut output = std::io::stdout().lock();
    // A parent that has failed does not listen.
    let _ = output.write_all(line.as_bytes()).and_then(|()| output.flush());
}

fn serve(database: &str, setup: &str, clerk: u64, refusals: bool) -> rusqlite::Result<()> {
    let mut connection = Connection::open(database)?;
    connection.busy_timeout(PATIENCE)?;
    connection.execute_batch(setup)?;
    connection.execute_batch("PRAGMA foreign_keys = ON")?;
    for step in 0.. {
        if OVER.load(Ordering::Relaxed) {
            break;
        }
        shop::work(&mut connection, clerk, step, refusals)?;
        report(&Report::Confirmed { clerk, step });
        // SQLite's busy handler polls: whoever never lets go of the lock starves the others.
        std::thread::sleep(THOUGHT);
    }
    connection.close().map_err(|(_, error)| error)
}

fn watch(database: &str, name: &str) -> rusqlite::Result<()> {
    let mut last = 0;
    while !OVER.load(Ordering::Relaxed) {
        let mut connection = Connection::open(database)?;
        connection.busy_timeout(PATIENCE)?;
        for _ in 0..SNAPSHOTS {
            if OVER.load(Ordering::Relaxed) {
                break;
            }
            match shop::audit(&mut connection)? {
                // The ledger only grows: an older state after a newer one is reported too, and is an error.
                Ok(entries) if entries == last => {}
                Ok(entries) => {
                    last = entries;
                    let auditor = name.to_owned();
                    report(&Report::Seen { auditor, entries });
                }
                Err(wrong) => report(&Report::Failed(format!("{name}: {wrong}"))),
            }
        }
    }
    Ok(())
}
