//! The position of a database: which transaction, and what the database looks like after it.

use std::fmt;
use std::str::FromStr;

use crate::checksum::Checksum;
use crate::error::ParseError;
use crate::txid::{Txid, parse_hex};

/// Two nodes at the same position have the same database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pos {
    pub txid: Txid,
    pub post_apply: Checksum,
}

impl Pos {
    /// Before the first transaction.
    pub const ZERO: Pos = Pos {
        txid: Txid::ZERO,
        post_apply: Checksum::NONE,
    };

    pub const fn new(txid: Txid, post_apply: Checksum) -> Pos {
        Pos { txid, post_apply }
    }

    pub fn is_zero(self) -> bool {
        self == Pos::ZERO
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.txid, self.post_apply)
    }
}

impl FromStr for Pos {
    type Err = ParseError;

    /// Like LiteFS, takes any ASCII character for the separator.
    fn from_str(text: &str) -> Result<Pos, ParseError> {
        let parse = |bytes: &[u8]| {
            if bytes.len() != 33 {
                return None;
            }
            Some(Pos::new(
                Txid(parse_hex(&bytes[..16])?),
                Checksum(parse_hex(&bytes[17..])?),
            ))
        };
        parse(text.as_bytes()).ok_or_else(|| ParseError::Pos(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let pos = Pos::new(Txid(1), Checksum(0xf630_f5ae_3060_002c));
        assert_eq!(pos.to_string(), "0000000000000001/f630f5ae3060002c");
        assert_eq!(pos.to_string().parse(), Ok(pos));
        assert_eq!("0000000000000001-f630f5ae3060002c".parse(), Ok(pos));
        assert_eq!(Pos::ZERO.to_string(), "0000000000000000/0000000000000000");
        assert_eq!(Pos::ZERO.to_string().parse(), Ok(Pos::ZERO));
    }

    #[test]
    fn anything_else_is_refused() {
        for wrong in [
            "",
            "0000000000000001/f630f5ae3060002c\n",
            "000000000000000g/f630f5ae3060002c",
            "1/2",
        ] {
            assert!(wrong.parse::<Pos>().is_err(), "{wrong:?}");
        }
        assert!("000000000000000é/f630f5ae3060002".parse::<Pos>().is_err());
    }
}
