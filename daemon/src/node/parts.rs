//! The parts of a node, in the order in which they are started.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::{Coherence, Store};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{NodeError, Options, presence, setup};
use crate::companion::{Companion, CompanionOptions, DataLock};
use crate::fuse::{Mount, Presence};
use crate::http::Server;
use crate::services::Services;

/// How long the guardian of a daemon that died may keep the data directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// What has been started so far.
#[derive(Default)]
pub(super) struct Parts {
    lock: Option<DataLock>,
    store: Option<Arc<Store>>,
    companion: Option<Arc<Companion>>,
    mount: Option<Arc<Mount>>,
    presence: Option<Arc<Presence>>,
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
    pub(super) async fn start(
        &mut self,
        options: &Options,
        stop: &CancellationToken,
    ) -> Result<Progress, NodeError> {
        let config = &options.config;
        let lease = setup::lease(config)?;
        let dir = config.data.dir.clone();
        // Waiting for another process is the one step that is not worth finishing.
        self.lock = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Progress::Interrupted),
            lock = blocking(move || lock(&dir)) => Some(lock?),
        };
        // Not before the lock: a former process that is just dying still has the port.
        let server = Server::bind(&config.http.addr).await;
        let server = server.map_err(|source| NodeError::Bind {
            address: config.http.addr.clone(),
            source,
        })?;
        let store = self.open(options).await?;
        if stop.is_cancelled() {
            return Ok(Progress::Interrupted);
        }
        self.mount(options, store.clone()).await?;
        if stop.is_cancelled() {
            return Ok(Progress::Interrupted);
        }
        let services = Services::start(setup::services(config, server.address()), store, lease, server);
        let services = self.services.insert(services);
        if let Some(mount) = &self.mount {
            let mode = match mount.coherence() {
                Coherence::Passthrough => "passthrough",
                Coherence::Intercepted => "intercepted",
            };
            services.fuse_mode.get_or_init(|| mode.to_string());
        }
        self.tell_mount();
        Ok(self.join_cluster(options, stop).await)
    }

    /// Opens the store while the companions start: after a crash the one may take as long as the other.
    async fn open(&mut self, options: &Options) -> Result<Arc<Store>, NodeError> {
        let config = &options.config;
        let (dir, store_options) = (config.data.dir.clone(), setup::store(config));
        let opening = blocking(move || Ok(Store::open(&dir, store_options)?));
        let lock = self.lock.take();
        let starting = blocking(move || {
            let companion = lock
                .as_ref()
                .map(|lock| Companion::start(lock, &CompanionOptions::default()));
            Ok((lock, companion.transpose()))
        });
        let (store, started) = tokio::join!(opening, starting);
        let (lock, companion) = started?;
        self.lock = lock;
        self.companion = companion.map_err(|source| NodeError::Io {
            operation: "start the companion",
            source,
        })?;
        self.store = Some(store?);
        self.store.clone().ok_or(NodeError::Thread)
    }

    async fn mount(&mut self, options: &Options, store: Arc<Store>) -> Result<(), NodeError> {
        let Some(companion) = self.companion.clone() else {
            return Err(NodeError::Thread);
        };
        let (presence, options) = (Arc::new(Presence::default()), setup::mount(options));
        self.presence = Some(presence.clone());
        let mounted = store.clone();
        let mount = blocking(move || Ok(Mount::start(mounted, companion, presence, &options)?)).await?;
        let mount = self.mount.insert(Arc::new(mount)).clone();
        blocking(move || Ok(store.start(mount.kernel())?)).await
    }

    fn tell_mount(&mut self) {
        let (Some(mount), Some(services), Some(presence)) = (&self.mount, &self.services, &self.presence)
        else {
            return;
        };
        let told = presence::tell(
            presence.clone(),
            mount.clone(),
            services.leadership.clone(),
            services.lag.clone(),
        );
        self.teller = Some(tokio::spawn(told));
    }

    /// Waits until the node is primary or has caught up with one, unless that is not wanted.
    async fn join_cluster(&self, options: &Options, stop: &CancellationToken) -> Progress {
        let Some(services) = &self.services else {
            return Progress::Done;
        };
        if options.config.skip_sync {
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
        let lease = &options.config.lease;
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

    /// Stops what has been started, in reverse order. Goes on whatever fails.
    pub(super) async fn stop(mut self) {
        if let Some(services) = self.services.take() {
            services.stop().await;
        }
        if let Some(teller) = self.teller.take() {
            teller.abort();
            let _ = teller.await;
        }
        let stopped = blocking(move || {
            if let Some(store) = &self.store
                && let Err(error) = store.close()
            {
                tracing::error!(%error, "cannot close the store in order");
            }
            if let Some(companion) = &self.companion {
                companion.stop();
            }
            if let Some(mount) = self.mount.take().and_then(Arc::into_inner)
                && let Err(error) = mount.stop()
            {
                tracing::error!(%error, "cannot detach the mount");
            }
            // Last of all: another process may start from here on.
            drop(self.lock.take());
            Ok(())
        });
        if stopped.await.is_err() {
            tracing::error!("the stop ended unexpectedly");
        }
    }
}

fn lock(dir: &Path) -> Result<DataLock, NodeError> {
    let failed = |source| NodeError::DataDir {
        path: dir.to_path_buf(),
        source,
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    Ok(DataLock::acquire(dir, LOCK_PATIENCE)?)
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
