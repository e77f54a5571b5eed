//! A database that takes no more writes: a sync failed, or the log has bytes at its end that cannot be removed.
//!
//! A failed sync leaves unknown what is on disk, and another one would claim success. So there is no way back before the
//! daemon starts again and compares. Until then reads go on, every request that writes is refused (but for the rollback of
//! the transaction in which it happened), and writers that need no request to commit are fenced. The daemon is told, so that the node can hand its lease to a healthy one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::Database;
use super::scratch::distrust;
use super::state::State;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::name::DbName;
use crate::shared::Shared;
use crate::writers::Writers;
use crate::writers::access::Input;

/// Whether and why the database is closed for writing.
pub(crate) struct Closed {
    name: DbName,
    /// Of the database.
    home: PathBuf,
    shared: Arc<Shared>,
    writers: Arc<Writers>,
    reason: OnceLock<String>,
}

impl Closed {
    pub(super) fn new(name: DbName, home: &Path, shared: Arc<Shared>, writers: Arc<Writers>) -> Closed {
        Closed {
            name,
            home: home.to_owned(),
            shared,
            writers,
            reason: OnceLock::new(),
        }
    }

    /// Closes the database; the first reason stays. Called with any lock held, by whoever sees the disk fail.
    pub(crate) fn close(&self, reason: &str) {
        if self.reason.set(reason.to_owned()).is_err() {
            return;
        }
        tracing::error!(db = %self.name, reason, "the disk failed: the database is closed for writing until the daemon starts again");
        self.shared.events.publish(&Event::Quarantined {
            db: self.name.clone(),
            reason: reason.to_owned(),
        });
        // What failed to reach the disk may be gone from memory too.
        distrust(&self.home);
        if self.writers.enter(Input::DiskFailed).watch {
            // The settler fences.
            self.shared.settler.watch(&self.name);
        }
        self.shared.failures.notify(&self.name);
    }

    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }
}

impl Database {
    /// Whether a failure of the disk has closed the database for writing. Takes no lock.
    pub fn is_closed(&self) -> bool {
        self.closed.reason().is_some()
    }

    pub(crate) fn check_usable(&self) -> Result<()> {
        match self.closed.reason() {
            Some(reason) => Err(Error::Quarantined {
                db: self.name.clone(),
                reason: reason.to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// Lets the rollback through of the transaction in which the disk failed: readers are kept out until it is done.
    pub(super) fn check_restores(
        &self,
        state: &mut State,
        restores: impl FnOnce(&State) -> bool,
    ) -> Result<()> {
        match state.backing.journal_is_hot()? && restores(state) {
            true => Ok(()),
            false => self.check_usable(),
        }
    }
}
