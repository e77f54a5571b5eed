//! The lease that configuration decides: one node is always the primary, all others always follow it.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;

use super::clock::BootTime;
use super::types::{Acquired, ClusterState, Grant, Holder, Recorded, Sighting};
use super::{Lease, LeaseError, Result};

/// A hundred years: a static lease does not run out.
const TTL: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Static lease of one node.
#[derive(Debug)]
pub struct StaticLease {
    /// The primary, if it is another node.
    primary: Option<Holder>,
    /// What the primary recorded in this process: there is no service to keep it.
    recorded: Mutex<Recorded>,
}

impl StaticLease {
    /// The lease of the primary itself.
    pub fn primary() -> Self {
        StaticLease {
            primary: None,
            recorded: Mutex::default(),
        }
    }

    /// The lease of a replica of the node that is reached as told.
    pub fn replica(hostname: String, advertise_url: String) -> Self {
        let primary = Holder {
            hostname,
            advertise_url,
            epoch: 0,
            node_id: String::new(),
        };
        StaticLease {
            primary: Some(primary),
            recorded: Mutex::default(),
        }
    }

    fn sighting(&self) -> Sighting {
        Sighting {
            holder: self.primary.clone(),
            index: 0,
        }
    }

    fn grant() -> Grant {
        Grant::since(String::new(), BootTime::now(), TTL)
    }
}

impl Lease for StaticLease {
    fn kind(&self) -> &'static str {
        "static"
    }

    fn hands_over(&self) -> bool {
        false
    }

    fn ttl(&self) -> Duration {
        TTL
    }

    fn open(&self) -> BoxFuture<'_, Result<()>> {
        ready(Ok(())).boxed()
    }

    fn holder(&self) -> BoxFuture<'_, Result<Sighting>> {
        ready(Ok(self.sighting())).boxed()
    }

    fn changed(&self, _: &Sighting, limit: Duration) -> BoxFuture<'_, Result<Sighting>> {
        async move {
            tokio::time::sleep(limit).await;
            Ok(self.sighting())
        }
        .boxed()
    }

    fn acquire(&self, _: &Holder) -> BoxFuture<'_, Result<Acquired>> {
        let acquired = match self.primary {
            None => Acquired::Held(Self::grant()),
            Some(_) => Acquired::Refused,
        };
        ready(Ok(acquired)).boxed()
    }

    fn take_over(&self, _: &str, _: &Holder) -> BoxFuture<'_, Result<Grant>> {
        // The primary may publish another value under its own lease; it has nobody to publish it to.
        let result = match self.primary {
            None => Ok(Self::grant()),
            Some(_) => Err(LeaseError::Unsupported("static lease does not support handoff")),
        };
        ready(result).boxed()
    }

    fn renew(&self, _: &Grant) -> BoxFuture<'_, Result<Grant>> {
        ready(Ok(Self::grant())).boxed()
    }

    fn release(&self, _: &Grant) -> BoxFuture<'_, Result<()>> {
        ready(Ok(())).boxed()
    }

    fn cluster_id(&self) -> BoxFuture<'_, Result<Option<String>>> {
        ready(Ok(None)).boxed()
    }

    fn claim_cluster_id(&self, id: &str) -> BoxFuture<'_, Result<String>> {
        ready(Ok(id.to_string())).boxed()
    }

    fn state(&self) -> BoxFuture<'_, Result<Recorded>> {
        ready(Ok(self.recorded.lock().clone())).boxed()
    }

    fn record(&self, state: &ClusterState, version: u64) -> BoxFuture<'_, Result<u64>> {
        *self.recorded.lock() = Recorded {
            state: Some(state.clone()),
            version: version + 1,
        };
        ready(Ok(version + 1)).boxed()
    }
}
