//! Where things are in a data directory.
//!
//! ```text
//! <data>/files/…             the backing tree: what the mount shows, under the same names
//! <data>/databases/<id>/     name, log/, checksums, scratch: what is known about one database
//! <data>/archive/<name>/     transactions that no other node had, as ordinary .ltx files; <id>/ what could not be opened
//! <data>/clusterid           which cluster the data belongs to
//! ```

use std::path::{Path, PathBuf};

use crate::disk::{Disk, OpenMode};
use crate::error::{Error, Result};
use crate::name::{DbName, Side};
use crate::tree::Tree;
use crate::writers::seal::unseal_at;

/// File with the database's name, in its home.
const NAME: &str = "name";
/// Extension of a file that is being written.
const DRAFT: &str = "tmp";

pub(crate) fn files(dir: &Path) -> PathBuf {
    dir.join("files")
}

pub(crate) fn databases(dir: &Path) -> PathBuf {
    dir.join("databases")
}

pub(crate) fn archive(dir: &Path, name: &DbName) -> PathBuf {
    dir.join("archive").join(name.as_str())
}

/// The homes of all databases with their names. A home without a readable name is left alone and reported.
pub(crate) fn homes(disk: &dyn Disk, dir: &Path) -> Result<Vec<(DbName, PathBuf)>> {
    let root = databases(dir);
    let mut homes = Vec::new();
    for entry in disk.list("store.list", &root)? {
        let home = root.join(entry);
        match read_text(disk, &home.join(NAME)).and_then(|text| Ok(text.parse::<DbName>()?)) {
            Ok(name) => homes.push((name, home)),
            // It has a name. Who went on without it would make another home for that name.
            Err(error) if error.is_out_of_descriptors() => return Err(error),
            Err(error) => {
                tracing::error!(home = %home.display(), %error, "skipping a database without a valid name")
            }
        }
    }
    Ok(homes)
}

/// Removes the homes that a process died in the middle of making: they have no name yet, and nothing else.
pub(crate) fn remove_unborn(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let root = databases(dir);
    for entry in disk.list("store.list", &root)? {
        let home = root.join(entry);
        let content = disk
            .list("store.list", &home)
            .unwrap_or_else(|_| vec!["no directory".into()]);
        if content
            .iter()
            .all(|entry| Path::new(entry) == Path::new(NAME).with_extension(DRAFT))
        {
            tracing::debug!(home = %home.display(), "a database was about to be created");
            disk.remove_dir_all("store.remove_unborn", &home)?;
        }
    }
    Ok(())
}

/// Where a new database is to live.
pub(crate) fn new_home(dir: &Path) -> PathBuf {
    databases(dir).join(format!("{:016x}", rand::random::<u64>()))
}

/// Makes the home of a new database, or what an attempt that failed left to be done.
pub(crate) fn make_home(disk: &dyn Disk, dir: &Path, home: &Path, name: &DbName) -> Result<()> {
    disk.create_dir_all("store.mkdir", home)?;
    write_text(disk, &home.join(NAME), name.as_str())?;
    disk.sync_dir("store.mkdir.sync", &databases(dir))?;
    Ok(())
}

/// Moves a home to the archive. Returns where it is now.
pub(crate) fn set_aside(disk: &dyn Disk, dir: &Path, name: &DbName, home: &Path) -> Result<PathBuf> {
    let archive = archive(dir, name);
    disk.create_dir_all("store.set_aside.mkdir", &archive)?;
    let to = archive.join(home.file_name().unwrap_or_default());
    disk.rename("store.set_aside.rename", home, &to)?;
    disk.sync_dir("store.set_aside.sync", &archive)?;
    disk.sync_dir("store.set_aside.sync", &databases(dir))?;
    Ok(to)
}

/// Moves the files of a database into another directory, as `database`, `database-wal` and so on; returns which there were. The main file
/// goes last: without it nobody would look for the others.
pub(crate) fn move_database(files: &Tree, name: &DbName, to: &Path) -> Result<Vec<Side>> {
    let mut moved = Vec::new();
    // What keeps a client of the WAL from writing keeps everybody from moving it.
    unseal_at(files, &name.file(Side::Wal))
        .map_err(Error::io("wal.unseal", name.file_in(files.path(), Side::Wal)))?;
    for side in Side::ALL.into_iter().rev() {
        let to = to.join(format!("database{}", side.suffix()));
        let place = files.place(&name.file(side));
        match place.and_then(|place| std::fs::rename(place.path(), &to)) {
            Ok(()) => moved.push(side),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Error::io("store.set_aside", name.file_in(files.path(), side))(
                    error,
                ));
            }
        }
    }
    Ok(moved)
}

/// Refuses the data directory of a LiteFS 0.5: this one would start empty beside it.
pub(crate) fn refuse_original(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let original = dir.join("dbs");
    if disk.exists("store.stat", &original)? && !disk.exists("store.stat", &databases(dir))? {
        return Err(Error::Invalid(format!(
            "{} holds the databases of a LiteFS 0.5, which are not taken over: start with an empty data directory, and join the cluster \
             of the old node or import each database (`litefs import`)",
            original.display()
        )));
    }
    Ok(())
}

/// Reads a small text file.
pub(crate) fn read_text(disk: &dyn Disk, path: &Path) -> Result<String> {
    let file = disk.open("store.open", path, OpenMode::Read)?;
    let len = usize::try_from(file.len("store.read")?)
        .unwrap_or(usize::MAX)
        .min(64 * 1024);
    let mut bytes = vec![0; len];
    file.read_exact_at("store.read", &mut bytes, 0)?;
    String::from_utf8(bytes).map_err(|_| Error::Invalid(format!("{} is not text", path.display())))
}

/// Writes a small text file so that it is there whole or not at all.
pub(crate) fn write_text(disk: &dyn Disk, path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension(DRAFT);
    let file = disk.open("store.create", &temporary, OpenMode::Create)?;
    file.set_len("store.write", 0)?;
    file.write_all_at("store.write", text.as_bytes(), 0)?;
    file.sync_all("store.sync")?;
    disk.rename("store.rename", &temporary, path)?;
    if let Some(parent) = path.parent() {
        disk.sync_dir("store.sync", parent)?;
    }
    Ok(())
}
