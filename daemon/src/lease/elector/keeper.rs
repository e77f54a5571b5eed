//! Renews a lease for as long as it lives.
//!
//! A task of its own: the primary waits for disks and clients now and then, renewals do not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::lease::{Fence, Grant, Lease, LeaseError, Repetition};

/// Keeps a grant alive until it is dropped.
pub(super) struct Keeper {
    task: JoinHandle<()>,
    gone: watch::Receiver<bool>,
}

/// Time between the fence's deadline and the end of the grant: what it takes to stop writers.
fn margin(ttl: Duration) -> Duration {
    (ttl / 5).min(Duration::from_secs(2))
}

impl Keeper {
    /// Raises the fence by `grant` and goes on renewing.
    pub(super) fn start(lease: Arc<dyn Lease>, fence: Fence, grant: Grant) -> Self {
        fence.raise(grant.deadline - margin(lease.ttl()));
        let first = interval(&grant);
        Self::spawn(lease, fence, grant, first)
    }

    /// Goes on renewing what a former process was granted, at once. Until that has succeeded the fence stays as it is.
    pub(super) fn resume(lease: Arc<dyn Lease>, fence: Fence, grant: Grant) -> Self {
        Self::spawn(lease, fence, grant, Duration::ZERO)
    }

    fn spawn(lease: Arc<dyn Lease>, fence: Fence, grant: Grant, first: Duration) -> Self {
        let (sender, gone) = watch::channel(false);
        let task = tokio::spawn(async move {
            keep(&*lease, &fence, grant, first).await;
            sender.send_replace(true);
        });
        Keeper { task, gone }
    }

    /// Returns when the service has said that the lease is not ours any more.
    pub(super) async fn gone(&self) {
        let mut gone = self.gone.clone();
        if gone.wait_for(|gone| *gone).await.is_err() {
            // The task ended without a word; only the fence is left to tell.
            std::future::pending::<()>().await;
        }
    }

    /// Ends renewing. Afterwards the fence is not moved any more.
    pub(super) async fn end(mut self) {
        self.task.abort();
        // Cancelled, or over already.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Three attempts fit into the time of a grant. A lease that never ends is looked after all the same.
fn interval(grant: &Grant) -> Duration {
    (grant.deadline.remaining() / 3).min(Duration::from_secs(60))
}

/// Returns when the lease is gone.
async fn keep(lease: &dyn Lease, fence: &Fence, mut grant: Grant, first: Duration) {
    let retry = (lease.ttl() / 20).clamp(Duration::from_millis(20), Duration::from_secs(1));
    let (mut pause, mut failures) = (first, Repetition::default());
    loop {
        tokio::time::sleep(pause).await;
        pause = match lease.renew(&grant).await {
            Ok(renewed) => {
                grant = renewed;
                fence.extend(grant.deadline - margin(lease.ttl()));
                if let Some(over) = failures.worked(Instant::now()) {
                    tracing::info!(after = ?over.after, attempts = over.attempts, "the lease is renewed again");
                }
                interval(&grant)
            }
            Err(LeaseError::Gone) => return,
            Err(error) => {
                if let Some(line) = failures.failed(&error, Instant::now()) {
                    let (left, hint, unlogged) = (grant.deadline.remaining(), error.hint(), line.unlogged);
                    tracing::warn!(%error, ?left, hint, unlogged, "cannot renew the lease, trying again");
                }
                retry
            }
        };
    }
}
