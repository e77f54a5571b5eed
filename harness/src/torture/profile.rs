//! Who takes part: the clients, by what they do and how their connections are set up.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum JournalMode {
    Wal,
    Delete,
    Truncate,
    Persist,
    Memory,
    Off,
}

impl JournalMode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Wal => "WAL",
            Self::Delete => "DELETE",
            Self::Truncate => "TRUNCATE",
            Self::Persist => "PERSIST",
            Self::Memory => "MEMORY",
            Self::Off => "OFF",
        }
    }

    /// What of the oracles holds for databases that are written so.
    pub fn promise(self) -> Promise {
        match self {
            Self::Wal | Self::Delete | Self::Truncate | Self::Persist | Self::Memory => Promise::Whole,
            Self::Off => Promise::UnlessItFailed,
        }
    }
}

/// How far a database is to be believed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Every transaction is there as a whole or not at all.
    Whole,
    /// As long as no statement failed: without a journal SQLite cannot take a failed one back.
    UnlessItFailed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Synchronous {
    Off,
    Normal,
    Full,
    Extra,
}

impl Synchronous {
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "OFF",
            Self::Normal => "NORMAL",
            Self::Full => "FULL",
            Self::Extra => "EXTRA",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Locking {
    Normal,
    Exclusive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Behaviour {
    /// Commits row after row, alone with its database: how long a commit takes tells of the daemon alone.
    Metronome,
    /// Commits row after row.
    Commit,
    /// BEGIN IMMEDIATE, a few rows, waits, COMMIT.
    Linger,
    /// Transactions that are larger than the page cache.
    Spill,
    /// A new connection for each transaction.
    Reconnect,
    /// Holds read transactions and checks what it reads.
    Read,
    /// Checkpoints, VACUUM, integrity_check.
    Maintain,
}

impl Behaviour {
    pub fn writes(self) -> bool {
        match self {
            Self::Metronome | Self::Commit | Self::Linger | Self::Spill | Self::Reconnect => true,
            Self::Read | Self::Maintain => false,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Profile {
    /// Unique in a run; ids of rows tell it.
    pub number: u32,
    pub database: String,
    /// What the database's writers use.
    pub journal: JournalMode,
    pub synchronous: Synchronous,
    pub locking: Locking,
    pub behaviour: Behaviour,
    /// How many connections it keeps.
    pub pool: usize,
}

impl Profile {
    pub fn describe(&self) -> String {
        let Self {
            number,
            database,
            journal,
            synchronous,
            locking,
            behaviour,
            ..
        } = self;
        let exclusive = match locking {
            Locking::Normal => "",
            Locking::Exclusive => " EXCLUSIVE",
        };
        let (journal, synchronous) = (journal.name(), synchronous.name());
        format!("client {number} ({behaviour:?} {database} {journal} {synchronous}{exclusive})")
    }
}

use Behaviour::{Commit, Linger, Maintain, Metronome, Read, Reconnect, Spill};
use JournalMode::{Delete, Memory, Off, Persist, Truncate, Wal};
use Synchronous::{Extra, Full, Normal};

type Part = (&'static str, JournalMode, Synchronous, Locking, Behaviour, usize);

/// The clients of every node.
const EVERYWHERE: [Part; 8] = [
    ("metronome-wal.db", Wal, Normal, Locking::Normal, Metronome, 2),
    ("metronome-delete.db", Delete, Full, Locking::Normal, Metronome, 2),
    ("wal.db", Wal, Normal, Locking::Normal, Commit, 3),
    ("wal.db", Wal, Full, Locking::Normal, Linger, 2),
    ("wal.db", Wal, Normal, Locking::Normal, Read, 2),
    ("rollback.db", Delete, Full, Locking::Normal, Commit, 2),
    ("rollback.db", Delete, Normal, Locking::Normal, Read, 2),
    ("spill-wal.db", Wal, Synchronous::Off, Locking::Normal, Spill, 1),
];

/// The clients that one node has enough of.
const ONCE: [Part; 9] = [
    ("wal.db", Wal, Full, Locking::Normal, Reconnect, 1),
    ("wal.db", Wal, Normal, Locking::Normal, Maintain, 1),
    ("wal-off.db", Wal, Synchronous::Off, Locking::Normal, Commit, 2),
    ("rollback.db", Truncate, Normal, Locking::Normal, Linger, 2),
    ("rollback.db", Persist, Extra, Locking::Normal, Commit, 2),
    ("rollback.db", Delete, Full, Locking::Normal, Maintain, 1),
    ("memory.db", Memory, Full, Locking::Normal, Commit, 2),
    ("off.db", Off, Full, Locking::Normal, Commit, 1),
    ("spill-delete.db", Delete, Normal, Locking::Normal, Spill, 1),
];

/// Clients that keep everybody else out for as long as they live. Only where one node is: a replica could apply nothing behind them.
const ALONE: [Part; 2] = [
    ("exclusive-wal.db", Wal, Normal, Locking::Exclusive, Commit, 1),
    ("exclusive-delete.db", Delete, Full, Locking::Exclusive, Commit, 1),
];

/// The clients of node `node` of `nodes`, counted from 0. With `only`, those of that journal mode and the metronomes.
pub fn cast(node: usize, nodes: usize, only: Option<JournalMode>) -> Vec<Profile> {
    let once = (0..).zip(ONCE).filter(|(index, _)| index % nodes == node);
    let alone = ALONE.into_iter().filter(|_| nodes == 1);
    let parts = EVERYWHERE
        .into_iter()
        .chain(once.map(|(_, part)| part))
        .chain(alone);
    let wanted = parts.filter(|(_, journal, _, _, behaviour, _)| {
        only.is_none_or(|only| only == *journal || *behaviour == Metronome)
    });
    let first = u32::try_from(node * 100 + 1).unwrap_or(1);
    let profile =
        |(number, (database, journal, synchronous, locking, behaviour, pool)): (u32, Part)| Profile {
            number,
            database: database.to_owned(),
            journal,
            synchronous,
            locking,
            behaviour,
            pool,
        };
    (first..).zip(wanted).map(profile).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_journal_mode_takes_part_and_numbers_are_unique() {
        for nodes in [1, 3] {
            let all: Vec<_> = (0..nodes).flat_map(|node| cast(node, nodes, None)).collect();
            for mode in [Wal, Delete, Truncate, Persist, Memory, Off] {
                assert!(all.iter().any(|profile| profile.journal == mode), "{mode:?}");
            }
            let numbers: std::collections::BTreeSet<_> = all.iter().map(|profile| profile.number).collect();
            assert_eq!(numbers.len(), all.len());
        }
    }

    #[test]
    fn one_journal_mode_can_be_chosen() {
        let chosen = cast(0, 1, Some(Persist));
        assert!(chosen.iter().any(|profile| profile.journal == Persist));
        assert!(
            chosen
                .iter()
                .all(|profile| profile.journal == Persist || profile.behaviour == Metronome)
        );
    }
}
