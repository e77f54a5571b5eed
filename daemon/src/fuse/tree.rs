//! The name space: operations on names, directories, symlinks and attributes.
//!
//! Each function answers one request of the kernel with operations on the backing tree; where the name belongs to a database that exists,
//! the operation is handed to the engine, which performs it at the right moment of its own bookkeeping. Errors are the backing file
//! system's, verbatim.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::Arc;

use engine::Side;
use fuser::FileAttr;
use nix::fcntl::RenameFlags;
use nix::sys::stat::{FileStat, SFlag};

use super::attr;
use super::backing::{self, Ownership};
use super::edge::{Edge, Use};
use super::errno::{Answer, Errno};
use super::node::{Node, Part, ROOT};
use super::virtual_files::{self, Virtual, VirtualFiles};

/// What a name leads to.
pub(crate) enum Entry {
    /// A file of the backing tree; the kernel may remember it.
    Node(FileAttr),
    Virtual(FileAttr),
    /// There is no such file. The kernel may remember that if the file cannot appear behind its back.
    Missing {
        cacheable: bool,
    },
}

/// Who asks, for files that will be theirs.
#[derive(Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) pid: u32,
}

impl Caller {
    pub(crate) fn owns(self, mode: u32, umask: u32) -> Ownership {
        Ownership {
            uid: self.uid,
            gid: self.gid,
            permissions: mode & 0o7777 & !umask,
        }
    }
}

impl Edge {
    pub(crate) fn lookup(&self, parent: u64, name: &OsStr, caller: Caller) -> Answer<Entry> {
        let parent = self.node(parent)?;
        let dir = parent.path();
        // SQLite takes a journal that is not there for one that it has removed: its transaction is committed then.
        self.check_client_at(&dir, name, caller, Use::Read)?;
        if let Some(file) = virtual_files::find(&self.store, &self.presence, &dir, name) {
            return Ok(Entry::Virtual(self.virtual_attr(&file)));
        }
        match self.enter(&parent, name) {
            Ok((node, stat)) => Ok(Entry::Node(attr::of(node.id(), &stat))),
            Err(Errno::ENOENT) => Ok(Entry::Missing {
                cacheable: !virtual_files::may_appear(&dir, name) && !self.former.has_clients(),
            }),
            Err(error) => Err(error),
        }
    }

    /// Finds a name in the backing tree and counts one lookup of its inode.
    pub(crate) fn enter(&self, parent: &Node, name: &OsStr) -> Answer<(Arc<Node>, FileStat)> {
        let fd = backing::find(parent.fd(), name)?;
        self.check_descriptors()?;
        let stat = backing::stat_fd(&fd)?;
        let path = backing::join(&parent.path(), name);
        let part = self.part(&path, &stat);
        let node = self.table.remember(fd, &stat, path, part).ok_or(Errno::EXDEV)?;
        // The kernel keeps these attributes. It is told of what the daemon changes from here on; what came before must be in them.
        let stat = backing::stat_fd(node.fd()).inspect_err(|_| self.forget(node.id(), 1))?;
        Ok((node, stat))
    }

    /// Only regular files can be part of a database; a directory may be called `test.db-wal`.
    pub(crate) fn part(&self, path: &[u8], stat: &FileStat) -> Option<Part> {
        (stat.st_mode & libc::S_IFMT == libc::S_IFREG)
            .then(|| self.classify(path))
            .flatten()
    }

    fn entered(&self, parent: &Node, name: &OsStr) -> Answer<FileAttr> {
        let (node, stat) = self.enter(parent, name)?;
        Ok(attr::of(node.id(), &stat))
    }

    pub(crate) fn virtual_attr(&self, file: &Virtual) -> FileAttr {
        file.attr(self.virtual_files.id(file), &self.presence, self.started)
    }

    pub(crate) fn getattr(&self, id: u64) -> Answer<FileAttr> {
        if VirtualFiles::is_virtual(id) {
            let file = self.virtual_files.get(id).ok_or(Errno::ESTALE)?;
            return Ok(self.virtual_attr(&file));
        }
        let node = self.node(id)?;
        Ok(attr::of(id, &backing::stat_fd(node.fd())?))
    }

    pub(crate) fn readlink(&self, id: u64) -> Answer<OsString> {
        Ok(backing::read_link(self.node(id)?.fd())?)
    }

    pub(crate) fn mkdir(&self, parent: u64, name: &OsStr, owner: Ownership, again: bool) -> Answer<FileAttr> {
        let parent = self.node(parent)?;
        self.refuse_virtual(&parent, name)?;
        unless_made(again, backing::make_dir(parent.fd(), name, owner))?;
        self.entered(&parent, name)
    }

    pub(crate) fn mknod(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        owner: Ownership,
        again: bool,
    ) -> Answer<FileAttr> {
        let parent = self.node(parent)?;
        let kind = SFlag::from_bits_truncate(mode & libc::S_IFMT);
        self.creating(&parent, name, &mut || {
            Ok(unless_made(
                again,
                backing::make_node(parent.fd(), name, kind, owner),
            )?)
        })?;
        self.entered(&parent, name)
    }

    pub(crate) fn symlink(
        &self,
        parent: u64,
        name: &OsStr,
        target: &Path,
        owner: Ownership,
        again: bool,
    ) -> Answer<FileAttr> {
        let parent = self.node(parent)?;
        self.refuse_virtual(&parent, name)?;
        unless_made(again, backing::make_symlink(parent.fd(), name, target, owner))?;
        self.entered(&parent, name)
    }

    pub(crate) fn link(&self, id: u64, parent: u64, name: &OsStr, again: bool) -> Answer<FileAttr> {
        let (node, parent) = (self.node(id)?, self.node(parent)?);
        self.refuse_virtual(&parent, name)?;
        unless_made(again, backing::make_link(node.fd(), parent.fd(), name))?;
        self.entered(&parent, name)
    }

    /// Creates a name that may be a journal or a WAL of a database: the engine may refuse the one and must hear of the other.
    pub(crate) fn creating(
        &self,
        parent: &Node,
        name: &OsStr,
        op: &mut dyn FnMut() -> io::Result<()>,
    ) -> Answer<()> {
        self.refuse_virtual(parent, name)?;
        let part = self.classify(&backing::join(&parent.path(), name));
        match self.database_of(part.as_ref()) {
            Some((database, Side::Journal)) => {
                database.create_journal(op).map_err(|error| self.refused(error))?;
            }
            Some((database, Side::Shm)) => {
                op()?;
                database.shm_replaced();
            }
            Some((_, Side::Database | Side::Wal)) => op()?,
            None => {
                self.refuse_new_journal(part.as_ref())?;
                op()?;
            }
        }
        Ok(())
    }

    /// The daemon's own names cannot be taken away or given to something else.
    fn refuse_virtual(&self, parent: &Node, name: &OsStr) -> Answer<()> {
        let reserved = parent.id() == ROOT && name == virtual_files::PRIMARY_NAME;
        if reserved || virtual_files::find(&self.store, &self.presence, &parent.path(), name).is_some() {
            return Err(Errno::EACCES);
        }
        Ok(())
    }

    /// `again`: a daemon that died had read the request; what is not there any more it has removed, as the kernel lets nobody else change
    /// the directory before the request is answered.
    pub(crate) fn unlink(&self, parent: u64, name: &OsStr, caller: Caller, again: bool) -> Answer<()> {
        let parent = self.node(parent)?;
        self.refuse_virtual(&parent, name)?;
        self.check_client_at(&parent.path(), name, caller, Use::Remove)?;
        let victim = match backing::stat_name(parent.fd(), name) {
            Err(nix::errno::Errno::ENOENT) if again => return self.finish_removal(&parent, name),
            victim => victim?,
        };
        let part = self.part(&backing::join(&parent.path(), name), &victim);
        self.check_sound(part.as_ref())?;
        self.loses_last_name(&victim);
        let mut op = || Ok(backing::unlink(parent.fd(), name)?);
        let removed = self.removing(part.as_ref(), &mut op);
        if removed.is_err() && backing::stat_name(parent.fd(), name).is_ok() {
            return removed;
        }
        self.lost_name(&victim);
        if let (Err(_), Some((name, side))) = (&removed, &part) {
            // The client is told of an error, so that the kernel believes that the file is still there.
            if let Some(node) = self.table.by_inode(victim.st_ino) {
                node.mark_removed();
            }
            self.store.forget_side_file(name, *side);
        }
        removed
    }

    /// A name is gone, and the process that removed it may have died before the engine knew all about it.
    fn finish_removal(&self, parent: &Node, name: &OsStr) -> Answer<()> {
        let part = self.classify(&backing::join(&parent.path(), name));
        self.removing(part.as_ref(), &mut || Ok(()))
    }

    /// Performs an operation after which the name of `part` is gone.
    fn removing(&self, part: Option<&Part>, op: &mut dyn FnMut() -> io::Result<()>) -> Answer<()> {
        match self.database_of(part) {
            Some((database, Side::Database)) => {
                database
                    .unlink_database(op)
                    .map_err(|error| self.refused(error))?;
            }
            Some((database, Side::Journal)) => database.unlink_journal(op)?,
            Some((database, Side::Wal)) => database.unlink_wal(op)?,
            Some((database, Side::Shm)) => database.unlink_shm(op)?,
            None => op()?,
        }
        Ok(())
    }

    /// Before the operation that takes the last name of a file.
    fn loses_last_name(&self, before: &FileStat) {
        if before.st_nlink <= 1
            && let Some(node) = self.table.by_inode(before.st_ino)
        {
            self.loses_name(&node);
        }
    }

    /// Handles of a file whose last name is gone are no part of a database that may be created under that name.
    fn lost_name(&self, before: &FileStat) {
        if before.st_nlink <= 1
            && let Some(node) = self.table.by_inode(before.st_ino)
        {
            node.detach_name();
            // Again, for whom a lookup has led here meanwhile.
            self.loses_name(&node);
            self.shm_keeper.lost_name(before.st_ino);
        }
    }

    pub(crate) fn rmdir(&self, parent: u64, name: &OsStr, again: bool) -> Answer<()> {
        match backing::remove_dir(self.node(parent)?.fd(), name) {
            Err(nix::errno::Errno::ENOENT) if again => Ok(()),
            removed => Ok(removed?),
        }
    }

    pub(crate) fn rename(
        &self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        flags: RenameFlags,
        caller: Caller,
        again: bool,
    ) -> Answer<()> {
        let (from_dir, to_dir) = (self.node(from.0)?, self.node(to.0)?);
        self.refuse_virtual(&from_dir, from.1)?;
        self.refuse_virtual(&to_dir, to.1)?;
        for (dir, name) in [(&from_dir, from.1), (&to_dir, to.1)] {
            self.check_client_at(&dir.path(), name, caller, Use::Remove)?;
        }
        let target = self.end(&to_dir, to.1)?;
        let target_path = backing::join(&to_dir.path(), to.1);
        let source = match (self.end(&from_dir, from.1)?, &target) {
            (None, Some(moved)) if again => {
                return self.finish_rename(&backing::join(&from_dir.path(), from.1), moved);
            }
            (source, _) => source.ok_or(Errno::ENOENT)?,
        };
        if flags.contains(RenameFlags::RENAME_NOREPLACE) && target.is_some() {
            return Err(Errno::EEXIST);
        }
        let mut op = || {
            Ok(backing::rename(
                (from_dir.fd(), from.1),
                (to_dir.fd(), to.1),
                flags,
            )?)
        };
        if same_inode(&source, target.as_ref()) {
            return Ok(op()?);
        }
        for end in std::iter::once(&source).chain(&target) {
            self.check_sound(end.part.as_ref())?;
        }
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            let target = target.ok_or(Errno::ENOENT)?;
            return self.exchange(&source, &target, &mut op);
        }
        if let Some(target) = &target {
            self.loses_last_name(&target.stat);
        }
        self.renaming(&source, target.as_ref(), &target_path, &mut op)
    }

    /// A process that died had moved a file, and may not have got any further.
    fn finish_rename(&self, from: &[u8], moved: &End) -> Answer<()> {
        let is_regular = moved.stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        let source = End {
            path: from.to_vec(),
            part: if is_regular { self.classify(from) } else { None },
            stat: moved.stat,
        };
        self.renaming(&source, None, &moved.path, &mut || Ok(()))
    }

    /// One end of a rename, as it is before.
    fn end(&self, dir: &Node, name: &OsStr) -> Answer<Option<End>> {
        let stat = match backing::stat_name(dir.fd(), name) {
            Ok(stat) => stat,
            Err(nix::errno::Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let path = backing::join(&dir.path(), name);
        let part = self.part(&path, &stat);
        Ok(Some(End { path, part, stat }))
    }

    fn renaming(
        &self,
        source: &End,
        target: Option<&End>,
        target_path: &[u8],
        op: &mut dyn FnMut() -> io::Result<()>,
    ) -> Answer<()> {
        let new_part = if source.is_dir() {
            None
        } else {
            self.classify(target_path)
        };
        let source_database = self.database_of(source.part.as_ref());
        match (&source_database, &new_part) {
            (Some((database, Side::Database)), Some((to, Side::Database))) => {
                self.store
                    .rename(database.name(), to, op)
                    .map_err(|error| self.refused(error))?;
            }
            // A database, journal or WAL that gets a name of another kind is gone for its database.
            (Some(_), _) => self.removing(source.part.as_ref(), op)?,
            // An ordinary file takes the place of what may be a database's.
            (None, _) => self.removing(target.and_then(|target| target.part.as_ref()), op)?,
        }
        if let Some(target) = target {
            self.lost_name(&target.stat);
        }
        self.table
            .moved(source.stat.st_ino, target_path, source.is_dir(), |path| {
                self.classify(path)
            });
        if source.is_dir() {
            self.rename_databases_below(&source.path, target_path)?;
        } else if let Some(part) = new_part {
            self.settle(&part, source.stat.st_ino);
        }
        Ok(())
    }

    fn exchange(&self, source: &End, target: &End, op: &mut dyn FnMut() -> io::Result<()>) -> Answer<()> {
        if source.is_dir() || target.is_dir() {
            op()?;
            self.table
                .swapped(&source.path, &target.path, |path| self.classify(path));
            return Ok(());
        }
        // Two contents change places: both names lose what they had, then each is looked at anew.
        self.removing(source.part.as_ref(), op)?;
        self.removing(target.part.as_ref(), &mut || Ok(()))?;
        self.table
            .swapped(&source.path, &target.path, |path| self.classify(path));
        for (part, inode) in [
            (&source.part, target.stat.st_ino),
            (&target.part, source.stat.st_ino),
        ] {
            if let Some(part) = part {
                self.settle(part, inode);
            }
        }
        Ok(())
    }

    /// A file arrived under a name that can be a database's: it is one if its content says so.
    fn settle(&self, part: &Part, inode: u64) {
        match part {
            (name, Side::Database) => {
                let Some(node) = self.table.by_inode(inode) else {
                    return;
                };
                self.attach_if_database(name, &node);
            }
            (name, Side::Wal) => {
                if let Some(database) = self.store.database(name) {
                    database.wal_opened();
                }
            }
            (_, Side::Journal | Side::Shm) => {}
        }
    }

    /// Databases in a renamed directory are renamed with it, one after the other.
    fn rename_databases_below(&self, from: &[u8], to: &[u8]) -> Answer<()> {
        for database in self.store.databases() {
            let path = database.name().to_string();
            let Some(rest) = path
                .as_bytes()
                .strip_prefix(from)
                .filter(|rest| rest.starts_with(b"/"))
            else {
                continue;
            };
            match self.classify(&[to, rest].concat()) {
                Some((name, Side::Database)) => {
                    self.store.rename(database.name(), &name, &mut || Ok(()))?;
                }
                Some(_) | None => database.unlink_database(&mut || Ok(()))?,
            }
        }
        Ok(())
    }
}

/// A request that comes again finds what the process that died had made.
fn unless_made(again: bool, made: nix::Result<()>) -> nix::Result<()> {
    match made {
        Err(nix::errno::Errno::EEXIST) if again => Ok(()),
        made => made,
    }
}

struct End {
    path: Vec<u8>,
    part: Option<Part>,
    stat: FileStat,
}

impl End {
    fn is_dir(&self) -> bool {
        self.stat.st_mode & libc::S_IFMT == libc::S_IFDIR
    }
}

fn same_inode(source: &End, target: Option<&End>) -> bool {
    target.is_some_and(|target| target.stat.st_ino == source.stat.st_ino)
}
