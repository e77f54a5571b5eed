//! Judges a run: what the clients noted against what the nodes hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde::Serialize;

use super::clock::{MILLISECOND, SECOND};
use super::fault::{FaultKind, Visibility};
use super::journal::{self, Note, Role};
use super::profile::{Behaviour, Profile, Promise};
use super::{client, rows};
use crate::{Error, Result};

/// A fault that happened.
#[derive(Clone, Debug)]
pub(super) struct Occurrence {
    pub(super) kind: FaultKind,
    pub(super) begin: u64,
}

/// Errors are excused by a fault so long ago at most.
const AFTERMATH: u64 = 15 * SECOND;

/// What there was of a database at the end.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// What several looks at it found.
    pub(super) ids: BTreeSet<i64>,
    /// How many rows, and a checksum over them.
    pub(super) digest: Option<(i64, u64)>,
    pub(super) torn: Vec<String>,
}

/// All transactions of a run by their first id.
struct Transaction {
    rows: i64,
    acknowledged: Option<u64>,
    client: u32,
    database: String,
    node: usize,
}

#[derive(Debug, Default, Serialize)]
pub struct Judgement {
    pub acknowledged: u64,
    pub failed: u64,
    /// Tried, and the client was never told: it ended first.
    pub unknown: u64,
    /// The client was told that it failed, and it is there.
    pub failed_and_kept: u64,
    pub lost: Vec<Lost>,
    pub lost_by_fault: BTreeMap<String, u64>,
    /// Acknowledged, and only in an archive.
    pub archived: u64,
    pub wrong: Vec<String>,
    /// Connections that failed on and on where a new one worked.
    pub broken: BTreeMap<String, u64>,
    /// By fault, then by what failed and SQLite's code and text.
    pub errors: BTreeMap<String, BTreeMap<String, u64>>,
    /// Of these, errors that no fault excuses.
    pub inexcusable: u64,
    pub refused_on_replicas: u64,
    /// What was written on a node that its client took for a replica.
    pub accepted_on_replicas: u64,
    /// Longest time without a commit of a metronome, by fault.
    pub pauses: BTreeMap<String, Spread>,
    /// How long a commit of a metronome took, apart from faults or not.
    pub commits: Spread,
    /// What is wrong with databases whose writers cannot be helped.
    pub excused: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Lost {
    pub first: i64,
    pub rows: i64,
    pub client: u32,
    pub database: String,
    pub node: usize,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub acknowledged: u64,
    /// The fault before it.
    pub fault: String,
}

/// Milliseconds.
#[derive(Debug, Default, Serialize)]
pub struct Spread {
    pub count: usize,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Spread {
    fn of(mut nanoseconds: Vec<u64>) -> Self {
        nanoseconds.sort_unstable();
        let count = nanoseconds.len();
        #[allow(clippy::cast_precision_loss)] // milliseconds for people
        let at = |hundredths: usize| {
            let place = (count * hundredths / 100).min(count.saturating_sub(1));
            nanoseconds
                .get(place)
                .map_or(0.0, |&time| time as f64 / MILLISECOND as f64)
        };
        Self {
            count,
            p50: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}

pub(super) struct Evidence<'a> {
    pub(super) journals: &'a [(Profile, usize, PathBuf)],
    pub(super) faults: &'a [Occurrence],
    pub(super) held: &'a BTreeMap<String, Held>,
    pub(super) archived: &'a BTreeSet<i64>,
    pub(super) nodes: usize,
}

pub(super) fn judge(evidence: &Evidence<'_>) -> Result<Judgement> {
    let mut verdict = Judgement::default();
    let mut transactions = BTreeMap::new();
    let mut failed_databases = BTreeSet::new();
    let (mut gaps, mut commits) = (vec![0; evidence.faults.len()], Vec::new());
    for (profile, node, path) in evidence.journals {
        let notes = journal::read(path).map_err(Error::file("reading", path))?;
        let mut reader = Reader {
            evidence,
            verdict: &mut verdict,
            transactions: &mut transactions,
            profile,
            node: *node,
        };
        if reader.read(&notes) {
            failed_databases.insert(profile.database.clone());
        }
        if profile.behaviour == Behaviour::Metronome {
            measure(&notes, evidence.faults, &mut gaps, &mut commits);
        }
    }
    verdict.commits = Spread::of(commits);
    verdict.pauses = pauses(evidence.faults, &gaps);
    match_rows(evidence, &transactions, &mut verdict);
    check_held(evidence, &transactions, &mut verdict);
    excuse(evidence.journals, &failed_databases, &mut verdict);
    Ok(verdict)
}

/// Goes through one journal.
struct Reader<'a> {
    evidence: &'a Evidence<'a>,
    verdict: &'a mut Judgement,
    transactions: &'a mut BTreeMap<i64, Transaction>,
    profile: &'a Profile,
    node: usize,
}

impl Reader<'_> {
    /// Returns whether a write failed.
    fn read(&mut self, notes: &[(u64, Note)]) -> bool {
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
                Note::Broken { .. } => *self.verdict.broken.entry(self.fault_name(*time)).or_default() += 1,
                Note::Seen {
                    connection,
                    rows,
                    digest,
                } => self.seen(*connection, (*rows, *digest)),
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
        let fault = self.fault_name(time);
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
        let who = self.profile.describe();
        self.verdict
            .wrong
            .push(format!("{}: {who}, after {fault}: {what}", self.profile.database));
    }

    fn seen(&mut self, connection: u64, seen: (i64, u64)) {
        let held = self
            .evidence
            .held
            .get(&self.profile.database)
            .and_then(|held| held.digest);
        if let Some(held) = held.filter(|held| *held != seen) {
            self.verdict.wrong.push(format!(
                "{}: {}: kept connection {connection} sees {} rows with checksum {:016x}, the node exports {} with {:016x}",
                self.profile.database,
                self.profile.describe(),
                seen.0,
                seen.1,
                held.0,
                held.1
            ));
        }
    }

    fn fault_name(&self, time: u64) -> String {
        fault_before(self.evidence.faults, time).map_or("none".to_owned(), |fault| fault.kind.name())
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

fn fault_before(faults: &[Occurrence], time: u64) -> Option<&Occurrence> {
    let after = faults.partition_point(|fault| fault.begin <= time);
    after.checked_sub(1).map(|before| &faults[before])
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

/// How long commits took, and for each fault the longest time between two of them from its begin to the next fault.
fn measure(notes: &[(u64, Note)], faults: &[Occurrence], gaps: &mut [u64], commits: &mut Vec<u64>) {
    let (mut begun, mut last) = (None, None::<u64>);
    for (time, note) in notes {
        match note {
            Note::Trying { .. } => begun = Some(*time),
            Note::Acknowledged { .. } => {
                commits.extend(begun.take().map(|begun| time - begun));
                if let Some(last) = last {
                    // The gap belongs to every fault that began in it, and to the one before.
                    let from = faults
                        .partition_point(|fault| fault.begin <= last)
                        .saturating_sub(1);
                    let to = faults.partition_point(|fault| fault.begin <= *time);
                    for gap in gaps.iter_mut().take(to).skip(from) {
                        *gap = (*gap).max(time - last);
                    }
                }
                last = Some(*time);
            }
            // On a replica it waits for nothing.
            Note::Idle => last = None,
            Note::Failed { .. }
            | Note::Error { .. }
            | Note::Wrong(_)
            | Note::Broken { .. }
            | Note::Read { .. }
            | Note::Seen { .. } => {}
        }
    }
}

fn pauses(faults: &[Occurrence], gaps: &[u64]) -> BTreeMap<String, Spread> {
    let mut by_kind: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (fault, gap) in faults.iter().zip(gaps) {
        by_kind.entry(fault.kind.name()).or_default().push(*gap);
    }
    by_kind
        .into_iter()
        .map(|(kind, gaps)| (kind, Spread::of(gaps)))
        .collect()
}

fn match_rows(evidence: &Evidence<'_>, transactions: &BTreeMap<i64, Transaction>, verdict: &mut Judgement) {
    for (&first, transaction) in transactions {
        let held = evidence.held.get(&transaction.database);
        let is_held = |id: i64| held.is_some_and(|held| held.ids.contains(&id));
        let mut ids = first..first + transaction.rows;
        let Some(acknowledged) = transaction.acknowledged else {
            verdict.failed_and_kept += u64::from(ids.all(is_held));
            continue;
        };
        if ids.clone().all(is_held) {
            continue;
        }
        if ids.all(|id| is_held(id) || evidence.archived.contains(&id)) {
            verdict.archived += 1;
            continue;
        }
        let fault = fault_before(evidence.faults, acknowledged);
        let fault = fault.map_or("none".to_owned(), |fault| fault.kind.name());
        *verdict.lost_by_fault.entry(fault.clone()).or_default() += 1;
        verdict.lost.push(Lost {
            first,
            rows: transaction.rows,
            client: transaction.client,
            database: transaction.database.clone(),
            node: transaction.node,
            acknowledged,
            fault,
        });
    }
}

/// Rows that nobody wrote, and transactions of which a part is there.
fn check_held(evidence: &Evidence<'_>, transactions: &BTreeMap<i64, Transaction>, verdict: &mut Judgement) {
    for (database, held) in evidence.held {
        verdict
            .wrong
            .extend(held.torn.iter().map(|torn| format!("{database}: {torn}")));
        for &id in &held.ids {
            let known = transactions
                .range(..=id)
                .next_back()
                .is_some_and(|(first, transaction)| {
                    id < first + transaction.rows && transaction.database == *database
                });
            if !known {
                verdict
                    .wrong
                    .push(format!("{database}: row {id} was written by nobody"));
            }
        }
    }
}

/// Without a journal, a statement that failed leaves what it had written.
fn excuse(journals: &[(Profile, usize, PathBuf)], failed: &BTreeSet<String>, verdict: &mut Judgement) {
    let helpless: BTreeSet<_> = journals
        .iter()
        .map(|(profile, _, _)| profile)
        .filter(|profile| match profile.journal.promise() {
            Promise::Whole => false,
            Promise::UnlessItFailed => failed.contains(&profile.database),
        })
        .map(|profile| profile.database.clone())
        .collect();
    let is_helpless = |database: &str| helpless.contains(database);
    let (excused, wrong): (Vec<_>, Vec<_>) =
        std::mem::take(&mut verdict.wrong).into_iter().partition(|text| {
            text.split_once(':')
                .is_some_and(|(database, _)| is_helpless(database))
        });
    verdict.wrong = wrong;
    verdict.excused = excused;
    let (excused, lost): (Vec<_>, Vec<_>) = std::mem::take(&mut verdict.lost)
        .into_iter()
        .partition(|lost| is_helpless(&lost.database));
    verdict.lost = lost;
    for lost in excused {
        verdict.excused.push(format!(
            "{}: acknowledged row {} is lost",
            lost.database, lost.first
        ));
        if let Some(count) = verdict.lost_by_fault.get_mut(&lost.fault) {
            *count -= 1;
        }
    }
}

/// What a file of a database holds.
pub(super) fn held(file: &Path) -> rusqlite::Result<Held> {
    let connection = Connection::open(file)?;
    let mut held = Held {
        digest: Some(client::digest(&connection)?),
        ..Held::default()
    };
    let mut statement = connection.prepare("SELECT id, body, sum FROM t")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        held.ids.insert(row.get(0)?);
        held.torn.extend(rows::fault_of(row)?);
    }
    let torn = "SELECT tx, n, count(*) FROM t GROUP BY tx HAVING count(*) <> n";
    let mut statement = connection.prepare(torn)?;
    let torn = statement.query_map([], |row| {
        let (tx, n, found): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(format!("of the {n} rows of transaction {tx} {found} are there"))
    })?;
    held.torn.extend(torn.collect::<rusqlite::Result<Vec<_>>>()?);
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::super::profile;
    use super::*;

    fn profile(index: usize) -> Profile {
        profile::cast(0, 1, None).swap_remove(index)
    }

    fn journal_of(directory: &Path, profile: &Profile, notes: &[Note]) -> (Profile, usize, PathBuf) {
        let path = directory.join(profile.number.to_string());
        let mut journal = journal::Journal::create(&path).unwrap();
        notes.iter().for_each(|note| journal.note(note));
        (profile.clone(), 0, path)
    }

    fn trying(first: i64, rows: i64) -> Note {
        Note::Trying {
            first,
            rows,
            role: Role::Primary,
        }
    }

    #[test]
    fn rows_are_lost_archived_torn_or_unknown_and_each_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let profile = profile(2);
        let notes = [
            trying(1, 1),
            Note::Acknowledged { first: 1 },
            trying(2, 2),
            Note::Acknowledged { first: 2 },
            trying(4, 1),
            Note::Acknowledged { first: 4 },
            trying(5, 1),
            Note::Failed {
                first: 5,
                code: 778,
                message: "disk I/O error".into(),
            },
            Note::Broken { connection: 1 },
            trying(6, 1),
        ];
        let journals = [journal_of(directory.path(), &profile, &notes)];
        let held = Held {
            ids: [1, 2, 5, 99].into(),
            ..Held::default()
        };
        let held = BTreeMap::from([(profile.database.clone(), held)]);
        let faults = [Occurrence {
            kind: FaultKind::Reload,
            begin: 0,
        }];
        let archived = BTreeSet::from([4]);
        let evidence = Evidence {
            journals: &journals,
            faults: &faults,
            held: &held,
            archived: &archived,
            nodes: 1,
        };
        let verdict = judge(&evidence).unwrap();
        assert_eq!((verdict.acknowledged, verdict.failed, verdict.unknown), (3, 1, 1));
        assert_eq!(
            (verdict.archived, verdict.failed_and_kept, verdict.inexcusable),
            (1, 1, 1)
        );
        assert_eq!(verdict.lost.len(), 1);
        assert_eq!(
            (verdict.lost[0].first, verdict.lost[0].fault.as_str()),
            (2, "reload")
        );
        assert_eq!(verdict.lost_by_fault["reload"], 1);
        assert_eq!(verdict.broken["reload"], 1);
        assert_eq!(verdict.wrong, ["wal.db: row 99 was written by nobody"]);
        assert_eq!(verdict.errors["reload"]["write IOERR(778): disk I/O error"], 1);
    }

    #[test]
    fn a_fault_that_may_be_seen_excuses_errors_and_a_reload_after_it_does_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let profile = profile(2);
        let notes = [
            trying(1, 1),
            Note::Failed {
                first: 1,
                code: 10,
                message: String::new(),
            },
        ];
        let journals = [journal_of(directory.path(), &profile, &notes)];
        let now = super::super::clock::now();
        let judged = |faults: &[Occurrence]| {
            let (held, archived) = (BTreeMap::new(), BTreeSet::new());
            let evidence = Evidence {
                journals: &journals,
                faults,
                held: &held,
                archived: &archived,
                nodes: 1,
            };
            judge(&evidence).unwrap().inexcusable
        };
        let at = |kind, seconds: u64| Occurrence {
            kind,
            begin: now.saturating_sub(seconds * SECOND),
        };
        assert_eq!(judged(&[at(FaultKind::Stop, 30)]), 0);
        assert_eq!(judged(&[at(FaultKind::Stop, 5), at(FaultKind::Reload, 1)]), 0);
        assert_eq!(judged(&[at(FaultKind::Stop, 30), at(FaultKind::Reload, 1)]), 1);
    }

    #[test]
    fn without_a_journal_a_failure_excuses_what_it_leaves() {
        let directory = tempfile::tempdir().unwrap();
        let all = profile::cast(0, 1, None);
        let off = all
            .iter()
            .find(|profile| profile.journal == profile::JournalMode::Off)
            .unwrap();
        let failed = Note::Failed {
            first: 1,
            code: 10,
            message: String::new(),
        };
        for (notes, lost) in [
            (
                vec![
                    trying(1, 1),
                    failed,
                    trying(2, 1),
                    Note::Acknowledged { first: 2 },
                ],
                0,
            ),
            (vec![trying(2, 1), Note::Acknowledged { first: 2 }], 1),
        ] {
            let _ = std::fs::remove_file(directory.path().join(off.number.to_string()));
            let journals = [journal_of(directory.path(), off, &notes)];
            let (held, archived) = (BTreeMap::new(), BTreeSet::new());
            let evidence = Evidence {
                journals: &journals,
                faults: &[],
                held: &held,
                archived: &archived,
                nodes: 1,
            };
            assert_eq!(judge(&evidence).unwrap().lost.len(), lost);
        }
    }

    #[test]
    fn the_longest_gap_belongs_to_the_fault_in_it() {
        let fault = |begin| Occurrence {
            kind: FaultKind::Kill,
            begin,
        };
        let faults = [fault(100), fault(1000)];
        let acknowledged = |time| (time, Note::Acknowledged { first: 1 });
        let notes = [
            acknowledged(50),
            acknowledged(300),
            acknowledged(310),
            acknowledged(990),
            acknowledged(1500),
        ];
        let (mut gaps, mut commits) = (vec![0; 2], Vec::new());
        measure(&notes, &faults, &mut gaps, &mut commits);
        assert_eq!(gaps, [680, 510]);
    }
}
