//! The node's HTTP API: `server` accepts connections, the other modules answer.
//!
//! Endpoints and bodies are LiteFS 0.5's; `/status` and `/history` are ours. Every answer carries the node's id and its
//! cluster's. Names from the network become `DbName`s here or are refused.

mod admin;
mod databases;
mod error;
mod events;
mod limits;
mod metrics;
mod routes;
mod server;
mod status;
mod stream;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine::{DbName, Store};
use litefs_api::NodeId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::events::EventHub;
use crate::lag::Lag;
use crate::leadership::Leadership;
use crate::lease::Fence;
use crate::lease::elector::ElectorHandle;
use crate::metrics::Metrics;
use crate::stream::Replicas;
use error::ApiError;

pub use limits::{Limits, Shares, THREADS};
pub use server::Server;

/// What the API answers from. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Parts>,
}

/// The parts of a node that the API shows or drives.
pub struct Parts {
    pub store: Arc<Store>,
    pub leadership: watch::Receiver<Leadership>,
    pub lag: Lag,
    pub fence: Fence,
    pub replicas: Arc<Replicas>,
    pub elector: ElectorHandle,
    pub events: Arc<EventHub>,
    pub metrics: &'static Metrics,
    pub shutdown: CancellationToken,
    pub shares: Shares,
    pub node: NodeFacts,
}

/// What does not change while the node runs.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    pub hostname: String,
    pub data_dir: PathBuf,
    pub candidate: bool,
    /// Time limit of one snapshot, if there is one.
    pub snapshot_timeout: Option<Duration>,
    /// `passthrough`, `intercepted`, or nothing while there is no mount.
    pub fuse_mode: Arc<std::sync::OnceLock<String>>,
}

impl std::ops::Deref for Api {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.inner
    }
}

impl Api {
    pub fn new(parts: Parts) -> Self {
        Api {
            inner: Arc::new(parts),
        }
    }

    fn node_id(&self) -> NodeId {
        NodeId(self.store.node_id())
    }

    /// Refuses what only a primary does. The fence is asked too: the elector may not have got round to it yet.
    fn require_primary(&self) -> Result<(), ApiError> {
        let is_primary = self.leadership.borrow().is_primary && self.fence.holds();
        if is_primary {
            Ok(())
        } else {
            Err(ApiError::not_primary())
        }
    }
}

/// A database name from a query.
fn database_name(name: Option<&String>) -> Result<DbName, ApiError> {
    match name.map(String::as_str) {
        None | Some("") => Err(ApiError::bad_request("name required")),
        Some(name) => name.parse().map_err(ApiError::bad_request),
    }
}
