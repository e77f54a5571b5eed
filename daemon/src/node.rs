//! The life of a node, from its configuration to its end.
//!
//! Start: data directory, port, store, companion, mount, services, and then the wait for the cluster. Stop is the reverse,
//! and may come at any moment of the start: what has been started is stopped, and nothing else is begun.
//! Signals are heard from the first moment on; a second one changes nothing.

mod error;
mod parts;
mod presence;
mod setup;

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
pub use error::NodeError;
use parts::{Parts, Progress};

/// A stop that takes longer than this is given up.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long threads that block may keep the process after everything is stopped.
const THREADS_LIMIT: Duration = Duration::from_secs(1);
/// How often it is looked whether the mount is still there.
const MOUNT_LOOK: Duration = Duration::from_secs(1);

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct Options {
    pub config: Config,
    /// Leave alone what a former process left behind at the mount point.
    pub skip_unmount: bool,
}

/// Runs a node until it is told to stop.
pub fn run(options: Options) -> Result<ExitCode, NodeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|source| NodeError::Io {
        operation: "start the runtime",
        source,
    })?;
    let result = runtime.block_on(live(options));
    runtime.shutdown_timeout(THREADS_LIMIT);
    result
}

async fn live(options: Options) -> Result<ExitCode, NodeError> {
    let stop = hear_signals()?;
    let mut parts = Parts::default();
    let started = parts.start(&options, &stop).await;
    let outcome = match started {
        Ok(Progress::Done) => {
            println!("waiting for signal or subprocess to exit");
            wait(&parts, &stop).await
        }
        Ok(Progress::Interrupted) => Ok(()),
        Err(error) if options.config.exit_on_error => Err(error),
        Err(error) => {
            tracing::error!(%error, hint = error.hint(), "start failed, staying alive because of `exit-on-error: false`");
            stop.cancelled().await;
            Err(error)
        }
    };
    match tokio::time::timeout(STOP_LIMIT, parts.stop()).await {
        Ok(()) => println!("litefs shut down complete"),
        Err(_) => tracing::error!("not everything stopped in time"),
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Waits for the end: a signal, or a mount that somebody else detached.
async fn wait(parts: &Parts, stop: &CancellationToken) -> Result<(), NodeError> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(MOUNT_LOOK) => if parts.mount_has_ended() {
                return Err(NodeError::MountEnded);
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
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            match told.is_cancelled() {
                false => println!("signal received, litefs shutting down"),
                true => tracing::info!("already shutting down"),
            }
            told.cancel();
        }
    });
    Ok(stop)
}
