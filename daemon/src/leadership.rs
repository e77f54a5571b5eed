//! What this node knows of who leads: written by the elector, read by the mount, the API and the streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Role of this node and the primary it follows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leadership {
    pub is_primary: bool,
    /// Highest term that was seen.
    pub epoch: u64,
    /// The primary this node follows or tries to; none on the primary and while none is known.
    pub primary: Option<litefs_api::Primary>,
    /// Has been primary, or has caught up with one, since the start.
    pub ready: bool,
}

impl Leadership {
    /// The followed primary's host name.
    pub fn primary_hostname(&self) -> Option<&str> {
        self.primary.as_ref().map(|primary| primary.hostname.as_str())
    }
}

/// How old the newest news from the primary are, by both nodes' clocks.
#[derive(Debug, Clone)]
pub struct Lag {
    /// Milliseconds since the epoch of the newest heartbeat or transaction; or one of the two below.
    heard_ms: Arc<AtomicI64>,
}

const NEVER: i64 = -1;
const IS_PRIMARY: i64 = 0;

impl Default for Lag {
    fn default() -> Self {
        Lag {
            heard_ms: Arc::new(AtomicI64::new(NEVER)),
        }
    }
}

impl Lag {
    /// The primary's clock showed `timestamp_ms` when it sent what arrived last.
    pub(crate) fn heard(&self, timestamp_ms: i64) {
        if timestamp_ms > IS_PRIMARY {
            self.heard_ms.store(timestamp_ms, Ordering::Relaxed);
        }
    }

    /// This node is the primary: there is nobody to be behind of.
    pub(crate) fn set_primary(&self) {
        self.heard_ms.store(IS_PRIMARY, Ordering::Relaxed);
    }

    /// Nothing is known: the node has just ceased to be primary.
    pub(crate) fn set_unknown(&self) {
        self.heard_ms.store(NEVER, Ordering::Relaxed);
    }

    /// Time stamp of the newest news; none on the primary and before the first.
    pub fn heard_ms(&self) -> Option<i64> {
        Some(self.heard_ms.load(Ordering::Relaxed)).filter(|heard| *heard > IS_PRIMARY)
    }

    /// Seconds since the newest news: 0 on the primary, none while nothing was heard.
    pub fn seconds(&self) -> Option<f64> {
        match self.heard_ms.load(Ordering::Relaxed) {
            NEVER => None,
            IS_PRIMARY => Some(0.0),
            heard => Some((now_ms() - heard) as f64 / 1000.0),
        }
    }
}

/// Milliseconds since the epoch by this machine's clock.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_told_from_the_newest_news() {
        let lag = Lag::default();
        assert_eq!((lag.seconds(), lag.heard_ms()), (None, None));
        lag.set_primary();
        assert_eq!((lag.seconds(), lag.heard_ms()), (Some(0.0), None));
        lag.heard(now_ms() - 1500);
        assert!(lag.seconds().unwrap() >= 1.5);
        lag.heard(0);
        assert!(lag.heard_ms().is_some(), "a time stamp of nothing says nothing");
    }
}
