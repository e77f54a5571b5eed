//! Lines of `GET /events`.

use serde::{Deserialize, Serialize};

use crate::{Checksum, Position, Txid};

/// One line of the event stream. `init`, `tx` and `primaryChange` are LiteFS's, the others are ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
#[non_exhaustive]
pub enum Event {
    /// The first line: the state at the time of the subscription.
    Init { data: PrimaryChange },
    /// A transaction was committed or applied.
    Tx { db: String, data: TxEvent },
    /// This node became or ceased to be primary, or began or ceased to follow one.
    PrimaryChange { data: PrimaryChange },
    /// A tail of the log that the primary does not have was put aside before the primary's state replaced it.
    Archived { db: String, data: Archived },
    /// A database stopped being replicated; the reason is for people.
    Quarantined { db: String, data: Quarantined },
    /// A database that had stopped is replicated again.
    Resumed { db: String },
    /// A kind of line that this client does not know.
    #[serde(other)]
    Unknown,
}

/// Data of `init` and `primaryChange`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrimaryChange {
    pub is_primary: bool,
    /// The primary that is followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
}

/// Data of `tx`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TxEvent {
    #[serde(rename = "txID")]
    pub txid: Txid,
    pub post_apply_checksum: Checksum,
    pub page_size: u32,
    /// Size of the database in pages after the transaction.
    pub commit: u32,
    /// RFC 3339, UTC, milliseconds.
    pub timestamp: String,
}

/// Data of `archived`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Archived {
    /// The newest transaction that both nodes have.
    pub common: Txid,
    /// The position that was given up.
    pub local: Position,
    /// Where the transactions after `common` are kept.
    pub path: String,
}

/// Data of `quarantined`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_names_of_litefs() {
        for line in [
            r#"{"type":"init","data":{"isPrimary":true}}"#,
            r#"{"type":"primaryChange","data":{"isPrimary":false,"hostname":"h"}}"#,
            r#"{"type":"tx","db":"a.db","data":{"txID":"0000000000000001","postApplyChecksum":"8000000000000000","pageSize":4096,"commit":2,"timestamp":"2026-01-01T00:00:00.000Z"}}"#,
        ] {
            let event: Event = serde_json::from_str(line).unwrap();
            assert_eq!(serde_json::to_string(&event).unwrap(), line);
        }
    }

    #[test]
    fn a_line_of_an_unknown_kind_is_no_error() {
        let event: Event = serde_json::from_str(r#"{"type":"later","db":"x","data":{"y":1}}"#).unwrap();
        assert_eq!(event, Event::Unknown);
    }
}
