//! The HTTP API of a LiteFS node: its types and an async client.
//!
//! All that the console, the harness, the command line and a following replica know of another node is in here. The
//! endpoints and JSON names of LiteFS 0.5 are kept; `/status` and `/history` are ours. Nothing in this crate opens a
//! file or knows what a page is.

mod client;
mod error;
mod event;
mod ids;
mod info;
mod status;

pub use client::{Client, EventStream, ExportStream};
pub use error::Error;
pub use event::{Archived, Event, PrimaryChange, Quarantined, TxEvent};
pub use ids::{Checksum, NodeId, ParseIdError, Position, Txid};
pub use info::{HaltLock, Info, PrimaryName};
pub use status::{DatabaseStatus, History, HistoryEntry, LogStatus, Primary, ReplicaStatus, Role, Status};

/// Names of the headers that nodes exchange.
pub mod header {
    /// Id of the node that sends the request or the response; on every response.
    pub const NODE_ID: &str = "litefs-id";
    /// Id of the sender's cluster, once it has one; on every response.
    pub const CLUSTER_ID: &str = "litefs-cluster-id";
    /// Ours: what the sender of a stream request or response understands beyond LiteFS 0.5, separated by commas.
    pub const FEATURES: &str = "litefs-features";
    /// Ours: epoch of the primary that serves a stream.
    pub const EPOCH: &str = "litefs-epoch";
    /// Ours: the host name of the sender of a stream request, for people to read.
    pub const HOSTNAME: &str = "litefs-hostname";
}

/// The port a node listens on when nothing else is configured.
pub const DEFAULT_PORT: u16 = 20202;
