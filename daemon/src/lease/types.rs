//! What a lease service stores and answers.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clock::BootTime;

/// The lease's value: who holds it. The first two fields are LiteFS's; it ignores the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Holder {
    pub hostname: String,
    pub advertise_url: String,
    /// Term of this holder; 0 for a node of LiteFS 0.5, which has none.
    #[serde(default)]
    pub epoch: u64,
    /// The holder's node id, so that a node recognises itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node_id: String,
}

/// The lease as it was seen at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    pub holder: Option<Holder>,
    /// Grows with every change; what `changed` waits on.
    pub(super) index: u64,
}

/// A lease that is ours until `deadline`, unless it is renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Id of the lease; what a handoff passes on.
    pub id: String,
    pub deadline: BootTime,
}

impl Grant {
    pub(super) fn since(id: impl Into<String>, sent: BootTime, ttl: Duration) -> Self {
        Grant {
            id: id.into(),
            deadline: sent + ttl,
        }
    }
}

/// Outcome of asking for the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    Held(Grant),
    /// Somebody else has it, or the service does not give it out yet.
    Refused,
}

/// What a primary records at each renewal, for those who come after it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClusterState {
    pub epoch: u64,
    /// Host name of that term's primary.
    #[serde(default)]
    pub primary: String,
    /// Position (`TXID/checksum`) per database.
    #[serde(default)]
    pub positions: BTreeMap<String, String>,
}

/// The recorded state and the version to replace it by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recorded {
    pub state: Option<ClusterState>,
    pub version: u64,
}
