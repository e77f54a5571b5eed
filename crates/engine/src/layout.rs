//! Where things are in a data directory.
//!
//! ```text
//! <data>/files/…             the backing tree: what the mount shows, under the same names
//! <data>/databases/<id>/     name, log/, checksums, scratch: what is known about one database
//! <data>/archive/<name>/     transactions that no other node had, as ordinary .ltx files
//! <data>/clusterid           which cluster the data belongs to
//! ```

use std::path::{Path, PathBuf};

use crate::disk::{Disk, OpenMode};
use crate::error::{Error, Result};
use crate::name::DbName;

/// File with the database's name, in its home.
const NAME: &str = "name";

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
            Err(error) => {
                tracing::error!(home = %home.display(), %error, "skipping a database without a valid name")
            }
        }
    }
    Ok(homes)
}

/// Makes a home for a new database.
pub(crate) fn make_home(disk: &dyn Disk, dir: &Path, name: &DbName) -> Result<PathBuf> {
    let home = databases(dir).join(format!("{:016x}", rand::random::<u64>()));
    disk.create_dir_all("store.mkdir", &home)?;
    write_text(disk, &home.join(NAME), name.as_str())?;
    disk.sync_dir("store.mkdir.sync", &databases(dir))?;
    Ok(home)
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
    let temporary = path.with_extension("tmp");
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
