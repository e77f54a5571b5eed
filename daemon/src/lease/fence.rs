//! Whether this node may act as primary right now, by its own clock.
//!
//! The lease service promises not to give a lease to somebody else before its time-to-live has passed since it *received*
//! the last renewal. Counted from before that renewal was *sent*, the deadline here is never later than the service's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::clock::{BootTime, sleep_until};

/// No time as primary at all.
const DOWN: u64 = 0;

/// The end of this node's time as primary, shared by all that act for the primary. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Fence {
    deadline_nanos: Arc<AtomicU64>,
}

impl Fence {
    /// Whether the lease is still ours.
    pub fn holds(&self) -> bool {
        BootTime::now() < self.deadline()
    }

    pub(super) fn deadline(&self) -> BootTime {
        BootTime::from_nanos(self.deadline_nanos.load(Ordering::Acquire))
    }

    /// Begins a time as primary.
    pub(super) fn raise(&self, deadline: BootTime) {
        self.deadline_nanos.store(deadline.as_nanos(), Ordering::Release);
    }

    /// Moves the deadline. A renewal that is answered after the end of its term changes nothing.
    pub(super) fn extend(&self, deadline: BootTime) {
        let extend = |current| (current != DOWN).then(|| deadline.as_nanos());
        // Fails for a fence that is down, which is the point.
        let _ = self
            .deadline_nanos
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, extend);
    }

    /// Ends the time as primary at once.
    pub(super) fn drop_now(&self) {
        self.deadline_nanos.store(DOWN, Ordering::Release);
    }

    /// Returns when the deadline has passed, however often it is moved before.
    #[cfg(test)]
    pub(super) async fn expired(&self) {
        self.expires_within(Duration::ZERO).await;
    }

    /// Returns when less than `margin` is left of the lease, however often the deadline is moved before.
    pub(super) async fn expires_within(&self, margin: Duration) {
        loop {
            let due = self.deadline() - margin;
            if BootTime::now() >= due {
                return;
            }
            sleep_until(due).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fence_holds_until_its_deadline() {
        let fence = Fence::default();
        assert!(!fence.holds());
        fence.raise(BootTime::now() + Duration::from_secs(60));
        assert!(fence.holds());
        assert!(
            tokio::time::timeout(Duration::from_millis(20), fence.expired())
                .await
                .is_err()
        );
        fence.extend(BootTime::now() + Duration::from_millis(5));
        fence.expired().await;
        assert!(!fence.holds());
        fence.drop_now();
        fence.extend(BootTime::now() + Duration::from_secs(60));
        assert!(!fence.holds(), "the term is over");
    }
}
