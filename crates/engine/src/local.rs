//! What a node has of its own under the name of a database that comes from elsewhere: an ordinary file, or something that no database is
//! written through.

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::layout;
use crate::name::{DbName, Side};
use crate::shared::Shared;

/// Makes the name free for a database that this node does not know: an ordinary file goes to the archive.
///
/// # Errors
/// [`Error::Invalid`] if a symbolic link or a directory has the name.
pub(crate) fn make_room(shared: &Shared, name: &DbName) -> Result<()> {
    let Some(found) = look(shared, name)? else {
        return Ok(());
    };
    let refuse = |what: &str| {
        Err(Error::Invalid(format!(
            "{name} is {what}: remove it, or give it another name"
        )))
    };
    if found.is_symlink() {
        return refuse("a symbolic link on this node, and no database is written through one");
    }
    if !found.is_file() {
        return refuse("something else than a file on this node");
    }
    if found.len() == 0 {
        // What becomes of it is decided by who made it.
        return Ok(());
    }
    let archive = set_aside(shared, name)?;
    tracing::warn!(
        db = %name, archive = %archive.display(),
        "a database with the name of a file of this node arrived; the file is set aside"
    );
    Ok(())
}

fn look(shared: &Shared, name: &DbName) -> Result<Option<Metadata>> {
    let main = name.file(Side::Database);
    match shared.files.metadata(&main) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Err(Error::Invalid(format!(
            "a directory on the way to {name} is a symbolic link on this node, and no database is written through one: remove it"
        ))),
        Err(error) => Err(Error::io(
            "store.stat",
            name.file_in(shared.files.path(), Side::Database),
        )(error)),
    }
}

/// Moves the file, and what belongs to it if it is a database, to a directory of its own in the archive.
fn set_aside(shared: &Shared, name: &DbName) -> Result<PathBuf> {
    let archive = free(&layout::archive(&shared.dir, name));
    let disk = &*shared.options.disk;
    disk.create_dir_all("store.set_aside.mkdir", &archive)?;
    let moved = layout::move_database(&shared.files, name, &archive)?;
    disk.sync_dir("store.set_aside.sync", &archive)?;
    for side in moved {
        shared.kernel().invalidate_entry(name, side);
    }
    Ok(archive)
}

/// An archive is never overwritten.
fn free(archive: &Path) -> PathBuf {
    let numbered = |number: u32| archive.join(format!("local-{number}"));
    (1..)
        .map(numbered)
        .find(|path| !path.exists())
        .unwrap_or_else(|| archive.join("local"))
}
