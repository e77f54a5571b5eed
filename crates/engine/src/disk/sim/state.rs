//! The simulated file system: what readers see, what is durable, and what lies between.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Crash, Fault};
use crate::disk::{Op, OpenMode};

const SECTOR: u64 = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Dir,
    File(u64),
}

type Names = BTreeMap<PathBuf, Node>;

/// One change of names, atomic: a rename changes two.
type NameChange = Vec<(PathBuf, Option<Node>)>;

#[derive(Debug, Clone)]
enum Change {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
}

#[derive(Debug, Default)]
struct Inode {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Changes since the last sync, oldest first.
    pending: Vec<Change>,
}

#[derive(Debug)]
pub(super) struct State {
    rng: SmallRng,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: Names,
    durable_names: Names,
    pending_names: Vec<NameChange>,
    pub(super) faults: Vec<Fault>,
    pub(super) space: Option<u64>,
    pub(super) changes: u64,
    pub(super) power_off_at: Option<u64>,
    pub(super) off: bool,
    pub(super) boot: u64,
    pub(super) calls: BTreeMap<Op, u64>,
}

impl State {
    pub(super) fn new(seed: u64) -> State {
        let names = Names::from([(PathBuf::from("/"), Node::Dir)]);
        State {
            rng: SmallRng::seed_from_u64(seed),
            inodes: BTreeMap::new(),
            next_inode: 1,
            durable_names: names.clone(),
            names,
            pending_names: Vec::new(),
            faults: Vec::new(),
            space: None,
            changes: 0,
            power_off_at: None,
            off: false,
            boot: 0,
            calls: BTreeMap::new(),
        }
    }

    pub(super) fn heal(&mut self) {
        self.faults.clear();
        self.space = None;
        self.power_off_at = None;
        self.off = false;
    }

    pub(super) fn crash(&mut self, how: Crash) {
        self.heal();
        self.boot += 1;
        if how == Crash::Process {
            return;
        }
        for change in std::mem::take(&mut self.pending_names) {
            if how == Crash::Random && self.rng.random() {
                apply_names(&mut self.durable_names, &change);
            }
        }
        drop_unreachable(&mut self.durable_names);
        self.names = self.durable_names.clone();
        for inode in self.inodes.values_mut() {
            let pending = std::mem::take(&mut inode.pending);
            if how == Crash::Random {
                survive(&mut inode.durable, pending, &mut self.rng);
            }
            inode.seen = inode.durable.clone();
        }
        let names = &self.names;
        self.inodes
            .retain(|inode, _| names.values().any(|node| *node == Node::File(*inode)));
    }

    /// Every call passes here first.
    fn enter(&mut self, op: Op) -> io::Result<()> {
        if self.off {
            return errno(libc::EIO);
        }
        *self.calls.entry(op).or_default() += 1;
        self.faults.iter_mut().try_for_each(|fault| fault.check(op))
    }

    /// Every call that changes something passes here; true = the power fails during this call, after its effect.
    fn enter_change(&mut self, op: Op) -> io::Result<bool> {
        self.enter(op)?;
        let last = self.power_off_at == Some(self.changes);
        self.changes += 1;
        if last {
            self.off = true;
            if self.rng.random() {
                return errno(libc::EIO);
            }
        }
        Ok(last)
    }

    fn node(&self, path: &Path) -> io::Result<Node> {
        self.names
            .get(path)
            .copied()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
    }

    fn inode(&mut self, inode: u64) -> &mut Inode {
        self.inodes
            .get_mut(&inode)
            .expect("an inode outlives its handles within a boot")
    }

    fn change_names(&mut self, change: NameChange) {
        apply_names(&mut self.names, &change);
        self.pending_names.push(change);
    }

    pub(super) fn open(&mut self, op: Op, path: &Path, mode: OpenMode) -> io::Result<u64> {
        let existing = match self.names.get(path) {
            Some(Node::Dir) => return errno(libc::EISDIR),
            Some(Node::File(inode)) => Some(*inode),
            None => None,
        };
        match (existing, mode) {
            (Some(_), OpenMode::CreateNew) => errno(libc::EEXIST),
            (Some(inode), OpenMode::Truncate) => {
                self.set_len(op, inode, 0)?;
                Ok(inode)
            }
            (Some(inode), OpenMode::Read | OpenMode::Write | OpenMode::Create) => {
                self.enter(op)?;
                Ok(inode)
            }
            (None, OpenMode::Read | OpenMode::Write) => {
                self.enter(op)?;
                errno(libc::ENOENT)
            }
            (None, OpenMode::Create | OpenMode::CreateNew | OpenMode::Truncate) => self.create(op, path),
        }
    }

    fn create(&mut self, op: Op, path: &Path) -> io::Result<u64> {
        if path.parent().map(|parent| self.node(parent)).transpose()? != Some(Node::Dir) {
            return errno(libc::ENOTDIR);
        }
        let last = self.enter_change(op)?;
        let inode = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(inode, Inode::default());
        self.change_names(vec![(path.to_owned(), Some(Node::File(inode)))]);
        finish(last, inode)
    }

    pub(super) fn rename(&mut self, op: Op, from: &Path, to: &Path) -> io::Result<()> {
        let node = self.node(from)?;
        let last = self.enter_change(op)?;
        let mut change = vec![(from.to_owned(), None), (to.to_owned(), Some(node))];
        if node == Node::Dir {
            for (path, node) in self.below(from) {
                let inner = path.strip_prefix(from).expect("below its directory");
                change.push((to.join(inner), Some(node)));
                change.push((path, None));
            }
        }
        self.change_names(change);
        finish(last, ())
    }

    pub(super) fn remove_file(&mut self, op: Op, path: &Path) -> io::Result<()> {
        if self.node(path)? == Node::Dir {
            return errno(libc::EISDIR);
        }
        let last = self.enter_change(op)?;
        self.change_names(vec![(path.to_owned(), None)]);
        finish(last, ())
    }

    pub(super) fn create_dir_all(&mut self, op: Op, path: &Path) -> io::Result<()> {
        let missing: Vec<_> = path
            .ancestors()
            .take_while(|dir| !self.names.contains_key(*dir))
            .collect();
        for dir in missing.into_iter().rev() {
            let last = self.enter_change(op)?;
            self.change_names(vec![(dir.to_owned(), Some(Node::Dir))]);
            finish(last, ())?;
        }
        match self.node(path)? {
            Node::Dir => self.enter(op),
            Node::File(_) => errno(libc::EEXIST),
        }
    }

    pub(super) fn remove_dir_all(&mut self, op: Op, path: &Path) -> io::Result<()> {
        self.node(path)?;
        let mut paths: Vec<_> = self.below(path).into_iter().map(|(path, _)| path).collect();
        paths.insert(0, path.to_owned());
        for path in paths.into_iter().rev() {
            let last = self.enter_change(op)?;
            self.change_names(vec![(path, None)]);
            finish(last, ())?;
        }
        Ok(())
    }

    pub(super) fn list(&mut self, op: Op, path: &Path) -> io::Result<Vec<OsString>> {
        self.enter(op)?;
        if self.node(path)? != Node::Dir {
            return errno(libc::ENOTDIR);
        }
        let children = self.names.keys().filter(|child| child.parent() == Some(path));
        Ok(children
            .filter_map(|child| child.file_name().map(OsString::from))
            .collect())
    }

    pub(super) fn exists(&mut self, op: Op, path: &Path) -> io::Result<bool> {
        self.enter(op)?;
        Ok(self.names.contains_key(path))
    }

    pub(super) fn sync_dir(&mut self, op: Op, path: &Path) -> io::Result<()> {
        if self.node(path)? != Node::Dir {
            return errno(libc::ENOTDIR);
        }
        let last = self.enter_change(op)?;
        let durable = &mut self.durable_names;
        self.pending_names.retain(|change| {
            let inside = change.iter().any(|(name, _)| name.parent() == Some(path));
            if inside {
                apply_names(durable, change);
            }
            !inside
        });
        finish(last, ())
    }

    pub(super) fn read_at(&mut self, op: Op, inode: u64, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.enter(op)?;
        let seen = &self.inode(inode).seen;
        let start = (offset as usize).min(seen.len());
        let count = buf.len().min(seen.len() - start);
        buf[..count].copy_from_slice(&seen[start..start + count]);
        Ok(count)
    }

    pub(super) fn write_at(&mut self, op: Op, inode: u64, data: &[u8], offset: u64) -> io::Result<()> {
        let last = self.enter_change(op)?;
        let room = self
            .space
            .map_or(data.len(), |space| data.len().min(space as usize));
        if let Some(space) = &mut self.space {
            *space -= room as u64;
        }
        self.inode(inode).change(Change::Write {
            offset,
            data: data[..room].to_vec(),
        });
        if room < data.len() {
            return errno(libc::ENOSPC);
        }
        finish(last, ())
    }

    pub(super) fn set_len(&mut self, op: Op, inode: u64, len: u64) -> io::Result<()> {
        let last = self.enter_change(op)?;
        self.inode(inode).change(Change::SetLen(len));
        finish(last, ())
    }

    pub(super) fn len(&mut self, op: Op, inode: u64) -> io::Result<u64> {
        self.enter(op)?;
        Ok(self.inode(inode).seen.len() as u64)
    }

    pub(super) fn sync(&mut self, op: Op, inode: u64) -> io::Result<()> {
        let entered = self.enter_change(op);
        let mut pending = std::mem::take(&mut self.inode(inode).pending);
        if entered.is_err() {
            if self.off {
                self.inode(inode).pending = pending;
            } else {
                // The kernel marks the pages clean: what did not reach the disk now never will.
                let rng = &mut self.rng;
                pending.retain(|_| rng.random());
                let inode = self.inodes.get_mut(&inode).expect("looked up above");
                pending
                    .into_iter()
                    .for_each(|change| apply(&mut inode.durable, change));
            }
        } else {
            let inode = self.inode(inode);
            pending
                .into_iter()
                .for_each(|change| apply(&mut inode.durable, change));
        }
        finish(entered?, ())
    }

    pub(super) fn content(&self, path: &Path) -> Option<Vec<u8>> {
        match self.names.get(path)? {
            Node::Dir => None,
            Node::File(inode) => Some(self.inodes[inode].seen.clone()),
        }
    }

    pub(super) fn corrupt(&mut self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let Ok(Node::File(inode)) = self.node(path) else {
            panic!("no file {}", path.display())
        };
        let inode = self.inode(inode);
        change(&mut inode.seen);
        inode.durable = inode.seen.clone();
        inode.pending.clear();
    }

    fn below(&self, dir: &Path) -> Vec<(PathBuf, Node)> {
        let from = (Bound::Excluded(dir.to_owned()), Bound::Unbounded);
        let inside = self
            .names
            .range(from)
            .take_while(|(path, _)| path.starts_with(dir));
        inside.map(|(path, node)| (path.clone(), *node)).collect()
    }
}

impl Inode {
    fn change(&mut self, change: Change) {
        apply(&mut self.seen, change.clone());
        self.pending.push(change);
    }
}

fn errno<T>(errno: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(errno))
}

/// The caller never learns of the effect of the call during which the power failed.
fn finish<T>(last: bool, value: T) -> io::Result<T> {
    if last { errno(libc::EIO) } else { Ok(value) }
}

fn apply(content: &mut Vec<u8>, change: Change) {
    match change {
        Change::SetLen(len) => content.resize(len as usize, 0),
        Change::Write { offset, data } => {
            let offset = offset as usize;
            let end = offset + data.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[offset..end].copy_from_slice(&data);
        }
    }
}

/// Applies a random part of what was pending, each write a random set of its sectors.
fn survive(content: &mut Vec<u8>, pending: Vec<Change>, rng: &mut SmallRng) {
    for change in pending {
        match (rng.random_range(0..3), change) {
            (0, _) => {}
            (1, change) | (_, change @ Change::SetLen(_)) => apply(content, change),
            (_, Change::Write { offset, data }) => {
                for (start, sector) in sectors(offset, &data) {
                    if rng.random() {
                        apply(
                            content,
                            Change::Write {
                                offset: start,
                                data: sector.to_vec(),
                            },
                        );
                    }
                }
            }
        }
    }
}

/// Cuts a write at the sector boundaries of the disk.
fn sectors(offset: u64, data: &[u8]) -> Vec<(u64, &[u8])> {
    let mut out = Vec::new();
    let (mut offset, mut rest) = (offset, data);
    while !rest.is_empty() {
        let (sector, tail) = rest.split_at(rest.len().min((SECTOR - offset % SECTOR) as usize));
        out.push((offset, sector));
        offset += sector.len() as u64;
        rest = tail;
    }
    out
}

fn apply_names(names: &mut Names, change: &NameChange) {
    for (path, node) in change {
        match node {
            Some(node) => names.insert(path.clone(), *node),
            None => names.remove(path),
        };
    }
}

/// Names whose directory did not survive are gone with it.
fn drop_unreachable(names: &mut Names) {
    let reachable = |names: &Names, path: &Path| {
        path.ancestors()
            .skip(1)
            .all(|dir| names.get(dir) == Some(&Node::Dir))
    };
    let lost: Vec<_> = names
        .keys()
        .filter(|path| !reachable(names, path))
        .cloned()
        .collect();
    for path in lost {
        names.remove(&path);
    }
}
