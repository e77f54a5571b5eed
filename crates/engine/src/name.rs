//! Names of databases and of the files around them.
//!
//! A name is a path relative to the mount, as SQLite's clients and LiteFS's protocol spell it. Names also arrive from the
//! network and become paths below the data directory, so a [`DbName`] can only be built through validation: nothing that
//! holds one needs to check again.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// Longest accepted name in bytes: SQLite itself refuses longer paths long before the kernel's limit of 4,096.
const MAX_NAME: usize = 1024;
/// Longest accepted component. The backing file system allows 255 bytes; `-journal` needs eight of them.
const MAX_COMPONENT: usize = 255 - "-journal".len();

/// One of the files that make up a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// `NAME`, the main file.
    Database,
    /// `NAME-journal`, the rollback journal.
    Journal,
    /// `NAME-wal`, the write-ahead log.
    Wal,
    /// `NAME-shm`, the wal-index.
    Shm,
}

impl Side {
    /// All four, the main file first.
    pub const ALL: [Side; 4] = [Side::Database, Side::Journal, Side::Wal, Side::Shm];

    /// What SQLite appends to the database's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Side::Database => "",
            Side::Journal => "-journal",
            Side::Wal => "-wal",
            Side::Shm => "-shm",
        }
    }
}

/// Suffixes that no database name may end in: SQLite's own and the two virtual files of the mount.
const RESERVED_SUFFIXES: [&str; 5] = ["-journal", "-wal", "-shm", "-pos", "-lock"];

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// The empty name.
    #[error("database name is empty")]
    Empty,
    /// More than 1,024 bytes in all, or a component too long to carry `-journal`.
    #[error("database name is too long ({0} bytes)")]
    TooLong(usize),
    /// `.`, `..`, an empty component, a leading `/` or a NUL byte.
    #[error("database name {0:?} is not a plain relative path")]
    NotRelative(String),
    /// `-journal`, `-wal`, `-shm`, `-pos` and `-lock` belong to other files.
    #[error("database name {0:?} ends in the reserved suffix {1:?}")]
    Reserved(String, &'static str),
    /// Replication carries names as UTF-8 text.
    #[error("file name is not valid UTF-8 and cannot be replicated")]
    NotUtf8,
}

/// A validated database name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DbName(String);

impl DbName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path of one of the database's files, relative to the mount.
    pub fn file(&self, side: Side) -> PathBuf {
        PathBuf::from(format!("{}{}", self.0, side.suffix()))
    }

    /// The path of one of the database's files below `root`.
    pub fn file_in(&self, root: &Path, side: Side) -> PathBuf {
        root.join(self.file(side))
    }

    /// Which file of which database a path relative to the mount is; `None` if it can be neither.
    pub fn classify(relative: &[u8]) -> Option<(DbName, Side)> {
        let path = std::str::from_utf8(relative).ok()?;
        for side in [Side::Journal, Side::Wal, Side::Shm] {
            if let Some(stem) = path.strip_suffix(side.suffix()) {
                return stem.parse().ok().map(|name| (name, side));
            }
        }
        path.parse().ok().map(|name| (name, Side::Database))
    }
}

impl FromStr for DbName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MAX_NAME {
            return Err(NameError::TooLong(text.len()));
        }
        for component in text.split('/') {
            if component.is_empty() || component == "." || component == ".." || component.contains('\0') {
                return Err(NameError::NotRelative(text.to_owned()));
            }
            if component.len() > MAX_COMPONENT {
                return Err(NameError::TooLong(component.len()));
            }
        }
        if let Some(suffix) = RESERVED_SUFFIXES.iter().find(|suffix| text.ends_with(*suffix)) {
            return Err(NameError::Reserved(text.to_owned(), suffix));
        }
        if matches!(text, ".primary" | ".lag") {
            return Err(NameError::NotRelative(text.to_owned()));
        }
        Ok(DbName(text.to_owned()))
    }
}

impl fmt::Display for DbName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_the_mount() {
        for hostile in [
            "../../x",
            "/etc/passwd",
            "a/../b",
            "a//b",
            "a/",
            ".",
            "..",
            "a\0b",
            "./a",
        ] {
            assert!(
                matches!(hostile.parse::<DbName>(), Err(NameError::NotRelative(_))),
                "{hostile:?}"
            );
        }
        assert_eq!("".parse::<DbName>(), Err(NameError::Empty));
        assert_eq!("x".repeat(300).parse::<DbName>(), Err(NameError::TooLong(300)));
    }

    #[test]
    fn files_are_told_apart_by_suffix() {
        let of = |path: &[u8]| DbName::classify(path).map(|(name, side)| (name.to_string(), side));
        assert_eq!(of(b"a.db"), Some(("a.db".into(), Side::Database)));
        assert_eq!(of(b"d/a.db-wal"), Some(("d/a.db".into(), Side::Wal)));
        assert_eq!(of(b"a.db-shm"), Some(("a.db".into(), Side::Shm)));
        assert_eq!(of(b"a.db-journal"), Some(("a.db".into(), Side::Journal)));
        assert_eq!(of(b"a.db-pos"), None);
        assert_eq!(of(b"-wal"), None);
        assert_eq!(of(b"\xff.db"), None);
    }
}
