//! The asynchronous trigger of capture: inotify on the backing files of passthrough WALs.
//!
//! A commit through a passthrough WAL sends the daemon nothing, and that is the point. The kernel still notes the write, at the cost of one
//! wake-up of our thread, and a wake-up across CPUs is what a commit of a few microseconds can afford least. So after each round the thread
//! sleeps a moment without listening: further writes join the event that is already queued, and a writer under load pays once per pause.

use std::collections::HashMap;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use engine::Store;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use parking_lot::Mutex;

use super::backing;
use super::node::Node;

const PAUSE: Duration = Duration::from_micros(700);

pub(crate) struct WalWatch {
    shared: Arc<Shared>,
    /// Dropped to end the thread.
    alive: Mutex<Option<PipeWriter>>,
}

struct Shared {
    inotify: Inotify,
    watched: Mutex<HashMap<WatchDescriptor, Weak<Node>>>,
    stopped: PipeReader,
}

impl WalWatch {
    pub(crate) fn new() -> io::Result<WalWatch> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let (stopped, alive) = io::pipe()?;
        let shared = Shared {
            inotify,
            watched: Mutex::default(),
            stopped,
        };
        Ok(WalWatch {
            shared: Arc::new(shared),
            alive: Mutex::new(Some(alive)),
        })
    }

    /// Watches a WAL from now on; the kernel ends the watch with the inode.
    pub(crate) fn add(&self, node: &Arc<Node>) {
        let mut watched = self.shared.watched.lock();
        match self.shared.inotify.add_watch(
            backing::magic_link(node.fd()).as_c_str(),
            AddWatchFlags::IN_MODIFY,
        ) {
            Ok(watch) => {
                watched.insert(watch, Arc::downgrade(node));
            }
            Err(error) => {
                let path = String::from_utf8_lossy(&node.path()).into_owned();
                tracing::warn!(path, %error, "commits of this WAL are captured only when something else asks");
            }
        }
    }

    /// Starts the thread that tells the engine.
    pub(crate) fn spawn(&self, store: Arc<Store>) -> io::Result<JoinHandle<()>> {
        let shared = self.shared.clone();
        thread::Builder::new()
            .name("wal-watch".into())
            .spawn(move || shared.run(&store))
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        self.alive.lock().take();
    }
}

impl Shared {
    fn run(&self, store: &Store) {
        while self.wait() {
            match self.inotify.read_events() {
                Ok(events) => self.tell(store, &events),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "read inotify; commits are captured only when something else asks");
                    return;
                }
            }
            thread::sleep(PAUSE);
        }
    }

    /// Waits for an event; false: the mount stops.
    fn wait(&self) -> bool {
        let mut fds = [
            PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN),
        ];
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => return !fds[1].any().unwrap_or(true),
                Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "poll inotify");
                    return false;
                }
            }
        }
    }

    fn tell(&self, store: &Store, events: &[InotifyEvent]) {
        let mut told: Vec<WatchDescriptor> = Vec::new();
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                return self.tell_all(store);
            }
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                self.watched.lock().remove(&event.wd);
            } else if !told.contains(&event.wd) {
                told.push(event.wd);
                let node = self.watched.lock().get(&event.wd).and_then(Weak::upgrade);
                tell_one(store, node);
            }
        }
    }

    /// Events were lost: every WAL may have changed.
    fn tell_all(&self, store: &Store) {
        let nodes: Vec<Option<Arc<Node>>> = self.watched.lock().values().map(Weak::upgrade).collect();
        for node in nodes {
            tell_one(store, node);
        }
    }
}

fn tell_one(store: &Store, node: Option<Arc<Node>>) {
    let database = node
        .and_then(|node| node.part())
        .and_then(|(name, _)| store.database(&name));
    if let Some(database) = database
        && let Err(error) = database.wal_changed()
    {
        tracing::error!(database = %database.name(), %error, "capture after a write to the WAL");
    }
}
