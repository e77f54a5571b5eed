//! The parts of a node, in the order in which they are started.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use engine::{Coherence, Role, Store};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::linger::Rest;
use super::{NodeError, presence, setup};
use crate::companion::{Companion, Inheritance, Keeper, KeeperOptions};
use crate::config::Config;
use crate::fuse::{Beside, Mount, Presence};
use crate::http::Server;
use crate::launcher::Link;
use crate::lease::elector::{Ending, Resumed};
use crate::lease::{DeadlineCell, Fence, Lease};
use crate::ledger::Ledger;
use crate::services::{Services, Succession};

/// A process that is just dying still has its port.
const PORT_PATIENCE: Duration = Duration::from_secs(3);
const PORT_LOOK: Duration = Duration::from_millis(2);

/// What has been started so far.
pub(super) struct Parts {
    link: Arc<Link>,
    keeper: Option<Arc<Keeper>>,
    store: Option<Arc<Store>>,
    companion: Option<Arc<Companion>>,
    mount: Option<Arc<Mount>>,
    services: Option<Services>,
    teller: Option<JoinHandle<()>>,
}

/// How far a start came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    /// A signal came first.
    Interrupted,
}

impl Parts {
    pub(super) fn new(link: Arc<Link>) -> Parts {
        Parts {
            link,
            keeper: None,
            store: None,
            companion: None,
            mount: None,
            services: None,
            teller: None,
        }
    }

    pub(super) async fn start(
        &mut self,
        config: &Config,
        lease: Arc<dyn Lease>,
        skip_unmount: bool,
        stop: &CancellationToken,
    ) -> Result<Progress, NodeError> {
        let (dir, options) = (config.data.dir.clone(), keeper_options(config));
        // Waiting for another process is the one step that is not worth finishing.
        let (keeper, mut inheritance) = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Progress::Interrupted),
            reached = blocking(move || reach_keeper(&dir, options)) => reached?,
        };
        self.keeper = Some(keeper.clone());
        if let Some(inheritance) = &mut inheritance {
            let files = Store::files_below(&config.data.dir);
            let pinned = inheritance.pin(keeper.ledger(), &files);
            pinned.map_err(|source| NodeError::DataDir { path: files, source })?;
        }
        let server = bind(config, inheritance.is_some()).await?;
        if inheritance.is_none() {
            // A mount that is there already must not end because of the lease service.
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Progress::Interrupted),
                opened = lease.open() => opened?,
            }
        }
        let succession = succession(keeper.ledger(), inheritance.is_some() && config.lease.candidate);
        let store = self.open(config, &keeper, &succession).await?;
        if stop.is_cancelled() {
            return Ok(Progress::Interrupted);
        }
        let presence = Arc::new(Presence::default());
        self.mount(config, skip_unmount, store.clone(), presence.clone(), inheritance)
            .await?;
        self.link.serving();
        if stop.is_cancelled() {
            return Ok(Progress::Interrupted);
        }
        let options = setup::services(config, server.address());
        let services = Services::succeed(options, succession, store, lease, server);
        let services = self.services.insert(services);
        if let Some(mount) = &self.mount {
            let mode = match mount.coherence() {
                Coherence::Passthrough => "passthrough",
                Coherence::Intercepted => "intercepted",
            };
            services.fuse_mode.get_or_init(|| mode.to_string());
        }
        self.tell_mount(presence);
        Ok(self.join_cluster(config, stop).await)
    }

    /// Opens the store while the companions start: after a crash the one may take as long as the other.
    async fn open(
        &mut self,
        config: &Config,
        keeper: &Arc<Keeper>,
        succession: &Succession,
    ) -> Result<Arc<Store>, NodeError> {
        let (dir, options) = (config.data.dir.clone(), setup::store(config, keeper.ledger()));
        let role = match &succession.resumed {
            Some(resumed) => Role::Primary { epoch: resumed.epoch },
            None => Role::Replica,
        };
        // What was left in order is taken up as it is. Else the start looks into everything, also where a mount is taken over, if nobody
        // has files open.
        let in_order = keeper.ledger().take_order();
        let in_use = in_order || keeper.has_clients();
        let opening = blocking(move || {
            if in_use {
                return Ok(Store::resume(&dir, options, role)?);
            }
            let store = Store::open(&dir, options)?;
            if role.is_primary() {
                store.set_role(role)?;
            }
            Ok(store)
        });
        let keeper = keeper.clone();
        let starting = blocking(move || {
            let companion = Companion::start(&keeper, Path::new("/proc/self/exe"));
            let companion = companion.map_err(|source| NodeError::Io {
                operation: "start the companions",
                source,
            })?;
            if !in_use {
                // Its locks are those of a process that is dead, against nobody.
                companion.settled();
            }
            Ok(companion)
        });
        let (store, companion) = tokio::join!(opening, starting);
        self.companion = Some(companion?);
        let store = store?;
        self.store = Some(store.clone());
        Ok(store)
    }

    async fn mount(
        &mut self,
        config: &Config,
        skip_unmount: bool,
        store: Arc<Store>,
        presence: Arc<Presence>,
        inheritance: Option<Inheritance>,
    ) -> Result<(), NodeError> {
        let (Some(companion), Some(keeper)) = (self.companion.clone(), self.keeper.clone()) else {
            return Err(NodeError::Thread);
        };
        let (options, settled) = (setup::mount(config, skip_unmount), companion.clone());
        let beside = Beside { keeper, companion };
        let mount =
            blocking(move || Ok(Mount::start(store, beside, presence, &options, inheritance)?)).await?;
        settled.settled();
        self.mount = Some(Arc::new(mount));
        Ok(())
    }

    fn tell_mount(&mut self, presence: Arc<Presence>) {
        let (Some(mount), Some(services)) = (&self.mount, &self.services) else {
            return;
        };
        let told = presence::tell(
            presence,
            mount.clone(),
            services.leadership.clone(),
            services.lag.clone(),
        );
        self.teller = Some(tokio::spawn(told));
    }

    /// Waits until the node is primary or has caught up with one, unless that is not wanted.
    async fn join_cluster(&self, config: &Config, stop: &CancellationToken) -> Progress {
        let Some(services) = &self.services else {
            return Progress::Done;
        };
        if config.skip_sync {
            return Progress::Done;
        }
        let mut leadership = services.leadership.clone();
        if !leadership.borrow().ready {
            tracing::info!("waiting to connect to cluster");
        }
        tokio::select! {
            _ = leadership.wait_for(|leadership| leadership.ready) => {}
            () = stop.cancelled() => return Progress::Interrupted,
        }
        tracing::info!("connected to cluster, ready");
        let lease = &config.lease;
        if lease.promote && lease.candidate && !leadership.borrow().is_primary {
            tokio::select! {
                promoted = services.elector.promote(false) => match promoted {
                    Ok(()) => tracing::info!("automatic promotion accepted"),
                    Err(error) => tracing::warn!(%error, "automatic promotion failed"),
                },
                () = stop.cancelled() => return Progress::Interrupted,
            }
        }
        Progress::Done
    }

    /// Whether the mount is gone although nobody here detached it.
    pub(super) fn mount_has_ended(&self) -> bool {
        self.mount.as_ref().is_some_and(|mount| mount.has_ended())
    }

    /// Ends this process for the sake of the next one, which takes over what is there: nothing is closed. Requests that are being served
    /// are delivered again to it. A database that is closed for writing, or could not be opened, is for a start that looks into everything.
    pub(super) async fn make_room(mut self) -> ! {
        if let (Some(store), Some(keeper)) = (self.store.clone(), self.keeper.clone()) {
            // Served meanwhile as ever.
            let flushed = tokio::task::spawn_blocking(move || {
                store.flush_tables();
                if store.closed_databases().is_empty() && store.damaged().is_empty() {
                    keeper.ledger().leave_in_order();
                }
            });
            let _ = flushed.await;
        }
        tracing::info!("making room for the next daemon");
        if let Some(services) = self.services.take() {
            services.end(Ending::Replaced).await;
        }
        std::process::exit(0)
    }

    /// Stops what has been started, in reverse order. Goes on whatever fails. What is left is for clients that have files open.
    pub(super) async fn stop(mut self) -> Option<Rest> {
        if let Some(services) = self.services.take() {
            services.stop().await;
        }
        if let Some(teller) = self.teller.take() {
            teller.abort();
            let _ = teller.await;
        }
        let mount = self.mount.take().and_then(Arc::into_inner);
        let (store, keeper, companion) = (self.store.take(), self.keeper.take(), self.companion.take());
        let link = self.link.clone();
        let stopped = tokio::task::spawn_blocking(move || {
            if let Some(companion) = &companion {
                companion.stop_worker();
            }
            match (mount, store, keeper) {
                (Some(mount), Some(store), Some(keeper)) => Rest {
                    mount,
                    store,
                    keeper,
                    link,
                }
                .finish(),
                (_, store, keeper) => {
                    if let Some(store) = store
                        && let Err(error) = store.close()
                    {
                        tracing::error!(%error, "cannot close the store in order");
                    }
                    if let Some(keeper) = keeper {
                        keeper.end();
                    }
                    None
                }
            }
        });
        stopped.await.unwrap_or_else(|_| {
            tracing::error!("the stop ended unexpectedly");
            None
        })
    }
}

fn keeper_options(config: &Config) -> KeeperOptions {
    KeeperOptions {
        launcher: Some(nix::unistd::getppid().as_raw().cast_unsigned()),
        ..KeeperOptions::new(config.fuse.takeover_timeout.or_zero())
    }
}

fn reach_keeper(dir: &Path, options: KeeperOptions) -> Result<(Arc<Keeper>, Option<Inheritance>), NodeError> {
    let failed = |source| NodeError::DataDir {
        path: dir.to_path_buf(),
        source,
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    Ok(Keeper::connect(dir, options)?)
}

/// Listens. `patient`: the process before may have the port for another moment.
async fn bind(config: &Config, patient: bool) -> Result<Server, NodeError> {
    let deadline = Instant::now() + if patient { PORT_PATIENCE } else { Duration::ZERO };
    loop {
        match Server::bind(&config.http.addr).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(PORT_LOOK).await;
            }
            bound => {
                return bound.map_err(|source| NodeError::Bind {
                    address: config.http.addr.clone(),
                    source,
                });
            }
        }
    }
}

/// The fence in the ledger, and the time as primary that a process before this one died in. `may_lead`: this process goes on with it.
fn succession(ledger: &Arc<Ledger>, may_lead: bool) -> Succession {
    let fence = Fence::sharing(Arc::new(Deadline(ledger.clone())));
    let resumed = match ledger.epoch() {
        0 => None,
        epoch if may_lead => Resumed::left_in(&fence, epoch),
        _ => None,
    };
    Succession { fence, resumed }
}

/// Where the fence keeps its deadline.
struct Deadline(Arc<Ledger>);

impl DeadlineCell for Deadline {
    fn nanos(&self) -> &AtomicU64 {
        self.0.deadline()
    }
}

async fn blocking<T, F>(work: F) -> Result<T, NodeError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, NodeError> + Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(NodeError::Thread))
}
