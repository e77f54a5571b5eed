//! The process that was started for a mount, and for litefs the daemon that serves it. Shared with what replaces the daemon: whoever
//! has the lock sees no replacement half done.

use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::processes;

#[derive(Debug)]
pub(super) struct Service {
    child: Child,
    ended: Option<ExitStatus>,
    log: PathBuf,
    pub(super) node: Option<Node>,
}

/// The daemon behind a launcher.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) data: PathBuf,
    /// Only a reload may exchange it.
    pub(super) daemon: u32,
    /// Why the last reload failed.
    pub(super) fault: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Shared(Arc<Mutex<Service>>);

impl Shared {
    pub(super) fn new(child: Child, log: PathBuf) -> Shared {
        Shared(Arc::new(Mutex::new(Service {
            child,
            ended: None,
            log,
            node: None,
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Service> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service {
    /// Whether the process lives and its daemon is the one that is known. `Err` says what is wrong.
    pub(super) fn check(&mut self) -> Result<(), String> {
        if let Some(status) = self.exited() {
            return Err(format!(
                "the process behind the mount ended: {status}{}",
                self.last_words()
            ));
        }
        let Some(node) = &self.node else { return Ok(()) };
        if let Some(fault) = &node.fault {
            return Err(fault.clone());
        }
        let now = match processes::serving(&node.data) {
            Some(daemon) if daemon == node.daemon => return Ok(()),
            Some(daemon) => format!("process {daemon} took its place"),
            None => "nothing serves the mount".to_string(),
        };
        // The launcher starts another one, so that clients see a pause at most; here it is the fault that is looked for.
        Err(format!(
            "the daemon, process {}, ended: {now}{}",
            node.daemon,
            self.last_words()
        ))
    }

    pub(super) fn exited(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    pub(super) fn wait_exit(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.exited() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    pub(super) fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("the kernel's process ids fit"));
            // The child is not reaped, so the id is its own; ESRCH cannot happen.
            let _ = kill(pid, signal);
        }
    }

    pub(super) fn last_words(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(1500)..])
            .trim()
            .to_string();
        if tail.is_empty() {
            String::new()
        } else {
            format!("; its last words: {tail}")
        }
    }

    /// What the log of a node tells of deaths, also of those that another daemon has made good.
    pub(super) fn deaths(&self) -> Vec<String> {
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log)
            .lines()
            .filter(|line| DEATHS.iter().any(|words| line.contains(words)))
            .map(str::to_string)
            .collect()
    }
}

/// What Rust's runtime and the launcher print.
const DEATHS: [&str; 3] = [
    " panicked at ",
    "litefs: the daemon died",
    "litefs: the new daemon did not start",
];
