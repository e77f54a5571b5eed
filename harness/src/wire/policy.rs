//! What a wire does to the frames that travel from one station to another. Pure data; [`super::link`] carries it out.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The faults of one direction of a link. The default is a wire that only forwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkPolicy {
    /// Time a frame is under way.
    #[serde(with = "duration")]
    pub delay: Duration,
    /// The delay varies by up to this much either way, evenly; frames keep their order.
    #[serde(with = "duration")]
    pub jitter: Duration,
    /// Share of frames that vanish.
    pub loss: Share,
    /// Share of frames that arrive twice.
    pub duplicate: Share,
    /// Share of frames that are held back, so that later ones overtake them.
    pub reorder: Share,
    /// Bits per second; a backlog of more than [`super::link::BACKLOG`] is dropped.
    pub rate: Option<Rate>,
}

impl LinkPolicy {
    /// Whether the policy decides frame by frame, so that frames must have the size they have on a real wire.
    pub(crate) fn counts_frames(&self) -> bool {
        let shares = [self.loss, self.duplicate, self.reorder];
        self.rate.is_some() || shares.iter().any(|share| *share != Share::default())
    }
}

impl fmt::Display for LinkPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.delay.is_zero() || !self.jitter.is_zero() {
            parts.push(format!("delay {:?}", self.delay));
        }
        if !self.jitter.is_zero() {
            parts.push(format!("jitter {:?}", self.jitter));
        }
        for (name, share) in [
            ("loss", self.loss),
            ("duplicate", self.duplicate),
            ("reorder", self.reorder),
        ] {
            if share != Share::default() {
                parts.push(format!("{name} {share}"));
            }
        }
        if let Some(rate) = self.rate {
            parts.push(format!("rate {rate}"));
        }
        f.write_str(if parts.is_empty() { "no faults" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

/// A probability, written `1%` or `0.01`.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Share(f64);

impl Share {
    pub const ALL: Self = Self(1.0);

    pub(crate) fn probability(self) -> f64 {
        self.0.clamp(0.0, 1.0)
    }
}

impl FromStr for Share {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (number, scale) = match text.strip_suffix('%') {
            Some(number) => (number, 100.0),
            None => (text, 1.0),
        };
        match number.trim().parse::<f64>().map(|number| number / scale) {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(Self(share)),
            _ => Err(Error::Invalid(format!(
                "{text:?} is not a share: write 1% or 0.01"
            ))),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0 * 100.0)
    }
}

/// Bits per second, written `10mbit`, `512kbit`, `1gbit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rate(u64);

const UNITS: [(&str, u64); 4] = [
    ("gbit", 1_000_000_000),
    ("mbit", 1_000_000),
    ("kbit", 1_000),
    ("bit", 1),
];

impl Rate {
    /// Time `bytes` occupy the wire.
    pub(crate) fn time_for(self, bytes: usize) -> Duration {
        let bits = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(8);
        Duration::from_nanos(bits.saturating_mul(1_000_000_000) / self.0.max(1))
    }
}

impl FromStr for Rate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let lower = text.trim().to_ascii_lowercase();
        UNITS
            .iter()
            .find_map(|(unit, scale)| Some((lower.strip_suffix(unit)?, scale)))
            .and_then(|(number, scale)| number.trim().parse::<u64>().ok()?.checked_mul(*scale))
            .filter(|rate| *rate > 0)
            .map(Self)
            .ok_or_else(|| Error::Invalid(format!("{text:?} is not a rate: write 10mbit, 512kbit or 1gbit")))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = UNITS
            .iter()
            .find(|(_, scale)| self.0.is_multiple_of(*scale))
            .unwrap_or(&("bit", 1));
        write!(f, "{}{unit}", self.0 / scale)
    }
}

/// Durations in the control protocol, as nanoseconds.
mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_rates_are_written_as_on_the_command_line() {
        assert_eq!("1%".parse::<Share>().unwrap(), "0.01".parse().unwrap());
        assert_eq!("100%".parse::<Share>().unwrap(), Share::ALL);
        for wrong in ["101%", "-1", "x", "", "%"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong:?}");
        }
        assert_eq!("10mbit".parse::<Rate>().unwrap().to_string(), "10mbit");
        assert_eq!("1500kbit".parse::<Rate>().unwrap().to_string(), "1500kbit");
        assert_eq!(
            "8kbit".parse::<Rate>().unwrap().time_for(1000),
            Duration::from_secs(1)
        );
        for wrong in ["10", "0mbit", "mbit", "-1mbit"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong:?}");
        }
    }
}
