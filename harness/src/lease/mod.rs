//! The embedded lease server: as much of Consul as LiteFS needs, so that a development cluster elects its primary without one.
//!
//! The daemon is not told that it is not talking to Consul. `--consul` replaces this server by a real one. It runs as a process of its
//! own in the cluster's lease namespace, so that it can be killed, paused and cut off like a node.

mod http;
mod state;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::error::{Error, Result};
use state::LeaseState;

/// A running lease server; ends when dropped.
#[derive(Debug)]
pub struct LeaseServer {
    address: SocketAddr,
    accepting: tokio::task::JoinHandle<()>,
    expiring: tokio::task::JoinHandle<()>,
}

impl LeaseServer {
    /// Serves on `address` until dropped. With a file, keys and sessions survive a restart.
    pub async fn start(address: SocketAddr, file: Option<PathBuf>) -> Result<Self> {
        let listening = Error::system(format!("listening on {address}"));
        let shared = Arc::new(Shared::load(file)?);
        let listener = TcpListener::bind(address).await.map_err(listening)?;
        let address = listener
            .local_addr()
            .map_err(Error::system("reading the bound address"))?;
        let expiring = tokio::spawn(expire(Arc::clone(&shared)));
        let accepting = tokio::spawn(accept(listener, shared));
        Ok(Self {
            address,
            accepting,
            expiring,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves for ever.
    pub async fn run(mut self) {
        if let Err(error) = (&mut self.accepting).await {
            tracing::error!(%error, "the lease server ended");
        }
    }
}

impl Drop for LeaseServer {
    fn drop(&mut self) {
        self.accepting.abort();
        self.expiring.abort();
    }
}

/// The state, and the news that it changed.
struct Shared {
    state: Mutex<LeaseState>,
    changes: watch::Sender<()>,
    file: Option<PathBuf>,
}

impl Shared {
    fn load(file: Option<PathBuf>) -> Result<Self> {
        let mut state = match file.as_deref().map(std::fs::read) {
            None => LeaseState::default(),
            Some(Ok(bytes)) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, "the saved state is unreadable; starting empty");
                LeaseState::default()
            }),
            Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => LeaseState::default(),
            Some(Err(source)) => {
                let path = file.unwrap_or_default();
                return Err(Error::File {
                    operation: "reading",
                    path,
                    source,
                });
            }
        };
        state.restart_timers(Instant::now());
        Ok(Self {
            state: Mutex::new(state),
            changes: watch::Sender::new(()),
            file,
        })
    }

    fn read<T>(&self, work: impl FnOnce(&LeaseState) -> T) -> T {
        work(&self.current())
    }

    fn write<T>(&self, work: impl FnOnce(&mut LeaseState, Instant) -> T) -> T {
        let mut state = self.current();
        let result = work(&mut state, Instant::now());
        self.save(&state);
        drop(state);
        self.changes.send_replace(());
        result
    }

    /// The state as of now: no answer knows a session whose time is over, however late the timer fires.
    fn current(&self) -> parking_lot::MutexGuard<'_, LeaseState> {
        let mut state = self.state.lock();
        if state.expire(Instant::now()) {
            self.save(&state);
            self.changes.send_replace(());
        }
        state
    }

    fn save(&self, state: &LeaseState) {
        let Some(file) = &self.file else { return };
        if let Err(error) = replace(file, state) {
            tracing::error!(%error, file = %file.display(), "saving the state");
        }
    }
}

/// Ends all sessions of a server that does not run. For a cluster that starts as a whole: who held them is gone for certain.
pub(crate) fn end_sessions(file: &Path) -> Result<()> {
    if !file.exists() {
        return Ok(());
    }
    let shared = Shared::load(Some(file.to_owned()))?;
    shared.write(LeaseState::destroy_all_sessions);
    Ok(())
}

fn replace(file: &Path, state: &LeaseState) -> std::io::Result<()> {
    let temporary = file.with_extension("tmp");
    std::fs::write(&temporary, serde_json::to_vec(state)?)?;
    std::fs::rename(temporary, file)
}

async fn expire(shared: Arc<Shared>) {
    let mut changes = shared.changes.subscribe();
    loop {
        let next = shared.read(LeaseState::next_expiry);
        let until_next = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = until_next => {}
            _ = changes.changed() => {}
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(http::answer(shared, request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
}
