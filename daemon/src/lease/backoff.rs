//! Pauses between attempts that failed.

use std::time::Duration;

use rand::Rng;

/// Pauses that double from `first` to `longest`, each shortened by up to half at random so that nodes do not march in
/// step.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(first: Duration, longest: Duration) -> Self {
        let first = first.min(longest);
        Backoff {
            first,
            longest,
            next: first,
        }
    }

    /// Starts again with the shortest pause.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.longest);
        pause.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300));
        for longest in [100, 200, 300, 300] {
            let pause = backoff.pause();
            assert!(pause <= Duration::from_millis(longest) && pause >= Duration::from_millis(longest / 2));
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(100));
    }
}
