//! Which of many failures are worth a line in the log.
//!
//! What fails is tried again several times a second for as long as it takes; a log that says so each time hides everything
//! else. The first failure is told at once, the same one again after pauses that grow, and the end of it once. Attempts are
//! not slowed down by this.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// First pause between two lines about the same failure; it doubles with each line.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// How many failures are told apart at a time. More of them are one whose text varies.
const KINDS: usize = 4;

/// The failures since something worked last.
#[derive(Debug, Default)]
pub struct Repetition {
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    since: Instant,
    attempts: u32,
    kinds: Vec<Kind>,
}

#[derive(Debug)]
struct Kind {
    text: String,
    /// The next line is due then.
    due: Instant,
    pause: Duration,
    unlogged: u32,
}

/// What a line about a failure adds to the failure itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// How often the same happened since the last line, if it did.
    pub unlogged: Option<u32>,
}

/// Trouble that is over.
#[derive(Debug, PartialEq, Eq)]
pub struct Over {
    pub attempts: u32,
    pub after: Duration,
}

impl Repetition {
    /// Takes note of a failure; a line if it is to be logged.
    pub fn failed(&mut self, failure: &impl Display, now: Instant) -> Option<Line> {
        let text = failure.to_string();
        let trouble = self.trouble.get_or_insert_with(|| Trouble {
            since: now,
            attempts: 0,
            kinds: Vec::new(),
        });
        trouble.attempts = trouble.attempts.saturating_add(1);
        let known = trouble.kinds.iter().position(|kind| kind.text == text);
        let kind = match known {
            Some(known) => &mut trouble.kinds[known],
            None if trouble.kinds.len() == KINDS => &mut trouble.kinds[KINDS - 1],
            None => {
                trouble.kinds.push(Kind {
                    text,
                    due: now + FIRST,
                    pause: FIRST,
                    unlogged: 0,
                });
                return Some(Line { unlogged: None });
            }
        };
        if now < kind.due {
            kind.unlogged = kind.unlogged.saturating_add(1);
            return None;
        }
        kind.pause = (kind.pause * 2).min(LONGEST);
        kind.due = now + kind.pause;
        let unlogged = std::mem::take(&mut kind.unlogged);
        Some(Line {
            unlogged: (unlogged > 0).then_some(unlogged),
        })
    }

    /// Takes note of a success; what it is the end of, if something had failed before.
    pub fn worked(&mut self, now: Instant) -> Option<Over> {
        let trouble = self.trouble.take()?;
        Some(Over {
            attempts: trouble.attempts,
            after: now.saturating_duration_since(trouble.since),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds at which a line is logged, of `failures` that come every half second.
    fn logged<'a>(repetition: &mut Repetition, failures: impl Iterator<Item = &'a str>) -> Vec<f64> {
        let start = Instant::now();
        let at = |index: usize| Duration::from_millis(500) * index as u32;
        failures
            .enumerate()
            .filter(|(index, failure)| repetition.failed(failure, start + at(*index)).is_some())
            .map(|(index, _)| at(index).as_secs_f64())
            .collect()
    }

    #[test]
    fn the_same_failure_is_logged_at_once_and_then_ever_more_rarely() {
        let lines = logged(&mut Repetition::default(), std::iter::repeat_n("refused", 600));
        assert_eq!(lines, [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 123.0, 183.0, 243.0]);
    }

    #[test]
    fn a_line_tells_how_often_the_same_happened_meanwhile() {
        let (mut repetition, start) = (Repetition::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(repetition.failed(&"a", at(0)), Some(Line { unlogged: None }));
        assert_eq!(repetition.failed(&"a", at(400)), None);
        assert_eq!(repetition.failed(&"a", at(800)), None);
        assert_eq!(
            repetition.failed(&"a", at(1200)),
            Some(Line { unlogged: Some(2) })
        );
        assert_eq!(repetition.failed(&"a", at(3200)), Some(Line { unlogged: None }));
    }

    #[test]
    fn another_failure_is_logged_at_once_and_two_that_alternate_are_not_new_each_time() {
        let failures = ["refused", "no answer"].into_iter().cycle().take(16);
        let lines = logged(&mut Repetition::default(), failures);
        assert_eq!(lines, [0.0, 0.5, 1.0, 1.5, 3.0, 3.5, 7.0, 7.5]);
    }

    #[test]
    fn failures_that_are_never_the_same_do_not_fill_the_log() {
        let failures: Vec<String> = (0..600).map(|request| format!("request {request}")).collect();
        let lines = logged(&mut Repetition::default(), failures.iter().map(String::as_str));
        assert!(lines.len() < 16, "{lines:?}");
    }

    #[test]
    fn the_end_is_told_once_and_what_fails_afterwards_is_new() {
        let (mut repetition, start) = (Repetition::default(), Instant::now());
        assert_eq!(repetition.worked(start), None);
        repetition.failed(&"refused", start);
        repetition.failed(&"refused", start);
        let later = start + Duration::from_secs(5);
        let (attempts, after) = (2, Duration::from_secs(5));
        assert_eq!(repetition.worked(later), Some(Over { attempts, after }));
        assert_eq!(repetition.worked(later), None);
        assert_eq!(
            repetition.failed(&"refused", later),
            Some(Line { unlogged: None })
        );
    }
}
