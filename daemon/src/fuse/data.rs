//! Files: open, read, write, truncate, sync and close.
//!
//! First link of a transaction's life: every change a client makes to a file of a known database becomes one call of the engine, which
//! performs it on the backing file. All other files are served from the backing tree directly.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use engine::{DbName, Side};
use fuser::{FileAttr, FopenFlags};
use nix::errno::Errno as Os;
use nix::fcntl::OFlag;

use super::attr;
use super::backing::{self, Moment, Ownership};
use super::edge::{Edge, Use};
use super::errno::{Answer, Errno};
use super::handle::{Handle, OpenFile, OpenVirtual, Opening};
use super::node::{Admission, Node, Part, Transfer};
use super::tree::Caller;
use super::virtual_files::VirtualFiles;

/// How SQLite's main file begins.
pub(crate) const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Bytes of SQLite's header, which it reads when it opens a database; all else it reads as pages.
const HEADER: u64 = 100;

/// A file that was opened: what to tell the kernel.
pub(crate) struct Opened {
    pub(crate) number: u64,
    pub(crate) flags: FopenFlags,
    /// The kernel's number for the file that it reads and writes itself.
    pub(crate) backing: Option<u32>,
}

/// A file that was created and opened.
pub(crate) struct Created {
    pub(crate) attr: FileAttr,
    /// How long the kernel may believe the name and the attributes.
    pub(crate) ttl: Duration,
    pub(crate) opened: Opened,
}

/// Attributes to change; what is `None` stays.
pub(crate) struct Changes {
    pub(crate) size: Option<u64>,
    pub(crate) permissions: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) times: Option<(Moment, Moment)>,
}

impl Edge {
    /// Opens an inode.
    pub(crate) fn open(&self, id: u64, flags: i32, caller: Caller) -> Answer<Opened> {
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if VirtualFiles::is_virtual(id) {
            return self.open_virtual(id, write, caller);
        }
        self.check_descriptors()?;
        let node = self.node(id)?;
        self.check_client(node.part().as_ref(), caller, Use::of_open(write))?;
        let file = self.open_backing_file(&node, write)?;
        self.admit(node, file, write, false, caller)
    }

    /// Opens the backing file with at least the client's access. The kernel has checked the client's permission; a file that the client
    /// may only write is opened for reading too, because what is written is compared with what was there.
    fn open_backing_file(&self, node: &Node, write: bool) -> Answer<File> {
        if node.is_dir() {
            return Err(Errno::EISDIR);
        }
        if !write {
            return Ok(backing::reopen(node.fd(), OFlag::O_RDONLY)?);
        }
        self.check_sound(node.part().as_ref())?;
        match backing::reopen(node.fd(), OFlag::O_RDWR) {
            Err(Os::EACCES) => Ok(backing::reopen(node.fd(), OFlag::O_WRONLY)?),
            opened => Ok(opened?),
        }
    }

    /// Files of a database that could not be opened would be changed without a transaction.
    pub(crate) fn check_sound(&self, part: Option<&Part>) -> Answer<()> {
        match part {
            Some((name, _)) if self.store.is_damaged(name) => Err(Errno::EACCES),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the file is of a database that waits for room to be opened: what the WAL holds may be missing in it.
    fn waits_for_room(&self, node: &Node) -> bool {
        node.with_part(|part| part.is_some_and(|(name, _)| self.store.waits_for_room(name)))
    }

    /// Creates a regular file and opens it, or opens the one that appeared meanwhile unless the caller insists.
    pub(crate) fn create(
        &self,
        (parent, name): (u64, &OsStr),
        (mode, umask): (u32, u32),
        flags: i32,
        caller: Caller,
        again: bool,
    ) -> Answer<Created> {
        self.check_descriptors()?;
        let dir = self.node(parent)?;
        // What is there when the request comes again, the process that died has made: nobody else could in between.
        let flags = if again { flags & !libc::O_EXCL } else { flags };
        let created = self.make(&dir, name, caller, caller.owns(mode, umask), flags)?;
        let (node, stat) = self.enter(&dir, name)?;
        if !node.is_regular() {
            self.forget(node.id(), 1);
            // The kernel looks the name up again and follows what it finds.
            return Err(Errno::ESTALE);
        }
        let attr = attr::of(node.id(), &stat);
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let born = created.is_some();
        let file = match created {
            Some(file) => file,
            None => self
                .open_backing_file(&node, write)
                .inspect_err(|_| self.forget(node.id(), 1))?,
        };
        let (id, ttl) = (node.id(), self.ttl(&node));
        let opened = self
            .admit(node, file, write, born, caller)
            .inspect_err(|_| self.forget(id, 1))?;
        Ok(Created { attr, ttl, opened })
    }

    /// Makes the file itself. `None`: it is there without our having it open.
    fn make(
        &self,
        dir: &Node,
        name: &OsStr,
        caller: Caller,
        owner: Ownership,
        flags: i32,
    ) -> Answer<Option<File>> {
        let part = self.classify(&backing::join(&dir.path(), name));
        self.check_client(part.as_ref(), caller, Use::Write)?;
        self.check_sound(part.as_ref())?;
        let create = match &part {
            Some((_, Side::Database | Side::Wal | Side::Shm)) => backing::create_whole,
            // Once per transaction, so it should cost little.
            Some((_, Side::Journal)) | None => backing::create,
        };
        if let Some((name, Side::Journal | Side::Wal)) = &part
            && self.store.database(name).is_none()
        {
            self.foreign.tell(name, &self.files_dir);
        }
        let side_file = self.made_by_root(part, caller)?;
        let mut created = None;
        let mut op = || {
            if let Some((database, side)) = &side_file {
                if backing::stat_name(dir.fd(), name).is_ok() {
                    return Err(io::Error::from_raw_os_error(libc::EEXIST));
                }
                return self.store.create_side_file(database, *side);
            }
            created = Some(create(dir.fd(), name, owner)?);
            Ok(())
        };
        match self.creating(dir, name, &mut op) {
            Ok(()) => {}
            Err(Errno::EEXIST) if flags & libc::O_EXCL == 0 => {}
            Err(error) => return Err(error),
        }
        Ok(created)
    }

    /// A WAL or wal-index that root makes for a database. SQLite gives to the database's owner what it creates as root, as the companions do
    /// all the time; until then other users could not open the file and would take the database for read-only.
    fn made_by_root(&self, part: Option<Part>, caller: Caller) -> Answer<Option<Part>> {
        let part = part
            .filter(|(_, side)| caller.uid == 0 && matches!(side, Side::Wal | Side::Shm))
            .filter(|part| self.database_of(Some(part)).is_some());
        let has_owner = |(database, _): &Part| database.file_in(&self.files_dir, Side::Database).exists();
        match part {
            // The database was dropped while its wal-index was being opened. One that nobody owns would be in the way of the next of its name.
            Some(part) if !has_owner(&part) && self.companion.is_opener(caller.pid) => Err(Errno::ENOENT),
            part => Ok(part.filter(has_owner)),
        }
    }

    fn admit(
        &self,
        node: Arc<Node>,
        file: File,
        writable: bool,
        born: bool,
        caller: Caller,
    ) -> Answer<Opened> {
        let part = node.part();
        let side = part.as_ref().map(|(_, side)| *side);
        let is_opener = self.companion.is_opener(caller.pid);
        let Admission {
            transfer,
            backing,
            keep_cache,
            writes_past,
        } = self
            .admit_as_now(&node, part.as_ref(), &file, (born, writable && !is_opener))
            // The kernel looks the name up again.
            .ok_or(Errno::ESTALE)?;
        if side == Some(Side::Shm) && transfer == Transfer::Passthrough && !is_opener {
            self.shm_keeper.opened(&node);
        }
        if side == Some(Side::Wal) {
            if transfer == Transfer::Passthrough {
                self.wal_watch.add(&node);
            }
            if let Some((database, _)) = self.database_of(part.as_ref()) {
                database.wal_opened();
            }
        }
        let mut flags = match transfer {
            Transfer::Cached | Transfer::Passthrough => FopenFlags::empty(),
            Transfer::Intercepted => FopenFlags::FOPEN_DIRECT_IO,
        };
        if keep_cache {
            flags |= FopenFlags::FOPEN_KEEP_CACHE;
        }
        // Nothing waits for FLUSH: a close, also the one that a fork or exec implies, must not wait for a daemon that the same process may be
        // about to start. Raw writes become a transaction when the handle is released.
        flags |= FopenFlags::FOPEN_NOFLUSH;
        let opening = Opening {
            process: caller.pid,
            ours: is_opener,
        };
        Ok(Opened {
            number: self
                .handles
                .insert_file(node, file, (writable, writes_past), &opening),
            flags,
            backing,
        })
    }

    /// Admits a handle by what holds when it counts: who ends the time as primary sees it, or it sees that the time has ended.
    fn admit_as_now(
        &self,
        node: &Node,
        part: Option<&Part>,
        file: &File,
        (born, writes): (bool, bool),
    ) -> Option<Admission> {
        loop {
            let wanted = self.transfer(part);
            let admission = node.open_handle(wanted, (born, writes), || self.connection.back(file))?;
            if !admission.writes_past || self.transfer(part) == wanted {
                return Some(admission);
            }
            node.close_handle(true);
        }
    }

    fn open_virtual(&self, id: u64, write: bool, caller: Caller) -> Answer<Opened> {
        let file = self.virtual_files.get(id).ok_or(Errno::ESTALE)?;
        file.check_open(&self.store, write)?;
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
        let opening = Opening {
            process: caller.pid,
            ours: false,
        };
        Ok(Opened {
            number: self.handles.insert_virtual(file, id, &opening),
            flags,
            backing: None,
        })
    }

    pub(crate) fn handle(&self, number: u64) -> Answer<Arc<Handle>> {
        self.handles.get(number).ok_or(Errno::EBADF)
    }

    pub(crate) fn read(&self, number: u64, offset: u64, buffer: &mut [u8]) -> Answer<usize> {
        match &*self.handle(number)? {
            // SQLite takes EIO for a damaged database, and would say so.
            Handle::File(open) if self.is_unreadable(open.node.id()) => Err(Errno::ESTALE),
            Handle::File(open)
                if self.waits_for_room(&open.node) && offset + buffer.len() as u64 > HEADER =>
            {
                Err(Errno::ENOSPC)
            }
            Handle::File(open) => Ok(backing::read_full(open.file(), offset, buffer)?),
            Handle::Virtual(open) => self.read_virtual(open, offset, buffer),
        }
    }

    fn read_virtual(&self, open: &OpenVirtual, offset: u64, buffer: &mut [u8]) -> Answer<usize> {
        let mut text = open.text.lock();
        if offset == 0 {
            *text = open.file.text(&self.store, &self.presence)?;
        }
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| text.get(offset..))
            .unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    /// `drop_privileges`: the writer is not privileged to keep the set-user-id bit of what it writes to.
    pub(crate) fn write(&self, number: u64, offset: u64, data: &[u8], drop_privileges: bool) -> Answer<()> {
        let handle = self.handle(number)?;
        let Handle::File(open) = &*handle else {
            return Err(Errno::EBADF);
        };
        #[cfg(feature = "canary")]
        if let Some((_, side)) = self.route(&open.node)
            && canary_drops(side)
        {
            return Ok(());
        }
        match self.route(&open.node) {
            Some((database, Side::Database)) => {
                open.note_write();
                database
                    .write_database(open.file(), offset, data)
                    .map_err(|error| self.refused(error))?;
            }
            Some((database, Side::Wal)) => database
                .write_wal(open.file(), offset, data)
                .map_err(|error| self.refused(error))?,
            Some((database, Side::Journal)) => database
                .write_journal(open.file(), offset, data)
                .map_err(|error| self.refused(error))?,
            Some((_, Side::Shm)) => open.file().write_all_at(data, offset)?,
            None => {
                self.write_ordinary(open, offset, data)?;
                if drop_privileges {
                    backing::drop_privileges(open.node.fd())?;
                }
            }
        }
        Ok(())
    }

    fn write_ordinary(&self, open: &OpenFile, offset: u64, data: &[u8]) -> Answer<()> {
        open.note_write();
        let part = open.node.part();
        if let Some((name, Side::Database)) = &part
            && offset == 0
            && data.starts_with(MAGIC)
        {
            let database = match self.store.attach(name) {
                Err(engine::Error::ReadOnly(name)) => return Err(self.refuse_new_database(&name)),
                attached => attached?,
            };
            database.write_database(open.file(), offset, data)?;
            return Ok(());
        }
        Ok(open.file().write_all_at(data, offset)?)
    }

    pub(crate) fn fsync(&self, number: u64, datasync: bool) -> Answer<()> {
        let handle = self.handle(number)?;
        let Handle::File(open) = &*handle else {
            return Ok(());
        };
        match self.route(&open.node) {
            Some((database, Side::Database)) => database.sync_database(open.file(), datasync)?,
            Some((database, Side::Wal)) => database.sync_wal(open.file(), datasync)?,
            Some((database, Side::Journal)) => database.sync_journal(open.file(), datasync)?,
            Some((_, Side::Shm)) | None => sync(open.file(), datasync)?,
        }
        Ok(())
    }

    pub(crate) fn fsyncdir(&self, id: u64, datasync: bool) -> Answer<()> {
        Ok(sync(self.node(id)?.directory()?, datasync)?)
    }

    /// A descriptor of the handle is closed, and its owner waits.
    pub(crate) fn flush(&self, number: u64) -> Answer<()> {
        match &*self.handle(number)? {
            Handle::File(open) => self.settle_writes(open, false),
            Handle::Virtual(_) => Ok(()),
        }
    }

    /// The last descriptor of the handle is gone; nobody waits, so an error can only be logged.
    pub(crate) fn release(&self, number: u64) {
        let Some(handle) = self.handles.remove(number) else {
            return;
        };
        let Handle::File(open) = &*handle else { return };
        if let Err(error) = self.settle_writes(open, true) {
            tracing::warn!(path = %String::from_utf8_lossy(&open.node.path()), %error, "close of a database file");
        }
        if open.node.close_handle(open.writes_past) {
            self.bury(&open.node);
        }
    }

    /// What was written outside any transaction of SQLite becomes one now, or makes an ordinary file a database.
    fn settle_writes(&self, open: &OpenFile, last: bool) -> Answer<()> {
        let wrote = open.take_wrote();
        match self.route(&open.node) {
            Some((database, Side::Database)) if wrote || (last && open.writable) => {
                database.close_database();
                Ok(())
            }
            None if wrote => {
                if let Some((name, Side::Database)) = open.node.part() {
                    self.attach_if_database(&name, &open.node);
                }
                Ok(())
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Makes a file whose content begins as a database's one. A refusal (a replica, a damaged file) leaves it ordinary.
    pub(crate) fn attach_if_database(&self, name: &DbName, node: &Node) {
        let Ok(file) = backing::reopen(node.fd(), OFlag::O_RDONLY) else {
            return;
        };
        let mut head = [0; MAGIC.len()];
        if !matches!(backing::read_full(&file, 0, &mut head), Ok(length) if head[..length] == MAGIC[..]) {
            return;
        }
        match self.store.attach(name) {
            Ok(database) => database.close_database(),
            Err(error) => tracing::warn!(database = %name, %error, "the file stays ordinary"),
        }
    }

    pub(crate) fn setattr(
        &self,
        id: u64,
        number: Option<u64>,
        changes: Changes,
        caller: Caller,
    ) -> Answer<FileAttr> {
        if VirtualFiles::is_virtual(id) {
            // `open(O_TRUNC)` and `touch` of a file without storage: allowed, without effect.
            return self.getattr(id);
        }
        let node = self.node(id)?;
        if changes.uid.is_some() || changes.gid.is_some() {
            backing::change_owner(node.fd(), changes.uid, changes.gid)?;
        }
        if let Some(permissions) = changes.permissions {
            backing::change_mode(node.fd(), permissions & 0o7777)?;
        }
        if changes.uid.is_some() || changes.gid.is_some() || changes.permissions.is_some() {
            self.store.owner_changed(&backing::to_path(&node.path()));
        }
        if let Some(size) = changes.size {
            if number.is_none() {
                self.check_client(node.part().as_ref(), caller, Use::Remove)?;
            }
            self.truncate(&node, number, size)?;
            if caller.uid != 0 {
                backing::drop_privileges(node.fd())?;
            }
        }
        if let Some((access, modification)) = changes.times {
            backing::change_times(node.fd(), access, modification)?;
        }
        Ok(attr::of(id, &backing::stat_fd(node.fd())?))
    }

    fn truncate(&self, node: &Node, number: Option<u64>, size: u64) -> Answer<()> {
        let handle = number.map(|number| self.handle(number)).transpose()?;
        let opened;
        let file = match handle.as_deref() {
            Some(Handle::File(open)) if open.writable => {
                open.note_write();
                open.file()
            }
            Some(_) | None => {
                opened = self.open_backing_file(node, true)?;
                &opened
            }
        };
        match self.route(node) {
            #[cfg(feature = "canary")]
            Some((_, Side::Database)) if engine::canary::strikes(engine::canary::Fault::LoseTruncate) => {}
            Some((database, Side::Database)) => {
                database
                    .truncate_database(file, size)
                    .map_err(|error| self.refused(error))?;
                // Nobody will close it.
                if !node.is_open() {
                    database.close_database();
                }
            }
            Some((database, Side::Wal)) => database.truncate_wal(file, size)?,
            Some((database, Side::Journal)) => database
                .truncate_journal(file, size)
                // It may be truncated all the same, and the kernel believes that it is not.
                .inspect_err(|_| self.store.forget_side_file(database.name(), Side::Journal))?,
            Some((database, Side::Shm)) => database.truncate_shm(file, size)?,
            None => file.set_len(size)?,
        }
        Ok(())
    }
}

#[cfg(feature = "canary")]
fn canary_drops(side: Side) -> bool {
    use engine::canary::{Fault, strikes};
    match side {
        Side::Database => strikes(Fault::DropWrite),
        Side::Wal => strikes(Fault::DropWalWrite),
        Side::Shm | Side::Journal => false,
    }
}

fn sync(file: &File, datasync: bool) -> io::Result<()> {
    if datasync {
        file.sync_data()
    } else {
        file.sync_all()
    }
}
