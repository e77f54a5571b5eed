//! The opener's process: opens files of the mount for the daemons that serve it, one after the other, and keeps what it has opened.
//!
//! What it keeps are open file descriptions on which the daemon locks. They are the same for each daemon: what one has locked stays locked
//! while nobody serves the mount, and the next one finds it locked for itself. Between two daemons the opener watches the time as primary
//! that the dead one noted in the ledger, and fences clients when it is over ([`super::fences`]). When neither a daemon nor a keeper is left,
//! nobody will ever count what clients commit, and it fences at once.
//!
//! A thread of its own opens: an open waits for as long as nobody serves the mount, and the fences must not wait with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use super::Inhabitants;
use super::fences::Kept;
use super::keeper::protocol::{FromOpener, ToOpener};
use super::protocol::{Fence, Outcome, Reply, Request, Task};
use super::wire;
use crate::fuse::current_mount;
use crate::lease::BootTime;
use crate::ledger::Ledger;
use crate::processes::{device_of_descriptor, has_users};

/// How long a fence that somebody waits for tries to get the lock of a transaction that is under way.
const FENCE_PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts: a busy writer leaves only small gaps between its transactions.
const RETRY: Duration = Duration::from_micros(50);
/// How often to look whether clients have gone, and whether a lock that was held is free.
const LOOK: Duration = Duration::from_secs(2);

/// Runs until nobody needs it: `control` is the connection to the keeper.
pub(super) fn run(control: OwnedFd, data_dir: PathBuf) -> io::Result<()> {
    let (woken, wake) = io::pipe()?;
    let (queue, orders) = channel();
    let shared = Arc::new(Shared {
        files: Mutex::default(),
        wake,
    });
    let (opening, thread) = (shared.clone(), Arc::new(Mutex::new(None)));
    let number = thread.clone();
    thread::Builder::new().name("open".into()).spawn(move || {
        *number.lock() = Some(nix::unistd::gettid().as_raw() as u32);
        opening.tell();
        opening.open_all(&orders);
    })?;
    let mut opener = Opener {
        shared,
        data_dir,
        queue,
        woken,
        thread: loop {
            if let Some(number) = *thread.lock() {
                break number;
            }
            thread::yield_now();
        },
        control: Some(control),
        daemon: None,
        generation: 0,
        ledger: None,
    };
    opener.serve()
}

/// What the two threads share.
struct Shared {
    files: Mutex<Files>,
    /// Wakes the thread that listens.
    wake: PipeWriter,
}

/// Open files of the mount.
#[derive(Default)]
struct Files {
    /// By inode.
    kept: BTreeMap<u64, (Kept, BTreeSet<Use>)>,
    /// The connection to the daemon, if there is one, and which daemon it is.
    daemon: Option<(u64, Arc<OwnedFd>)>,
}

/// On whose behalf a file is kept: which daemon, and which of its requests.
type Use = (u64, u64);

struct Order {
    generation: u64,
    id: u64,
    path: PathBuf,
    create: bool,
    fence: Fence,
}

struct Opener {
    shared: Arc<Shared>,
    data_dir: PathBuf,
    queue: Sender<Order>,
    woken: PipeReader,
    /// The thread that opens.
    thread: u32,
    control: Option<OwnedFd>,
    daemon: Option<Arc<OwnedFd>>,
    generation: u64,
    ledger: Option<Ledger>,
}

/// Which connection has something to say.
enum Heard {
    Keeper,
    Daemon,
    /// Something else, or the time is over.
    Nothing,
}

impl Opener {
    fn serve(&mut self) -> io::Result<()> {
        loop {
            if self.control.is_none() && self.daemon.is_none() {
                self.guard();
                return Ok(());
            }
            match self.hear()? {
                Heard::Keeper => {
                    if self.obey()? {
                        return Ok(());
                    }
                }
                Heard::Daemon => {
                    if self.work() {
                        return Ok(());
                    }
                }
                Heard::Nothing => {}
            }
        }
    }

    /// Waits for a message, and fences meanwhile when the time as primary is over.
    fn hear(&mut self) -> io::Result<Heard> {
        let pause = self.fence_when_due();
        let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.control
                .iter()
                .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)),
        );
        fds.extend(
            self.daemon
                .iter()
                .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)),
        );
        let timeout = match pause {
            Some(pause) => PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        if ready[0] {
            let mut byte = [0; 16];
            let _ = self.woken.read(&mut byte)?;
        }
        let keeper = self.control.is_some() && ready[1];
        let daemon = self.daemon.is_some() && ready[ready.len() - 1];
        Ok(match (daemon, keeper) {
            (true, _) => Heard::Daemon,
            (false, true) => Heard::Keeper,
            (false, false) => Heard::Nothing,
        })
    }

    /// While no daemon serves: fences when the time as primary is over. Returns how long to wait at the most before the next call.
    fn fence_when_due(&self) -> Option<Duration> {
        if self.daemon.is_some() {
            return None;
        }
        let deadline = self.ledger.as_ref()?.deadline().load(Ordering::Acquire);
        // 0: its time as primary was over, and it may have died before everybody was fenced.
        let left = BootTime::from_nanos(deadline).remaining();
        if !left.is_zero() {
            return Some(left);
        }
        match self.try_fence_all() {
            0 => None,
            // A client is in the middle of a transaction.
            _ => Some(Duration::from_millis(1)),
        }
    }

    /// One attempt at each file; how many are left.
    fn try_fence_all(&self) -> usize {
        let files = self.shared.files.lock();
        files.kept.values().filter(|(kept, _)| !kept.try_fence()).count()
    }

    /// A message of the keeper. `true`: the end.
    fn obey(&mut self) -> io::Result<bool> {
        let Some(control) = &self.control else {
            return Ok(false);
        };
        match wire::receive::<ToOpener>(control)? {
            None => self.control = None,
            Some((ToOpener::Attach, descriptors)) => {
                let mut descriptors = descriptors.into_iter();
                if let (Some(daemon), Some(ledger)) = (descriptors.next(), descriptors.next()) {
                    self.ledger = Some(Ledger::open(File::from(ledger))?);
                    self.attach(daemon)?;
                }
            }
            Some((ToOpener::Fence, _)) => {
                let answer = FromOpener::Fenced {
                    left: self.fence_patiently(),
                };
                wire::send(control, &answer, &[])?;
            }
            Some((ToOpener::End, _)) => return Ok(true),
        }
        Ok(false)
    }

    fn attach(&mut self, daemon: OwnedFd) -> io::Result<()> {
        self.generation += 1;
        let daemon = Arc::new(daemon);
        self.shared.files.lock().daemon = Some((self.generation, daemon.clone()));
        let ready = Reply {
            id: 0,
            outcome: Outcome::Ready { thread: self.thread },
        };
        // A daemon that is gone already is noticed when it is listened to.
        let _ = wire::send(&*daemon, &ready, &[]);
        self.daemon = Some(daemon);
        Ok(())
    }

    /// A message of the daemon. `true`: the end.
    fn work(&mut self) -> bool {
        let Some(daemon) = &self.daemon else { return false };
        let (request, descriptors) = match wire::receive::<Request>(&**daemon) {
            Ok(Some(received)) => received,
            Ok(None) | Err(_) => {
                self.shared.files.lock().daemon = None;
                self.daemon = None;
                return false;
            }
        };
        let mut files = self.shared.files.lock();
        match request.task {
            Task::Open { path, create, fence } => {
                let order = Order {
                    generation: self.generation,
                    id: request.id,
                    path,
                    create,
                    fence,
                };
                // The thread lives as long as the process.
                let _ = self.queue.send(order);
            }
            Task::Keep { path, inode, fence } => {
                for file in descriptors.into_iter().map(File::from) {
                    let kept = Kept {
                        file,
                        fence,
                        path: path.clone(),
                    };
                    files.keep(inode, kept, (self.generation, request.id));
                }
            }
            Task::Inherit { after } => files.inherit(after, (self.generation, request.id), daemon),
            Task::Close { ids } => {
                files.release(|(generation, id)| generation == self.generation && ids.contains(&id))
            }
            Task::Settled => files.release(|(generation, _)| generation < self.generation),
            Task::Control => self.control = descriptors.into_iter().next().or(self.control.take()),
            Task::Goodbye => return true,
            Task::Checkpoint { .. } => {
                let reply = Reply {
                    id: request.id,
                    outcome: Outcome::failed(&io::ErrorKind::Unsupported.into()),
                };
                let _ = wire::send(&**daemon, &reply, &[]);
            }
        }
        false
    }

    /// Fences; returns how many files a client still holds when the patience is over.
    fn fence_patiently(&self) -> usize {
        let deadline = Instant::now() + FENCE_PATIENCE;
        loop {
            let left = self.try_fence_all();
            if left == 0 || Instant::now() >= deadline {
                return left;
            }
            thread::sleep(RETRY);
        }
    }

    /// Nobody will ever serve the mount again: stays for as long as clients have files open, so that they cannot commit.
    fn guard(&self) {
        let device = {
            let files = self.shared.files.lock();
            files
                .kept
                .values()
                .find_map(|(kept, _)| device_of_descriptor(&kept.file))
        };
        let Some(device) = device else { return };
        // Keeper and daemon may have died before another keeper was told of this process: then the mount has another opener.
        let others = || {
            Inhabitants::of(&self.data_dir).keeper.is_some() && current_mount(&self.data_dir) == Some(device)
        };
        if others() {
            return;
        }
        let left = self.fence_patiently();
        if left > 0 {
            complain!("litefs opener: {left} files are held by clients, which can go on writing unheard");
        }
        while has_users(device) && !others() {
            thread::sleep(LOOK);
            self.try_fence_all();
        }
    }
}

impl Files {
    /// Keeps a file, or notes one more use of the description that there is already. Returns that one.
    fn keep(&mut self, inode: u64, kept: Kept, by: Use) -> &File {
        let (kept, uses) = self.kept.entry(inode).or_insert_with(|| (kept, BTreeSet::new()));
        uses.insert(by);
        &kept.file
    }

    /// Answers with the next file that is kept.
    fn inherit(&mut self, after: u64, by: Use, daemon: &OwnedFd) {
        let next = self.kept.range_mut(after.saturating_add(1)..).next();
        let sent = match next {
            Some((inode, (kept, uses))) => {
                uses.insert(by);
                let outcome = Outcome::Kept {
                    path: kept.path.clone(),
                    inode: *inode,
                    fence: kept.fence,
                };
                wire::send(daemon, &Reply { id: by.1, outcome }, &[kept.file.as_fd()])
            }
            None => {
                let outcome = Outcome::NothingKept;
                wire::send(daemon, &Reply { id: by.1, outcome }, &[])
            }
        };
        if let Err(error) = sent {
            complain!("litefs opener: answer the daemon: {error}");
        }
    }

    /// Ends uses, and closes the files that have none left.
    fn release(&mut self, ended: impl Fn(Use) -> bool) {
        self.kept.retain(|_, (_, uses)| {
            uses.retain(|used| !ended(*used));
            !uses.is_empty()
        });
    }
}

impl Shared {
    fn tell(&self) {
        let _ = (&self.wake).write(&[0]);
    }

    /// The thread that opens.
    fn open_all(&self, orders: &Receiver<Order>) {
        for order in orders {
            let opened = open(&order.path, order.create);
            let mut files = self.files.lock();
            let Some((_, daemon)) = files
                .daemon
                .clone()
                .filter(|(generation, _)| *generation == order.generation)
            else {
                // Who asked is dead, and the next one asks for what it needs.
                continue;
            };
            let (outcome, file) = match opened {
                Ok((file, inode)) => {
                    let kept = Kept {
                        file,
                        fence: order.fence,
                        path: order.path,
                    };
                    let file = files.keep(inode, kept, (order.generation, order.id));
                    (Outcome::Opened { inode }, Some(file))
                }
                Err(error) => (Outcome::failed(&error), None),
            };
            let reply = Reply {
                id: order.id,
                outcome,
            };
            let file: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
            if let Err(error) = wire::send(&*daemon, &reply, &file) {
                complain!("litefs opener: answer the daemon: {error}");
            }
        }
    }
}

fn open(path: &Path, create: bool) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        // A client may have put a link in its place, and has not the rights of this process.
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let inode = file.metadata()?.ino();
    Ok((file, inode))
}
