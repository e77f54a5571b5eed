//! The backing files of one database, opened when needed and forgotten when clients replace them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlite_format::header::{DatabaseHeader, HEADER_SIZE, HeaderError};

use crate::error::{Error, Result};
use crate::name::{DbName, Side};
use crate::tree::{Place, Tree, c_string};

/// Opened backing files. A descriptor is dropped as soon as its name means another file.
#[derive(Debug)]
pub(crate) struct Backing {
    tree: Tree,
    /// Below the tree.
    names: [PathBuf; 4],
    /// Whole, to be shown.
    paths: [PathBuf; 4],
    open: [Option<Arc<File>>; 4],
}

/// What the first bytes of the main file say.
#[derive(Debug)]
pub(crate) enum Content {
    /// No file, or no byte in it.
    Empty,
    /// A database of `pages` pages; a last page that is cut short counts, what lies behind them does not.
    Database { header: DatabaseHeader, pages: u32 },
    /// Something else.
    Foreign(HeaderError),
}

impl Backing {
    pub(crate) fn new(tree: &Tree, name: &DbName) -> Backing {
        Backing {
            names: Side::ALL.map(|side| name.file(side)),
            paths: Side::ALL.map(|side| name.file_in(tree.path(), side)),
            tree: tree.clone(),
            open: Default::default(),
        }
    }

    pub(crate) fn path(&self, side: Side) -> &Path {
        &self.paths[side as usize]
    }

    /// Where it is, for system calls.
    pub(crate) fn place(&self, side: Side) -> Result<Place> {
        let place = self.tree.place(&self.names[side as usize]);
        place.map_err(Error::io("backing.dir", self.path(side)))
    }

    /// Forgets the descriptor: the name is about to mean another file, or none.
    pub(crate) fn forget(&mut self, side: Side) {
        self.open[side as usize] = None;
    }

    /// The file if it exists, opened for reading and writing; for reading only while it is sealed.
    pub(crate) fn get(&mut self, side: Side) -> Result<Option<Arc<File>>> {
        let slot = side as usize;
        if let Some(file) = &self.open[slot]
            && file
                .metadata()
                .map_err(Error::io("backing.stat", &self.paths[slot]))?
                .nlink()
                == 0
        {
            self.open[slot] = None;
        }
        if self.open[slot].is_none() {
            match open_or_read(&self.tree, &self.names[slot]) {
                Ok(file) if file.metadata().is_ok_and(|m| m.is_file()) => {
                    self.open[slot] = Some(Arc::new(file))
                }
                Ok(_) => {}
                Err(e)
                    if matches!(
                        e.raw_os_error(),
                        Some(libc::ENOENT | libc::EISDIR | libc::ENOTDIR)
                    ) => {}
                Err(e) => return Err(Error::io("backing.open", &self.paths[slot])(e)),
            }
        }
        Ok(self.open[slot].clone())
    }

    /// The file, created if it does not exist, with the main file's owner and mode as SQLite would give it.
    pub(crate) fn get_or_create(&mut self, side: Side) -> Result<Arc<File>> {
        if let Some(file) = self.get(side)? {
            return Ok(file);
        }
        let (name, path) = (&self.names[side as usize], &self.paths[side as usize]);
        if side != Side::Database {
            create_like(&self.tree, name, &self.names[Side::Database as usize])
                .map_err(Error::io("backing.create", path))?;
        }
        let file = self.tree.make_file(name);
        let file = Arc::new(file.map_err(Error::io("backing.create", path))?);
        self.open[side as usize] = Some(file.clone());
        Ok(file)
    }

    /// What is needed to make the content durable.
    pub(crate) fn durable(&mut self) -> Result<Durable> {
        let mut files = Vec::new();
        for side in [Side::Wal, Side::Database] {
            if let Some(file) = self.get(side)? {
                files.push((self.path(side).to_owned(), file));
            }
        }
        let dir = match files.is_empty() {
            true => None,
            false => Some(self.place(Side::Database)?),
        };
        Ok(Durable { files, dir })
    }

    /// Size of the file; 0 if there is none.
    pub(crate) fn len(&mut self, side: Side) -> Result<u64> {
        let path = self.path(side).to_owned();
        match self.get(side)? {
            Some(file) => Ok(file.metadata().map_err(Error::io("backing.stat", path))?.len()),
            None => Ok(0),
        }
    }

    /// Removes the file if it exists.
    pub(crate) fn remove(&mut self, side: Side) -> Result<bool> {
        self.forget(side);
        match self.tree.remove_file(&self.names[side as usize]) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("backing.unlink", self.path(side))(e)),
        }
    }

    /// Reads as much of `buf` as the file has at `offset`, and fills the rest with zeros.
    pub(crate) fn read_padded(&mut self, side: Side, buf: &mut [u8], offset: u64) -> Result<usize> {
        let path = self.path(side).to_owned();
        let read = match self.get(side)? {
            Some(file) => read_full(&file, buf, offset).map_err(Error::io("backing.read", path))?,
            None => 0,
        };
        buf[read..].fill(0);
        Ok(read)
    }

    /// Looks at the main file.
    pub(crate) fn content(&mut self) -> Result<Content> {
        let mut head = [0; HEADER_SIZE];
        let read = self.read_padded(Side::Database, &mut head, 0)?;
        if read == 0 {
            return Ok(Content::Empty);
        }
        let header = match DatabaseHeader::parse(&head[..read]) {
            Ok(header) => header,
            Err(e) => return Ok(Content::Foreign(e)),
        };
        let in_file = self
            .len(Side::Database)?
            .div_ceil(u64::from(header.page_size.get()));
        // Like SQLite: what the file has behind the pages that the header counts is not the database's.
        let counted = header
            .valid_page_count()
            .map(u64::from)
            .filter(|counted| *counted <= in_file);
        let pages = u32::try_from(counted.unwrap_or(in_file))
            .map_err(|_| Error::Invalid(format!("{in_file} pages are more than a database can have")))?;
        Ok(Content::Database { header, pages })
    }

    /// A rollback journal lies beside the database that SQLite would take for hot: not empty and not zeroed.
    pub(crate) fn journal_is_hot(&mut self) -> Result<bool> {
        let mut first = [0; 1];
        Ok(self.read_padded(Side::Journal, &mut first, 0)? == 1 && first[0] != 0)
    }
}

/// Opens a file, for reading only if it may not be written.
fn open_or_read(tree: &Tree, relative: &Path) -> io::Result<File> {
    let place = tree.place(relative)?;
    match place.open(OpenOptions::new().read(true).write(true)) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => place.open(OpenOptions::new().read(true)),
        opened => opened,
    }
}

/// Files to be synced, without any lock.
#[derive(Debug)]
pub(crate) struct Durable {
    files: Vec<(PathBuf, Arc<File>)>,
    dir: Option<Place>,
}

impl Durable {
    /// Makes the files and their names durable.
    pub(crate) fn sync(&self) -> Result<()> {
        for (path, file) in &self.files {
            file.sync_data().map_err(Error::io("backing.sync", path))?;
        }
        if let (Some(place), Some((path, _))) = (&self.dir, self.files.first()) {
            place.sync_dir().map_err(Error::io("backing.sync_dir", path))?;
        }
        Ok(())
    }
}

/// Creates an empty side file with the owner and the mode of the main file, in one step: a client that found it half made
/// would be refused, and take the database for read-only.
pub(crate) fn create_like(tree: &Tree, relative: &Path, main: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let Ok(main) = tree.metadata(main) else {
        return Ok(());
    };
    let place = tree.place(relative)?;
    let path = place.path();
    let Some(dir) = path.parent().filter(|_| path.symlink_metadata().is_err()) else {
        return Ok(());
    };
    let anonymous = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(dir);
    let (file, temporary) = match anonymous {
        Ok(file) => {
            let link = PathBuf::from(format!(
                "/proc/self/fd/{}",
                std::os::fd::AsRawFd::as_raw_fd(&file)
            ));
            (file, Err(link))
        }
        // Not every file system knows O_TMPFILE.
        Err(_) => {
            let temporary = dir.join(format!(".litefs-{:016x}", rand::random::<u64>()));
            (
                OpenOptions::new().write(true).create_new(true).open(&temporary)?,
                Ok(temporary),
            )
        }
    };
    inherit(&file, &main)?;
    let linked = match &temporary {
        Ok(temporary) => std::fs::hard_link(temporary, path).and_then(|()| std::fs::remove_file(temporary)),
        Err(link) => link_open_file(link, path),
    };
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Gives an open file without a name the name `path`.
fn link_open_file(link: &Path, path: &Path) -> io::Result<()> {
    let (link, path) = (c_string(link.as_os_str())?, c_string(path.as_os_str())?);
    // SAFETY: both are C strings that live as long as the call.
    let result = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            link.as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives a side file the owner and the mode of the main file.
fn inherit(file: &File, main: &std::fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(main.mode() & 0o777))?;
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (main.uid(), main.gid()) {
        std::os::unix::fs::fchown(file, Some(main.uid()), Some(main.gid()))?;
    }
    Ok(())
}

/// Reads until `buf` is full or the file ends.
pub(crate) fn read_full(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
