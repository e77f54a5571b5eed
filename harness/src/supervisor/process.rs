//! One supervised process: a node's daemon or the lease server.
//!
//! A process is signalled only under the lock under which it is reaped, so a signal never reaches a stranger who got its id.

use std::process::{Child, Command};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use parking_lot::{Condvar, Mutex};

use crate::control::ProcessState;
use crate::error::{Error, Result};
use crate::processes;

/// Starts processes on one thread that never ends: the kernel ends a child with the *thread* that started it.
#[derive(Clone)]
pub(crate) struct Spawner(mpsc::Sender<Job>);

struct Job {
    command: Command,
    reply: mpsc::SyncSender<std::io::Result<Child>>,
}

/// The spawning thread's side; [`Jobs::run`] returns when no spawner is left.
pub(crate) struct Jobs(mpsc::Receiver<Job>);

pub(crate) fn spawner() -> (Spawner, Jobs) {
    let (sender, receiver) = mpsc::channel();
    (Spawner(sender), Jobs(receiver))
}

impl Jobs {
    pub(crate) fn run(self) {
        for Job { mut command, reply } in self.0 {
            if reply.send(command.spawn()).is_err() {
                tracing::warn!("nobody waits for a started process");
            }
        }
    }
}

impl Spawner {
    fn spawn(&self, command: Command) -> std::io::Result<Child> {
        let (reply, result) = mpsc::sync_channel(1);
        let gone = |_| std::io::Error::other("the supervisor is ending");
        self.0
            .send(Job { command, reply })
            .map_err(|_| gone(mpsc::RecvError))?;
        result.recv().map_err(gone)?
    }
}

pub(crate) struct Process {
    name: String,
    cluster: String,
    state: Mutex<ProcessState>,
    changed: Condvar,
}

impl Process {
    pub(crate) fn new(name: String, cluster: String) -> Arc<Self> {
        Arc::new(Self {
            name,
            cluster,
            state: Mutex::new(ProcessState::Stopped { exit: None }),
            changed: Condvar::new(),
        })
    }

    pub(crate) fn state(&self) -> ProcessState {
        self.state.lock().clone()
    }

    pub(crate) fn start(self: &Arc<Self>, spawner: &Spawner, command: Command) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(pid) = state.pid() {
            return Err(Error::Invalid(format!("{} runs already (pid {pid})", self.name)));
        }
        let program = command.get_program().to_string_lossy().into_owned();
        let failed = Error::system(format!("starting {} ({program})", self.name));
        let child = spawner.spawn(command).map_err(failed)?;
        let pid = i32::try_from(child.id()).expect("process ids are positive ints");
        *state = ProcessState::Running { pid };
        drop(state);
        tracing::info!(process = self.name, pid, "started");
        let process = Arc::clone(self);
        std::thread::spawn(move || process.reap(child, Pid::from_raw(pid)));
        Ok(())
    }

    fn reap(&self, mut child: Child, pid: Pid) {
        // Waits without reaping, so that the id stays taken until the lock is held.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(pid), flags) == Err(nix::Error::EINTR) {}
        let mut state = self.state.lock();
        let exit = match child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::info!(process = self.name, %pid, exit, "ended");
        *state = ProcessState::Stopped { exit: Some(exit) };
        self.changed.notify_all();
    }

    /// SIGTERM, which a paused process can only see after it was resumed.
    pub(crate) fn terminate(&self) -> Result<()> {
        let pid = self.signal(Signal::SIGTERM)?;
        self.freeze(pid, Signal::SIGCONT)
    }

    pub(crate) fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL).map(drop)
    }

    /// SIGHUP, which a paused process would only see later.
    pub(crate) fn reload(&self) -> Result<()> {
        self.running_pid()?;
        self.signal(Signal::SIGHUP).map(drop)
    }

    /// The process's id if it runs and is not paused.
    pub(crate) fn running_pid(&self) -> Result<i32> {
        self.state.lock().running(&self.name, &self.cluster)
    }

    fn signal(&self, signal: Signal) -> Result<Pid> {
        let state = self.state.lock();
        let pid = match state.pid() {
            Some(pid) => Pid::from_raw(pid),
            None => Pid::from_raw(state.running(&self.name, &self.cluster)?),
        };
        kill(pid, signal).map_err(Error::errno(format!("sending {signal} to {}", self.name)))?;
        Ok(pid)
    }

    /// Stops the process and its helpers where they are, as when a virtual machine is suspended.
    pub(crate) fn pause(&self) -> Result<()> {
        let mut state = self.state.lock();
        let pid = state.running(&self.name, &self.cluster)?;
        self.freeze(Pid::from_raw(pid), Signal::SIGSTOP)?;
        *state = ProcessState::Paused { pid };
        Ok(())
    }

    pub(crate) fn resume(&self) -> Result<()> {
        let mut state = self.state.lock();
        let ProcessState::Paused { pid } = *state else {
            return Err(Error::Invalid(format!("{} is not paused", self.name)));
        };
        self.freeze(Pid::from_raw(pid), Signal::SIGCONT)?;
        *state = ProcessState::Running { pid };
        Ok(())
    }

    /// The group, and what is below the process in groups of its own.
    fn freeze(&self, group: Pid, signal: Signal) -> Result<()> {
        for pid in processes::descendants(group.as_raw()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
        match killpg(group, signal) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(errno) => Err(Error::errno(format!("sending {signal} to {}", self.name))(errno)),
        }
    }

    /// Whether the process ended within the time.
    pub(crate) fn wait_stopped(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock();
        while state.pid().is_some() {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return state.pid().is_none();
            }
        }
        true
    }
}
