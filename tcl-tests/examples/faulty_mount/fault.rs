//! What is done wrong, and when.

use std::ffi::OsStr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};

/// One fault and how many operations it still lets through.
pub(crate) struct Fault {
    kind: Kind,
    left: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    /// One write to a database is acknowledged and not done.
    DropWrite,
    /// One truncation of a database is acknowledged and not done.
    LoseTruncate,
    /// Every lock is granted, whoever holds it.
    GrantLocks,
    /// The process ends at a write to a database.
    End,
}

impl Fault {
    pub(crate) fn parse(name: &str, nth: u64) -> Result<Fault> {
        let kind = match name {
            "none" => Kind::None,
            "drop-write" => Kind::DropWrite,
            "lose-truncate" => Kind::LoseTruncate,
            "grant-locks" => Kind::GrantLocks,
            "end" => Kind::End,
            other => bail!("unknown fault {other}"),
        };
        Ok(Fault {
            kind,
            left: AtomicU64::new(nth),
        })
    }

    pub(crate) fn grants_locks(&self) -> bool {
        self.kind == Kind::GrantLocks
    }

    pub(crate) fn drops_write(&self, database: bool) -> bool {
        self.kind == Kind::DropWrite && database && self.is_the_one()
    }

    pub(crate) fn ends(&self, database: bool) -> bool {
        self.kind == Kind::End && database && self.is_the_one()
    }

    pub(crate) fn loses_truncate(&self, database: bool) -> bool {
        self.kind == Kind::LoseTruncate && database && self.is_the_one()
    }

    fn is_the_one(&self) -> bool {
        self.left.fetch_sub(1, Ordering::SeqCst) == 1
    }
}

/// The databases of the suite have this ending, and nothing else has.
pub(crate) fn is_database(name: &OsStr) -> bool {
    name.as_encoded_bytes().ends_with(b".db")
}
