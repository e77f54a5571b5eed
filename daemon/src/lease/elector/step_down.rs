//! Giving the lease away because the disk has failed.
//!
//! A database that is closed for writing stays so until the process starts again, while another node could write it. So a
//! primary that has one looks for a candidate among its replicas and hands over to it. Without any it stays primary for
//! its other databases. A node that has handed over does not compete for `demote-delay`: whoever is whole comes first.

use std::sync::Arc;
use std::time::Duration;

use engine::{Store, Watcher};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Elector;
use super::lead::{End, Term};

/// Pause between two looks for a candidate, and shortest one between two attempts.
const LOOK: Duration = Duration::from_secs(1);

/// What the elector remembers of failed disks.
pub(super) struct Trouble {
    failed: Arc<Notify>,
    /// Told by the store for as long as it lives.
    _watcher: Watcher,
    next: Instant,
    attempts: usize,
    /// That nobody can take over was said.
    told: bool,
    /// Competes again from then on.
    excluded_until: Option<Instant>,
}

impl Trouble {
    pub(super) fn watch(store: &Store) -> Trouble {
        let failed = Arc::new(Notify::new());
        let notify = failed.clone();
        let watcher: Watcher = Arc::new(move |_| notify.notify_one());
        store.watch_failures(&watcher);
        Trouble {
            failed,
            _watcher: watcher,
            next: Instant::now(),
            attempts: 0,
            told: false,
            excluded_until: None,
        }
    }

    /// Returns when there is reason to step down and the next attempt is due.
    pub(super) async fn due(&self, store: &Store) {
        while store.closed_databases().is_empty() {
            self.failed.notified().await;
        }
        tokio::time::sleep_until(self.next).await;
    }

    /// How long this node still leaves a free lease to others.
    pub(super) fn excluded_for(&self) -> Option<Duration> {
        let left = self.excluded_until?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
}

impl Elector {
    /// One attempt; `None`: this node stays primary for now.
    pub(super) async fn step_down(&mut self, term: &mut Term) -> Option<End> {
        self.trouble.next = Instant::now() + LOOK;
        let mut candidates = self.replicas.all();
        candidates.retain(|replica| replica.candidate);
        let databases = self.closed_databases();
        if candidates.is_empty() || !self.lease.hands_over() {
            if !std::mem::replace(&mut self.trouble.told, true) {
                tracing::error!(%databases, "the disk failed and no other candidate is connected: staying primary for the other databases");
            }
            return None;
        }
        let target = candidates[self.trouble.attempts % candidates.len()].clone();
        self.trouble.attempts += 1;
        tracing::error!(%databases, to = %target.hostname, "the disk failed: giving the lease away");
        let delay = self.options.demote_delay;
        match self.hand_over(term, target.node_id).await {
            Ok(()) => {
                self.trouble.excluded_until = Some(Instant::now() + delay);
                Some(End::HandedOver)
            }
            Err(error) => {
                tracing::warn!(%error, "cannot give the lease away, trying again");
                self.trouble.next = Instant::now() + delay.max(LOOK);
                None
            }
        }
    }

    /// Names of databases that a failed disk has closed, for people; empty if there are none.
    pub(super) fn closed_databases(&self) -> String {
        let names = self.store.closed_databases();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        names.join(", ")
    }
}
