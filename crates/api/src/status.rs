//! `GET /status` and `GET /history`: ours, for the console, the harness and a node that finds out where it diverged.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Checksum, NodeId, Position, Txid};

/// A node and everything it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub node_id: NodeId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    pub hostname: String,
    pub version: String,
    pub role: Role,
    pub candidate: bool,
    /// In touch with its cluster at least once since the start.
    pub ready: bool,
    /// Term of the primary this node is or follows; 0 before the first one.
    pub epoch: u64,
    /// The primary that is followed; absent on the primary and while none is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<Primary>,
    /// `passthrough` or `intercepted`; empty while there is no mount.
    pub fuse_mode: String,
    /// How far behind the primary this node may be; absent where it cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<f64>,
    pub databases: Vec<DatabaseStatus>,
    /// On a primary: who follows it.
    #[serde(default)]
    pub replicas: Vec<ReplicaStatus>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    Primary,
    Replica,
}

/// A primary as others reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Primary {
    pub hostname: String,
    pub advertise_url: String,
}

/// One database of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseStatus {
    pub name: String,
    /// Newest transaction that is visible here.
    pub txid: Txid,
    pub checksum: Checksum,
    /// Newest transaction in the log; ahead of `txid` while records wait to be applied.
    pub received: Txid,
    pub page_size: u32,
    pub pages: u32,
    /// `wal` or `rollback`.
    pub mode: String,
    pub log: LogStatus,
    /// Why the database is not replicated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<String>,
}

/// What a database's log reaches back to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogStatus {
    pub first_txid: Txid,
    pub last_txid: Txid,
    pub bytes: u64,
}

/// A replica as its primary sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    pub node_id: NodeId,
    pub hostname: String,
    /// What was sent; the only thing known of a replica that does not acknowledge (LiteFS 0.5).
    pub sent: BTreeMap<String, Txid>,
    /// What the replica has confirmed to hold.
    pub acked: BTreeMap<String, Txid>,
}

/// A part of a database's log (`GET /history`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    pub name: String,
    pub position: Position,
    /// Ascending; no more than were asked for.
    pub entries: Vec<HistoryEntry>,
}

/// The checksum of the database after a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    pub txid: Txid,
    pub checksum: Checksum,
}
