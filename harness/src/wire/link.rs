//! One direction of a link at work: decides for each frame when it leaves, if at all. Called by the switch alone.
//!
//! Pure: the clock is an argument and chance comes from a seed, so the same seed and the same frames meet the same fate.
//! Frames keep their order, except those chosen by `reorder`.

use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::policy::{LinkPolicy, Share};

/// The longest queue in front of a rate limit: what would wait longer is dropped, as by a router.
pub const BACKLOG: Duration = Duration::from_millis(250);

/// How long a reordered frame is held back at least: enough for the rest of a burst to overtake it.
const HOLD_BACK: Duration = Duration::from_millis(2);

/// When the copies of a frame leave. No copy: the frame is lost.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Departures {
    pub(crate) first: Option<Instant>,
    pub(crate) second: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Link {
    policy: LinkPolicy,
    cut: bool,
    chance: SmallRng,
    /// The rate limit is busy with earlier frames until then.
    busy_until: Instant,
    last_departure: Instant,
}

impl Link {
    pub(crate) fn new(seed: u64, now: Instant) -> Self {
        Self {
            policy: LinkPolicy::default(),
            cut: false,
            chance: SmallRng::seed_from_u64(seed),
            busy_until: now,
            last_departure: now,
        }
    }

    pub(crate) fn set(&mut self, policy: LinkPolicy, cut: bool) {
        self.policy = policy;
        self.cut = cut;
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    pub(crate) fn admit(&mut self, now: Instant, bytes: usize) -> Departures {
        if self.cut || self.happens(self.policy.loss) {
            return Departures::default();
        }
        let Some(sent) = self.pass_rate_limit(now, bytes) else {
            return Departures::default();
        };
        let arrival = sent + self.time_under_way();
        let first = if self.happens(self.policy.reorder) {
            arrival.max(self.last_departure) + HOLD_BACK.max(self.policy.jitter)
        } else {
            self.last_departure = arrival.max(self.last_departure);
            self.last_departure
        };
        let second = self.happens(self.policy.duplicate).then_some(first);
        Departures {
            first: Some(first),
            second,
        }
    }

    /// Chance is asked only where a policy needs it: a link without faults stays cheap.
    fn happens(&mut self, share: Share) -> bool {
        let probability = share.probability();
        probability > 0.0 && self.chance.random_bool(probability)
    }

    fn pass_rate_limit(&mut self, now: Instant, bytes: usize) -> Option<Instant> {
        let Some(rate) = self.policy.rate else {
            return Some(now);
        };
        let start = self.busy_until.max(now);
        if start - now > BACKLOG {
            return None;
        }
        self.busy_until = start + rate.time_for(bytes);
        Some(self.busy_until)
    }

    fn time_under_way(&mut self) -> Duration {
        let LinkPolicy { delay, jitter, .. } = self.policy;
        if jitter.is_zero() {
            return delay;
        }
        let least = delay.saturating_sub(jitter);
        least + (delay + jitter - least).mul_f64(self.chance.random())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(policy: LinkPolicy) -> (Link, Instant) {
        let now = Instant::now();
        let mut link = Link::new(7, now);
        link.set(policy, false);
        (link, now)
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn without_faults_a_frame_leaves_at_once() {
        let (mut link, now) = link(LinkPolicy::default());
        assert_eq!(
            link.admit(now, 100),
            Departures {
                first: Some(now),
                second: None
            }
        );
    }

    #[test]
    fn a_cut_link_loses_everything_and_a_healed_one_nothing() {
        let (mut link, now) = link(LinkPolicy::default());
        link.set(LinkPolicy::default(), true);
        assert_eq!(link.admit(now, 100), Departures::default());
        link.set(LinkPolicy::default(), false);
        assert!(link.admit(now, 100).first.is_some());
    }

    #[test]
    fn jitter_stays_within_bounds_and_keeps_the_order() {
        let (mut link, now) = link(LinkPolicy {
            delay: ms(20),
            jitter: ms(5),
            ..LinkPolicy::default()
        });
        let mut last = now;
        for _ in 0..1000 {
            let at = link.admit(now, 100).first.unwrap();
            assert!(at >= now + ms(15) && at <= now + ms(25));
            assert!(at >= last);
            last = at;
        }
    }

    #[test]
    fn loss_and_duplication_match_their_shares() {
        let policy = LinkPolicy {
            loss: "10%".parse().unwrap(),
            duplicate: "20%".parse().unwrap(),
            ..LinkPolicy::default()
        };
        let (mut link, now) = link(policy);
        let all: Vec<_> = (0..10_000).map(|_| link.admit(now, 100)).collect();
        let lost = all.iter().filter(|departures| departures.first.is_none()).count();
        let twice = all
            .iter()
            .filter(|departures| departures.second.is_some())
            .count();
        assert!((800..1200).contains(&lost), "{lost}");
        assert!((1600..2000).contains(&twice), "{twice}");
    }

    #[test]
    fn a_reordered_frame_is_overtaken() {
        let (mut link, now) = link(LinkPolicy {
            reorder: "50%".parse().unwrap(),
            ..LinkPolicy::default()
        });
        let times: Vec<_> = (0..100).map(|_| link.admit(now, 100).first.unwrap()).collect();
        assert!(times.windows(2).any(|pair| pair[1] < pair[0]));
    }

    #[test]
    fn a_rate_spaces_frames_and_drops_beyond_the_backlog() {
        // 1,000 bytes take 8 ms at 1 Mbit/s.
        let (mut link, now) = link(LinkPolicy {
            rate: "1mbit".parse().ok(),
            ..LinkPolicy::default()
        });
        assert_eq!(link.admit(now, 1000).first, Some(now + ms(8)));
        assert_eq!(link.admit(now, 1000).first, Some(now + ms(16)));
        let passed = (0..100).filter(|_| link.admit(now, 1000).first.is_some()).count();
        assert_eq!(passed, 30, "250 ms hold 30 more frames of 8 ms");
    }

    #[test]
    fn the_same_seed_decides_the_same() {
        let policy = LinkPolicy {
            loss: "30%".parse().unwrap(),
            jitter: ms(3),
            ..LinkPolicy::default()
        };
        let now = Instant::now();
        let fates = |_| {
            let mut link = Link::new(99, now);
            link.set(policy, false);
            (0..200).map(|_| link.admit(now, 64).first).collect::<Vec<_>>()
        };
        assert_eq!(fates(1), fates(2));
    }
}
