//! The asynchronous trigger of capture: inotify on the backing files of passthrough WALs.
//!
//! A commit through a passthrough WAL sends the daemon nothing, and that is the point. The kernel still notes the write, at the cost of one
//! wake-up of our thread, and a wake-up across CPUs is what a commit of a few microseconds can afford least. So after each round the thread
//! sleeps a moment without listening: further writes join the event that is already queued, and a writer under load pays once per pause.
//!
//! The kernel gives a user few inotify instances (`fs.inotify.max_user_instances`, 128), whatever programs they are of. So a node has one at
//! the most, from its first such WAL on, and goes without where there is none: then it looks at these WALs now and then.

use std::collections::HashMap;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use engine::Store;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use parking_lot::Mutex;

use super::backing;
use super::node::Node;

const PAUSE: Duration = Duration::from_micros(700);
/// How often WALs are looked at that the kernel does not tell of.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) struct WalWatch {
    shared: Arc<Shared>,
    /// Written to when the thread has something else to wait for, dropped to end it.
    alive: Mutex<Option<PipeWriter>>,
}

struct Shared {
    /// Made for the first WAL: all nodes of a user share few of them, and many a node has no WAL that the kernel serves.
    inotify: Mutex<Option<Arc<Inotify>>>,
    watched: Mutex<HashMap<WatchDescriptor, Weak<Node>>>,
    looked_at: Mutex<LookedAt>,
    woken: PipeReader,
}

/// WALs that could not be watched.
#[derive(Default)]
struct LookedAt {
    nodes: Vec<Weak<Node>>,
    /// The log says so once, not for each.
    told: bool,
}

/// What the thread waits for.
enum Heard {
    Events(Arc<Inotify>),
    TimeToLook,
    Woken,
    Stop,
}

impl WalWatch {
    pub(crate) fn new() -> io::Result<WalWatch> {
        let (woken, alive) = io::pipe()?;
        let shared = Shared {
            inotify: Mutex::default(),
            watched: Mutex::default(),
            looked_at: Mutex::default(),
            woken,
        };
        Ok(WalWatch {
            shared: Arc::new(shared),
            alive: Mutex::new(Some(alive)),
        })
    }

    /// Watches a WAL from now on; the kernel ends the watch with the inode. Where the kernel has no watch to give, the WAL is looked at now
    /// and then instead.
    pub(crate) fn add(&self, node: &Arc<Node>) {
        let mut watched = self.shared.watched.lock();
        let link = backing::magic_link(node.fd());
        let watch = self.inotify().and_then(|inotify| {
            let watch = inotify.add_watch(link.as_c_str(), AddWatchFlags::IN_MODIFY);
            watch.map_err(|error| (error, "fs.inotify.max_user_watches"))
        });
        match watch {
            Ok(watch) => {
                watched.insert(watch, Arc::downgrade(node));
            }
            Err((error, setting)) => {
                drop(watched);
                self.look_at(node, error, setting);
            }
        }
    }

    /// The one instance of this node.
    fn inotify(&self) -> Result<Arc<Inotify>, (Errno, &'static str)> {
        let mut made = self.shared.inotify.lock();
        if let Some(inotify) = &*made {
            return Ok(inotify.clone());
        }
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|error| (error, "fs.inotify.max_user_instances"))?;
        let inotify = Arc::new(inotify);
        *made = Some(inotify.clone());
        self.wake();
        Ok(inotify)
    }

    fn look_at(&self, node: &Arc<Node>, error: Errno, setting: &'static str) {
        let mut looked_at = self.shared.looked_at.lock();
        looked_at.nodes.retain(|other| other.strong_count() > 0);
        let known = looked_at
            .nodes
            .iter()
            .any(|other| std::ptr::eq(other.as_ptr(), Arc::as_ptr(node)));
        if !known {
            looked_at.nodes.push(Arc::downgrade(node));
        }
        if !std::mem::replace(&mut looked_at.told, true) {
            tracing::warn!(
                %error,
                "the kernel has no inotify watch for a WAL, which is looked at every {LOOK:?} instead: commits reach replicas later; \
                 raise `{setting}` (sysctl)"
            );
        }
        drop(looked_at);
        self.wake();
    }

    fn wake(&self) {
        if let Some(mut alive) = self.alive.lock().as_ref()
            && let Err(error) = alive.write_all(&[0])
        {
            tracing::error!(%error, "wake up the thread that watches WALs");
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
        let mut looked = Instant::now();
        loop {
            let heard = self.wait();
            // Events of other WALs may leave no time without any.
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.look(store);
            }
            match heard {
                Heard::Events(inotify) => match inotify.read_events() {
                    Ok(events) => self.tell(store, &events),
                    Err(Errno::EAGAIN | Errno::EINTR) => {}
                    Err(error) => {
                        tracing::error!(%error, "read inotify; commits are captured only when something else asks");
                        return;
                    }
                },
                Heard::TimeToLook | Heard::Woken => continue,
                Heard::Stop => return,
            }
            thread::sleep(PAUSE);
        }
    }

    fn wait(&self) -> Heard {
        let inotify = self.inotify.lock().clone();
        let timeout = match self.looked_at.lock().nodes.is_empty() {
            true => PollTimeout::NONE,
            false => PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::NONE),
        };
        let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            inotify
                .iter()
                .map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN)),
        );
        loop {
            match poll(&mut fds, timeout) {
                Ok(0) => return Heard::TimeToLook,
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "poll inotify");
                    return Heard::Stop;
                }
            }
        }
        if fds[0].any().unwrap_or(true) {
            return match (&self.woken).read(&mut [0; 64]) {
                Ok(0) | Err(_) => Heard::Stop,
                Ok(_) => Heard::Woken,
            };
        }
        match inotify {
            Some(inotify) => Heard::Events(inotify),
            None => Heard::Woken,
        }
    }

    fn look(&self, store: &Store) {
        let nodes: Vec<Option<Arc<Node>>> = {
            let mut looked_at = self.looked_at.lock();
            looked_at.nodes.retain(|node| node.strong_count() > 0);
            looked_at.nodes.iter().map(Weak::upgrade).collect()
        };
        for node in nodes {
            tell_one(store, node);
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
        && let Some(unlogged) = store.repeats().note("capture", database.name(), &error)
    {
        tracing::error!(db = %database.name(), %error, unlogged, "cannot capture after a write to the WAL, trying again");
    }
}
