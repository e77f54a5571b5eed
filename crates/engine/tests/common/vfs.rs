//! The client's end of a mount: a SQLite VFS over the backing files whose requests go to the test process, where the
//! kernel edge's part is played. Reads, locks and shared memory stay in the kernel, as on a real mount.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::ptr::{addr_of, null_mut};
use std::sync::{Mutex, OnceLock};

use rusqlite::ffi;

use super::edge::{Op, Request};

pub const NAME: &CStr = c"edge";

static CHANNEL: OnceLock<Channel> = OnceLock::new();

struct Channel {
    stream: Mutex<UnixStream>,
    base: usize,
    /// Writes to journal and WAL are requests too (mode D).
    intercepted: bool,
    /// Where the next daemon listens, if the mount outlives this one.
    socket: Option<PathBuf>,
}

#[repr(C)]
struct File {
    head: ffi::sqlite3_file,
    kind: Kind,
    path: *const c_char,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Database,
    Journal,
    Wal,
    Other,
}

/// Registers the VFS; requests go to the socket.
pub fn register(socket: UnixStream, path: PathBuf, intercepted: bool) {
    // SAFETY: the default VFS lives as long as the process.
    let base = unsafe { ffi::sqlite3_vfs_find(null_mut()) };
    let channel = Channel {
        stream: Mutex::new(socket),
        base: base as usize,
        intercepted,
        socket: super::outlives(&path).then_some(path),
    };
    assert!(CHANNEL.set(channel).is_ok(), "registered once");
    // SAFETY: a VFS is plain data; the copy is leaked, so SQLite may keep it.
    unsafe {
        let mut vfs = Box::new(std::ptr::read(base));
        vfs.szOsFile = (size_of::<File>() as c_int) + (*base).szOsFile;
        vfs.zName = NAME.as_ptr();
        vfs.pNext = null_mut();
        vfs.xOpen = Some(open);
        vfs.xDelete = Some(delete);
        ffi::sqlite3_vfs_register(Box::into_raw(vfs), 0);
    }
}

fn channel() -> &'static Channel {
    CHANNEL.get().expect("the VFS is registered")
}

/// Asks the daemon; the answer is an errno.
fn ask(op: Op, path: *const c_char, offset: u64, data: &[u8]) -> c_int {
    // SAFETY: SQLite's file names are C strings that outlive the file.
    let path = unsafe { CStr::from_ptr(path) }.to_str().unwrap().to_owned();
    let mut request = Request {
        op,
        path,
        offset,
        data: data.to_vec(),
        again: false,
    };
    let mut stream = channel().stream.lock().unwrap();
    let mut answer = [0; 4];
    loop {
        let outcome = stream
            .write_all(&request.encode())
            .and_then(|()| stream.read_exact(&mut answer));
        match (outcome, &channel().socket) {
            (Err(_), Some(path)) => {
                request.again = true;
                *stream = super::reconnect(path);
            }
            (outcome, _) => return answered(outcome, answer),
        }
    }
}

fn answered(outcome: std::io::Result<()>, answer: [u8; 4]) -> c_int {
    match outcome {
        Ok(()) if i32::from_le_bytes(answer) == super::edge::DIE => std::process::abort(),
        Ok(()) => i32::from_le_bytes(answer),
        Err(_) => libc::ENOTCONN,
    }
}

fn check(errno: c_int, error: c_int) -> c_int {
    match errno {
        0 => ffi::SQLITE_OK,
        libc::ENOSPC => ffi::SQLITE_FULL,
        _ => error,
    }
}

fn this(file: *mut ffi::sqlite3_file) -> &'static File {
    // SAFETY: SQLite passes files that `open` filled in.
    unsafe { &*file.cast::<File>() }
}

fn real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: the file of the real VFS follows ours in the memory that SQLite allocated.
    unsafe { file.cast::<u8>().add(size_of::<File>()).cast() }
}

macro_rules! forward {
    ($method:ident, $file:ident $(, $arg:expr)*) => {{
        let real = real($file);
        // SAFETY: the real file is open and has the methods of the unix VFS.
        unsafe { ((*(*real).pMethods).$method.unwrap())(real $(, $arg)*) }
    }};
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    let kind = match flags & (ffi::SQLITE_OPEN_MAIN_DB | ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_WAL)
    {
        ffi::SQLITE_OPEN_MAIN_DB => Kind::Database,
        ffi::SQLITE_OPEN_MAIN_JOURNAL => Kind::Journal,
        ffi::SQLITE_OPEN_WAL => Kind::Wal,
        _ => Kind::Other,
    };
    // SAFETY: SQLite allocated szOsFile bytes.
    unsafe { (*file).pMethods = null_mut() };
    if kind == Kind::Journal
        && flags & ffi::SQLITE_OPEN_CREATE != 0
        && ask(Op::CreateJournal, name, 0, &[]) != 0
    {
        return ffi::SQLITE_CANTOPEN;
    }
    let base = channel().base as *mut ffi::sqlite3_vfs;
    // SAFETY: as above; the name is SQLite's and outlives the file.
    let rc = unsafe { ((*base).xOpen.unwrap())(base, name, real(file), flags, out) };
    if rc != ffi::SQLITE_OK {
        return rc;
    }
    if kind == Kind::Wal {
        ask(Op::WalOpened, name, 0, &[]);
    }
    // SAFETY: as above.
    unsafe {
        let file = file.cast::<File>();
        (*file).kind = kind;
        (*file).path = name;
        (*file).head.pMethods = addr_of!(METHODS.0);
    }
    rc
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, name: *const c_char, sync_dir: c_int) -> c_int {
    // SAFETY: SQLite passes a C string.
    let text = unsafe { CStr::from_ptr(name) }.to_str().unwrap();
    if text.ends_with("-journal") || text.ends_with("-wal") {
        return match ask(Op::Unlink, name, 0, &[]) {
            libc::ENOENT => ffi::SQLITE_IOERR_DELETE_NOENT,
            errno => check(errno, ffi::SQLITE_IOERR_DELETE),
        };
    }
    let base = channel().base as *mut ffi::sqlite3_vfs;
    // SAFETY: the default VFS lives as long as the process.
    unsafe { ((*base).xDelete.unwrap())(base, name, sync_dir) }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let rc = forward!(xClose, file);
    let this = this(file);
    if this.kind == Kind::Database {
        ask(Op::Close, this.path, 0, &[]);
    }
    rc
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    to: *mut c_void,
    n: c_int,
    at: ffi::sqlite3_int64,
) -> c_int {
    forward!(xRead, file, to, n, at)
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    from: *const c_void,
    n: c_int,
    at: ffi::sqlite3_int64,
) -> c_int {
    let this = this(file);
    let asks = match this.kind {
        Kind::Database => true,
        Kind::Journal | Kind::Wal => channel().intercepted,
        Kind::Other => false,
    };
    if !asks {
        return forward!(xWrite, file, from, n, at);
    }
    // SAFETY: SQLite passes n bytes.
    let data = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), n as usize) };
    check(
        ask(Op::Write, this.path, at as u64, data),
        ffi::SQLITE_IOERR_WRITE,
    )
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    let this = this(file);
    if this.kind == Kind::Other {
        return forward!(xTruncate, file, size);
    }
    check(
        ask(Op::Truncate, this.path, size as u64, &[]),
        ffi::SQLITE_IOERR_TRUNCATE,
    )
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    let this = this(file);
    if this.kind == Kind::Other {
        return forward!(xSync, file, flags);
    }
    check(ask(Op::Sync, this.path, 0, &[]), ffi::SQLITE_IOERR_FSYNC)
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut ffi::sqlite3_int64) -> c_int {
    forward!(xFileSize, file, size)
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    forward!(xLock, file, level)
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    forward!(xUnlock, file, level)
}

unsafe extern "C" fn check_reserved(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    forward!(xCheckReservedLock, file, out)
}

unsafe extern "C" fn control(file: *mut ffi::sqlite3_file, op: c_int, arg: *mut c_void) -> c_int {
    forward!(xFileControl, file, op, arg)
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    forward!(xSectorSize, file)
}

unsafe extern "C" fn characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    forward!(xDeviceCharacteristics, file)
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    page: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    forward!(xShmMap, file, page, size, extend, out)
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, offset: c_int, n: c_int, flags: c_int) -> c_int {
    forward!(xShmLock, file, offset, n, flags)
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    forward!(xShmBarrier, file);
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    let rc = forward!(xShmUnmap, file, delete);
    if delete != 0 {
        ask(Op::ShmReplaced, this(file).path, 0, &[]);
    }
    rc
}

struct Methods(ffi::sqlite3_io_methods);

// SAFETY: function pointers only, never written.
unsafe impl Sync for Methods {}

static METHODS: Methods = Methods(ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved),
    xFileControl: Some(control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
});
