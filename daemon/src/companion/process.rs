//! The main functions of the companion processes.
//!
//! Descriptor 0 is a socket: to the daemon (worker, keeper) or to the keeper (opener); descriptor 1 of the keeper is the locked file of the
//! data directory. All ignore the signals by which an operator stops the daemon: a stopping daemon still needs them, and they end with
//! their socket, or when nobody needs them.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, signal};

use super::protocol::{Outcome, Reply, Request, Task};
use super::{job, keeper, opener, wire};

/// Name of the hidden subcommand.
pub const SUBCOMMAND: &str = "companion";
/// Jobs that may wait for locks at the same time.
const WORKER_THREADS: usize = 4;

/// Runs the process if the command line (`args` without the program's name) asks for it. To be called first in `main`, before any thread
/// or runtime is started.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut args = args.into_iter();
    if args.next()? != SUBCOMMAND {
        return None;
    }
    let part = args.next();
    let data_dir = args.next().map(PathBuf::from).unwrap_or_default();
    let result = match part.as_ref().and_then(|part| part.to_str()) {
        Some("keeper") => run_as(Part::Keeper),
        Some("opener") => run_as(Part::Opener(data_dir)),
        Some("worker") => run_as(Part::Worker),
        Some(_) | None => Err(io::Error::other("this subcommand is started by the daemon only")),
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain!("litefs companion: {error}");
            ExitCode::FAILURE
        }
    })
}

enum Part {
    Keeper,
    Opener(PathBuf),
    Worker,
}

fn run_as(part: Part) -> io::Result<()> {
    for stop in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { signal(stop, SigHandler::SigIgn) }?;
    }
    std::env::set_current_dir("/")?;
    // Keeper and opener keep files for all databases.
    crate::fuse::raise_descriptor_limit();
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    match part {
        Part::Keeper => {
            let lock = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            // Nothing printed may end up in the lock file.
            nix::unistd::dup2_stdout(io::stderr())?;
            let nowhere = File::open("/dev/null")?;
            // The daemon's end must be the only other one.
            nix::unistd::dup2_stdin(nowhere)?;
            keeper::process::run(socket, lock)
        }
        Part::Opener(data_dir) => {
            nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
            opener::run(socket, data_dir)
        }
        Part::Worker => worker(socket),
    }
}

fn worker(socket: OwnedFd) -> io::Result<()> {
    let socket = Arc::new(socket);
    let (jobs, queue) = mpsc::channel::<Request>();
    let queue = Arc::new(Mutex::new(queue));
    for _ in 0..WORKER_THREADS {
        let (queue, socket) = (queue.clone(), socket.clone());
        thread::Builder::new().name("sqlite".into()).spawn(move || {
            loop {
                let next = queue
                    .lock()
                    .expect("no job panics while it waits in the queue")
                    .recv();
                let Ok(request) = next else { return };
                let reply = Reply {
                    id: request.id,
                    outcome: work(&request.task),
                };
                if wire::send(&*socket, &reply, &[]).is_err() {
                    return;
                }
            }
        })?;
    }
    while let Some((request, _)) = wire::receive::<Request>(&*socket)? {
        if matches!(request.task, Task::Goodbye) || jobs.send(request).is_err() {
            break;
        }
    }
    // Jobs that still wait for the daemon wait in vain; the process ends with its main thread.
    Ok(())
}

fn work(task: &Task) -> Outcome {
    match task {
        Task::Checkpoint { path, mode, busy_ms } => {
            job::checkpoint(path, *mode, Duration::from_millis(*busy_ms))
        }
        Task::Open { .. }
        | Task::Keep { .. }
        | Task::Inherit { .. }
        | Task::Close { .. }
        | Task::Settled
        | Task::Control
        | Task::Goodbye => Outcome::failed(&io::ErrorKind::Unsupported.into()),
    }
}
