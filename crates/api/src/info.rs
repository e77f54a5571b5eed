//! `GET /info` and the answer to `POST /halt`.

use serde::{Deserialize, Serialize};

use crate::Position;

/// What a node says about itself (`GET /info`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    #[serde(rename = "clusterID", default, skip_serializing_if = "String::is_empty")]
    pub cluster_id: String,
    #[serde(rename = "isPrimary")]
    pub is_primary: bool,
    pub candidate: bool,
    /// The data directory.
    pub path: String,
    pub primary: PrimaryName,
}

/// Who is primary; empty while nobody is known to be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PrimaryName {
    pub hostname: String,
}

/// A HALT lock as the primary granted it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaltLock {
    pub id: i64,
    pub pos: Position,
    /// RFC 3339.
    pub expires: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_has_the_names_of_litefs() {
        let json = r#"{"clusterID":"LFSC0123456789ABCDEF","isPrimary":true,"candidate":true,"path":"/d","primary":{"hostname":"h"}}"#;
        let info: Info = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&info).unwrap(), json);
        let without: Info = serde_json::from_str(
            r#"{"isPrimary":false,"candidate":true,"path":"","primary":{"hostname":""}}"#,
        )
        .unwrap();
        assert!(!serde_json::to_string(&without).unwrap().contains("clusterID"));
    }
}
