//! Judges a run: what the clients noted against what the nodes hold.

mod matching;
mod measure;
mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

pub(super) use self::matching::{held, salvaged};
use self::measure::Beats;
pub use self::measure::Spread;
use self::reader::Reader;
use super::clock::SECOND;
use super::fault::FaultKind;
use super::journal;
use super::profile::{Behaviour, Profile};
use crate::{Error, Result};

/// A fault that happened.
#[derive(Clone, Debug)]
pub(super) struct Occurrence {
    pub(super) kind: FaultKind,
    pub(super) begin: u64,
}

/// Errors are excused by a fault so long ago at most.
const AFTERMATH: u64 = 15 * SECOND;
/// How many of a kind a summary shows.
const EXAMPLES: usize = 20;

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
    pub lost: u64,
    pub lost_by_fault: BTreeMap<String, u64>,
    pub lost_by_database: BTreeMap<String, u64>,
    /// Some of them.
    pub lost_examples: Vec<Lost>,
    /// Acknowledged, and only in an archive.
    pub archived: u64,
    pub wrong: u64,
    pub wrong_by_fault: BTreeMap<String, u64>,
    pub wrong_by_database: BTreeMap<String, u64>,
    /// Some of it.
    pub wrong_examples: Vec<String>,
    /// Connections that failed on and on where a new one worked.
    pub broken: BTreeMap<String, u64>,
    /// Of these, those that no fault excuses.
    pub inexcusably_broken: u64,
    /// How often clients saw what was right before, and not what is.
    pub stale: BTreeMap<String, u64>,
    pub inexcusably_stale: u64,
    pub stale_examples: Vec<String>,
    /// By fault, then by what failed and SQLite's code and text.
    pub errors: BTreeMap<String, BTreeMap<String, u64>>,
    /// Of these, errors that no fault excuses.
    pub inexcusable: u64,
    pub refused_on_replicas: u64,
    /// What was written on a node that its client took for a replica.
    pub accepted_on_replicas: u64,
    /// Longest time without a commit of a metronome, by fault.
    pub pauses: BTreeMap<String, Spread>,
    /// How long a commit of a metronome took, whatever happened meanwhile, by database.
    pub commits: BTreeMap<String, Spread>,
    /// What is wrong with databases whose writers cannot be helped.
    pub excused: Vec<String>,
    #[serde(skip)]
    all_lost: Vec<Lost>,
    #[serde(skip)]
    all_wrong: Vec<Wrong>,
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

/// Something that nobody wrote like that.
#[derive(Debug)]
struct Wrong {
    database: String,
    /// After which fault it was seen.
    fault: String,
    what: String,
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}: {}", self.database, self.fault, self.what)
    }
}

pub(super) struct Evidence<'a> {
    pub(super) journals: &'a [(Profile, usize, PathBuf)],
    pub(super) faults: &'a [Occurrence],
    pub(super) held: &'a BTreeMap<String, Held>,
    pub(super) archived: &'a BTreeSet<i64>,
    /// What was acknowledged later is not judged.
    pub(super) until: u64,
    pub(super) nodes: usize,
}

pub(super) fn judge(evidence: &Evidence<'_>) -> Result<Judgement> {
    let mut verdict = Judgement::default();
    let mut transactions = BTreeMap::new();
    let mut failed_databases = BTreeSet::new();
    let mut beats = Beats::default();
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
            beats.add(&profile.database, &notes);
        }
    }
    verdict.pauses = measure::pauses(evidence.faults, &beats.gaps(evidence.faults));
    verdict.commits = beats.took();
    matching::match_rows(evidence, &transactions, &mut verdict);
    matching::check_held(evidence, &transactions, &mut verdict);
    matching::excuse(evidence.journals, &failed_databases, &mut verdict);
    sum_up(&mut verdict);
    Ok(verdict)
}

fn fault_before(faults: &[Occurrence], time: u64) -> Option<&Occurrence> {
    let after = faults.partition_point(|fault| fault.begin <= time);
    after.checked_sub(1).map(|before| &faults[before])
}

/// Counts what was found, and keeps some of it to look into.
fn sum_up(verdict: &mut Judgement) {
    let (lost, wrong) = (
        std::mem::take(&mut verdict.all_lost),
        std::mem::take(&mut verdict.all_wrong),
    );
    for Lost { fault, database, .. } in &lost {
        *verdict.lost_by_fault.entry(fault.clone()).or_default() += 1;
        *verdict.lost_by_database.entry(database.clone()).or_default() += 1;
    }
    for Wrong { fault, database, .. } in &wrong {
        *verdict.wrong_by_fault.entry(fault.clone()).or_default() += 1;
        *verdict.wrong_by_database.entry(database.clone()).or_default() += 1;
    }
    verdict.lost = lost.len() as u64;
    verdict.wrong = wrong.len() as u64;
    verdict.lost_examples = lost.into_iter().take(EXAMPLES).collect();
    // The same thing is often seen a thousand times.
    let wrong: BTreeSet<_> = wrong.iter().map(Wrong::to_string).collect();
    verdict.wrong_examples = wrong.into_iter().take(EXAMPLES).collect();
    verdict.excused.truncate(EXAMPLES);
    verdict.stale_examples.truncate(EXAMPLES);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::journal::{Note, Role};
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
            Note::Broken {
                connection: 1,
                since: 0,
            },
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
            until: u64::MAX,
            nodes: 1,
        };
        let verdict = judge(&evidence).unwrap();
        assert_eq!((verdict.acknowledged, verdict.failed, verdict.unknown), (3, 1, 1));
        assert_eq!(
            (verdict.archived, verdict.failed_and_kept, verdict.inexcusable),
            (1, 1, 1)
        );
        assert_eq!(verdict.lost, 1);
        assert_eq!(
            (
                verdict.lost_examples[0].first,
                verdict.lost_examples[0].fault.as_str()
            ),
            (2, "reload")
        );
        assert_eq!(verdict.lost_by_fault["reload"], 1);
        assert_eq!(verdict.broken["reload"], 1);
        assert_eq!(
            verdict.wrong_examples,
            ["wal.db, at the end: row 99 was written by nobody"]
        );
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
                until: u64::MAX,
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
                until: u64::MAX,
                nodes: 1,
            };
            assert_eq!(judge(&evidence).unwrap().lost, lost);
        }
    }
}
