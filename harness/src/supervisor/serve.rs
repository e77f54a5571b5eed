//! What the supervisor listens to: its control socket, signals, and the end of the process that owns a test's cluster.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Owner, SigSet, Signal, Supervisor};
use crate::control::{Request, SupervisorState};
use crate::error::{Error, Result};

/// The signals that shut a cluster down.
pub(super) fn end_signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]
        .into_iter()
        .collect()
}

/// Starts the lease server, then answers requests, each on a thread of its own.
pub(super) fn serve(supervisor: &Arc<Supervisor>, listener: &UnixListener) {
    if let Err(error) = supervisor.prepare() {
        tracing::error!(%error, "the lease server cannot be started");
        supervisor.shut_down();
        std::process::exit(1);
    }
    for stream in listener.incoming() {
        let supervisor = Arc::clone(supervisor);
        std::thread::spawn(move || {
            if let Err(error) = stream.and_then(|stream| answer(&supervisor, stream)) {
                tracing::warn!(%error, "answering a request");
            }
        });
    }
}

fn answer(supervisor: &Supervisor, stream: UnixStream) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let request: Request = serde_json::from_str(&line)?;
    tracing::debug!(?request, "request");
    let last = matches!(request, Request::Shutdown);
    let carried_out: Result<SupervisorState> = supervisor.handle(request).and_then(|()| supervisor.state());
    let answer = carried_out.map_err(|error| error.to_string());
    let mut bytes = serde_json::to_vec(&answer)?;
    bytes.push(b'\n');
    let sent = (&stream).write_all(&bytes);
    if last {
        tracing::info!("shut down by request");
        std::process::exit(0);
    }
    sent
}

pub(super) fn on_signal(supervisor: &Supervisor) {
    match end_signals().wait() {
        Ok(signal) => tracing::info!(%signal, "shutting down"),
        Err(errno) => tracing::error!(%errno, "waiting for signals"),
    }
    supervisor.shut_down();
    std::process::exit(0);
}

/// Ends the cluster when its owner is gone, unless it was kept by then, and removes what it stored where that was not meant to stay.
pub(super) fn with_owner(supervisor: &Supervisor, owner: Owner) {
    if let Err(error) = wait_for_end(owner.pid) {
        tracing::warn!(%error, owner.pid, "the owner cannot be watched");
        return;
    }
    if supervisor.kept.load(Ordering::SeqCst) {
        return;
    }
    tracing::info!(owner.pid, "the owner ended; so does the cluster");
    supervisor.shut_down();
    let unmounted = super::mounted_below(supervisor.directory.path()).is_ok_and(|mounts| mounts.is_empty());
    if !owner.leaves_files && unmounted {
        let _ = crate::remove::remove_tree(supervisor.directory.path());
    }
    std::process::exit(0);
}

fn wait_for_end(pid: i32) -> Result<()> {
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};

    // SAFETY: the call takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0);
    let failed = || Error::system(format!("watching process {pid}"));
    let fd = fd.ok_or_else(std::io::Error::last_os_error).map_err(failed())?;
    // SAFETY: the descriptor was just returned to us and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut polled = [nix::poll::PollFd::new(fd.as_fd(), nix::poll::PollFlags::POLLIN)];
    loop {
        match nix::poll::poll(&mut polled, nix::poll::PollTimeout::NONE) {
            Ok(_) => return Ok(()),
            Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(failed()(errno.into())),
        }
    }
}
