//! Durations as Go writes them: `10s`, `1m30s`, `1.5h`, `-1s`.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// A duration of the configuration. Zero and negative values mean "disabled" or "default" for some keys, so both are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration {
    nanos: i64,
}

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error("empty duration")]
    Empty,
    #[error("number expected at `{0}`")]
    Number(String),
    #[error("missing unit after `{0}`: write one of ns, us, ms, s, m, h")]
    MissingUnit(String),
    #[error("unknown unit `{0}`: write one of ns, us, ms, s, m, h")]
    UnknownUnit(String),
    #[error("longer than 292 years")]
    Overflow,
}

impl GoDuration {
    /// A duration that is known at build time; clamped to what Go can express.
    pub const fn from_duration(duration: Duration) -> Self {
        let nanos = duration.as_nanos();
        GoDuration {
            nanos: if nanos > i64::MAX as u128 {
                i64::MAX
            } else {
                nanos as i64
            },
        }
    }

    /// The duration when it is more than zero.
    pub fn positive(self) -> Option<Duration> {
        u64::try_from(self.nanos)
            .ok()
            .filter(|nanos| *nanos > 0)
            .map(Duration::from_nanos)
    }

    /// The duration, with everything below zero taken for zero.
    pub fn or_zero(self) -> Duration {
        self.positive().unwrap_or_default()
    }

    /// Reads Go's notation: a sequence of decimal numbers, each with a unit; `0` alone needs none.
    pub fn parse(text: &str) -> Result<Self, DurationError> {
        let (negative, mut rest) = match text.as_bytes().first() {
            None => return Err(DurationError::Empty),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        if rest == "0" {
            return Ok(GoDuration { nanos: 0 });
        }
        if rest.is_empty() {
            return Err(DurationError::Number(text.to_string()));
        }
        let mut total: i64 = 0;
        while !rest.is_empty() {
            let (part, after) = part(rest)?;
            total = total.checked_add(part).ok_or(DurationError::Overflow)?;
            rest = after;
        }
        Ok(GoDuration {
            nanos: if negative { -total } else { total },
        })
    }
}

/// One number with its unit, in nanoseconds, and what follows it.
fn part(text: &str) -> Result<(i64, &str), DurationError> {
    let number_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, rest) = text.split_at(number_end);
    let unit_end = rest
        .find(|c: char| c.is_ascii_digit() || c == '.')
        .unwrap_or(rest.len());
    let (unit, after) = rest.split_at(unit_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(DurationError::Number(text.to_string()));
    }
    let scale: i64 = match unit {
        "" => return Err(DurationError::MissingUnit(number.to_string())),
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return Err(DurationError::UnknownUnit(unit.to_string())),
    };
    let whole: i64 = match whole {
        "" => 0,
        digits => digits.parse().map_err(|_| DurationError::Overflow)?,
    };
    let nanos = whole
        .checked_mul(scale)
        .and_then(|nanos| nanos.checked_add(fraction_nanos(fraction, scale)))
        .ok_or(DurationError::Overflow)?;
    Ok((nanos, after))
}

/// `.25` of a unit; digits beyond a nanosecond are dropped, as Go does.
fn fraction_nanos(digits: &str, scale: i64) -> i64 {
    let mut unit = scale as i128 * 1_000_000_000;
    let mut nanos: i128 = 0;
    for digit in digits.bytes() {
        unit /= 10;
        nanos += i128::from(digit - b'0') * unit;
    }
    (nanos / 1_000_000_000) as i64
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos < 0 {
            f.write_str("-")?;
        }
        let magnitude = Duration::from_nanos(self.nanos.unsigned_abs());
        write!(
            f,
            "{}",
            humantime::format_duration(magnitude).to_string().replace(' ', "")
        )
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DurationVisitor)
    }
}

struct DurationVisitor;

impl Visitor<'_> for DurationVisitor {
    type Value = GoDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration with a unit, such as `10s` or `1m30s`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<GoDuration, E> {
        GoDuration::parse(text)
            .map_err(|reason| E::custom(format_args!("invalid duration \"{text}\": {reason}")))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<GoDuration, E> {
        Err(E::invalid_type(Unexpected::Signed(number), &self))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<GoDuration, E> {
        Err(E::invalid_type(Unexpected::Unsigned(number), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nanos(text: &str) -> i64 {
        GoDuration::parse(text).unwrap().nanos
    }

    #[test]
    fn go_notation_is_read() {
        assert_eq!(nanos("0"), 0);
        assert_eq!(nanos("0s"), 0);
        assert_eq!(nanos("10s"), 10_000_000_000);
        assert_eq!(nanos("1m30s"), 90_000_000_000);
        assert_eq!(nanos("1.5h"), 5_400_000_000_000);
        assert_eq!(nanos(".5s"), 500_000_000);
        assert_eq!(nanos("2.s"), 2_000_000_000);
        assert_eq!(nanos("-1s"), -1_000_000_000);
        assert_eq!(nanos("+3ms"), 3_000_000);
        assert_eq!(nanos("7us"), 7_000);
        assert_eq!(nanos("7µs"), 7_000);
        assert_eq!(nanos("1h2m3s4ms5us6ns"), 3_723_004_005_006);
    }

    #[test]
    fn what_go_rejects_is_rejected() {
        for text in [
            "",
            "-",
            "10",
            "1x",
            "s",
            ".",
            ".s",
            "1..5s",
            "10 s",
            "3000000h",
            "9999999999999999999s",
        ] {
            assert!(GoDuration::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn zero_and_less_are_not_positive() {
        assert_eq!(GoDuration::parse("-1s").unwrap().positive(), None);
        assert_eq!(GoDuration::parse("0s").unwrap().positive(), None);
        assert_eq!(GoDuration::parse("-1s").unwrap().or_zero(), Duration::ZERO);
        assert_eq!(
            GoDuration::parse("2s").unwrap().positive(),
            Some(Duration::from_secs(2))
        );
    }

    #[test]
    fn a_duration_prints_as_it_is_written() {
        for text in ["10s", "1m30s", "-1s", "500ms"] {
            assert_eq!(GoDuration::parse(text).unwrap().to_string(), text);
        }
    }
}
