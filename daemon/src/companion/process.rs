//! The main functions of the companion processes.
//!
//! Descriptor 0 is the socket to the daemon, descriptor 1 (opener only) the open lock file of the data directory. Both ignore the signals by
//! which an operator stops the daemon: a stopping daemon still needs them, and they follow it when the socket closes.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, signal};

use super::guardian::{self, Kept};
use super::protocol::{self, Outcome, Reply, Request, Task};
use super::{helper::Part, job};

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
    let part = args.next().and_then(|name| Part::from_name(name.to_str()?));
    let result = match part {
        Some(part) => serve(part),
        None => Err(io::Error::other("this subcommand is started by the daemon only")),
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("litefs companion: {error}");
            ExitCode::FAILURE
        }
    })
}

fn serve(part: Part) -> io::Result<()> {
    for stop in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { signal(stop, SigHandler::SigIgn) }?;
    }
    std::env::set_current_dir("/")?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    match part {
        Part::Opener => {
            let lock = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            // Nothing printed may end up in the lock file, and it must be closed when its time has come.
            nix::unistd::dup2_stdout(io::stderr())?;
            opener(&socket, lock)
        }
        Part::Worker => worker(socket),
    }
}

fn opener(socket: &OwnedFd, lock: File) -> io::Result<()> {
    let mut kept: HashMap<u64, Kept> = HashMap::new();
    while let Some((request, _)) = protocol::receive::<Request>(socket)? {
        match request.task {
            Task::Open { path, create, fence } => match open(&path, create) {
                Ok((file, inode)) => {
                    let reply = Reply {
                        id: request.id,
                        outcome: Outcome::Opened { inode },
                    };
                    protocol::send(socket, &reply, Some(file.as_fd()))?;
                    kept.insert(
                        request.id,
                        Kept {
                            file,
                            inode,
                            fence,
                            path,
                        },
                    );
                }
                Err(error) => {
                    let reply = Reply {
                        id: request.id,
                        outcome: Outcome::failed(&error),
                    };
                    protocol::send(socket, &reply, None)?;
                }
            },
            Task::Close { ids } => kept.retain(|id, _| !ids.contains(id)),
            Task::Goodbye => return Ok(()),
            Task::Checkpoint { .. } | Task::Recover { .. } => {
                let outcome = Outcome::failed(&io::ErrorKind::Unsupported.into());
                protocol::send(
                    socket,
                    &Reply {
                        id: request.id,
                        outcome,
                    },
                    None,
                )?;
            }
        }
    }
    guardian::guard(kept.into_values().collect(), lock);
    Ok(())
}

fn open(path: &Path, create: bool) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .open(path)?;
    let inode = file.metadata()?.ino();
    Ok((file, inode))
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
                if protocol::send(&*socket, &reply, None).is_err() {
                    return;
                }
            }
        })?;
    }
    while let Some((request, _)) = protocol::receive::<Request>(&*socket)? {
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
        Task::Recover { path, busy_ms } => job::recover(path, Duration::from_millis(*busy_ms)),
        Task::Open { .. } | Task::Close { .. } | Task::Goodbye => {
            Outcome::failed(&io::ErrorKind::Unsupported.into())
        }
    }
}
