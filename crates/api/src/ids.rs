//! Numbers that travel as sixteen hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text is not a hexadecimal number of at most 64 bits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a hexadecimal number of up to 16 digits")]
pub struct ParseIdError(pub String);

fn parse(text: &str) -> Result<u64, ParseIdError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let number = if digits {
        u64::from_str_radix(text, 16).ok()
    } else {
        None
    };
    number.ok_or_else(|| ParseIdError(text.to_string()))
}

macro_rules! hex_id {
    ($(#[$meta:meta])* $name:ident, $format:literal) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse(text).map($name)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id!(
    /// Number of a transaction of one database.
    Txid,
    "{:016x}"
);
hex_id!(
    /// Checksum of a database's content.
    Checksum,
    "{:016x}"
);
hex_id!(
    /// Identity of a node; new at every start of its process.
    NodeId,
    "{:016X}"
);

/// Where a database is: its newest transaction and the checksum after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    #[serde(rename = "TXID")]
    pub txid: Txid,
    #[serde(rename = "PostApplyChecksum")]
    pub checksum: Checksum,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.txid, self.checksum)
    }
}

impl FromStr for Position {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let (txid, checksum) = text
            .split_once('/')
            .ok_or_else(|| ParseIdError(text.to_string()))?;
        Ok(Position {
            txid: txid.parse()?,
            checksum: checksum.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_sixteen_digits_and_accept_fewer() {
        assert_eq!(Txid(0x1f).to_string(), "000000000000001f");
        assert_eq!(NodeId(0xab).to_string(), "00000000000000AB");
        assert_eq!("ab".parse::<NodeId>(), Ok(NodeId(0xab)));
        for text in ["", "x", "+1", "-1", " 1", "1ffffffffffffffff"] {
            assert!(text.parse::<Txid>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_position_reads_what_it_prints() {
        let position = Position {
            txid: Txid(7),
            checksum: Checksum(0x8000_0000_0000_0001),
        };
        assert_eq!(position.to_string(), "0000000000000007/8000000000000001");
        assert_eq!(position.to_string().parse(), Ok(position));
        let json = r#"{"TXID":"0000000000000007","PostApplyChecksum":"8000000000000001"}"#;
        assert_eq!(serde_json::to_string(&position).unwrap(), json);
        assert_eq!(serde_json::from_str::<Position>(json).unwrap(), position);
    }
}
