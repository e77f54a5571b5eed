//! The backing tree, whose files are reached by their names below it and never through a symbolic link: whoever may write in the mount may
//! make one there, and this process has rights that he lacks. The kernel sees to it.

use std::ffi::{CString, OsStr};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::owners::Owners;

/// The root of the tree, open.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    root: Arc<File>,
    path: PathBuf,
    owners: Arc<Owners>,
}

/// A name in a directory of the tree. Valid for as long as it lives, whatever becomes of the directory's own name.
#[derive(Debug)]
pub(crate) struct Place {
    dir: OwnedFd,
    path: PathBuf,
}

impl Tree {
    /// The directory is there already.
    pub(crate) fn open(path: &Path, owners: Arc<Owners>) -> io::Result<Tree> {
        let root = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(path)?;
        Ok(Tree {
            root: Arc::new(root),
            path: path.to_owned(),
            owners,
        })
    }

    /// To whom what is made here belongs.
    pub(crate) fn owners(&self) -> &Owners {
        &self.owners
    }

    /// Where it is, to be shown and to be compared.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a relative path leads to. The file need not exist, its directory must.
    ///
    /// # Errors
    /// `ELOOP` if a directory of the path is a symbolic link, `EXDEV` if the path leaves the tree.
    pub(crate) fn place(&self, relative: &Path) -> io::Result<Place> {
        let name = relative.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = relative.parent().unwrap_or(Path::new(""));
        let dir = match parent.as_os_str().is_empty() {
            true => self.root.as_fd().try_clone_to_owned()?,
            false => open_dir(self.root.as_fd(), parent)?,
        };
        let path = Path::new("/proc/self/fd")
            .join(dir.as_raw_fd().to_string())
            .join(name);
        Ok(Place { dir, path })
    }

    /// As [`Tree::place`]; makes the directories that lack.
    fn make_place(&self, relative: &Path) -> io::Result<Place> {
        let mut made = PathBuf::new();
        for component in relative.parent().unwrap_or(Path::new("")).components() {
            let Component::Normal(name) = component else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            made.push(name);
            let place = self.place(&made)?;
            match std::fs::DirBuilder::new().mode(0o700).create(place.path()) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                Err(_) => {}
                Ok(()) => self.give(&place, &place.open(OpenOptions::new().read(true))?, &made)?,
            }
        }
        self.place(relative)
    }

    /// Opens a file for reading and writing; makes it, and the directories that lack, if it is not there.
    pub(crate) fn make_file(&self, relative: &Path) -> io::Result<File> {
        let place = self.make_place(relative)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        match place.open(options.clone().create_new(true).mode(0o600)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => place.open(&options),
            Err(error) => Err(error),
            Ok(file) => {
                self.give(&place, &file, relative)?;
                Ok(file)
            }
        }
    }

    fn give(&self, place: &Place, made: &File, relative: &Path) -> io::Result<()> {
        let directory = File::from(place.dir.try_clone()?).metadata()?;
        self.owners.give(made, relative, &directory)
    }

    /// Opens a file.
    ///
    /// # Errors
    /// `ELOOP` if it is a symbolic link.
    pub(crate) fn open_file(&self, relative: &Path, options: &OpenOptions) -> io::Result<File> {
        self.place(relative)?.open(options)
    }

    /// What is there, not followed if it is a symbolic link.
    pub(crate) fn metadata(&self, relative: &Path) -> io::Result<Metadata> {
        std::fs::symlink_metadata(self.place(relative)?.path())
    }

    pub(crate) fn remove_file(&self, relative: &Path) -> io::Result<()> {
        std::fs::remove_file(self.place(relative)?.path())
    }
}

impl Place {
    /// A path by which system calls reach it that do not follow a last symbolic link.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the names in the directory durable.
    pub(crate) fn sync_dir(&self) -> io::Result<()> {
        File::from(self.dir.try_clone()?).sync_all()
    }

    /// Opens the file. A FIFO or a device does not make this wait.
    pub(crate) fn open(&self, options: &OpenOptions) -> io::Result<File> {
        options
            .clone()
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path)
    }
}

fn open_dir(root: BorrowedFd<'_>, relative: &Path) -> io::Result<OwnedFd> {
    let path = c_string(relative.as_os_str())?;
    // SAFETY: open_how is a plain C structure for which all zero bytes are a valid value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_DIRECTORY | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS;
    // SAFETY: the path is a C string and `how` a structure of the size given; both live as long as the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &how,
            size_of::<libc::open_how>(),
        )
    };
    match libc::c_int::try_from(result) {
        // SAFETY: the kernel returned a descriptor that nobody else knows.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

pub(crate) fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code<T>(result: io::Result<T>) -> i32 {
        result.map(drop).unwrap_err().raw_os_error().unwrap()
    }

    #[test]
    fn nothing_outside_the_tree_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("files"), dir.path().join("outside"));
        std::fs::create_dir_all(inside.join("a/b")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("victim"), "precious").unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("a/link")).unwrap();
        std::os::unix::fs::symlink(outside.join("victim"), inside.join("a/leaf")).unwrap();
        let tree = Tree::open(&inside, Arc::default()).unwrap();
        let mut write = OpenOptions::new();
        write.write(true).create(true).truncate(true);
        for linked in ["a/link/victim", "a/link/new", "a/leaf"] {
            assert_eq!(
                code(tree.open_file(Path::new(linked), &write)),
                libc::ELOOP,
                "{linked}"
            );
        }
        assert_eq!(code(tree.make_place(Path::new("a/link/x/y"))), libc::ELOOP);
        assert_eq!(code(tree.remove_file(Path::new("a/link/victim"))), libc::ELOOP);
        assert_eq!(code(tree.place(Path::new("a/../../outside/victim"))), libc::EXDEV);
        assert!(tree.metadata(Path::new("a/leaf")).unwrap().is_symlink());
        assert_eq!(std::fs::read(outside.join("victim")).unwrap(), b"precious");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
        tree.make_file(Path::new("c/d/new")).unwrap();
        tree.remove_file(Path::new("c/d/new")).unwrap();
        assert_eq!(
            code(tree.place(Path::new("c/x/new"))),
            libc::ENOENT,
            "a directory that lacks is told from a link"
        );
    }
}
