//! Listing a directory.
//!
//! Directories are opened without a request, so a listing has no handle: every READDIR opens the backing directory anew and continues at the
//! backing file system's own cookie. The two listed virtual files follow at cookies no file system uses.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

use fuser::FileType;
use nix::fcntl::OFlag;
use nix::sys::statvfs::Statvfs;

use super::attr;
use super::backing;
use super::edge::Edge;
use super::errno::Answer;
use super::node::ROOT;
use super::virtual_files::{LAG_NAME, PRIMARY_NAME, Virtual};

/// One name of a directory and the cookie behind it.
pub(crate) struct Listed<'a> {
    pub(crate) id: u64,
    pub(crate) next: u64,
    pub(crate) kind: FileType,
    pub(crate) name: &'a OsStr,
}

/// Cookies of the virtual files; ext4's largest is one hash bucket below.
const VIRTUAL_COOKIE: u64 = 0x7fff_ffff_ffff_fff0;
const CHUNK: usize = 32 * 1024;

impl Edge {
    /// Calls `add` for each name from `offset` on until it says that there is no more room.
    pub(crate) fn readdir(
        &self,
        id: u64,
        offset: u64,
        mut add: impl FnMut(Listed<'_>) -> bool,
    ) -> Answer<()> {
        let node = self.node(id)?;
        if offset < VIRTUAL_COOKIE {
            let mut dir = backing::reopen(node.fd(), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
            dir.seek(SeekFrom::Start(offset))?;
            let mut buffer = vec![0; CHUNK];
            loop {
                let length = getdents(&dir, &mut buffer)?;
                if length == 0 {
                    break;
                }
                let full = each_entry(&buffer[..length], |entry| self.list(id, &dir, entry, &mut add));
                if full {
                    return Ok(());
                }
            }
        }
        if id == ROOT {
            self.list_virtual(offset, add);
        }
        Ok(())
    }

    fn list(&self, id: u64, dir: &File, entry: Dirent<'_>, add: &mut impl FnMut(Listed<'_>) -> bool) -> bool {
        if id == ROOT && (entry.name == PRIMARY_NAME || entry.name == LAG_NAME) {
            return false;
        }
        let is_root = id == ROOT && (entry.name == "." || entry.name == "..");
        let kind = entry.kind.unwrap_or_else(|| {
            backing::stat_name(dir.as_fd(), entry.name).map_or(FileType::RegularFile, |stat| {
                attr::file_type(stat.st_mode & libc::S_IFMT)
            })
        });
        let id = if is_root { ROOT } else { entry.inode };
        add(Listed {
            id,
            next: entry.next,
            kind,
            name: entry.name,
        })
    }

    fn list_virtual(&self, offset: u64, mut add: impl FnMut(Listed<'_>) -> bool) {
        let files = [
            (Some(Virtual::Lag), LAG_NAME),
            (
                self.presence.primary_text().map(|_| Virtual::Primary),
                PRIMARY_NAME,
            ),
        ];
        for (index, (file, name)) in files.into_iter().enumerate() {
            let next = VIRTUAL_COOKIE + index as u64;
            let Some(file) = file.filter(|_| offset < next) else {
                continue;
            };
            let entry = Listed {
                id: self.virtual_files.id(&file),
                next,
                kind: FileType::RegularFile,
                name: OsStr::new(name),
            };
            if add(entry) {
                return;
            }
        }
    }

    pub(crate) fn statfs(&self) -> Answer<Statvfs> {
        Ok(nix::sys::statvfs::fstatvfs(self.node(ROOT)?.fd())?)
    }
}

struct Dirent<'a> {
    inode: u64,
    next: u64,
    kind: Option<FileType>,
    name: &'a OsStr,
}

fn getdents(dir: &File, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes into the buffer, which is borrowed for the call.
    let length = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            dir.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

/// Walks `struct linux_dirent64` records: inode (8), cookie (8), record length (2), type (1), name with NUL. True if `f` asked to stop.
fn each_entry(mut records: &[u8], mut f: impl FnMut(Dirent<'_>) -> bool) -> bool {
    while let Some((head, _)) = records.split_at_checked(19) {
        let (inode, rest) = head.split_at(8);
        let (next, rest) = rest.split_at(8);
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let name = &records[19..length];
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        let entry = Dirent {
            inode: u64::from_ne_bytes(inode.try_into().expect("split at 8")),
            next: u64::from_ne_bytes(next.try_into().expect("split at 8")),
            kind: file_type(rest[2]),
            name: OsStr::from_bytes(&name[..end]),
        };
        if f(entry) {
            return true;
        }
        records = &records[length..];
    }
    false
}

fn file_type(kind: u8) -> Option<FileType> {
    match kind {
        libc::DT_REG => Some(FileType::RegularFile),
        libc::DT_DIR => Some(FileType::Directory),
        libc::DT_LNK => Some(FileType::Symlink),
        libc::DT_FIFO => Some(FileType::NamedPipe),
        libc::DT_SOCK => Some(FileType::Socket),
        libc::DT_CHR => Some(FileType::CharDevice),
        libc::DT_BLK => Some(FileType::BlockDevice),
        _ => None,
    }
}
