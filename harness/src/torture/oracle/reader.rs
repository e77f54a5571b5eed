//! Goes through the journals.

use std::collections::BTreeMap;

use super::super::fault::{Connections, Visibility};
use super::super::journal::{Note, Role};
use super::super::profile::Profile;
use super::{AFTERMATH, Evidence, Judgement, Transaction, Wrong, fault_before};

/// Goes through one journal.
pub(super) struct Reader<'a> {
    pub(super) evidence: &'a Evidence<'a>,
    pub(super) verdict: &'a mut Judgement,
    pub(super) transactions: &'a mut BTreeMap<i64, Transaction>,
    pub(super) profile: &'a Profile,
    pub(super) node: usize,
}

impl Reader<'_> {
    /// Returns whether a write failed.
    pub(super) fn read(&mut self, notes: &[(u64, Note)]) -> bool {
        let mut some_failed = false;
        let mut role = Role::Primary;
        let mut open = None;
        for (time, note) in notes {
            match note {
                Note::Trying {
                    first,
                    rows,
                    role: believed,
                } => {
                    (role, open) = (*believed, Some(*first));
                    self.begin(*first, *rows);
                }
                Note::Acknowledged { first } => {
                    open = None;
                    self.verdict.acknowledged += 1;
                    self.verdict.accepted_on_replicas += u64::from(role == Role::Replica);
                    if let Some(found) = self.transactions.get_mut(first) {
                        found.acknowledged = Some(*time);
                    }
                }
                Note::Failed { code, message, .. } => {
                    open = None;
                    self.verdict.failed += 1;
                    match role {
                        Role::Primary => {
                            some_failed = true;
                            self.error(*time, "write", *code, message);
                        }
                        Role::Replica => self.verdict.refused_on_replicas += 1,
                    }
                }
                Note::Error { what, code, message } => self.error(*time, what, *code, message),
                Note::Wrong(what) => self.wrong(*time, what),
                Note::Stale(what) => self.stale(*time, what),
                Note::Broken { since, .. } => self.broken(*time, *since),
                Note::Seen {
                    connection,
                    rows,
                    digest,
                } => self.seen(*time, *connection, (*rows, *digest)),
                Note::Read { .. } | Note::Idle => {}
            }
        }
        self.verdict.unknown += u64::from(open.is_some());
        some_failed
    }

    fn begin(&mut self, first: i64, rows: i64) {
        let transaction = Transaction {
            rows,
            acknowledged: None,
            client: self.profile.number,
            database: self.profile.database.clone(),
            node: self.node,
        };
        self.transactions.insert(first, transaction);
    }

    fn error(&mut self, time: u64, what: &str, code: i32, message: &str) {
        if tells_of_damage(code) {
            return self.wrong(time, &format!("{what}: {message}"));
        }
        let fault = self.fault_name(time);
        // Without the path that some messages end in.
        let (message, _) = message.split_once(": /").unwrap_or((message, ""));
        let kind = format!("{what} {}: {message}", name_of(code));
        *self
            .verdict
            .errors
            .entry(fault)
            .or_default()
            .entry(kind)
            .or_default() += 1;
        if !self.is_excused(time) {
            self.verdict.inexcusable += 1;
        }
    }

    fn wrong(&mut self, time: u64, what: &str) {
        let fault = self.fault_name(time);
        let what = format!("{}: {what}", self.profile.describe());
        let database = self.profile.database.clone();
        self.verdict.all_wrong.push(Wrong {
            database,
            fault,
            what,
        });
    }

    fn broken(&mut self, time: u64, since: u64) {
        *self.verdict.broken.entry(self.fault_name(time)).or_default() += 1;
        if !self.are_cut(since, time) {
            self.verdict.inexcusably_broken += 1;
        }
    }

    fn stale(&mut self, time: u64, what: &str) {
        let fault = self.fault_name(time);
        let who = self.profile.describe();
        self.verdict
            .stale_examples
            .push(format!("{who}, after {fault}: {what}"));
        *self.verdict.stale.entry(fault).or_default() += 1;
        // One that only reads may never be told.
        if !self.are_cut(0, time) {
            self.verdict.inexcusably_stale += 1;
        }
    }

    /// What a connection sees in the end is what there is.
    fn seen(&mut self, time: u64, connection: u64, seen: (i64, u64)) {
        let held = self
            .evidence
            .held
            .get(&self.profile.database)
            .and_then(|held| held.digest);
        if let Some(held) = held.filter(|held| *held != seen) {
            let (rows, there) = (seen.0, held.0);
            self.stale(
                time,
                &format!("kept connection {connection} sees other rows: {rows}, of {there} that are there"),
            );
        }
    }

    fn fault_name(&self, time: u64) -> String {
        fault_before(self.evidence.faults, time).map_or("none".to_owned(), |fault| fault.kind.name())
    }

    /// Whether connections from `since` may have ended by `time`.
    fn are_cut(&self, since: u64, time: u64) -> bool {
        let mut between = self
            .evidence
            .faults
            .iter()
            .filter(|fault| (since..=time).contains(&fault.begin));
        between.any(|fault| fault.kind.connections() == Connections::End)
    }

    /// With several nodes a change of the primary fails commits, whatever caused it; also a load that outlasts a lease.
    fn is_excused(&self, time: u64) -> bool {
        let recent = self
            .evidence
            .faults
            .iter()
            .rev()
            .skip_while(|fault| fault.begin > time);
        let mut recent = recent
            .enumerate()
            .take_while(|(back, fault)| *back == 0 || fault.begin + AFTERMATH > time);
        self.evidence.nodes > 1 || recent.any(|(_, fault)| fault.kind.visibility() == Visibility::Errors)
    }
}

/// SQLITE_CORRUPT and SQLITE_NOTADB.
fn tells_of_damage(code: i32) -> bool {
    matches!(code & 0xff, 11 | 26)
}

/// What SQLite calls an extended code.
fn name_of(code: i32) -> String {
    let name = match code & 0xff {
        5 => "BUSY",
        6 => "LOCKED",
        8 => "READONLY",
        10 => "IOERR",
        11 => "CORRUPT",
        13 => "FULL",
        14 => "CANTOPEN",
        15 => "PROTOCOL",
        26 => "NOTADB",
        _ => "CODE",
    };
    format!("{name}({code})")
}
