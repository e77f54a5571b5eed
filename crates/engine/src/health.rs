//! How a database is, in one place: what is replicated, what may be written, and what `/status` says about it depends on it.
//!
//! * **Diverged**: its files do not follow its log. Clients go on; a replica needs a snapshot, which heals it.
//! * **Disk failed**: a sync failed, or the log has bytes at its end that cannot be removed. What is on disk is unknown, and another sync
//!   would claim success. So there is no way back before the daemon starts again and compares. Until then reads go on, every request that
//!   writes is refused (but for the rollback of the transaction in which it happened), and writers that need no request to commit are
//!   fenced. The daemon is told, so that the node can hand its lease to a healthy one.
//! * **Unverified**: the same, because it is unknown what the files hold. It takes no records either.
//! * **Unreadable**: its home cannot be opened (`damaged`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::database::scratch::distrust;
use crate::database::state::State;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::name::DbName;
use crate::shared::Shared;
use crate::writers::Writers;
use crate::writers::access::Input;

/// The state of a database's health, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    Sound,
    Diverged { reason: String },
    DiskFailed { reason: String },
    Unverified { reason: String },
    Unreadable { reason: String },
}

impl Health {
    /// The reason as people are told it.
    pub(crate) fn reason(&self) -> Option<&str> {
        match self {
            Health::Sound => None,
            Health::Diverged { reason }
            | Health::DiskFailed { reason }
            | Health::Unverified { reason }
            | Health::Unreadable { reason } => Some(reason),
        }
    }

    /// Refuses what only a sound database may do.
    pub(crate) fn check(&self, db: &DbName) -> Result<()> {
        match self.reason() {
            None => Ok(()),
            Some(reason) => Err(Error::Quarantined {
                db: db.clone(),
                reason: reason.to_owned(),
            }),
        }
    }
}

/// What is known to be wrong. A database that diverged may lose its disk too, and heals from the one alone.
#[derive(Debug, Default)]
struct Findings {
    divergence: Option<Divergence>,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Divergence {
    reason: String,
    /// The snapshot that heals it is in the log, and is yet to be applied.
    replaced: bool,
}

#[derive(Debug)]
struct Failure {
    /// The first one.
    reason: String,
    /// It is known what the files hold.
    verified: bool,
}

impl Findings {
    /// Whether the database was sound in this respect.
    fn diverge(&mut self, reason: String) -> bool {
        let before = self.divergence.replace(Divergence {
            reason,
            replaced: false,
        });
        before.is_none()
    }

    /// Whether it is the first failure.
    fn fail(&mut self, reason: &str, verified: bool) -> bool {
        match &mut self.failure {
            Some(failure) => {
                failure.verified &= verified;
                false
            }
            None => {
                let reason = reason.to_owned();
                self.failure = Some(Failure { reason, verified });
                true
            }
        }
    }

    fn divergence(&self) -> Health {
        match &self.divergence {
            None => Health::Sound,
            Some(divergence) => Health::Diverged {
                reason: divergence.reason.clone(),
            },
        }
    }

    fn disk(&self) -> Health {
        match &self.failure {
            None => Health::Sound,
            Some(failure) => {
                let reason = failure.reason.clone();
                match failure.verified {
                    true => Health::DiskFailed { reason },
                    false => Health::Unverified { reason },
                }
            }
        }
    }

    /// What people are told first.
    fn summary(&self) -> Health {
        match self.divergence() {
            Health::Sound => self.disk(),
            diverged @ (Health::Diverged { .. }
            | Health::DiskFailed { .. }
            | Health::Unverified { .. }
            | Health::Unreadable { .. }) => diverged,
        }
    }
}

/// The health of one database. Its mutex is an innermost one: nothing is waited for under it.
pub(crate) struct Vitals {
    name: DbName,
    /// Of the database.
    home: PathBuf,
    shared: Arc<Shared>,
    writers: Arc<Writers>,
    findings: Mutex<Findings>,
}

impl std::fmt::Debug for Vitals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.findings.lock().fmt(f)
    }
}

impl Vitals {
    pub(crate) fn new(name: DbName, home: &Path, shared: Arc<Shared>, writers: Arc<Writers>) -> Vitals {
        Vitals {
            name,
            home: home.to_owned(),
            shared,
            writers,
            findings: Mutex::default(),
        }
    }

    /// A sync failed. One that was not even begun, because too many files are open, has lost nothing and is done again.
    pub(crate) fn sync_failed(&self, error: &Error) {
        if !error.is_out_of_descriptors() {
            self.disk_failed(&error.to_string());
        }
    }

    /// The disk failed; the first reason stays. Any lock may be held.
    pub(crate) fn disk_failed(&self, reason: &str) {
        self.fail(reason, true);
    }

    /// It is unknown what the files hold.
    pub(crate) fn unverified(&self, reason: &str) {
        self.fail(reason, false);
    }

    fn fail(&self, reason: &str, verified: bool) {
        if !self.findings.lock().fail(reason, verified) {
            return;
        }
        tracing::error!(db = %self.name, reason, "the disk failed: the database is closed for writing until the daemon starts again");
        self.tell(reason);
        // What failed to reach the disk may be gone from memory too.
        distrust(&self.home);
        if self.writers.enter(Input::DiskFailed).watch {
            // The settler fences.
            self.shared.settler.watch(&self.name);
        }
        self.shared.failures.notify(&self.name);
    }

    fn tell(&self, reason: &str) {
        self.shared.events.publish(&Event::Quarantined {
            db: self.name.clone(),
            reason: reason.to_owned(),
        });
    }

    /// Whether the disk let the database down: sound, failed or unverified.
    pub(crate) fn disk(&self) -> Health {
        self.findings.lock().disk()
    }

    /// Whether the files follow the log: sound or diverged.
    pub(crate) fn divergence(&self) -> Health {
        self.findings.lock().divergence()
    }

    pub(crate) fn is_diverged(&self) -> bool {
        self.findings.lock().divergence.is_some()
    }

    /// All in all.
    pub(crate) fn summary(&self) -> Health {
        self.findings.lock().summary()
    }

    fn diverge(&self, reason: String) {
        if self.findings.lock().diverge(reason.clone()) {
            tracing::warn!(db = %self.name, reason, "database is not replicated any more");
            self.tell(&reason);
        }
    }

    /// Whether it had diverged.
    fn heal(&self) -> bool {
        let healed = self.findings.lock().divergence.take().is_some();
        if healed {
            tracing::info!(db = %self.name, "database is replicated again");
            let db = self.name.clone();
            self.shared.events.publish(&Event::Resumed { db });
        }
        healed
    }

    /// Whether replication is suspended.
    pub(crate) fn is_suspended(&self) -> bool {
        let findings = self.findings.lock();
        let divergence = findings.divergence.as_ref();
        divergence.is_some_and(|divergence| !divergence.replaced)
    }

    /// A snapshot that replaces the files is in the log: what follows belongs to the new history.
    pub(crate) fn expect_to_heal(&self) {
        if let Some(divergence) = &mut self.findings.lock().divergence {
            divergence.replaced = true;
        }
    }

    /// Refuses what would be written to a failing disk.
    pub(crate) fn check_usable(&self) -> Result<()> {
        self.disk().check(&self.name)
    }

    /// Refuses records for files whose content is unknown.
    pub(crate) fn check_verified(&self) -> Result<()> {
        match self.disk() {
            unverified @ Health::Unverified { .. } => unverified.check(&self.name),
            Health::Sound
            | Health::Diverged { .. }
            | Health::DiskFailed { .. }
            | Health::Unreadable { .. } => Ok(()),
        }
    }

    /// Whether a failure of the disk has closed the database for writing.
    pub(crate) fn is_closed(&self) -> bool {
        self.findings.lock().failure.is_some()
    }

    /// As noted by the process before: it is known already.
    pub(crate) fn was_diverged(&self, reason: &str) {
        self.findings.lock().diverge(reason.to_owned());
    }
}

impl State {
    /// Suspends replication of the database; clients go on.
    pub(crate) fn diverge(&mut self, reason: String) {
        self.scratch.set_quarantine(Some(&reason));
        self.health.diverge(reason);
    }

    /// The files follow the log again.
    pub(crate) fn heal(&mut self) {
        if self.health.heal() {
            self.scratch.set_quarantine(None);
        }
    }

    /// Lets the rollback through of the transaction in which the disk failed: readers are kept out until it is done.
    pub(crate) fn check_restores(&mut self, restores: impl FnOnce(&State) -> bool) -> Result<()> {
        match self.backing.journal_is_hot()? && restores(self) {
            true => Ok(()),
            false => self.health.check_usable(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diverged(reason: &str) -> Health {
        Health::Diverged {
            reason: reason.to_owned(),
        }
    }

    #[test]
    fn a_failure_outlasts_a_divergence_and_its_first_reason_stays() {
        let mut findings = Findings::default();
        assert_eq!(findings.summary(), Health::Sound);
        assert!(findings.diverge("pages".to_owned()));
        assert!(!findings.diverge("more pages".to_owned()));
        assert!(findings.fail("sync", true));
        assert!(!findings.fail("another", true));
        assert_eq!(findings.summary(), diverged("more pages"));
        findings.divergence = None;
        let reason = "sync".to_owned();
        assert_eq!(findings.summary(), Health::DiskFailed { reason });
    }

    #[test]
    fn what_is_unverified_once_stays_so() {
        let mut findings = Findings::default();
        assert!(findings.fail("sync", true));
        assert!(!findings.fail("unknown", false));
        assert!(!findings.fail("sync", true));
        let reason = "sync".to_owned();
        assert_eq!(findings.disk(), Health::Unverified { reason });
    }
}
