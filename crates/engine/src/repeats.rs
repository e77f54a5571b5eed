//! What is logged of failures that repeat: the first at once, the following ones at doubling intervals, with the number of those between.
//!
//! A cause that the databases of a machine share (no descriptors, no space) is one failure, whichever database meets it: hundreds of them
//! would otherwise fill the log and hide what else it says. Other causes are told apart by database.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::Error;
use crate::name::DbName;

/// First and longest interval between two lines of the same failure.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// A failure that was not seen for so long is a new one.
const QUIET: Duration = Duration::from_secs(10);

/// Failures seen lately.
#[derive(Debug, Default)]
pub struct Repeats {
    seen: Mutex<BTreeMap<Key, Seen>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    what: &'static str,
    cause: Cause,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    /// An errno that the whole machine or process has.
    Shared(i32),
    Own(DbName),
    /// Of something that there is one of.
    Only,
}

#[derive(Debug)]
struct Seen {
    last: Instant,
    next_line: Instant,
    interval: Duration,
    unlogged: u64,
}

impl Repeats {
    /// Whether `what` failing with `error` is to be logged; then how many times it was not since the last line.
    pub fn note(&self, what: &'static str, db: &DbName, error: &Error) -> Option<u64> {
        let cause = match error.os_error() {
            Some(
                errno @ (libc::EMFILE
                | libc::ENFILE
                | libc::ENOMEM
                | libc::EAGAIN
                | libc::ENOSPC
                | libc::EDQUOT),
            ) => Cause::Shared(errno),
            Some(_) | None => Cause::Own(db.clone()),
        };
        self.note_at(Instant::now(), Key { what, cause })
    }

    /// As [`Repeats::note`], for what concerns no database.
    pub fn note_only(&self, what: &'static str) -> Option<u64> {
        let cause = Cause::Only;
        self.note_at(Instant::now(), Key { what, cause })
    }

    fn note_at(&self, now: Instant, key: Key) -> Option<u64> {
        let mut seen = self.seen.lock();
        seen.retain(|_, seen| now.duration_since(seen.last) < QUIET);
        let Some(known) = seen.get_mut(&key) else {
            let first = Seen {
                last: now,
                next_line: now + INTERVAL.0,
                interval: INTERVAL.0,
                unlogged: 0,
            };
            seen.insert(key, first);
            return Some(0);
        };
        known.last = now;
        if now < known.next_line {
            known.unlogged += 1;
            return None;
        }
        known.interval = (known.interval * 2).min(INTERVAL.1);
        known.next_line = now + known.interval;
        Some(std::mem::take(&mut known.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(errno: i32) -> Error {
        Error::io("test", "file")(std::io::Error::from_raw_os_error(errno))
    }

    /// Lines of a failure that comes each 100 ms for so many seconds.
    fn lines(repeats: &Repeats, from: Instant, seconds: u64) -> Vec<u64> {
        let key = Key {
            what: "apply",
            cause: Cause::Only,
        };
        (0..seconds * 10)
            .filter_map(|step| repeats.note_at(from + Duration::from_millis(100) * step as u32, key.clone()))
            .collect()
    }

    #[test]
    fn a_failure_is_logged_at_once_and_then_ever_more_seldom() {
        let (repeats, begin) = (Repeats::default(), Instant::now());
        // After 0, 1, 3, 7 and 15 seconds.
        assert_eq!(lines(&repeats, begin, 16), [0, 9, 19, 39, 79]);
        let again = begin + Duration::from_secs(16) + QUIET;
        assert_eq!(lines(&repeats, again, 2), [0, 9], "after a while it is a new one");
    }

    #[test]
    fn what_databases_share_is_one_failure_and_other_failures_are_not() {
        let repeats = Repeats::default();
        let (a, b): (DbName, DbName) = ("a.db".parse().unwrap(), "b.db".parse().unwrap());
        assert_eq!(repeats.note("apply", &a, &failure(libc::EMFILE)), Some(0));
        assert_eq!(repeats.note("apply", &b, &failure(libc::EMFILE)), None);
        assert_eq!(repeats.note("capture", &b, &failure(libc::EMFILE)), Some(0));
        assert_eq!(repeats.note("apply", &a, &failure(libc::EIO)), Some(0));
        assert_eq!(repeats.note("apply", &b, &failure(libc::EIO)), Some(0));
        assert_eq!(repeats.note("apply", &b, &failure(libc::EIO)), None);
    }
}
