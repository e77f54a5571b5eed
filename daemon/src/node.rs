//! The life of a node, from its configuration to its end.
//!
//! Start: data directory, port, store, companions, mount, services, and then the wait for the cluster. Stop is the reverse,
//! and may come at any moment of the start: what has been started is stopped, and nothing else is begun.
//! Signals are heard from the first moment on; a second one changes nothing.
//!
//! A node may begin where another process of it died, or was told to make room: then the mount is taken over as it is. And a node that
//! is stopped stays for clients that have files open, without anything but the mount, until they are gone or the next one comes.

mod error;
mod linger;
mod parts;
mod presence;
mod setup;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::launcher::Link;
pub use error::NodeError;
use parts::{Parts, Progress};

/// A stop that takes longer than this is given up.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long threads that block may keep the process after everything is stopped.
const THREADS_LIMIT: Duration = Duration::from_secs(1);
/// How often it is looked whether the mount and the processes beside the daemon are still there.
const LOOK: Duration = Duration::from_secs(1);

/// What a node is started with.
#[derive(Debug)]
pub struct Options {
    pub config: Config,
    /// Leave alone what a former process left behind at the mount point.
    pub skip_unmount: bool,
    /// The process that starts this one again.
    pub link: Link,
}

/// Why a node that serves ends.
enum End {
    Signal,
    /// Another process of the node is ready to take the mount over.
    Replaced,
}

/// Runs a node until it is told to stop.
pub fn run(options: Options) -> Result<ExitCode, NodeError> {
    // What is taken over may be many files.
    crate::fuse::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(crate::http::THREADS)
        .enable_all()
        .build();
    let runtime = runtime.map_err(|source| NodeError::Io {
        operation: "start the runtime",
        source,
    })?;
    let result = runtime.block_on(live(options));
    runtime.shutdown_timeout(THREADS_LIMIT);
    result
}

async fn live(options: Options) -> Result<ExitCode, NodeError> {
    let Options {
        config,
        skip_unmount,
        link,
    } = options;
    let (stop, link) = (hear_signals()?, Arc::new(link));
    // Before the daemon that runs makes room for one that can never take part.
    let lease = setup::lease(&config)?;
    if !await_turn(&link, &stop).await {
        return Ok(ExitCode::SUCCESS);
    }
    let successor = hear_of_successor(link.clone());
    let mut parts = Parts::new(link);
    let started = parts.start(&config, lease, skip_unmount, &stop).await;
    let outcome = match started {
        Ok(Progress::Done) => {
            say!("waiting for signal or subprocess to exit");
            wait(&parts, &stop, &successor).await
        }
        Ok(Progress::Interrupted) => Ok(End::Signal),
        Err(error) if config.exit_on_error => Err(error),
        Err(error) => {
            tracing::error!(%error, hint = error.hint(), "start failed, staying alive because of `exit-on-error: false`");
            stop.cancelled().await;
            Err(error)
        }
    };
    match outcome {
        Ok(End::Replaced) => parts.make_room().await,
        Ok(End::Signal) => stop_all(parts).await.map(|()| ExitCode::SUCCESS),
        Err(error) => stop_all(parts).await.and(Err(error)),
    }
}

/// Stops a node, and stays for its clients.
async fn stop_all(parts: Parts) -> Result<(), NodeError> {
    match tokio::time::timeout(STOP_LIMIT, parts.stop()).await {
        Ok(rest) => {
            say!("litefs shut down complete");
            if let Some(rest) = rest {
                rest.linger().await;
            }
        }
        Err(_) => tracing::error!("not everything stopped in time"),
    }
    Ok(())
}

/// Tells the launcher that this process could serve, and waits until it may. `false`: it is to end instead.
async fn await_turn(link: &Arc<Link>, stop: &CancellationToken) -> bool {
    let waiting = link.clone();
    link.ready();
    let turn = tokio::task::spawn_blocking(move || waiting.await_turn());
    tokio::select! {
        turn = turn => turn.unwrap_or(false),
        () = stop.cancelled() => false,
    }
}

/// A token that is cancelled when another process of the node waits to take over.
fn hear_of_successor(link: Arc<Link>) -> CancellationToken {
    let successor = CancellationToken::new();
    let told = successor.clone();
    std::thread::spawn(move || {
        if link.await_successor() {
            told.cancel();
        }
    });
    successor
}

/// Waits for the end: a signal, a successor, or a mount that somebody else detached.
async fn wait(
    parts: &Parts,
    stop: &CancellationToken,
    successor: &CancellationToken,
) -> Result<End, NodeError> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(End::Signal),
            () = successor.cancelled() => return Ok(End::Replaced),
            () = tokio::time::sleep(LOOK) => {
                if parts.mount_has_ended() {
                    return Err(NodeError::MountEnded);
                }
            }
        }
    }
}

/// A token that the first SIGTERM or SIGINT cancels.
fn hear_signals() -> Result<CancellationToken, NodeError> {
    let hear = |kind| {
        signal(kind).map_err(|source| NodeError::Io {
            operation: "hear signals",
            source,
        })
    };
    let (mut terminate, mut interrupt) = (hear(SignalKind::terminate())?, hear(SignalKind::interrupt())?);
    // Meant for the launcher, when it is sent to a whole group.
    let mut hangup = hear(SignalKind::hangup())?;
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => continue,
            }
            match told.is_cancelled() {
                false => say!("signal received, litefs shutting down"),
                true => tracing::info!("already shutting down"),
            }
            told.cancel();
        }
    });
    Ok(stop)
}
