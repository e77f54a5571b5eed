//! Whether this node may act as primary right now, by its own clock.
//!
//! The lease service promises not to give a lease to somebody else before its time-to-live has passed since it *received*
//! the last renewal. Counted from before that renewal was *sent*, the deadline here is never later than the service's.
//!
//! The deadline outlives the process where it is in memory that others have too (`DeadlineCell`): they keep writers out
//! once it has passed, and the node's next process goes on with the term while it has not.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::clock::{BootTime, sleep_until};

/// No time as primary at all.
const DOWN: u64 = 0;

/// Where a deadline is kept: nanoseconds of `CLOCK_BOOTTIME` (see `BootTime`), or 0 for no time as primary at all.
///
/// It is up before the first client may write and until the last one cannot, so that it says more than that this node is
/// primary. One process at a time writes it. Whoever reads it may be another one.
pub trait DeadlineCell: Send + Sync {
    fn nanos(&self) -> &AtomicU64;
}

/// A cell that this process alone knows.
impl DeadlineCell for AtomicU64 {
    fn nanos(&self) -> &AtomicU64 {
        self
    }
}

/// The end of this node's time as primary, shared by all that act for the primary. Cheap to clone.
#[derive(Clone)]
pub struct Fence {
    cell: Arc<dyn DeadlineCell>,
}

impl Default for Fence {
    fn default() -> Self {
        Fence::sharing(Arc::new(AtomicU64::new(DOWN)))
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Fence")
            .field("deadline", &self.deadline())
            .finish()
    }
}

impl Fence {
    /// A fence whose deadline is in `cell`, as it is there.
    pub fn sharing(cell: Arc<dyn DeadlineCell>) -> Self {
        Fence { cell }
    }

    /// Whether the lease is still ours.
    pub fn holds(&self) -> bool {
        BootTime::now() < self.deadline()
    }

    /// When the time as primary ends; the machine's start if there is none.
    pub fn deadline(&self) -> BootTime {
        BootTime::from_nanos(self.nanos().load(Ordering::Acquire))
    }

    /// Begins a time as primary.
    pub(super) fn raise(&self, deadline: BootTime) {
        self.nanos().store(deadline.as_nanos(), Ordering::Release);
    }

    /// Moves the deadline. A renewal that is answered after the end of its term changes nothing.
    pub(super) fn extend(&self, deadline: BootTime) {
        let extend = |current| (current != DOWN).then(|| deadline.as_nanos());
        // Fails for a fence that is down, which is the point.
        let _ = self
            .nanos()
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, extend);
    }

    /// Ends the time as primary at once.
    pub(super) fn drop_now(&self) {
        self.nanos().store(DOWN, Ordering::Release);
    }

    fn nanos(&self) -> &AtomicU64 {
        self.cell.nanos()
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

    #[test]
    fn a_deadline_is_seen_through_the_cell_by_all_who_share_it() {
        let cell = Arc::new(AtomicU64::new(DOWN));
        let (one, other) = (Fence::sharing(cell.clone()), Fence::sharing(cell.clone()));
        let deadline = BootTime::now() + Duration::from_secs(60);
        one.raise(deadline);
        assert_eq!((other.deadline(), other.holds()), (deadline, true));
        assert_eq!(cell.load(Ordering::Relaxed), deadline.as_nanos());
        other.drop_now();
        assert!(!one.holds());
    }
}
