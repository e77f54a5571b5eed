//! What a node does besides its mount: lease, replication, API, housekeeping.
//!
//! Started on an open store and stopped in the order that lets another node take over: writers stop and the last
//! transactions leave while the API still serves them, then the API ends. Where the next process of this node takes over
//! instead, nothing changes hands, so that the API ends first.

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
use crate::http::{Api, Limits, NodeFacts, Parts, Server, Shares};
use crate::lag::Lag;
use crate::leadership::Leadership;
use crate::lease::elector::{Elector, ElectorHandle, ElectorOptions, Ending, Resumed, Shared, Stop};
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
    /// Of the API.
    pub limits: Limits,
}

/// What the services of a process have of those before them. By default nothing: a fence of their own, and no term.
#[derive(Debug, Clone, Default)]
pub struct Succession {
    pub fence: Fence,
    /// The term that the open store is primary of already; none for a store that is a replica.
    pub resumed: Option<Resumed>,
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
    stop: Stop,
    stop_api: CancellationToken,
}

impl Services {
    /// Starts everything on a store that is a replica. Call within the runtime.
    pub fn start(
        options: ServiceOptions,
        store: Arc<Store>,
        lease: Arc<dyn Lease>,
        server: Server,
    ) -> Services {
        Self::succeed(options, Succession::default(), store, lease, server)
    }

    /// As `start`, after a process of this node whose fence, and maybe term, goes on.
    pub fn succeed(
        options: ServiceOptions,
        succession: Succession,
        store: Arc<Store>,
        lease: Arc<dyn Lease>,
        server: Server,
    ) -> Services {
        let Succession { fence, resumed } = succession;
        let (leading, leadership) = watch::channel(Leadership::default());
        let (lag, replicas) = (Lag::new(store.clone()), Arc::new(Replicas::default()));
        let (stop, stop_api) = (Stop::default(), CancellationToken::new());
        let shared = Shared {
            lease,
            store: store.clone(),
            leadership: leading,
            lag: lag.clone(),
            fence: fence.clone(),
            replicas: replicas.clone(),
            stop: stop.clone(),
        };
        let (elector, handle) = Elector::new(options.elector.clone(), shared, resumed);
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
            shares: Shares::new(options.limits.clone()),
            node: NodeFacts {
                hostname: options.elector.hostname.clone(),
                data_dir: options.data_dir.clone(),
                candidate: options.elector.candidate,
                snapshot_timeout: options.snapshot_timeout,
                fuse_mode: fuse_mode.clone(),
            },
        });
        let address = server.address();
        let housekeeper = tokio::spawn(keep_house(options, store, replicas, stop.clone()));
        Services {
            address,
            leadership,
            lag,
            elector: handle,
            fuse_mode,
            elector_task: tokio::spawn(elector.run()),
            api_task: tokio::spawn(server.serve(api, stop_api.clone())),
            housekeeper,
            stop,
            stop_api,
        }
    }

    /// Stops everything. Afterwards the store is a replica's and nobody uses it.
    pub async fn stop(self) {
        self.end(Ending::Stopped).await;
    }

    /// Ends everything. Afterwards nobody here uses the store. One that is replaced keeps its role, its lease and what
    /// is left of its fence: see `Resumed::left_in` for what the next process goes on with.
    pub async fn end(self, ending: Ending) {
        match ending {
            Ending::Stopped => {}
            // A replica whose stream ends now must not come back before the next process is there.
            Ending::Replaced => self.stop_api.cancel(),
        }
        self.stop.order(ending);
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
async fn keep_house(options: ServiceOptions, store: Arc<Store>, replicas: Arc<Replicas>, stop: Stop) {
    let mut ticks = tokio::time::interval(MAINTENANCE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut enforced = tokio::time::Instant::now();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stop.ordered() => return,
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
