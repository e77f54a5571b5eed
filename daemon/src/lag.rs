//! How far a replica is behind: what its clients do not see yet, in time.
//!
//! It has two parts. What is on its way is told by heartbeats: each says until when, by the primary's clock, the node has everything. The clocks
//! of two machines are never compared: only how much longer the way of a heartbeat was than that of the quickest one. What has arrived and is
//! not applied (a client's lock is in the way) is as old as the oldest such record. Decision 14.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Database, Store};
use parking_lot::Mutex;

/// Heartbeats come each second, when nothing else is being sent. Until the next one is overdue nothing can be told.
const OVERDUE: Duration = Duration::from_millis(1500);
/// Ways of heartbeats differ by so much on networks with nothing to complain about.
const JITTER: Duration = Duration::from_millis(250);
/// The quickest way grows by this part of the time: clocks run at different speeds, by less than 1 in 2,000 where something disciplines them.
const DRIFT: u32 = 1000;

/// Cheap to clone; written by the elector and by the stream from the primary.
#[derive(Clone)]
pub struct Lag {
    store: Arc<Store>,
    news: Arc<Mutex<News>>,
}

#[derive(Debug, Default)]
enum News {
    /// Nothing was heard yet, or the node has just ceased to be primary.
    #[default]
    Unknown,
    /// There is nobody to be behind of.
    Primary,
    /// The last heartbeat.
    Heard(Heartbeat),
}

/// A heartbeat, and how late it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heartbeat {
    came: Instant,
    /// Until when the node has everything, in milliseconds by the primary's clock.
    said_ms: i64,
    /// How much longer its way was than that of the quickest one before.
    late: Duration,
}

impl Heartbeat {
    fn first(came: Instant, said_ms: i64) -> Heartbeat {
        Heartbeat {
            came,
            said_ms,
            late: Duration::ZERO,
        }
    }

    fn next(self, came: Instant, said_ms: i64) -> Heartbeat {
        let passed = came.saturating_duration_since(self.came);
        let Ok(theirs) = u64::try_from(said_ms.saturating_sub(self.said_ms)) else {
            // Their clock was set back.
            return Heartbeat::first(came, said_ms);
        };
        // One that took less time than all before it is on time, and the next ones are measured by it.
        let late = (self.late + passed).saturating_sub(Duration::from_millis(theirs));
        Heartbeat {
            came,
            said_ms,
            late: late.saturating_sub(passed / DRIFT),
        }
    }

    /// What the node does not have at that moment, as far as it can be told.
    fn behind(&self, now: Instant) -> Duration {
        counts(self.late, JITTER) + counts(now.saturating_duration_since(self.came), OVERDUE)
    }
}

/// The heartbeats of one stream.
pub(crate) struct Heartbeats {
    news: Arc<Mutex<News>>,
    last: Option<Heartbeat>,
}

impl Heartbeats {
    /// A heartbeat came, and the node has all that it had to catch up with when the stream began.
    pub(crate) fn heard(&mut self, said_ms: i64) {
        let now = Instant::now();
        let heartbeat = match self.last {
            Some(last) => last.next(now, said_ms),
            None => Heartbeat::first(now, said_ms),
        };
        self.last = Some(heartbeat);
        let mut news = self.news.lock();
        match *news {
            // A stream that is ending does not know of it.
            News::Primary => {}
            News::Unknown | News::Heard(_) => *news = News::Heard(heartbeat),
        }
    }
}

impl Lag {
    pub fn new(store: Arc<Store>) -> Lag {
        Lag {
            store,
            news: Arc::default(),
        }
    }

    /// A stream begins, maybe from another primary, whose clock is another one.
    pub(crate) fn begin(&self) -> Heartbeats {
        Heartbeats {
            news: self.news.clone(),
            last: None,
        }
    }

    /// This node is the primary.
    pub(crate) fn set_primary(&self) {
        *self.news.lock() = News::Primary;
    }

    /// Nothing is known.
    pub(crate) fn set_unknown(&self) {
        *self.news.lock() = News::Unknown;
    }

    /// What clients of the node do not see yet, of any database; `None`: nobody knows.
    pub fn behind(&self) -> Option<Duration> {
        let reception = self.reception()?;
        let held = self.store.databases().iter().map(|db| held(db)).max();
        Some(reception.max(held.unwrap_or_default()))
    }

    /// As [`Lag::behind`], of one database.
    pub fn behind_of(&self, db: &Database) -> Option<Duration> {
        Some(self.reception()?.max(held(db)))
    }

    fn reception(&self) -> Option<Duration> {
        match &*self.news.lock() {
            News::Unknown => None,
            News::Primary => Some(Duration::ZERO),
            News::Heard(heartbeat) => Some(heartbeat.behind(Instant::now())),
        }
    }
}

fn held(db: &Database) -> Duration {
    db.held_since().map_or(Duration::ZERO, |since| since.elapsed())
}

/// A time, if it is more than what means nothing.
fn counts(time: Duration, nothing: Duration) -> Duration {
    if time > nothing { time } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What heartbeats said, in milliseconds of their clock, and when they came, in milliseconds of ours; how far the node is behind when the
    /// last one came.
    fn after(beats: &[(i64, u64)]) -> Duration {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let (said, came) = beats[0];
        let mut heartbeat = Heartbeat::first(at(came), said);
        for (said, came) in &beats[1..] {
            heartbeat = heartbeat.next(at(*came), *said);
        }
        heartbeat.behind(heartbeat.came)
    }

    #[test]
    fn clocks_that_differ_make_no_lag() {
        assert_eq!(after(&[(86_400_000, 0)]), Duration::ZERO);
        assert_eq!(after(&[(-5, 0), (995, 1010), (1995, 2005)]), Duration::ZERO);
    }

    #[test]
    fn a_clock_that_jumps_makes_no_lag() {
        assert_eq!(after(&[(0, 0), (1000, 1000), (86_402_000, 2000)]), Duration::ZERO);
        let set_back = [(86_400_000, 0), (86_401_000, 1000), (2000, 2000), (3000, 3000)];
        assert_eq!(after(&set_back), Duration::ZERO);
    }

    #[test]
    fn what_is_longer_on_its_way_than_the_quickest_is_late() {
        let slower = after(&[(0, 100), (1000, 1050), (2000, 4050), (3000, 6050)]);
        assert!(
            slower > 2900 * SECOND / 1000 && slower <= 3 * SECOND,
            "{slower:?}"
        );
        // And on time again when the backlog is gone.
        assert_eq!(after(&[(0, 100), (2000, 4050), (4000, 4100)]), Duration::ZERO);
    }

    #[test]
    fn a_clock_that_runs_slower_makes_no_lag() {
        let beats: Vec<(i64, u64)> = (0..20_000_i64)
            .map(|n| (n * 9995 / 10, n.cast_unsigned() * 1000))
            .collect();
        assert_eq!(after(&beats), Duration::ZERO);
    }

    #[test]
    fn silence_is_lag_once_a_heartbeat_is_overdue() {
        let heartbeat = Heartbeat::first(Instant::now(), 7);
        assert_eq!(heartbeat.behind(heartbeat.came + SECOND), Duration::ZERO);
        assert_eq!(heartbeat.behind(heartbeat.came + 20 * SECOND), 20 * SECOND);
    }
}
