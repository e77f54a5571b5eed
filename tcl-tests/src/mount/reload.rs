//! Replaces the daemon of a node while clients use its mount: SIGHUP to the launcher, again and again.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::litefs::{Role, is_ready};
use super::processes;
use super::service::{Service, Shared};

/// How often the daemons of a run are replaced, and how often they were. Clones count together.
#[derive(Debug, Clone)]
pub struct Reloads {
    every: Duration,
    tally: Arc<Mutex<Tally>>,
}

/// Replacements that came to their end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub count: u32,
    pub longest: Duration,
}

impl Reloads {
    pub fn every(every: Duration) -> Reloads {
        Reloads {
            every,
            tally: Arc::default(),
        }
    }

    pub fn interval(&self) -> Duration {
        self.every
    }

    pub fn tally(&self) -> Tally {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, took: Duration) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.count += 1;
        tally.longest = tally.longest.max(took);
    }
}

/// A thread that replaces the daemon of one mount. Dropping it lets a replacement under way come to its end.
#[derive(Debug)]
pub(super) struct Reloader {
    /// Closed at the end.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How long a replacement may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(5);

impl Reloader {
    pub(super) fn start(reloads: Reloads, service: Shared, api: String, role: Role) -> Reloader {
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || run(&reloads, &service, &api, role, &stopped));
        Reloader {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Reloader {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(reloads: &Reloads, service: &Shared, api: &str, role: Role, stopped: &Receiver<()>) {
    let mut due = Instant::now() + reloads.every;
    while let Err(RecvTimeoutError::Timeout) =
        stopped.recv_timeout(due.saturating_duration_since(Instant::now()))
    {
        let mut service = service.lock();
        due = Instant::now() + reloads.every;
        match reload(&mut service, api, role) {
            Ok(took) => reloads.count(took),
            Err(reason) => {
                if let Some(node) = &mut service.node {
                    node.fault = Some(reason);
                }
                return;
            }
        }
    }
}

/// Replaces the daemon, and waits until the new one serves. Returns how long that took.
fn reload(service: &mut Service, api: &str, role: Role) -> Result<Duration, String> {
    service.check()?;
    let (start, old) = (Instant::now(), service.node.as_ref().map(|node| node.daemon));
    service.signal(Signal::SIGHUP);
    loop {
        if let Some(node) = &mut service.node
            && let Some(new) = processes::serving(&node.data).filter(|new| Some(*new) != old)
            && is_ready(api, role)
        {
            node.daemon = new;
            return Ok(start.elapsed());
        }
        if let Some(status) = service.exited() {
            let words = service.last_words();
            return Err(format!(
                "the launcher ended while the daemon was replaced: {status}{words}"
            ));
        }
        if start.elapsed() > PATIENCE {
            let words = service.last_words();
            return Err(format!(
                "no other daemon served {} s after SIGHUP{words}",
                PATIENCE.as_secs()
            ));
        }
        std::thread::sleep(LOOK);
    }
}
