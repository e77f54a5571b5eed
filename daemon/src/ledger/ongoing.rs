//! The request that each serving thread is at.
//!
//! A daemon that dies in the middle of a request leaves it unanswered, and the kernel delivers it again to the next one. What the request has
//! made the ledger say by then (a lookup was counted, a handle was made) the kernel has never heard of, so it is taken back first.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use super::{Ledger, ONGOING, ONGOING_WORDS, PAST, PAST_RECORDS, THREADS};

// Words of a record.
const UNIQUE: usize = 0;
const ENTERED: usize = 1;
const HANDLE: usize = 2;

/// What an unanswered request of an earlier process had got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Past {
    /// The kernel's number of the request.
    pub(crate) unique: u64,
    /// Node of which a lookup was counted, or 0.
    pub(crate) entered: u64,
    /// Handle that was made, or 0.
    pub(crate) handle: u64,
}

thread_local! {
    /// Which record is this thread's. Threads beyond the last record have none: their requests are merely counted twice.
    static RECORD: Cell<Option<usize>> = const { Cell::new(None) };
}

impl Ledger {
    /// This thread begins a request.
    pub(crate) fn begin_request(&self, unique: u64) {
        let Some(record) = self.record() else { return };
        self.put(record + UNIQUE, 0);
        self.put(record + ENTERED, 0);
        self.put(record + HANDLE, 0);
        self.put(record + UNIQUE, unique);
    }

    /// The request of this thread has counted a lookup.
    pub(crate) fn note_entered(&self, node: u64) {
        if let Some(record) = self.record() {
            self.put(record + ENTERED, node);
        }
    }

    /// The request of this thread is about to make a handle.
    pub(crate) fn note_handle(&self, number: u64) {
        if let Some(record) = self.record() {
            self.put(record + HANDLE, number);
        }
    }

    /// What the requests of earlier processes had got to. It stays noted until [`Ledger::forget_past`]: this process may die before they
    /// come again. Of very many the oldest are dropped, which merely counts them twice.
    pub(crate) fn take_past(&self) -> Vec<Past> {
        let noted = (0..PAST_RECORDS)
            .map(past_word)
            .chain((0..THREADS).map(first_word));
        let mut found: Vec<Past> = noted.filter_map(|record| self.past(record)).collect();
        found.sort_by_key(|past| std::cmp::Reverse(past.unique));
        found.dedup_by_key(|past| past.unique);
        found.truncate(PAST_RECORDS);
        for (number, past) in found.iter().enumerate() {
            let record = past_word(number);
            self.put(record + UNIQUE, 0);
            self.put(record + ENTERED, past.entered);
            self.put(record + HANDLE, past.handle);
            self.put(record + UNIQUE, past.unique);
        }
        for record in (0..THREADS).map(first_word) {
            self.put(record + UNIQUE, 0);
        }
        found
    }

    /// The request comes again, and what it had got to is about to be taken back.
    pub(crate) fn forget_past(&self, unique: u64) {
        let mut records = (0..PAST_RECORDS).map(past_word);
        if let Some(record) = records.find(|record| self.get(record + UNIQUE) == unique) {
            self.put(record + UNIQUE, 0);
        }
    }

    fn past(&self, record: usize) -> Option<Past> {
        let past = Past {
            unique: self.get(record + UNIQUE),
            entered: self.get(record + ENTERED),
            handle: self.get(record + HANDLE),
        };
        (past.unique != 0).then_some(past)
    }

    fn record(&self) -> Option<usize> {
        RECORD.get().or_else(|| {
            let number = self.threads.fetch_add(1, Ordering::Relaxed);
            let record = first_word(usize::try_from(number).ok().filter(|number| *number < THREADS)?);
            RECORD.set(Some(record));
            Some(record)
        })
    }
}

fn first_word(record: usize) -> usize {
    ONGOING + record * ONGOING_WORDS
}

fn past_word(record: usize) -> usize {
    PAST + record * ONGOING_WORDS
}

#[cfg(test)]
mod tests {
    use super::super::tests::again;
    use super::*;

    #[test]
    fn the_next_process_finds_how_far_each_request_had_got() {
        let ledger = Ledger::create().unwrap();
        std::thread::scope(|scope| {
            let run = |unique, act: fn(&Ledger)| {
                let ledger = &ledger;
                scope
                    .spawn(move || {
                        ledger.begin_request(unique + 1000);
                        ledger.note_entered(99);
                        ledger.begin_request(unique);
                        act(ledger);
                    })
                    .join()
                    .unwrap();
            };
            run(1, |_| {});
            run(2, |ledger| {
                ledger.note_entered(5);
                ledger.note_handle(6);
            });
        });
        let next = again(&ledger);
        let past = |unique, entered, handle| Past {
            unique,
            entered,
            handle,
        };
        assert_eq!(next.take_past(), [past(2, 5, 6), past(1, 0, 0)]);
        next.forget_past(1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                next.begin_request(7);
                next.note_entered(8);
            });
        });
        let third = again(&next);
        assert_eq!(
            third.take_past(),
            [past(7, 8, 0), past(2, 5, 6)],
            "also if the second dies before they come again"
        );
        for unique in [7, 2] {
            third.forget_past(unique);
        }
        assert_eq!(again(&third).take_past(), []);
    }
}
