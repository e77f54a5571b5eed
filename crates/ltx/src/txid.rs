//! Transaction numbers.

use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;

/// The number of a transaction; the first of a database is 1, and 0 stands for "none yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txid(pub u64);

impl Txid {
    pub const ZERO: Txid = Txid(0);
    pub const FIRST: Txid = Txid(1);
    pub const MAX: Txid = Txid(u64::MAX);

    /// The transaction after this one; `None` after the last number.
    pub fn next(self) -> Option<Txid> {
        self.0.checked_add(1).map(Txid)
    }

    /// The transaction before this one; `None` before [`Txid::ZERO`].
    pub fn previous(self) -> Option<Txid> {
        self.0.checked_sub(1).map(Txid)
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Txid {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Txid, ParseError> {
        parse_hex(text.as_bytes())
            .map(Txid)
            .ok_or_else(|| ParseError::Txid(text.to_owned()))
    }
}

/// Exactly 16 hexadecimal digits of either case.
pub(crate) fn parse_hex(text: &[u8]) -> Option<u64> {
    if text.len() != 16 {
        return None;
    }
    text.iter().try_fold(0, |value, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(value << 4 | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_sixteen_hex_digits_and_nothing_else() {
        assert_eq!(Txid(0xab).to_string(), "00000000000000ab");
        assert_eq!("00000000000000AB".parse(), Ok(Txid(0xab)));
        assert_eq!("ffffffffffffffff".parse(), Ok(Txid::MAX));
        for wrong in [
            "",
            "ab",
            "+0000000000000ab",
            "00000000000000a ",
            "0000000000000000a",
            "0x000000000000ab",
        ] {
            assert_eq!(wrong.parse::<Txid>(), Err(ParseError::Txid(wrong.to_owned())));
        }
        assert!("é0000000000000".parse::<Txid>().is_err());
    }

    #[test]
    fn neighbours_end_at_the_limits() {
        assert_eq!(Txid::ZERO.next(), Some(Txid::FIRST));
        assert_eq!(Txid::ZERO.previous(), None);
        assert_eq!(Txid::MAX.next(), None);
    }
}
