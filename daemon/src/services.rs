//! What a node does besides its mount: lease, replication, API, housekeeping.
//!
//! Started on an open store and stopped in the order that lets another node take over: writers stop and the last
//! transactions leave while the API still serves them, then the API ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engine::{DbName, Retention, Store};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::events::EventHub;
use crate::http::{Api, NodeFacts, Parts, Server};
use crate::leadership::{Lag, Leadership};
use crate::lease::elector::{Elector, ElectorHandle, ElectorOptions, Shared};
use crate::lease::{Fence, Lease};
use crate::metrics::Metrics;
use crate::stream::Replicas;

/// How often tables are flushed, retention apart.
const MAINTENANCE: Duration = Duration::from_secs(5);
/// A log grows up to this for the sake of a replica that does not keep up.
const LOG_HARD_CAP: u64 = 4 << 30;
/// How long the API may take to end.
const API_END: Duration = Duration::from_secs(3);

/// How the services are set up.
#[derive(Debug, Clone)]
pub struct ServiceOptions {
    pub elector: ElectorOptions,
    pub data_dir: PathBuf,
    /// Time limit of one snapshot, if there is one.
    pub snapshot_timeout: Option<Duration>,
    pub retention: Option<Duration>,
    /// How often retention is enforced; never if there is none.
    pub retention_interval: Option<Duration>,
}

/// The running services of a node.
pub struct Services {
    pub address: SocketAddr,
    pub leadership: watch::Receiver<Leadership>,
    pub lag: Lag,
    pub elector: ElectorHandle,
    /// To be told when it is known how the mount works.
    pub fuse_mode: Arc<OnceLock<String>>,
    elector_task: JoinHandle<()>,
    api_task: JoinHandle<()>,
    housekeeper: JoinHandle<()>,
    stop_elector: CancellationToken,
    stop_api: CancellationToken,
}

impl Services {
    /// Starts everything. Call within the runtime.
    pub fn start(
        options: ServiceOptions,
        store: Arc<Store>,
        lease: Arc<dyn Lease>,
        server: Server,
    ) -> Services {
        let (leading, leadership) = watch::channel(Leadership::default());
        let (lag, fence, replicas) = (Lag::default(), Fence::default(), Arc::new(Replicas::default()));
        let (stop_elector, stop_api) = (CancellationToken::new(), CancellationToken::new());
        let shared = Shared {
            lease,
            store: store.clone(),
            leadership: leading,
            lag: lag.clone(),
            fence: fence.clone(),
            replicas: replicas.clone(),
            shutdown: stop_elector.clone(),
        };
        let (elector, handle) = Elector::new(options.elector.clone(), shared);
        let fuse_mode = Arc::new(OnceLock::new());
        let api = Api::new(Parts {
            store: store.clone(),
            leadership: leadership.clone(),
            lag: lag.clone(),
            fence,
            replicas: replicas.clone(),
            elector: handle.clone(),
            events: EventHub::start(&store, leadership.clone()),
            metrics: Metrics::start(),
            shutdown: stop_api.clone(),
            node: NodeFacts {
                hostname: options.elector.hostname.clone(),
                data_dir: options.data_dir.clone(),
                candidate: options.elector.candidate,
                snapshot_timeout: options.snapshot_timeout,
                fuse_mode: fuse_mode.clone(),
            },
        });
        let address = server.address();
        let housekeeper = tokio::spawn(keep_house(options, store, replicas, stop_elector.clone()));
        Services {
            address,
            leadership,
            lag,
            elector: handle,
            fuse_mode,
            elector_task: tokio::spawn(elector.run()),
            api_task: tokio::spawn(server.serve(api, stop_api.clone())),
            housekeeper,
            stop_elector,
            stop_api,
        }
    }

    /// Stops everything. Afterwards the store is a replica's and nobody uses it.
    pub async fn stop(self) {
        self.stop_elector.cancel();
        if self.elector_task.await.is_err() {
            tracing::error!("the elector ended unexpectedly");
        }
        let _ = self.housekeeper.await;
        self.stop_api.cancel();
        if tokio::time::timeout(API_END, self.api_task).await.is_err() {
            tracing::warn!("the API did not end in time");
        }
    }
}

/// Flushes tables and lets go of old records, now and then.
async fn keep_house(
    options: ServiceOptions,
    store: Arc<Store>,
    replicas: Arc<Replicas>,
    shutdown: CancellationToken,
) {
    let mut ticks = tokio::time::interval(MAINTENANCE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut enforced = tokio::time::Instant::now();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let due = options
            .retention_interval
            .is_some_and(|interval| enforced.elapsed() >= interval);
        let retention = match due {
            true => Retention {
                max_age: options.retention,
                max_bytes: None,
                needed: needed(&replicas),
                hard_cap_bytes: Some(LOG_HARD_CAP),
            },
            // Keeps every record.
            false => Retention::default(),
        };
        if due {
            enforced = tokio::time::Instant::now();
        }
        let store = store.clone();
        if tokio::task::spawn_blocking(move || store.maintain(&retention))
            .await
            .is_err()
        {
            tracing::error!("housekeeping ended unexpectedly");
        }
    }
}

/// The first record per database that a connected replica lacks.
fn needed(replicas: &Replicas) -> BTreeMap<DbName, ltx::Txid> {
    let mut needed = BTreeMap::new();
    for replica in replicas.all() {
        for (name, position) in replica.known() {
            let Ok(name) = name.parse::<DbName>() else {
                continue;
            };
            let next = position.txid.next().unwrap_or(ltx::Txid::MAX);
            let first = needed.entry(name).or_insert(next);
            *first = next.min(*first);
        }
    }
    needed
}
