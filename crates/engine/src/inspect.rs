//! Looking into a data directory from outside: for `litefs ltx` and other tools. Nothing is changed, so a daemon may be
//! at work on the directory.

use std::path::Path;
use std::sync::Arc;

use crate::disk::Disk;
use crate::error::Result;
use crate::layout;
use crate::log::{self, Log};
use crate::name::DbName;

/// The databases of a data directory and their logs, by name. A damaged log does not hide the others.
pub fn logs(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Vec<(DbName, log::Result<Log>)>> {
    let mut homes = layout::homes(&**disk, dir)?;
    homes.sort();
    let open = |(name, home): (DbName, std::path::PathBuf)| {
        let log = Log::inspect(disk.clone(), home.join("log"));
        (name, log)
    };
    Ok(homes.into_iter().map(open).collect())
}
