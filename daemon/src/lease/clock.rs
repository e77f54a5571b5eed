//! The clock that leases are measured with.
//!
//! It never goes back, and it goes on while the machine sleeps: a primary that wakes up after its lease has run out must
//! know it at once, which the clock behind `std::time::Instant` does not tell on Linux.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A point in time since the machine was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    pub fn now() -> Self {
        let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
            .expect("CLOCK_BOOTTIME exists since Linux 2.6.39");
        BootTime(Duration::from(time))
    }

    /// Time left until this point; none if it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_sub(Self::now().0)
    }

    pub fn from_nanos(nanos: u64) -> Self {
        BootTime(Duration::from_nanos(nanos))
    }

    /// Nanoseconds since the machine was started, as in a `DeadlineCell`.
    pub fn as_nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Add<Duration> for BootTime {
    type Output = BootTime;

    fn add(self, duration: Duration) -> BootTime {
        BootTime(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for BootTime {
    type Output = BootTime;

    fn sub(self, duration: Duration) -> BootTime {
        BootTime(self.0.saturating_sub(duration))
    }
}

/// Sleeps until `point`, in short steps, because the runtime's timers stand still while the machine sleeps.
pub(super) async fn sleep_until(point: BootTime) {
    const STEP: Duration = Duration::from_millis(250);
    loop {
        let remaining = point.remaining();
        if remaining.is_zero() {
            return;
        }
        tokio::time::sleep(remaining.min(STEP)).await;
    }
}
