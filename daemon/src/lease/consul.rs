//! The lease in Consul: a session that holds a key.
//!
//! Keys are LiteFS's: the lease `<prefix>/<key>`, the cluster id `<key>/clusterid`; `<key>/state` is ours. A session
//! lives at least its time-to-live after the last renewal, often nearly twice as long, so that nothing here takes the
//! session's end for a clock: a holder stops by its own (`Fence`).

mod address;
mod api;
mod http;
#[cfg(test)]
mod tests;

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rustls::RootCertStore;
use url::Url;

use super::clock::BootTime;
use super::types::{Acquired, ClusterState, Grant, Holder, Recorded, Sighting};
use super::{Lease, LeaseError, Result};
use address::Address;
use api::{Api, Entry, Write};
use http::{Http, system_roots};

/// Where the lease is and how long it lasts.
#[derive(Clone)]
pub struct ConsulOptions {
    /// `scheme://[user:TOKEN@]host[/prefix]`.
    pub url: Url,
    pub key: String,
    pub ttl: Duration,
    pub lock_delay: Duration,
}

/// Lease service of a cluster that uses Consul.
pub struct ConsulLease {
    api: Api,
    key: String,
    ttl: Duration,
    lock_delay: Duration,
    /// Name of the catalog entry that sessions are bound to, where the URL has a prefix.
    node: Option<String>,
    /// A session that was refused the lease, kept for the next attempt: a lock delay means many in a row.
    spare: Mutex<Option<Session>>,
}

#[derive(Debug, Clone)]
struct Session {
    id: String,
    /// When its creation or last renewal was sent.
    since: BootTime,
}

impl ConsulLease {
    /// With `https`, Consul's certificate is checked against those that the system trusts now.
    pub fn new(options: ConsulOptions) -> Result<Self> {
        let address = Address::new(&options.url, std::env::var("CONSUL_HTTP_TOKEN").ok())?;
        let roots = system_roots(&address)?;
        Ok(Self::with(options, address, roots))
    }

    fn with(options: ConsulOptions, address: Address, roots: RootCertStore) -> Self {
        let prefix = options.url.path().trim_matches('/').to_string();
        let join = |name: &str| {
            if prefix.is_empty() {
                name.to_string()
            } else {
                format!("{prefix}/{name}")
            }
        };
        let timeout = call_timeout(options.ttl);
        ConsulLease {
            api: Api::new(Http::new(address, roots, timeout), timeout),
            key: join(&options.key),
            ttl: options.ttl,
            lock_delay: options.lock_delay,
            node: (!prefix.is_empty()).then(|| join("litefs")),
            spare: Mutex::new(None),
        }
    }

    fn cluster_id_key(&self) -> String {
        format!("{}/clusterid", self.key)
    }

    fn state_key(&self) -> String {
        format!("{}/state", self.key)
    }

    /// A session to ask for the lease with: the spare one if it has most of its life before it.
    async fn session(&self) -> Result<Session> {
        let spare = self.spare.lock().take();
        if let Some(session) = spare {
            if (session.since + self.ttl / 4).remaining() > Duration::ZERO {
                return Ok(session);
            }
            let since = BootTime::now();
            if self.api.renew_session(&session.id).await.is_ok() {
                return Ok(Session { since, ..session });
            }
        }
        if let Some(node) = &self.node {
            self.api.register_node(node).await?;
        }
        let since = BootTime::now();
        let id = self
            .api
            .create_session(self.node.as_deref(), self.ttl, self.lock_delay)
            .await?;
        Ok(Session { id, since })
    }

    async fn try_acquire(&self, holder: Holder) -> Result<Acquired> {
        let session = self.session().await?;
        if self.publish(&session.id, &holder).await? {
            return Ok(Acquired::Held(Grant::since(session.id, session.since, self.ttl)));
        }
        *self.spare.lock() = Some(session);
        Ok(Acquired::Refused)
    }

    async fn publish(&self, session: &str, holder: &Holder) -> Result<bool> {
        let value = serde_json::to_vec(holder).expect("a holder is plain text");
        self.api.put(&self.key, Write::Acquire(session), value).await
    }

    /// Renews the session first, as the time that counts starts with it, then makes sure that it still has the key.
    async fn try_renew(&self, id: &str) -> Result<Grant> {
        let sent = BootTime::now();
        let ttl = self.granted(self.api.renew_session(id).await?);
        match self.api.get(&self.key).await?.entry {
            Some(entry) if entry.session.as_deref() == Some(id) => Ok(Grant::since(id, sent, ttl)),
            _ => Err(LeaseError::Gone),
        }
    }

    async fn try_take_over(&self, id: &str, holder: Holder) -> Result<Grant> {
        let sent = BootTime::now();
        let ttl = self.granted(self.api.renew_session(id).await?);
        match self.publish(id, &holder).await? {
            true => Ok(Grant::since(id, sent, ttl)),
            false => Err(LeaseError::Gone),
        }
    }

    /// How long a renewal is good for. Another node, or this one when it was configured otherwise, may have created the
    /// session with a shorter time to live.
    fn granted(&self, session_ttl: Option<Duration>) -> Duration {
        session_ttl.map_or(self.ttl, |ttl| ttl.min(self.ttl))
    }

    async fn try_claim_cluster_id(&self, id: String) -> Result<String> {
        let key = self.cluster_id_key();
        loop {
            let found = self.api.get(&key).await?;
            match found.text() {
                Some(existing) => return Ok(existing),
                // A key with an empty value was made by hand; its own version stands for "nobody wrote since".
                None => {
                    let version = found.entry.map_or(0, |entry| entry.modify_index);
                    if self
                        .api
                        .put(&key, Write::CheckAndSet(version), id.clone().into_bytes())
                        .await?
                    {
                        return Ok(id);
                    }
                }
            }
        }
    }
}

/// A renewal is sent three times within a time-to-live; each must fail early enough for the next.
fn call_timeout(ttl: Duration) -> Duration {
    (ttl / 5).clamp(Duration::from_millis(300), Duration::from_secs(3))
}

fn sighting(found: api::Found) -> Sighting {
    // A released key stays with an empty value; a value without a session is what an expired one with behaviour
    // `release` would leave behind.
    let held = |entry: &Entry| entry.session.is_some();
    let holder = found
        .entry
        .filter(held)
        .and_then(|entry| serde_json::from_slice(&entry.value).ok());
    Sighting {
        holder,
        index: found.index,
    }
}

impl Lease for ConsulLease {
    fn kind(&self) -> &'static str {
        "consul"
    }

    fn hands_over(&self) -> bool {
        true
    }

    fn ttl(&self) -> Duration {
        self.ttl
    }

    /// As with LiteFS, a Consul that is shared, where the URL has a prefix, is asked before anything starts.
    fn open(&self) -> BoxFuture<'_, Result<()>> {
        async {
            match &self.node {
                Some(node) => self.api.register_node(node).await,
                None => Ok(()),
            }
        }
        .boxed()
    }

    fn holder(&self) -> BoxFuture<'_, Result<Sighting>> {
        async { Ok(sighting(self.api.get(&self.key).await?)) }.boxed()
    }

    fn changed(&self, seen: &Sighting, limit: Duration) -> BoxFuture<'_, Result<Sighting>> {
        let index = seen.index;
        async move { Ok(sighting(self.api.wait(&self.key, index, limit).await?)) }.boxed()
    }

    fn acquire(&self, holder: &Holder) -> BoxFuture<'_, Result<Acquired>> {
        self.try_acquire(holder.clone()).boxed()
    }

    fn take_over(&self, id: &str, holder: &Holder) -> BoxFuture<'_, Result<Grant>> {
        let (id, holder) = (id.to_string(), holder.clone());
        async move { self.try_take_over(&id, holder).await }.boxed()
    }

    fn renew(&self, grant: &Grant) -> BoxFuture<'_, Result<Grant>> {
        let id = grant.id.clone();
        async move { self.try_renew(&id).await }.boxed()
    }

    fn release(&self, grant: &Grant) -> BoxFuture<'_, Result<()>> {
        let id = grant.id.clone();
        async move {
            // An explicit release, unlike the end of a session, starts no lock delay.
            self.api.put(&self.key, Write::Release(&id), Vec::new()).await?;
            self.api.destroy_session(&id).await
        }
        .boxed()
    }

    fn cluster_id(&self) -> BoxFuture<'_, Result<Option<String>>> {
        async { Ok(self.api.get(&self.cluster_id_key()).await?.text()) }.boxed()
    }

    fn claim_cluster_id(&self, id: &str) -> BoxFuture<'_, Result<String>> {
        self.try_claim_cluster_id(id.to_string()).boxed()
    }

    fn state(&self) -> BoxFuture<'_, Result<Recorded>> {
        async {
            let Some(entry) = self.api.get(&self.state_key()).await?.entry else {
                return Ok(Recorded::default());
            };
            let state = serde_json::from_slice(&entry.value).map_err(|error| {
                self.api
                    .damaged("read the cluster's recorded state", self.state_key(), error)
            })?;
            Ok(Recorded {
                state: Some(state),
                version: entry.modify_index,
            })
        }
        .boxed()
    }

    fn record(&self, state: &ClusterState, version: u64) -> BoxFuture<'_, Result<u64>> {
        let value = serde_json::to_vec(state).expect("a cluster state is plain text");
        async move {
            if !self
                .api
                .put(&self.state_key(), Write::CheckAndSet(version), value.clone())
                .await?
            {
                return Err(LeaseError::Gone);
            }
            match self.api.get(&self.state_key()).await?.entry {
                Some(entry) if entry.value == value => Ok(entry.modify_index),
                _ => Err(LeaseError::Gone),
            }
        }
        .boxed()
    }
}
