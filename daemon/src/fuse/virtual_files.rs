//! Files that exist only on the mount: `.primary` and `.lag` in the root, `NAME-pos` and `NAME-lock` beside every database.
//!
//! They are found by name; only the first two are listed. Their inode numbers come from a range no backing file system hands out and stay
//! the same while the daemon runs. Reads bypass the page cache, so nothing has to be invalidated when they change.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::{DbName, Role, Store};
use fuser::{FileAttr, FileType, INodeNo};
use parking_lot::Mutex;

use super::errno::Errno;
use super::presence::Presence;
use crate::ledger::Ledger;

type Make = fn(DbName) -> Virtual;

// As the ledger names them.
const PRIMARY: u8 = 1;
const LAG: u8 = 2;
const POSITION: u8 = 3;
const LOCK: u8 = 4;

const FIRST_ID: u64 = 0xffff_ffff_0000_0000;
const POSITION_SUFFIX: &[u8] = b"-pos";
const LOCK_SUFFIX: &[u8] = b"-lock";
/// `0000000000000001/8000000000000000\n`
const POSITION_LENGTH: u64 = 34;

pub(crate) const PRIMARY_NAME: &str = ".primary";
pub(crate) const LAG_NAME: &str = ".lag";
/// Names, attributes: the daemon does not tell the kernel when they change.
pub(crate) const TTL: Duration = Duration::ZERO;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Virtual {
    Primary,
    Lag,
    Position(DbName),
    Lock(DbName),
}

/// Which virtual file has which inode number.
pub(crate) struct VirtualFiles {
    ledger: Arc<Ledger>,
    known: Mutex<Vec<Virtual>>,
}

impl VirtualFiles {
    /// With the numbers that earlier daemons gave to the kernel.
    pub(crate) fn new(ledger: Arc<Ledger>) -> VirtualFiles {
        let noted = ledger.names().into_iter().map(|(kind, name)| {
            let name = DbName::from_str(&name);
            match (kind, name) {
                (POSITION, Ok(name)) => Virtual::Position(name),
                (LOCK, Ok(name)) => Virtual::Lock(name),
                (PRIMARY, _) => Virtual::Primary,
                (_, _) => Virtual::Lag,
            }
        });
        VirtualFiles {
            known: Mutex::new(noted.collect()),
            ledger,
        }
    }

    pub(crate) fn is_virtual(id: u64) -> bool {
        id >= FIRST_ID
    }

    pub(crate) fn id(&self, file: &Virtual) -> u64 {
        let mut known = self.known.lock();
        let index = known
            .iter()
            .position(|candidate| candidate == file)
            .unwrap_or_else(|| {
                let (kind, name) = match file {
                    Virtual::Primary => (PRIMARY, ""),
                    Virtual::Lag => (LAG, ""),
                    Virtual::Position(name) => (POSITION, name.as_str()),
                    Virtual::Lock(name) => (LOCK, name.as_str()),
                };
                if !self.ledger.add_name(kind, name) {
                    tracing::debug!(name, "no room to note the number of a virtual file");
                }
                known.push(file.clone());
                known.len() - 1
            });
        FIRST_ID + index as u64
    }

    pub(crate) fn get(&self, id: u64) -> Option<Virtual> {
        let index = usize::try_from(id.checked_sub(FIRST_ID)?).ok()?;
        self.known.lock().get(index).cloned()
    }
}

/// The virtual file of this name in this directory (`parent` relative to the root), if it exists now.
pub(crate) fn find(store: &Store, presence: &Presence, parent: &[u8], name: &OsStr) -> Option<Virtual> {
    if parent.is_empty() && name == PRIMARY_NAME {
        return presence.primary_text().map(|_| Virtual::Primary);
    }
    if parent.is_empty() && name == LAG_NAME {
        return Some(Virtual::Lag);
    }
    let (stem, make) = split(name)?;
    let path = super::backing::join(parent, OsStr::from_bytes(stem));
    let database = DbName::from_str(std::str::from_utf8(&path).ok()?).ok()?;
    store.database(&database).map(|_| make(database))
}

/// Whether a missing file of this name may come to exist without the kernel being told.
pub(crate) fn may_appear(parent: &[u8], name: &OsStr) -> bool {
    (parent.is_empty() && name == PRIMARY_NAME) || split(name).is_some()
}

/// The database's part of the name, and which of its virtual files it is.
fn split(name: &OsStr) -> Option<(&[u8], Make)> {
    let name = name.as_bytes();
    match name.strip_suffix(POSITION_SUFFIX) {
        Some(stem) => Some((stem, Virtual::Position)),
        None => Some((name.strip_suffix(LOCK_SUFFIX)?, Virtual::Lock)),
    }
}

impl Virtual {
    /// Whether the file may be opened this way.
    pub(crate) fn check_open(&self, store: &Store, write: bool) -> Result<(), Errno> {
        match self {
            Virtual::Primary | Virtual::Lag | Virtual::Position(_) if write => Err(Errno::EACCES),
            Virtual::Primary | Virtual::Lag | Virtual::Position(_) => Ok(()),
            // Locks on the primary are the kernel's own; a replica would have to ask the primary for HALT, which it cannot do yet.
            Virtual::Lock(_) if write && store.role() == Role::Replica => Err(Errno::EOPNOTSUPP),
            Virtual::Lock(_) => Ok(()),
        }
    }

    /// The content now. A position is drained first: it is never behind a commit that has returned.
    pub(crate) fn text(&self, store: &Store, presence: &Presence) -> Result<Vec<u8>, Errno> {
        match self {
            Virtual::Primary => presence
                .primary_text()
                .map(String::into_bytes)
                .ok_or(Errno::ENOENT),
            Virtual::Lag => Ok(presence.lag_text().into_bytes()),
            Virtual::Position(name) => {
                let database = store.database(name).ok_or(Errno::ENOENT)?;
                let position = database.drain().map_err(|error| Errno::of(&error))?;
                Ok(format!("{position}\n").into_bytes())
            }
            Virtual::Lock(_) => Ok(Vec::new()),
        }
    }

    pub(crate) fn attr(&self, id: u64, presence: &Presence, started: SystemTime) -> FileAttr {
        let (size, perm) = match self {
            Virtual::Primary => (presence.primary_text().map_or(0, |text| text.len()) as u64, 0o444),
            Virtual::Lag => (presence.lag_text().len() as u64, 0o444),
            Virtual::Position(_) => (POSITION_LENGTH, 0o444),
            // Whoever may write the database may ask for its HALT lock; the file's own mode does not decide that.
            Virtual::Lock(_) => (0, 0o666),
        };
        FileAttr {
            ino: INodeNo(id),
            size,
            blocks: 0,
            atime: started,
            mtime: started,
            ctime: started,
            crtime: started,
            kind: FileType::RegularFile,
            perm,
            nlink: 1,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}
