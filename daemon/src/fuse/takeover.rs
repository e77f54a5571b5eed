//! Taking a living mount over from a daemon that died or was replaced.
//!
//! The kernel goes on with the inodes, handles and backing ids that it was given; the ledger says which. Where the inodes are now is read from
//! the backing tree itself, which may have changed after the last note: names are not in the ledger. An inode without a name comes from the
//! keeper.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirEntryExt;
use std::path::Path;

use engine::Side;
use nix::fcntl::OFlag;

use super::backing;
use super::edge::Edge;
use super::handle::{Access, Restored};
use super::node::{Finding, Node};
use super::virtual_files::VirtualFiles;
use crate::ledger::{HandleEntry, HandleSlot, Ledger, NodeEntry, NodeSlot};

/// What was found of what the kernel knows.
#[derive(Debug, Default)]
pub(super) struct TakenOver {
    pub(super) nodes: usize,
    pub(super) handles: usize,
    /// Inodes that the kernel knows and nobody has open.
    pub(super) closed: Vec<u64>,
    /// Names that led to inodes which lost them since, with the directories they were in.
    pub(super) stale_names: Vec<(u64, OsString)>,
    /// Handles that are gone: their clients get errors.
    pub(super) lost: usize,
}

/// An inode that the kernel knows, by the name that it had when this daemon started.
#[derive(Debug)]
pub(crate) struct Pinned {
    node: u64,
    fd: OwnedFd,
    directory: u64,
    name: OsString,
}

impl Edge {
    /// Makes tables of what the ledger says, before the first request is served. `kept`: inodes that the keeper holds; `pinned`: those that had
    /// a name before the store was opened, which may have removed them.
    pub(super) fn take_over(&self, kept: Vec<(u64, OwnedFd)>, pinned: Vec<Pinned>) -> io::Result<TakenOver> {
        let mut wanted: HashMap<u64, (NodeSlot, NodeEntry)> = HashMap::new();
        let mut taken = TakenOver::default();
        let open: HashSet<u64> = self.ledger.client_handles().map(|entry| entry.node).collect();
        for (slot, mut entry) in self.ledger.nodes() {
            if !open.contains(&entry.id) {
                // Whoever opens it first must find what the start may have made of it.
                entry.opened.cache_is_stale = true;
                taken.closed.push(entry.id);
            }
            wanted.insert(entry.id, (slot, entry));
        }
        let root = self.table.get(super::node::ROOT).ok_or(io::ErrorKind::NotFound)?;
        self.find_below(&root, &mut wanted, &mut taken)?;
        for (id, fd) in kept {
            match wanted.remove(&id) {
                Some(entry) => self.restore_nameless(entry, fd, Finding::Kept, &mut taken)?,
                None => self.keeper.forget_node(id),
            }
        }
        for pinned in pinned {
            if let Some(entry) = wanted.remove(&pinned.node) {
                self.restore_nameless(entry, pinned.fd, Finding::Nowhere, &mut taken)?;
                taken.stale_names.push((pinned.directory, pinned.name));
            }
        }
        for (slot, entry) in wanted.into_values() {
            tracing::debug!(inode = entry.id, "an inode that the kernel knows is gone");
            self.ledger.remove_node(slot);
        }
        for (slot, entry) in self.ledger.handles() {
            match self.restore_handle(slot, &entry) {
                Ok(()) => taken.handles += 1,
                Err(error) => {
                    tracing::warn!(inode = entry.node, process = entry.process, %error, "an open file is lost");
                    self.ledger.remove_handle(slot);
                    taken.lost += 1;
                }
            }
        }
        *self.past.lock() = self.ledger.take_past();
        Ok(taken)
    }

    /// Looks for inodes in the tree, directory by directory, until all are found.
    fn find_below(
        &self,
        root: &Node,
        wanted: &mut HashMap<u64, (NodeSlot, NodeEntry)>,
        taken: &mut TakenOver,
    ) -> io::Result<()> {
        let mut dirs = vec![(root.fd().try_clone_to_owned()?, Vec::new())];
        while let Some((dir, path)) = dirs.pop() {
            if wanted.is_empty() {
                return Ok(());
            }
            for_each_entry(dir.as_fd(), |inode, is_dir, name| {
                let known = wanted.remove(&inode);
                if known.is_none() && !is_dir {
                    return Ok(());
                }
                let Ok(fd) = backing::find(dir.as_fd(), name) else {
                    return Ok(());
                };
                let path = backing::join(&path, name);
                if is_dir {
                    dirs.push((fd.try_clone()?, path.clone()));
                }
                if let Some(known) = known {
                    self.restore_node(known, fd, path)?;
                    taken.nodes += 1;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn restore_nameless(
        &self,
        known: (NodeSlot, NodeEntry),
        fd: OwnedFd,
        finding: Finding,
        taken: &mut TakenOver,
    ) -> io::Result<()> {
        self.table
            .restore(known, fd, Default::default(), finding, &self.connection)?;
        taken.nodes += 1;
        Ok(())
    }

    fn restore_node(&self, known: (NodeSlot, NodeEntry), fd: OwnedFd, path: Vec<u8>) -> io::Result<()> {
        let stat = backing::stat_fd(&fd)?;
        let part = self.part(&path, &stat);
        self.table
            .restore(known, fd, (path, part), Finding::ByName, &self.connection)?;
        Ok(())
    }

    fn restore_handle(&self, slot: HandleSlot, entry: &HandleEntry) -> io::Result<()> {
        if VirtualFiles::is_virtual(entry.node) {
            let file = self
                .virtual_files
                .get(entry.node)
                .ok_or(io::ErrorKind::NotFound)?;
            self.handles.restore(slot, entry, Restored::Virtual(file));
            return Ok(());
        }
        let node = self.table.get(entry.node).ok_or(io::ErrorKind::NotFound)?;
        let (file, access) = reopen(node.fd(), entry.writable)?;
        let admitted = node.restore_handle(entry.writable && !entry.ours);
        if admitted.keep {
            self.keep(&node);
        }
        let restored = Restored::File {
            node: node.clone(),
            file,
            access,
            writes_past: admitted.writes_past,
        };
        self.handles.restore(slot, entry, restored);
        let Some((name, side)) = node.part() else {
            return Ok(());
        };
        match side {
            Side::Wal => {
                if node.is_passthrough() {
                    self.wal_watch.add(&node);
                }
                if let Some(database) = self.store.database(&name) {
                    database.wal_opened();
                }
            }
            Side::Shm if node.is_passthrough() && !entry.ours => self.shm_keeper.opened(&node),
            Side::Shm | Side::Database | Side::Journal => {}
        }
        Ok(())
    }
}

/// The inodes below `dir` that the kernel knows. While they are pinned the backing file system gives their numbers to no other file, which the
/// kernel would take for the one it knows.
pub(crate) fn pin(ledger: &Ledger, dir: &Path) -> io::Result<Vec<Pinned>> {
    let known: HashSet<u64> = ledger.nodes().map(|(_, entry)| entry.id).collect();
    let mut pinned = Vec::new();
    let mut dirs = vec![(super::node::ROOT, backing::open_root(dir)?)];
    while let Some((directory, dir)) = dirs.pop() {
        for_each_entry(dir.as_fd(), |inode, is_dir, name| {
            if !is_dir && !known.contains(&inode) {
                return Ok(());
            }
            let Ok(fd) = backing::find(dir.as_fd(), name) else {
                return Ok(());
            };
            if is_dir {
                dirs.push((inode, fd.try_clone()?));
            }
            if known.contains(&inode) {
                pinned.push(Pinned {
                    node: inode,
                    fd,
                    directory,
                    name: name.to_owned(),
                });
            }
            Ok(())
        })?;
    }
    Ok(pinned)
}

/// Calls `act` with inode number and name of each entry, and whether it is a directory.
fn for_each_entry(
    dir: BorrowedFd<'_>,
    mut act: impl FnMut(u64, bool, &OsStr) -> io::Result<()>,
) -> io::Result<()> {
    let path = backing::magic_link(dir);
    for entry in std::fs::read_dir(Path::new(OsStr::from_bytes(path.as_bytes())))? {
        let entry = entry?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        act(entry.ino(), is_dir, &entry.file_name())?;
    }
    Ok(())
}

fn reopen(node: BorrowedFd<'_>, writable: bool) -> io::Result<(File, Access)> {
    let open = |flags, access| backing::reopen(node, flags).map(|file| (file, access));
    let opened = match writable {
        false => open(OFlag::O_RDONLY, Access::AsAsked),
        true => match open(OFlag::O_RDWR, Access::AsAsked) {
            Err(nix::errno::Errno::EACCES) => open(OFlag::O_WRONLY, Access::AsAsked),
            Err(nix::errno::Errno::EPERM) => open(OFlag::O_RDONLY, Access::ReadOnly),
            opened => opened,
        },
    };
    Ok(opened?)
}
