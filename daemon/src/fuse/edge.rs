//! The state behind the mount, and the rules that decide how a file is served.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use engine::{Coherence, Database, DbName, Side, Store};
use parking_lot::Mutex;

use super::connection::Connection;
use super::descriptors::Descriptors;
use super::errno::{Answer, Errno};
use super::foreign::Foreign;
use super::former::FormerMounts;
use super::handle::{Handle, Handles};
use super::node::{self, Node, NodeTable, Part, Transfer};
use super::presence::Presence;
use super::refusals::Refusals;
use super::requests::{FileKind, Op, Requests};
use super::shm_keeper::ShmKeeper;
use super::tree::Caller;
use super::virtual_files::{self, VirtualFiles};
use super::wal_watch::WalWatch;
use crate::companion::{Companion, Keeper};
use crate::ledger::{Ledger, Past};
use crate::processes::Locks;

/// `FUSE_UNIQUE_RESEND` of the kernel's `linux/fuse.h`: the request was delivered to another process before.
const RESENT: u64 = 1 << 63;
/// Lifetime of names and attributes in the kernel. What the daemon changes itself it invalidates itself.
pub(crate) const TTL: Duration = Duration::from_secs(3600);

/// What a side file is opened or named for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    Read,
    Write,
    /// Or another name, or a cut.
    Remove,
}

impl Use {
    /// Of a file that is opened.
    pub(crate) fn of_open(write: bool) -> Use {
        match write {
            true => Use::Write,
            false => Use::Read,
        }
    }
}

pub(crate) struct Edge {
    pub(crate) store: Arc<Store>,
    pub(crate) files_dir: PathBuf,
    pub(crate) table: NodeTable,
    pub(crate) handles: Handles,
    pub(crate) virtual_files: VirtualFiles,
    pub(crate) presence: Arc<Presence>,
    pub(crate) requests: Arc<Requests>,
    pub(crate) refusals: Refusals,
    pub(crate) foreign: Foreign,
    pub(crate) wal_watch: WalWatch,
    pub(crate) shm_keeper: ShmKeeper,
    pub(crate) started: SystemTime,
    /// Its opener opens files for the daemon: closing such a file waits for nothing.
    pub(crate) companion: Arc<Companion>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) connection: Arc<Connection>,
    /// How far requests had got that an earlier daemon did not answer; they come again.
    pub(crate) past: Mutex<Vec<Past>>,
    pub(crate) coherence: OnceLock<Coherence>,
    pub(crate) descriptors: Descriptors,
    pub(crate) former: FormerMounts,
    /// Inodes of main files that nobody may read any more.
    pub(crate) unreadable: OnceLock<HashSet<u64>>,
    /// Wanted by the operator; whether it is possible is known only after the handshake.
    pub(crate) wants_passthrough: bool,
    /// 2 where the backing file system is itself stacked (overlayfs).
    pub(crate) stack_depth: u32,
}

impl Edge {
    pub(crate) fn coherence(&self) -> Coherence {
        *self.coherence.get().unwrap_or(&Coherence::Intercepted)
    }

    /// Begins a request that makes the kernel know something new, or changes names. Returns whether it comes again: a daemon that died had
    /// read it, and has done all of it, a part or nothing. What it made the ledger say the kernel has never heard of, and is taken back.
    pub(crate) fn begin(&self, unique: u64) -> bool {
        let again = unique & RESENT != 0;
        let unique = unique & !RESENT;
        if again {
            let mut past = self.past.lock();
            let found = past.iter().position(|past| past.unique == unique);
            let found = found.map(|index| past.swap_remove(index));
            drop(past);
            if let Some(past) = found {
                tracing::debug!(?past, "a request comes again");
                self.ledger.forget_past(unique);
                self.take_back(&past);
            }
        }
        self.ledger.begin_request(unique);
        again
    }

    fn take_back(&self, past: &Past) {
        if let Some(handle) = self.handles.remove(past.handle)
            && let Handle::File(open) = &*handle
        {
            open.node.close_handle(open.writes_past);
        }
        if past.entered != 0 {
            self.forget(past.entered, 1);
        }
    }

    /// The kernel has forgotten so many lookups of an inode.
    pub(crate) fn forget(&self, id: u64, lookups: u64) {
        if let Some(gone) = self.table.forget(id, lookups)
            && gone.is_kept()
        {
            self.keeper.forget_node(id);
        }
    }

    /// An inode is about to lose its last name, or has just lost it: the next daemon could not find it by name.
    pub(crate) fn loses_name(&self, node: &Node) {
        if node.loses_name() {
            self.keep(node);
        }
    }

    /// Gives the keeper a descriptor of an inode without a name that a client has open.
    pub(crate) fn keep(&self, node: &Node) {
        if let Err(error) = self.keeper.keep_node(node.id(), node.fd()) {
            tracing::debug!(%error, "a file without a name would not outlive the daemon");
        }
    }

    pub(crate) fn count(&self, op: Op, kind: FileKind) {
        self.requests.count(op, kind);
    }

    /// The answer to a request that the engine did not carry out.
    pub(crate) fn refused(&self, error: engine::Error) -> Errno {
        if let engine::Error::ReadOnly(name) = &error {
            self.refusals.tell(name, &self.presence);
        }
        Errno::from(error)
    }

    /// Whether one more inode, or one more handle, is within what clients may use of the daemon's descriptors.
    pub(crate) fn check_descriptors(&self) -> Answer<()> {
        self.descriptors.check(self.table.len() + self.handles.len())
    }

    /// [`Edge::check_client`] for a name in the directory of that path.
    pub(crate) fn check_client_at(
        &self,
        dir: &[u8],
        name: &OsStr,
        caller: Caller,
        purpose: Use,
    ) -> Answer<()> {
        if !self.former.has_clients() {
            return Ok(());
        }
        let part = self.classify(&super::backing::join(dir, name));
        self.check_client(part.as_ref(), caller, purpose)
    }

    /// Keeps from a side file whoever may use it for a connection to the main file of a dead mount.
    pub(crate) fn check_client(&self, part: Option<&Part>, caller: Caller, purpose: Use) -> Answer<()> {
        let Some((name, side)) = part else {
            return Ok(());
        };
        let locks = match (side, purpose) {
            (Side::Database, _) => return Ok(()),
            (Side::Journal, Use::Write) | (Side::Journal | Side::Wal | Side::Shm, Use::Remove) => {
                Locks::ToWrite
            }
            (Side::Journal, Use::Read) | (Side::Wal | Side::Shm, Use::Read | Use::Write) => Locks::Any,
        };
        let main = || {
            let main = std::fs::metadata(name.file_in(&self.files_dir, Side::Database)).ok()?;
            Some(self.table.by_inode(main.ino())?.id())
        };
        match self.former.admit(caller.pid, main, locks) {
            true => Ok(()),
            false => Err(Errno::EIO),
        }
    }

    pub(crate) fn node(&self, id: u64) -> Answer<Arc<Node>> {
        self.table.get(id).ok_or(Errno::ESTALE)
    }

    /// Whether the inode is a main file that nobody may read any more.
    pub(crate) fn is_unreadable(&self, id: u64) -> bool {
        let unreadable = self.unreadable.get();
        unreadable.is_some_and(|unreadable| unreadable.contains(&id))
    }

    /// What a path, by its name, would be part of.
    pub(crate) fn classify(&self, path: &[u8]) -> Option<Part> {
        self.store.classify(path)
    }

    /// The database that a part belongs to, if it exists as one: files of an unknown database are ordinary files.
    pub(crate) fn database_of(&self, part: Option<&Part>) -> Option<(Arc<Database>, Side)> {
        let (name, side) = part?;
        self.database(name).map(|database| (database, *side))
    }

    pub(crate) fn route(&self, node: &Node) -> Option<(Arc<Database>, Side)> {
        node.with_part(|part| {
            let (name, side) = part?;
            self.database(name).map(|database| (database, side))
        })
    }

    fn database(&self, name: &DbName) -> Option<Arc<Database>> {
        self.store.database(name)
    }

    /// Kind of an open inode for the counters: a main file counts as a database once it is one.
    pub(crate) fn kind(&self, node: &Node) -> FileKind {
        match node.kind() {
            FileKind::Database if self.route(node).is_none() => FileKind::Other,
            kind @ (FileKind::Database
            | FileKind::Wal
            | FileKind::Shm
            | FileKind::Journal
            | FileKind::Other) => kind,
        }
    }

    pub(crate) fn kind_by_id(&self, id: u64) -> FileKind {
        self.table
            .get(id)
            .map_or(FileKind::Other, |node| self.kind(&node))
    }

    pub(crate) fn kind_by_name(&self, parent: u64, name: &OsStr) -> FileKind {
        let Some(parent) = self.table.get(parent) else {
            return FileKind::Other;
        };
        match self.classify(&super::backing::join(&parent.path(), name)) {
            Some((name, Side::Database)) if self.database(&name).is_none() => FileKind::Other,
            Some((_, side)) => node::kind_of(side),
            None => FileKind::Other,
        }
    }

    /// How long the kernel may believe what it is told of a file. Answers that it believes unseen, to a CREATE and to a change of the owner,
    /// may be older than what the daemon tells it meanwhile: of the WAL that a replica's apply appends to it must ask for the size anew.
    pub(crate) fn ttl(&self, node: &Node) -> Duration {
        match node.kind() {
            FileKind::Wal if !self.store.role().is_primary() => Duration::ZERO,
            FileKind::Database | FileKind::Wal | FileKind::Shm | FileKind::Journal | FileKind::Other => TTL,
        }
    }

    pub(crate) fn ttl_by_id(&self, id: u64) -> Duration {
        match VirtualFiles::is_virtual(id) {
            true => virtual_files::TTL,
            false => self.table.get(id).map_or(TTL, |node| self.ttl(&node)),
        }
    }

    /// Whether a failure of the disk has closed the database for writing.
    fn is_closed(&self, part: Option<&Part>) -> bool {
        self.database_of(part)
            .is_some_and(|(database, _)| database.is_closed())
    }

    /// How a handle of this file should exchange data.
    ///
    /// The main file always goes through the page cache: passthrough reads invalidate its attributes, and every SELECT would ask for them.
    /// The wal-index must be the backing file's own pages wherever that is possible. On a replica the WAL and the journal are intercepted so
    /// that a write can be refused, and so they are where the disk has failed.
    pub(crate) fn transfer(&self, part: Option<&Part>) -> Transfer {
        if part.is_some_and(|(name, _)| self.store.waits_for_room(name)) {
            // So that reads are answered one by one, and no page is remembered.
            return Transfer::Intercepted;
        }
        let primary = self.store.role().is_primary();
        match (self.coherence(), part.map(|(_, side)| *side)) {
            (Coherence::Passthrough, Some(Side::Shm)) => Transfer::Passthrough,
            // The daemon appends to it while clients read: neither pages nor a size that the kernel remembers can be kept right for
            // readers that come and go meanwhile.
            (_, Some(Side::Wal)) if !primary => Transfer::Intercepted,
            (Coherence::Passthrough, Some(Side::Wal)) if self.store.intercepts_wal() => Transfer::Cached,
            (Coherence::Passthrough, Some(Side::Wal | Side::Journal)) if self.is_closed(part) || !primary => {
                Transfer::Cached
            }
            (Coherence::Passthrough, Some(Side::Wal | Side::Journal)) => Transfer::Passthrough,
            (Coherence::Passthrough, Some(Side::Database) | None) | (Coherence::Intercepted, _) => {
                Transfer::Cached
            }
        }
    }
}
