//! The kernel's requests: decode, call, reply. Nothing is decided here.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileAttr, FileHandle, Filesystem, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::backing::Moment;
use super::data::{Changes, Created};
use super::edge::{Edge, TTL};
use super::errno::{Answer, Errno};
use super::readdir;
use super::requests::{FileKind, Op};
use super::tree::{Caller, Entry};
use super::virtual_files;

/// Large copies into the mount; SQLite's own writes are single pages.
const MAX_WRITE: u32 = 1 << 20;

pub(crate) struct Serve {
    pub(crate) edge: Arc<Edge>,
}

const GENERATION: Generation = Generation(0);

fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
    }
}

fn reply_empty(reply: ReplyEmpty, answer: Answer<()>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

fn reply_made(reply: ReplyEntry, answer: Answer<FileAttr>) {
    match answer {
        Ok(attr) => reply.entry(&TTL, &attr, GENERATION),
        Err(error) => reply.error(error.into()),
    }
}

impl Serve {
    fn reply_attr(&self, reply: ReplyAttr, id: INodeNo, answer: Answer<FileAttr>) {
        match answer {
            Ok(attr) => reply.attr(&self.edge.ttl_by_id(id.0), &attr),
            Err(error) => reply.error(error.into()),
        }
    }

    fn count_name(&self, op: Op, parent: INodeNo, name: &OsStr) {
        self.edge.count(op, self.edge.kind_by_name(parent.0, name));
    }

    fn count_inode(&self, op: Op, id: INodeNo) {
        self.edge.count(op, self.edge.kind_by_id(id.0));
    }
}

impl Filesystem for Serve {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Neither FUSE_POSIX_LOCKS nor FUSE_FLOCK_LOCKS: locks stay in the kernel. No writeback cache: dirty pages would hide from capture.
        let mut wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_CACHE_SYMLINKS
            // Otherwise a chown, which SQLite does as root for every journal, costs a GETATTR more.
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2;
        if self.edge.wants_passthrough {
            wanted |= InitFlags::FUSE_PASSTHROUGH;
            // The argument is at most the kernel's limit of 2.
            let _ = config.set_max_stack_depth(self.edge.stack_depth);
        }
        #[cfg(feature = "canary")]
        if engine::canary::lasts(engine::canary::Fault::GrantLocks) {
            wanted |= InitFlags::FUSE_POSIX_LOCKS;
        }
        if let Err(missing) = config.add_capabilities(wanted) {
            tracing::info!(?missing, "this kernel lacks some FUSE capabilities");
            let _ = config.add_capabilities(wanted & !missing);
        }
        let _ = config.set_max_write(MAX_WRITE);
        Ok(())
    }

    /// Only asked when a canary wants to answer wrongly: nobody ever holds a lock.
    #[cfg(feature = "canary")]
    fn setlk(
        &self,
        _request: &Request,
        _id: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        _start: u64,
        _end: u64,
        _kind: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    #[cfg(feature = "canary")]
    fn getlk(
        &self,
        _request: &Request,
        _id: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        _start: u64,
        _end: u64,
        _kind: i32,
        _pid: u32,
        reply: fuser::ReplyLock,
    ) {
        reply.locked(0, 0, i32::from(libc::F_UNLCK as i16), 0);
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count_name(Op::Lookup, parent, name);
        self.edge.begin(request.unique().0);
        match self.edge.lookup(parent.0, name, caller(request)) {
            Ok(Entry::Node(attr)) => reply.entry(&TTL, &attr, GENERATION),
            Ok(Entry::Virtual(attr)) => reply.entry(&virtual_files::TTL, &attr, GENERATION),
            Ok(Entry::Missing { cacheable: true }) => reply.entry(&TTL, &NOTHING, GENERATION),
            Ok(Entry::Missing { cacheable: false }) => reply.error(fuser::Errno::ENOENT),
            Err(error) => reply.error(error.into()),
        }
    }

    fn forget(&self, _request: &Request, id: INodeNo, lookups: u64) {
        self.edge.count(Op::Forget, FileKind::Other);
        self.edge.forget(id.0, lookups);
    }

    fn getattr(&self, _request: &Request, id: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.count_inode(Op::Getattr, id);
        self.reply_attr(reply, id, self.edge.getattr(id.0));
    }

    fn setattr(
        &self,
        request: &Request,
        id: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.count_inode(Op::Setattr, id);
        let times = (atime.is_some() || mtime.is_some()).then(|| (moment(atime), moment(mtime)));
        let changes = Changes {
            size,
            permissions: mode,
            uid,
            gid,
            times,
        };
        let answer = self
            .edge
            .setattr(id.0, handle.map(|handle| handle.0), changes, caller(request));
        self.reply_attr(reply, id, answer);
    }

    fn readlink(&self, _request: &Request, id: INodeNo, reply: ReplyData) {
        self.edge.count(Op::Readlink, FileKind::Other);
        match self.edge.readlink(id.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        self.count_name(Op::Mknod, parent, name);
        let again = self.edge.begin(request.unique().0);
        let owner = caller(request).owns(mode, umask);
        reply_made(reply, self.edge.mknod(parent.0, name, mode, owner, again));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.edge.count(Op::Mkdir, FileKind::Other);
        let again = self.edge.begin(request.unique().0);
        let owner = caller(request).owns(mode, umask);
        reply_made(reply, self.edge.mkdir(parent.0, name, owner, again));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count_name(Op::Unlink, parent, name);
        let again = self.edge.begin(request.unique().0);
        reply_empty(reply, self.edge.unlink(parent.0, name, caller(request), again));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.edge.count(Op::Rmdir, FileKind::Other);
        let again = self.edge.begin(request.unique().0);
        reply_empty(reply, self.edge.rmdir(parent.0, name, again));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.edge.count(Op::Symlink, FileKind::Other);
        let again = self.edge.begin(request.unique().0);
        let owner = caller(request).owns(0o777, 0);
        reply_made(reply, self.edge.symlink(parent.0, name, target, owner, again));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.count_name(Op::Rename, parent, name);
        let again = self.edge.begin(request.unique().0);
        let known = nix::fcntl::RenameFlags::from_bits(flags.bits())
            .filter(|flags| !flags.contains(nix::fcntl::RenameFlags::RENAME_WHITEOUT));
        let answer = match known {
            Some(flags) => {
                let (from, to) = ((parent.0, name), (new_parent.0, new_name));
                self.edge.rename(from, to, flags, caller(request), again)
            }
            None => Err(Errno::EINVAL),
        };
        reply_empty(reply, answer);
    }

    fn link(&self, request: &Request, id: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count_name(Op::Link, parent, name);
        let again = self.edge.begin(request.unique().0);
        reply_made(reply, self.edge.link(id.0, parent.0, name, again));
    }

    fn open(&self, request: &Request, id: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count_inode(Op::Open, id);
        self.edge.begin(request.unique().0);
        match self.edge.open(id.0, flags.0, caller(request)) {
            Ok(opened) => {
                let (number, flags) = (FileHandle(opened.number), opened.flags);
                match opened.backing {
                    Some(backing) => {
                        // SAFETY: the node has registered the number with the kernel and keeps it for as long as it is known.
                        let backing = unsafe { reply.wrap_backing(backing) };
                        reply.opened_passthrough(number, flags, &backing);
                        // It stays the node's.
                        backing.into_raw();
                    }
                    None => reply.opened(number, flags),
                }
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.count_name(Op::Create, parent, name);
        let again = self.edge.begin(request.unique().0);
        match self
            .edge
            .create((parent.0, name), (mode, umask), flags, caller(request), again)
        {
            Ok(Created { attr, ttl, opened }) => {
                let (number, flags) = (FileHandle(opened.number), opened.flags);
                match opened.backing {
                    Some(backing) => {
                        // SAFETY: as for an open.
                        let backing = unsafe { reply.wrap_backing(backing) };
                        reply.created_passthrough(&ttl, &attr, GENERATION, number, flags, &backing);
                        backing.into_raw();
                    }
                    None => reply.created(&ttl, &attr, GENERATION, number, flags),
                }
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _request: &Request,
        id: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count_inode(Op::Read, id);
        with_buffer(size as usize, |buffer| {
            match self.edge.read(handle.0, offset, buffer) {
                Ok(length) => reply.data(&buffer[..length]),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        id: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count_inode(Op::Write, id);
        let drop_privileges = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self.edge.write(handle.0, offset, data, drop_privileges) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        id: INodeNo,
        handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.count_inode(Op::Flush, id);
        reply_empty(reply, self.edge.flush(handle.0));
    }

    fn release(
        &self,
        _request: &Request,
        id: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.count_inode(Op::Release, id);
        self.edge.release(handle.0);
        reply.ok();
    }

    fn fsync(&self, _request: &Request, id: INodeNo, handle: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.count_inode(Op::Fsync, id);
        reply_empty(reply, self.edge.fsync(handle.0, datasync));
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        id: INodeNo,
        _handle: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.edge.count(Op::Fsyncdir, FileKind::Other);
        reply_empty(reply, self.edge.fsyncdir(id.0, datasync));
    }

    fn opendir(&self, _request: &Request, _id: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.edge.count(Op::Opendir, FileKind::Other);
        // Once answered like this, the kernel opens directories without asking.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _request: &Request,
        id: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.edge.count(Op::Readdir, FileKind::Other);
        let add =
            |entry: readdir::Listed<'_>| reply.add(INodeNo(entry.id), entry.next, entry.kind, entry.name);
        match self.edge.readdir(id.0, offset, add) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }

    fn statfs(&self, _request: &Request, _id: INodeNo, reply: ReplyStatfs) {
        self.edge.count(Op::Statfs, FileKind::Other);
        match self.edge.statfs() {
            Ok(s) => reply.statfs(
                s.blocks(),
                s.blocks_free(),
                s.blocks_available(),
                s.files(),
                s.files_free(),
                s.block_size() as u32,
                s.name_max() as u32,
                s.fragment_size() as u32,
            ),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setxattr(
        &self,
        _request: &Request,
        _id: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.edge.count(Op::Xattr, FileKind::Other);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn getxattr(&self, _request: &Request, _id: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        self.edge.count(Op::Xattr, FileKind::Other);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn listxattr(&self, _request: &Request, _id: INodeNo, _size: u32, reply: ReplyXattr) {
        self.edge.count(Op::Xattr, FileKind::Other);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn removexattr(&self, _request: &Request, _id: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        self.edge.count(Op::Xattr, FileKind::Other);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn access(&self, _request: &Request, _id: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.edge.count(Op::Access, FileKind::Other);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _id: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.edge.count(Op::Ioctl, FileKind::Other);
        reply.error(fuser::Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        _request: &Request,
        id: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        self.count_inode(Op::Fallocate, id);
        reply.error(fuser::Errno::EOPNOTSUPP);
    }

    fn lseek(
        &self,
        _request: &Request,
        id: INodeNo,
        _handle: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        self.count_inode(Op::Lseek, id);
        // The kernel falls back to the file's size.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        id: INodeNo,
        _handle_in: FileHandle,
        _offset_in: u64,
        _out: INodeNo,
        _handle_out: FileHandle,
        _offset_out: u64,
        _length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.count_inode(Op::CopyFileRange, id);
        // The kernel copies through the page cache, so that every byte passes the engine.
        reply.error(fuser::Errno::ENOSYS);
    }
}

/// A negative entry: inode number 0.
const NOTHING: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: fuser::FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

fn moment(time: Option<TimeOrNow>) -> Moment {
    match time {
        None => Moment::Keep,
        Some(TimeOrNow::Now) => Moment::Now,
        Some(TimeOrNow::SpecificTime(time)) => match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Moment::At(after.as_secs() as i64, i64::from(after.subsec_nanos())),
            // `fuser` takes the nanoseconds of a time before the epoch for a distance into the past, although they count forwards.
            Err(before) => {
                let before = before.duration();
                Moment::At(-(before.as_secs() as i64), i64::from(before.subsec_nanos()))
            }
        },
    }
}

/// One buffer per serving thread: a READ allocates nothing.
fn with_buffer<R>(length: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        f(&mut buffer[..length])
    })
}
