//! The loopback: every inode that the kernel knows is an `O_PATH` descriptor here, so that unlinked and renamed files keep
//! working and no inode number is used twice.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLock, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use crate::fault::{Fault, is_database};

const TTL: Duration = Duration::from_secs(1);
const ROOT: u64 = 1;

pub(crate) struct Loopback {
    fault: Fault,
    inodes: Mutex<HashMap<u64, Inode>>,
    files: Mutex<HashMap<u64, Arc<Open>>>,
    directories: Mutex<HashMap<u64, Listing>>,
    next: AtomicU64,
}

/// A directory as it was when it was opened: positions in it stay what they are.
type Listing = Arc<Vec<(u64, FileType, OsString)>>;

struct Inode {
    path: Arc<File>,
    lookups: u64,
    database: bool,
}

struct Open {
    file: File,
    database: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file behind a descriptor, by a name that every system call takes.
fn by_descriptor(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn open_path(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)
}

impl Loopback {
    pub(crate) fn new(source: &Path, fault: Fault) -> io::Result<Loopback> {
        let root = Inode {
            path: Arc::new(open_path(source)?),
            lookups: 1,
            database: false,
        };
        Ok(Loopback {
            fault,
            inodes: Mutex::new(HashMap::from([(ROOT, root)])),
            files: Mutex::default(),
            directories: Mutex::default(),
            next: AtomicU64::new(1),
        })
    }

    fn path(&self, ino: INodeNo) -> io::Result<Arc<File>> {
        let inodes = locked(&self.inodes);
        let inode = inodes
            .get(&ino.0)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))?;
        Ok(inode.path.clone())
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(by_descriptor(&*self.path(parent)?).join(name))
    }

    /// Makes the kernel's reference to a name's inode.
    fn enter(&self, parent: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        let file = open_path(&self.child(parent, name)?)?;
        let attributes = attributes(&file.metadata()?);
        let mut inodes = locked(&self.inodes);
        let fresh = Inode {
            path: Arc::new(file),
            lookups: 0,
            database: is_database(name),
        };
        inodes.entry(attributes.ino.0).or_insert(fresh).lookups += 1;
        Ok(attributes)
    }

    /// As `enter`, for something just made by this process for another user.
    fn enter_new(&self, req: &Request, parent: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        let path = self.child(parent, name)?;
        std::os::unix::fs::lchown(&path, Some(req.uid()), Some(req.gid()))?;
        self.enter(parent, name)
    }

    fn file(&self, handle: FileHandle) -> io::Result<Arc<Open>> {
        locked(&self.files)
            .get(&handle.0)
            .cloned()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    fn is_database(&self, ino: INodeNo) -> bool {
        locked(&self.inodes)
            .get(&ino.0)
            .is_some_and(|inode| inode.database)
    }

    fn keep(&self, ino: INodeNo, file: File) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        locked(&self.files).insert(
            handle,
            Arc::new(Open {
                file,
                database: self.is_database(ino),
            }),
        );
        FileHandle(handle)
    }

    fn open_again(&self, ino: INodeNo, flags: i32) -> io::Result<File> {
        let access = flags & libc::O_ACCMODE;
        OpenOptions::new()
            .read(access != libc::O_WRONLY)
            .write(access != libc::O_RDONLY)
            .custom_flags(flags & libc::O_TRUNC)
            .open(by_descriptor(&*self.path(ino)?))
    }

    fn truncate(&self, ino: INodeNo, size: u64, handle: Option<FileHandle>) -> io::Result<()> {
        if self.fault.loses_truncate(self.is_database(ino)) {
            return Ok(());
        }
        match handle {
            Some(handle) => self.file(handle)?.file.set_len(size),
            None => self.open_again(ino, libc::O_WRONLY)?.set_len(size),
        }
    }

    fn list(&self, ino: INodeNo) -> io::Result<Vec<(u64, FileType, OsString)>> {
        let directory = by_descriptor(&*self.path(ino)?);
        let mut entries = vec![
            (ino.0, FileType::Directory, OsString::from(".")),
            (ROOT, FileType::Directory, OsString::from("..")),
        ];
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let kind = FileType::from_std(entry.file_type()?).unwrap_or(FileType::RegularFile);
            entries.push((
                std::os::unix::fs::DirEntryExt::ino(&entry),
                kind,
                entry.file_name(),
            ));
        }
        Ok(entries)
    }
}

fn attributes(metadata: &Metadata) -> FileAttr {
    let time = |seconds: i64, nanos: i64| {
        let since = Duration::new(
            u64::try_from(seconds).unwrap_or(0),
            u32::try_from(nanos).unwrap_or(0),
        );
        UNIX_EPOCH + since
    };
    FileAttr {
        ino: INodeNo(metadata.ino()),
        size: metadata.size(),
        blocks: metadata.blocks(),
        atime: time(metadata.atime(), metadata.atime_nsec()),
        mtime: time(metadata.mtime(), metadata.mtime_nsec()),
        ctime: time(metadata.ctime(), metadata.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: FileType::from_std(metadata.file_type()).unwrap_or(FileType::RegularFile),
        perm: (metadata.mode() & 0o7777) as u16,
        nlink: metadata.nlink() as u32,
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: metadata.rdev() as u32,
        blksize: 4096,
        flags: 0,
    }
}

fn time_spec(time: Option<TimeOrNow>) -> TimeSpec {
    match time {
        None => TimeSpec::UTIME_OMIT,
        Some(TimeOrNow::Now) => TimeSpec::UTIME_NOW,
        Some(TimeOrNow::SpecificTime(time)) => {
            TimeSpec::from(time.duration_since(UNIX_EPOCH).unwrap_or_default())
        }
    }
}

/// Answers with the value or with the error's number.
macro_rules! answer {
    ($reply:ident, $result:expr, $value:pat => $good:expr) => {
        match $result {
            Ok($value) => $good,
            Err(error) => $reply.error(Errno::from(error)),
        }
    };
}

impl Filesystem for Loopback {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if self.fault.grants_locks() {
            // Only then does the kernel ask at all.
            let _ = config.add_capabilities(InitFlags::FUSE_POSIX_LOCKS);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer!(reply, self.enter(parent, name), attr => reply.entry(&TTL, &attr, Generation(0)))
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        let mut inodes = locked(&self.inodes);
        if let Some(inode) = inodes.get_mut(&ino.0) {
            inode.lookups = inode.lookups.saturating_sub(nlookup);
            if inode.lookups == 0 && ino.0 != ROOT {
                inodes.remove(&ino.0);
            }
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.path(ino).and_then(|file| file.metadata());
        answer!(reply, found, metadata => reply.attr(&TTL, &attributes(&metadata)))
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = || -> io::Result<Metadata> {
            let file = self.path(ino)?;
            let path = by_descriptor(&file);
            if let Some(mode) = mode {
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode & 0o7777))?;
            }
            if uid.is_some() || gid.is_some() {
                std::os::unix::fs::chown(&path, uid, gid)?;
            }
            if let Some(size) = size {
                self.truncate(ino, size, fh)?;
            }
            if atime.is_some() || mtime.is_some() {
                let (atime, mtime) = (time_spec(atime), time_spec(mtime));
                let here = nix::fcntl::AT_FDCWD;
                utimensat(here, &path, &atime, &mtime, UtimensatFlags::FollowSymlink)?;
            }
            file.metadata()
        };
        answer!(reply, change(), metadata => reply.attr(&TTL, &attributes(&metadata)))
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let read = self
            .path(ino)
            .and_then(|file| Ok(nix::fcntl::readlinkat(&*file, "")?));
        answer!(reply, read, target => reply.data(target.as_bytes()))
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let make = self
            .child(parent, name)
            .and_then(|path| {
                std::fs::DirBuilder::new()
                    .mode(mode & !umask & 0o7777)
                    .create(path)
            })
            .and_then(|()| self.enter_new(req, parent, name));
        answer!(reply, make, attr => reply.entry(&TTL, &attr, Generation(0)))
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.child(parent, name).and_then(std::fs::remove_file), () => reply.ok())
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.child(parent, name).and_then(std::fs::remove_dir), () => reply.ok())
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let make = self
            .child(parent, name)
            .and_then(|path| std::os::unix::fs::symlink(target, path))
            .and_then(|()| self.enter_new(req, parent, name));
        answer!(reply, make, attr => reply.entry(&TTL, &attr, Generation(0)))
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let paths = self
            .child(parent, name)
            .and_then(|from| Ok((from, self.child(newparent, newname)?)));
        answer!(reply, paths.and_then(|(from, to)| std::fs::rename(from, to)), () => reply.ok())
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let make = || -> io::Result<FileAttr> {
            let file = self.path(ino)?;
            let to = self.child(newparent, newname)?;
            let here = nix::fcntl::AT_FDCWD;
            let follow = nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW;
            nix::unistd::linkat(here, &by_descriptor(&file), here, &to, follow)?;
            self.enter(newparent, newname)
        };
        answer!(reply, make(), attr => reply.entry(&TTL, &attr, Generation(0)))
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.open_again(ino, flags.0);
        answer!(reply, opened, file => reply.opened(self.keep(ino, file), FopenFlags::empty()))
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let make = || -> io::Result<(FileAttr, FileHandle)> {
            let path = self.child(parent, name)?;
            let exists = std::fs::symlink_metadata(&path).is_ok();
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .mode(mode & !umask & 0o7777)
                .custom_flags((flags & (libc::O_EXCL | libc::O_TRUNC)) | libc::O_NOFOLLOW)
                .open(&path)?;
            let attr = if exists {
                self.enter(parent, name)?
            } else {
                self.enter_new(req, parent, name)?
            };
            let handle = self.keep(attr.ino, file);
            Ok((attr, handle))
        };
        answer!(reply, make(), (attr, handle) => {
            reply.created(&TTL, &attr, Generation(0), handle, FopenFlags::empty());
        })
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut data = vec![0; size as usize];
        let read = || -> io::Result<usize> {
            let open = self.file(fh)?;
            let mut done = 0;
            while done < data.len() {
                match open.file.read_at(&mut data[done..], offset + done as u64)? {
                    0 => break,
                    more => done += more,
                }
            }
            Ok(done)
        };
        let result: io::Result<usize> = {
            let mut read = read;
            read()
        };
        answer!(reply, result, length => reply.data(&data[..length]))
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.file(fh).and_then(|open| {
            if self.fault.ends(open.database) {
                std::process::exit(1);
            }
            match self.fault.drops_write(open.database) {
                true => Ok(()),
                false => open.file.write_all_at(data, offset),
            }
        });
        answer!(reply, written, () => reply.written(data.len() as u32))
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        locked(&self.files).remove(&fh.0);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        answer!(reply, self.file(fh).and_then(|open| open.file.sync_all()), () => reply.ok())
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        answer!(reply, self.list(ino), entries => {
            let handle = self.next.fetch_add(1, Ordering::Relaxed);
            locked(&self.directories).insert(handle, Arc::new(entries));
            reply.opened(FileHandle(handle), FopenFlags::empty());
        })
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = locked(&self.directories).get(&fh.0).cloned().unwrap_or_default();
        for (index, (ino, kind, name)) in entries.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*ino), index as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        locked(&self.directories).remove(&fh.0);
        reply.ok();
    }

    /// Asked for only where every lock is granted.
    fn getlk(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        start: u64,
        end: u64,
        _typ: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        reply.locked(start, end, libc::F_UNLCK, 0);
    }

    fn setlk(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }
}
