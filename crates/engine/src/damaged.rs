//! Databases whose home cannot be opened: their log is damaged, or the disk does not give it. Their names stay taken. A new log under
//! the same name would begin with transaction 1, which other nodes know as something else.
//!
//! On the primary such a database is read-only until somebody has looked at it; a replica gets it anew from its primary, and sets
//! aside what it had.

use std::collections::BTreeMap;
use std::path::PathBuf;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::health::Health;
use crate::layout;
use crate::name::{DbName, Side};
use crate::shared::Shared;

/// Homes that could not be opened, by the name of their database.
#[derive(Debug, Default)]
pub(crate) struct Damaged {
    homes: Mutex<BTreeMap<DbName, Home>>,
}

#[derive(Debug, Clone)]
struct Home {
    dir: PathBuf,
    health: Health,
}

impl Damaged {
    pub(crate) fn add(&self, name: DbName, dir: PathBuf, error: &Error) {
        let reason = format!(
            "{} cannot be opened, so the database is read-only here until this node follows a primary that has it ({error})",
            dir.display()
        );
        tracing::error!(db = %name, %reason, "going on without the database");
        let health = Health::Unreadable { reason };
        self.homes.lock().insert(name, Home { dir, health });
    }

    pub(crate) fn contains(&self, name: &DbName) -> bool {
        self.homes.lock().contains_key(name)
    }

    /// Names and reasons.
    pub(crate) fn list(&self) -> Vec<(DbName, String)> {
        let homes = self.homes.lock();
        homes
            .iter()
            .filter_map(|(name, home)| Some((name.clone(), home.health.reason()?.to_owned())))
            .collect()
    }

    /// Makes the name free for a database that comes from the primary: what was there goes to the archive, home and files.
    pub(crate) fn make_room(&self, shared: &Shared, name: &DbName) -> Result<()> {
        let Some(home) = self.homes.lock().get(name).cloned() else {
            return Ok(());
        };
        if shared.is_primary() {
            return home.health.check(name);
        }
        let moved = set_aside(shared, name, &home)?;
        self.homes.lock().remove(name);
        // Without a lock: the kernel waits for requests in the same directory, and they may wait for it.
        for side in moved {
            shared.kernel().invalidate_entry(name, side);
        }
        Ok(())
    }
}

/// Returns which files there were.
fn set_aside(shared: &Shared, name: &DbName, home: &Home) -> Result<Vec<Side>> {
    // The home goes last: as long as it is in its place, a start finds the database damaged and goes on from there.
    let moved = layout::move_database(&shared.files, name, &home.dir)?;
    let archive = layout::set_aside(&*shared.options.disk, &shared.dir, name, &home.dir)?;
    tracing::warn!(db = %name, archive = %archive.display(), "what this node had of the database is set aside");
    Ok(moved)
}
