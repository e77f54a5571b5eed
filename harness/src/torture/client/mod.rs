//! A client: a process of its own that keeps its connections for as long as it lives, whatever becomes of the daemon.
//!
//! It is told on standard input to pause, to go on and to report; it ends when that closes. What it does and sees is in its journal.

mod pool;
mod read;
mod write;

pub(super) use self::read::digest;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use self::pool::Pool;
use super::journal::{Journal, Note, Role};
use super::profile::{Behaviour, Profile};
use super::rows;
use crate::{Error, Result};

/// What a client is started with, as one argument.
#[derive(Debug, Serialize, Deserialize)]
pub struct Orders {
    pub profile: Profile,
    pub mount: PathBuf,
    pub journal: PathBuf,
    pub seed: u64,
    pub nodes: Nodes,
}

/// What a client may take for lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Nodes {
    /// What was acknowledged must be seen by whoever looks.
    One,
    /// What was acknowledged may go to the archive with a former primary.
    Several,
}

/// What a client is told.
pub(super) const PAUSE: &str = "pause";
const GO_ON: &str = "go on";
pub(super) const REPORT: &str = "report";

const GOING: u8 = 0;
const PAUSED: u8 = 1;
const REPORTING: u8 = 2;
const OVER: u8 = 3;

/// How often an idle client looks whether it may go on, and says that it lives.
const IDLE: Duration = Duration::from_millis(50);
/// After a failure.
const RETRY: Duration = Duration::from_millis(20);

pub(super) struct Client {
    profile: Profile,
    nodes: Nodes,
    mount: PathBuf,
    journal: Journal,
    chance: StdRng,
    pool: Pool,
    next_id: i64,
    /// First id of the last transaction that was acknowledged.
    last: Option<i64>,
}

/// The main function of a client process.
pub fn run(orders: Orders) -> Result<()> {
    let journal = Journal::create(&orders.journal).map_err(Error::file("creating", &orders.journal))?;
    let told = listen();
    let Orders {
        profile,
        mount,
        seed,
        nodes,
        ..
    } = orders;
    let mut client = Client {
        next_id: rows::first_id(profile.number),
        chance: StdRng::seed_from_u64(seed),
        pool: Pool::new(mount.join(&profile.database), &profile),
        last: None,
        profile,
        nodes,
        mount,
        journal,
    };
    loop {
        match told.load(Ordering::Relaxed) {
            GOING => client.turn(),
            PAUSED => client.idle(),
            REPORTING => {
                client.report();
                let _ = told.compare_exchange(REPORTING, PAUSED, Ordering::Relaxed, Ordering::Relaxed);
            }
            _ => return Ok(()),
        }
    }
}

fn listen() -> Arc<AtomicU8> {
    let told = Arc::new(AtomicU8::new(GOING));
    let ear = Arc::clone(&told);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let state = match line.as_str() {
                PAUSE => PAUSED,
                GO_ON => GOING,
                REPORT => REPORTING,
                _ => continue,
            };
            ear.store(state, Ordering::Relaxed);
        }
        ear.store(OVER, Ordering::Relaxed);
    });
    told
}

impl Client {
    /// One piece of work, and a rest as long as others need to get their turn: SQLite lets a writer in a hurry starve everybody else.
    fn turn(&mut self) {
        let think = match self.profile.behaviour {
            Behaviour::Metronome => self.write(1, 5),
            Behaviour::Commit => self.write(1, 25),
            Behaviour::Linger => self.linger(),
            Behaviour::Spill => self.spill(),
            Behaviour::Reconnect => self.reconnect(),
            Behaviour::Read => self.read(),
            Behaviour::Maintain => self.maintain(),
        };
        std::thread::sleep(think);
    }

    fn idle(&mut self) {
        self.journal.note(&Note::Idle);
        std::thread::sleep(IDLE);
    }

    /// What the node is, as far as a client can see: a replica has a file that names its primary. Where nobody answers, the client tries.
    fn role(&self) -> Role {
        match self.nodes {
            Nodes::One => Role::Primary,
            Nodes::Several => match std::fs::metadata(self.mount.join(".primary")) {
                Ok(_) => Role::Replica,
                Err(_) => Role::Primary,
            },
        }
    }

    fn about(&mut self, milliseconds: u64) -> Duration {
        Duration::from_millis(self.chance.random_range(milliseconds / 2..=milliseconds * 3 / 2))
    }

    /// What each connection that was kept sees at the end.
    fn report(&mut self) {
        for (number, connection) in self.pool.kept() {
            match digest(connection) {
                Ok((rows, digest)) => self.journal.note(&Note::Seen {
                    connection: number,
                    rows,
                    digest,
                }),
                Err(error) => self.journal.note(&failure("report", &error)),
            }
        }
        self.journal.note(&Note::Idle);
    }
}

fn failure(what: &str, error: &rusqlite::Error) -> Note {
    Note::Error {
        what: what.to_owned(),
        code: code(error),
        message: error.to_string(),
    }
}

/// SQLite's extended code; 0 for what is none of SQLite.
fn code(error: &rusqlite::Error) -> i32 {
    error.sqlite_error().map_or(0, |error| error.extended_code)
}
