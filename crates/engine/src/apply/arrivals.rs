//! When the records arrived that are not applied yet: how far clients of a replica are behind what the node has.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ltx::Txid;
use parking_lot::Mutex;

/// Records that arrive so close to each other count as one, at first.
const STEP: Duration = Duration::from_millis(100);
/// With more groups than this two neighbours become one, and new ones are as long: of a backlog of many minutes a second does not matter.
const MOST: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    groups: Mutex<Groups>,
}

#[derive(Debug)]
struct Groups {
    /// Oldest first: the last record of a group, and when its first one arrived.
    list: VecDeque<(Txid, Instant)>,
    step: Duration,
}

impl Default for Groups {
    fn default() -> Self {
        Groups {
            list: VecDeque::new(),
            step: STEP,
        }
    }
}

impl Arrivals {
    pub(crate) fn note(&self, txid: Txid, now: Instant) {
        let mut groups = self.groups.lock();
        let Groups { list, step } = &mut *groups;
        match list.back_mut() {
            Some((last, since)) if now.saturating_duration_since(*since) < *step => *last = txid,
            Some(_) | None => list.push_back((txid, now)),
        }
        if list.len() > MOST {
            *list = list
                .make_contiguous()
                .chunks(2)
                .map(|pair| (pair[pair.len() - 1].0, pair[0].1))
                .collect();
            *step *= 2;
        }
    }

    /// When the oldest record behind `applied` arrived.
    pub(crate) fn oldest(&self, applied: Txid) -> Option<Instant> {
        let list = &mut self.groups.lock().list;
        while list.front().is_some_and(|(last, _)| *last <= applied) {
            list.pop_front();
        }
        list.front().map(|(_, since)| *since)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups.lock().list.is_empty()
    }

    /// Everything is applied, or what follows is of another history.
    pub(crate) fn clear(&self) {
        *self.groups.lock() = Groups::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_record_that_is_not_applied_counts() {
        let (arrivals, start) = (Arrivals::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(arrivals.is_empty() && arrivals.oldest(Txid(0)).is_none());
        for second in 1..=9 {
            arrivals.note(Txid(second), at(second));
        }
        assert_eq!(arrivals.oldest(Txid(0)), Some(at(1)));
        assert_eq!(arrivals.oldest(Txid(4)), Some(at(5)));
        assert_eq!(arrivals.oldest(Txid(9)), None);
    }

    #[test]
    fn a_long_backlog_takes_bounded_memory_and_stays_as_old_as_it_is() {
        let (arrivals, start) = (Arrivals::default(), Instant::now());
        for second in 0..100_000 {
            arrivals.note(Txid(second + 1), start + Duration::from_secs(second));
        }
        assert!(arrivals.groups.lock().list.len() <= MOST);
        assert_eq!(arrivals.oldest(Txid(0)), Some(start));
        let half = arrivals
            .oldest(Txid(50_000))
            .unwrap()
            .duration_since(start)
            .as_secs();
        assert!((49_800..=50_000).contains(&half), "{half}");
        assert_eq!(arrivals.oldest(Txid(100_000)), None);
    }
}
