//! Clients that write.

use std::time::Duration;

use rand::Rng;
use rusqlite::{Connection, OptionalExtension};

use super::super::journal::{Note, Role};
use super::super::rows;
use super::pool::Verdict;
use super::{Client, Nodes, RETRY, code, failure};

/// Bytes of a row's body.
const SMALL: usize = 100;
const LARGE: usize = 3000;
/// One in so many writes on a replica is tried: it must be refused.
const STUBBORN: u32 = 50;
const ASIDE: Duration = Duration::from_millis(50);

/// A transaction to be made.
#[derive(Clone, Copy)]
struct Plan {
    first: i64,
    rows: i64,
    length: usize,
    /// Between the writing and the COMMIT.
    pause: Duration,
}

impl Client {
    /// A transaction of few rows on the connection whose turn it is.
    pub(super) fn write(&mut self, rows: i64, think: u64) -> Duration {
        self.transact(rows, SMALL, Duration::ZERO, think)
    }

    pub(super) fn linger(&mut self) -> Duration {
        let pause = match self.chance.random_range(0..20) {
            0 => 1500,
            _ => self.chance.random_range(20..300),
        };
        let rows = self.chance.random_range(2..6);
        self.transact(rows, SMALL, Duration::from_millis(pause), 200)
    }

    pub(super) fn spill(&mut self) -> Duration {
        let rows = self.chance.random_range(30..80);
        self.transact(rows, LARGE, Duration::ZERO, 1000)
    }

    pub(super) fn reconnect(&mut self) -> Duration {
        let Some(role) = self.may_write() else {
            return ASIDE;
        };
        let plan = self.plan(1, SMALL, Duration::ZERO);
        self.note_trying(plan, role);
        let done = self.pool.connect().and_then(|connection| {
            carry_out(&connection, plan)?;
            connection.close().map_err(|(_, error)| error)
        });
        self.note_outcome(plan, done.as_ref());
        match done {
            Ok(()) => self.about(50),
            Err(_) => RETRY,
        }
    }

    fn transact(&mut self, rows: i64, length: usize, pause: Duration, think: u64) -> Duration {
        let Some(role) = self.may_write() else {
            return ASIDE;
        };
        self.pool.advance();
        self.look_back();
        let plan = self.plan(rows, length, pause);
        self.note_trying(plan, role);
        let done = self
            .pool
            .current()
            .and_then(|connection| carry_out(connection, plan));
        self.note_outcome(plan, done.as_ref());
        match (done, role) {
            (Ok(()), _) => {
                self.pool.worked();
                self.about(think)
            }
            (Err(_), Role::Primary) => {
                self.doubt();
                RETRY
            }
            (Err(_), Role::Replica) => ASIDE,
        }
    }

    /// Whether it is a time to write. On a replica it nearly never is.
    fn may_write(&mut self) -> Option<Role> {
        let role = self.role();
        match role {
            Role::Primary => Some(role),
            Role::Replica if self.chance.random_ratio(1, STUBBORN) => Some(role),
            Role::Replica => {
                self.journal.note(&Note::Idle);
                None
            }
        }
    }

    fn plan(&mut self, rows: i64, length: usize, pause: Duration) -> Plan {
        let first = self.next_id;
        self.next_id += rows;
        Plan {
            first,
            rows,
            length,
            pause,
        }
    }

    fn note_trying(&mut self, plan: Plan, role: Role) {
        self.journal.note(&Note::Trying {
            first: plan.first,
            rows: plan.rows,
            role,
        });
    }

    fn note_outcome(&mut self, plan: Plan, done: Result<&(), &rusqlite::Error>) {
        match done {
            Ok(()) => {
                self.journal.note(&Note::Acknowledged { first: plan.first });
                self.last = Some(plan.first);
            }
            Err(error) => self.journal.note(&Note::Failed {
                first: plan.first,
                code: code(error),
                message: error.to_string(),
            }),
        }
    }

    /// Tries a new connection in the place of one that keeps failing.
    fn doubt(&mut self) {
        // One for the new connection, one for the old one.
        let mut plans = [(); 2].map(|()| self.plan(1, SMALL, Duration::ZERO)).into_iter();
        let (journal, last) = (&mut self.journal, &mut self.last);
        let verdict = self.pool.failed(|connection| {
            let plan = plans.next().expect("two attempts are made at the most");
            journal.note(&Note::Trying {
                first: plan.first,
                rows: 1,
                role: Role::Primary,
            });
            let done = carry_out(connection, plan);
            match &done {
                Ok(()) => {
                    *last = Some(plan.first);
                    journal.note(&Note::Acknowledged { first: plan.first });
                }
                Err(error) => journal.note(&Note::Failed {
                    first: plan.first,
                    code: code(error),
                    message: error.to_string(),
                }),
            }
            done
        });
        match verdict {
            Verdict::Kept => {}
            Verdict::Replaced(broken) => self.journal.note(&broken),
        }
    }

    /// Whether the connection whose turn it is sees what the one before it committed.
    fn look_back(&mut self) {
        let (Some(last), Nodes::One) = (self.last.take(), self.nodes) else {
            return;
        };
        let seen = self.pool.current().and_then(|connection| {
            let mut statement = connection.prepare_cached("SELECT 1 FROM t WHERE id = ?")?;
            statement.query_row([last], |_| Ok(())).optional()
        });
        match seen {
            Ok(Some(())) => {}
            Ok(None) => self.journal.note(&Note::Stale(format!(
                "row {last} was acknowledged and is not seen"
            ))),
            Err(error) => self.journal.note(&failure("look-back", &error)),
        }
    }
}

fn carry_out(connection: &Connection, plan: Plan) -> rusqlite::Result<()> {
    if plan.rows == 1 {
        return rows::insert(connection, plan.first, plan.first, 1, plan.length);
    }
    let done = begin_and_commit(connection, plan);
    if done.is_err() && !connection.is_autocommit() {
        // What this meets says less than what led here.
        let _ = connection.execute_batch("ROLLBACK");
    }
    done
}

fn begin_and_commit(connection: &Connection, plan: Plan) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    for id in plan.first..plan.first + plan.rows {
        rows::insert(connection, id, plan.first, plan.rows, plan.length)?;
    }
    std::thread::sleep(plan.pause);
    connection.execute_batch("COMMIT")
}
