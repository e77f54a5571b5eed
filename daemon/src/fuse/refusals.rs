//! Tells the operator that a client tries to write on a replica.
//!
//! SQLite makes "disk I/O error" of a refused write to a WAL, whatever the errno. So the log is where it is told what happened and where to
//! write instead: at once, and once per burst of attempts, as a client that cannot write often tries again in a loop.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use engine::DbName;
use parking_lot::Mutex;

use super::presence::Presence;
use crate::metrics::REFUSED_WRITES_TOTAL;

/// A burst is over when nothing was refused for so long.
const QUIET: Duration = Duration::from_secs(10);
/// A burst that does not end is told of again.
const AGAIN: Duration = Duration::from_secs(60);
/// Clients choose the names: more bursts than this at a time are not told apart from new ones.
const MOST: usize = 1000;

/// The bursts that go on.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    bursts: Mutex<HashMap<DbName, Burst>>,
}

#[derive(Debug)]
struct Burst {
    told: Instant,
    last: Instant,
    untold: u64,
}

impl Refusals {
    /// A client's write was refused because this node is a replica.
    pub(crate) fn tell(&self, name: &DbName, presence: &Presence) {
        metrics::counter!(REFUSED_WRITES_TOTAL).increment(1);
        let Some(untold) = self.note(name, Instant::now()) else {
            return;
        };
        let primary = presence.primary();
        tracing::warn!(
            db = %name,
            primary = primary.as_deref().unwrap_or("unknown"),
            untold,
            "write refused: this node is a replica, write on the primary"
        );
    }

    /// Whether this refusal is to be told of, and how many were not since the last one that was.
    fn note(&self, name: &DbName, now: Instant) -> Option<u64> {
        let mut bursts = self.bursts.lock();
        if let Some(burst) = bursts.get_mut(name)
            && now.duration_since(burst.last) < QUIET
        {
            burst.last = now;
            if now.duration_since(burst.told) < AGAIN {
                burst.untold += 1;
                return None;
            }
            burst.told = now;
            return Some(std::mem::take(&mut burst.untold));
        }
        if bursts.len() >= MOST {
            bursts.retain(|_, burst| now.duration_since(burst.last) < QUIET);
        }
        if bursts.len() < MOST {
            let burst = Burst {
                told: now,
                last: now,
                untold: 0,
            };
            bursts.insert(name.clone(), burst);
        }
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DbName {
        text.parse().unwrap()
    }

    #[test]
    fn a_burst_is_told_of_at_its_begin_and_each_database_has_its_own() {
        let refusals = Refusals::default();
        let start = Instant::now();
        assert_eq!(refusals.note(&name("a"), start), Some(0));
        assert_eq!(refusals.note(&name("b"), start), Some(0));
        assert_eq!(refusals.note(&name("a"), start + QUIET / 2), None);
        assert_eq!(
            refusals.note(&name("a"), start + QUIET),
            None,
            "the pause counts from the last attempt"
        );
        assert_eq!(refusals.note(&name("a"), start + QUIET * 3), Some(0));
    }

    #[test]
    fn a_burst_without_end_is_told_of_now_and_then() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let told: Vec<u64> = (0..=90)
            .filter_map(|second| refusals.note(&name("a"), start + Duration::from_secs(second)))
            .collect();
        assert_eq!(told, [0, 59]);
    }

    #[test]
    fn names_do_not_pile_up() {
        let refusals = Refusals::default();
        let start = Instant::now();
        for number in 0..2 * MOST {
            assert!(refusals.note(&name(&format!("{number}.db")), start).is_some());
        }
        assert_eq!(refusals.bursts.lock().len(), MOST);
        assert_eq!(refusals.note(&name("late.db"), start + QUIET), Some(0));
        assert_eq!(refusals.bursts.lock().len(), 1);
    }
}
