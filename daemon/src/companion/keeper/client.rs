//! The keeper as the daemon knows it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::data_dir;
use super::protocol::{FromKeeper, OpenerSocket, ToKeeper, VERSION};
use crate::companion::process::SUBCOMMAND;
use crate::companion::wire;
use crate::fuse::{Pinned, pin};
use crate::ledger::Ledger;

/// A keeper that is starting or ending has the lock and does not answer yet.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(5);
/// First and longest pause before another attempt to replace a keeper.
const REPLACE_RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// The keeper answers at once.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Error)]
pub enum KeeperError {
    #[error("{} is in use by {holder}", path.display())]
    InUse { path: PathBuf, holder: String },
    #[error("{0}")]
    Refused(String),
    #[error("the keeper of {} ended; see {} there", path.display(), data_dir::LOG)]
    Ended { path: PathBuf },
    #[error("{operation} {}: {source}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl KeeperError {
    fn io(operation: &'static str, dir: &Path) -> impl Fn(io::Error) -> KeeperError {
        move |source| KeeperError::Io {
            operation,
            path: dir.to_owned(),
            source,
        }
    }
}

#[derive(Clone, Debug)]
pub struct KeeperOptions {
    /// The `litefs` binary.
    pub program: PathBuf,
    /// How long clients wait for the next daemon when this one dies.
    pub takeover_timeout: Duration,
    /// The process that starts the daemon again.
    pub launcher: Option<u32>,
}

impl KeeperOptions {
    pub fn new(takeover_timeout: Duration) -> KeeperOptions {
        KeeperOptions {
            program: PathBuf::from("/proc/self/exe"),
            takeover_timeout,
            launcher: None,
        }
    }
}

/// A living connection of an earlier daemon.
#[derive(Debug)]
pub struct Inheritance {
    /// /dev/fuse.
    pub device: OwnedFd,
    /// The mounted tree, whether it is attached anywhere or not.
    pub tree: Option<OwnedFd>,
    /// Inodes that have no name any more, by node id.
    pub nodes: Vec<(u64, OwnedFd)>,
    /// Inodes that had one when this daemon started, as far as they were pinned.
    pub(crate) pinned: Vec<Pinned>,
}

impl Inheritance {
    /// Keeps the inodes that the kernel knows, whatever becomes of their names: to be called before anything below `files`, the backing
    /// tree, is removed.
    pub fn pin(&mut self, ledger: &Ledger, files: &Path) -> io::Result<()> {
        self.pinned = pin(ledger, files)?;
        Ok(())
    }
}

/// The right to a data directory, and the process that keeps it and the mount beyond this one.
pub struct Keeper {
    dir: PathBuf,
    options: KeeperOptions,
    /// Shared with the keeper: whoever of the two dies, the directory stays locked.
    lock: File,
    ledger: Arc<Ledger>,
    socket: RwLock<Arc<OwnedFd>>,
    held: Mutex<Held>,
    openers: Mutex<Receiver<io::Result<OpenerSocket>>>,
    leave: CancellationToken,
    ended: Mutex<bool>,
    /// Keepers that died and were replaced.
    replaced: AtomicU32,
    /// Gives a new keeper the connection to the opener.
    opener_control: OnceLock<Box<dyn Fn() -> io::Result<OpenerSocket> + Send + Sync>>,
}

/// What the keeper holds for this daemon, to give it to another one if it dies.
#[derive(Default)]
struct Held {
    device: Option<OwnedFd>,
    tree: Option<OwnedFd>,
    nodes: BTreeMap<u64, OwnedFd>,
}

/// What became of an attempt to replace a keeper that died.
enum Replaced {
    Done,
    Failed,
    /// The mount ends.
    NotNeeded,
}

/// What the keeper says first.
struct Welcomed {
    ledger: File,
    lock: File,
    inheritance: Option<Inheritance>,
}

impl Keeper {
    /// Finds the keeper of the data directory, or starts one; with it comes the connection that it keeps, if there is one.
    ///
    /// # Errors
    /// [`KeeperError::InUse`] if another daemon serves the directory, [`KeeperError::Refused`] if the keeper is of a version that this one
    /// does not understand.
    pub fn connect(
        dir: &Path,
        options: KeeperOptions,
    ) -> Result<(Arc<Keeper>, Option<Inheritance>), KeeperError> {
        let failed = |operation| KeeperError::io(operation, dir);
        let (socket, welcomed) = enter(dir, &options)?;
        let ledger = Ledger::open(welcomed.ledger).map_err(failed("read the ledger of"))?;
        let (told, openers) = channel();
        let held = welcomed
            .inheritance
            .as_ref()
            .map_or(Ok(Held::default()), Held::of)
            .map_err(failed("keep the connection of"))?;
        let keeper = Arc::new(Keeper {
            dir: dir.to_owned(),
            options,
            lock: welcomed.lock,
            ledger: Arc::new(ledger),
            socket: RwLock::new(Arc::new(socket)),
            held: Mutex::new(held),
            openers: Mutex::new(openers),
            leave: CancellationToken::new(),
            ended: Mutex::new(false),
            replaced: AtomicU32::new(0),
            opener_control: OnceLock::new(),
        });
        let listening = Arc::downgrade(&keeper);
        thread::Builder::new()
            .name("keeper".into())
            .spawn(move || {
                let mut pause = REPLACE_RETRY.0;
                while let Some(keeper) = listening.upgrade() {
                    let socket = keeper.socket.read().clone();
                    drop(keeper);
                    hear(&socket, &told, &listening);
                    let replaced = listening
                        .upgrade()
                        .map(|keeper| keeper.replace(pause == REPLACE_RETRY.0));
                    match replaced {
                        Some(Replaced::Done) => pause = REPLACE_RETRY.0,
                        Some(Replaced::Failed) => {
                            thread::sleep(pause);
                            pause = (pause * 2).min(REPLACE_RETRY.1);
                        }
                        Some(Replaced::NotNeeded) | None => return,
                    }
                }
            })
            .map_err(failed("listen to the keeper of"))?;
        Ok((keeper, welcomed.inheritance))
    }

    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Whether clients have files of the mount open that this daemon takes over.
    pub fn has_clients(&self) -> bool {
        self.ledger.client_handles().next().is_some()
    }

    /// How many keeper processes died and were replaced by one that has all that they had.
    pub fn replaced(&self) -> u32 {
        self.replaced.load(Ordering::Acquire)
    }

    /// Cancelled when a successor waits for this process to end.
    pub fn leave(&self) -> &CancellationToken {
        &self.leave
    }

    /// Keeps a new connection, and the mounted tree where that can be had.
    pub(crate) fn keep_connection(
        &self,
        device: BorrowedFd<'_>,
        tree: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut held = self.held.lock();
        held.device = Some(device.try_clone_to_owned()?);
        held.tree = tree.map(|tree| tree.try_clone_to_owned()).transpose()?;
        unless_gone(held.send_connection(&self.socket.read()))
    }

    /// Lets go of the tree: what is detached now is gone when its last client is.
    pub(crate) fn drop_tree(&self) {
        let tree = self.held.lock().tree.take();
        drop(tree);
        self.tell(&ToKeeper::DropTree, &[]);
    }

    /// Keeps an inode that is about to lose its last name while it is open.
    pub(crate) fn keep_node(&self, id: u64, node: BorrowedFd<'_>) -> io::Result<()> {
        let mut held = self.held.lock();
        held.nodes.insert(id, node.try_clone_to_owned()?);
        unless_gone(wire::send(&**self.socket.read(), &ToKeeper::Node { id }, &[node]))
    }

    /// An inode without a name is not known to the kernel any more.
    pub(crate) fn forget_node(&self, id: u64) {
        let mut held = self.held.lock();
        if held.nodes.remove(&id).is_some() {
            self.tell(&ToKeeper::ForgetNode { id }, &[]);
        }
    }

    /// A connection to the opener, which is started if need be, and its process.
    pub(in crate::companion) fn opener(&self) -> io::Result<OpenerSocket> {
        let openers = self.openers.lock();
        // Of a keeper that died without an answer.
        while openers.try_recv().is_ok() {}
        wire::send(&**self.socket.read(), &ToKeeper::Opener, &[])?;
        openers
            .recv_timeout(ANSWER_PATIENCE)
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the keeper does not answer"))?
    }

    /// Gives the keeper a connection to the opener that this daemon speaks with. Waits for one that is being replaced.
    pub(in crate::companion) fn adopt_opener(&self, opener: OpenerSocket) -> io::Result<()> {
        let _held = self.held.lock();
        let process = opener.process;
        unless_gone(wire::send(
            &**self.socket.read(),
            &ToKeeper::AdoptOpener { process },
            &[opener.socket.as_fd()],
        ))
    }

    /// How a keeper that takes the place of a dead one gets a connection to the opener.
    pub(in crate::companion) fn set_opener_control(
        &self,
        control: impl Fn() -> io::Result<OpenerSocket> + Send + Sync + 'static,
    ) {
        // There is one opener for the life of the process.
        let _ = self.opener_control.set(Box::new(control));
    }

    /// The daemon serves clients that are left, and makes room for the next one.
    pub fn linger(&self) {
        self.tell(&ToKeeper::Linger, &[]);
    }

    /// Whether nothing is left to be kept.
    pub(in crate::companion) fn has_ended(&self) -> bool {
        *self.ended.lock()
    }

    /// Nothing is left to be kept: the keeper ends.
    pub fn end(&self) {
        *self.ended.lock() = true;
        self.tell(&ToKeeper::Goodbye, &[]);
    }

    fn tell(&self, message: &ToKeeper, descriptors: &[BorrowedFd<'_>]) {
        if let Err(error) = wire::send(&**self.socket.read(), message, descriptors) {
            // It is replaced by another one that is told everything.
            tracing::debug!(%error, ?message, "tell the keeper");
        }
    }

    /// The keeper died: starts another one and gives it all that this daemon has. `tell`: a failure is not known yet.
    fn replace(&self, tell: bool) -> Replaced {
        if *self.ended.lock() {
            return Replaced::NotNeeded;
        }
        match self.try_replace() {
            Ok(()) => {
                tracing::warn!("the keeper process died; another one has what it kept");
                Replaced::Done
            }
            Err(error) => {
                if tell {
                    tracing::error!(%error, "the keeper process died, and there is no other: this mount would not outlive its daemon; trying again");
                }
                Replaced::Failed
            }
        }
    }

    fn try_replace(&self) -> io::Result<()> {
        let held = self.held.lock();
        let socket = start(&self.dir, self.lock.try_clone()?, &self.options)?;
        self.hand_over(&held, &socket).inspect_err(|_| {
            // One that has only a part of it is not to be found by anybody.
            let _ = wire::send(&socket, &ToKeeper::Goodbye, &[]);
        })?;
        *self.socket.write() = Arc::new(socket);
        self.replaced.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn hand_over(&self, held: &Held, socket: &OwnedFd) -> io::Result<()> {
        say_hello(socket, &self.options)?;
        await_welcome(&self.dir, socket).map_err(io::Error::other)?;
        wire::send(socket, &ToKeeper::Ledger, &[self.ledger.as_fd()])?;
        held.send_connection(socket)?;
        for (id, node) in &held.nodes {
            wire::send(socket, &ToKeeper::Node { id: *id }, &[node.as_fd()])?;
        }
        match self.opener_control.get().map(|control| control()) {
            Some(Ok(opener)) => {
                let process = opener.process;
                wire::send(
                    socket,
                    &ToKeeper::AdoptOpener { process },
                    &[opener.socket.as_fd()],
                )
            }
            // The new keeper is asked for another one.
            Some(Err(error)) => {
                tracing::debug!(%error, "the opener died with the keeper");
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Ends the thread that listens, which has the socket too.
        use std::os::fd::AsRawFd;
        let socket = self.socket.read().as_raw_fd();
        let _ = nix::sys::socket::shutdown(socket, nix::sys::socket::Shutdown::Both);
    }
}

impl Held {
    fn of(inheritance: &Inheritance) -> io::Result<Held> {
        let nodes = inheritance.nodes.iter();
        Ok(Held {
            device: Some(inheritance.device.try_clone()?),
            tree: inheritance.tree.as_ref().map(OwnedFd::try_clone).transpose()?,
            nodes: nodes
                .map(|(id, node)| Ok((*id, node.try_clone()?)))
                .collect::<io::Result<_>>()?,
        })
    }

    fn send_connection(&self, socket: &OwnedFd) -> io::Result<()> {
        if let Some(device) = &self.device {
            wire::send(socket, &ToKeeper::Connection, &[device.as_fd()])?;
        }
        if let Some(tree) = &self.tree {
            wire::send(socket, &ToKeeper::Tree, &[tree.as_fd()])?;
        }
        Ok(())
    }
}

/// A keeper that died is replaced by one that is given everything, also what it could not be told any more.
fn unless_gone(told: io::Result<()>) -> io::Result<()> {
    match told {
        Err(error) if wire::is_gone(&error) => Ok(()),
        told => told,
    }
}

/// Hears the keeper until it is gone.
fn hear(socket: &OwnedFd, openers: &Sender<io::Result<OpenerSocket>>, keeper: &std::sync::Weak<Keeper>) {
    while let Ok(Some((message, descriptors))) = wire::receive::<FromKeeper>(socket) {
        match message {
            FromKeeper::Opener { process } => {
                let opener = descriptors.into_iter().next();
                let opener = opener.map(|socket| OpenerSocket { socket, process });
                // The receiver lives as long as the keeper.
                let _ = openers.send(opener.ok_or_else(wire::no_room));
            }
            FromKeeper::Failed { message } => {
                let _ = openers.send(Err(io::Error::other(message)));
            }
            FromKeeper::Leave => {
                if let Some(keeper) = keeper.upgrade() {
                    keeper.leave.cancel();
                }
            }
            FromKeeper::Welcome { .. } | FromKeeper::Node { .. } | FromKeeper::Busy { .. } => {
                tracing::error!(?message, "unexpected word of the keeper");
            }
        }
    }
    // Somebody may wait for an opener.
    let _ = openers.send(Err(io::ErrorKind::BrokenPipe.into()));
}

/// Is let in by the keeper of the directory. One that was just ending when it was found is replaced.
fn enter(dir: &Path, options: &KeeperOptions) -> Result<(OwnedFd, Welcomed), KeeperError> {
    // From when the first one had ended: its end may have taken as long.
    let mut deadline = None;
    loop {
        let socket = find(dir, options)?;
        let entered = match say_hello(&socket, options) {
            Ok(()) => await_welcome(dir, &socket),
            Err(_) => Err(KeeperError::Ended { path: dir.to_owned() }),
        };
        match entered {
            Err(KeeperError::Ended { .. })
                if Instant::now() < *deadline.get_or_insert_with(|| Instant::now() + LOCK_PATIENCE) =>
            {
                thread::sleep(RETRY);
            }
            entered => return entered.map(|welcomed| (socket, welcomed)),
        }
    }
}

/// A connection to the keeper of the directory, which is started if there is none.
fn find(dir: &Path, options: &KeeperOptions) -> Result<OwnedFd, KeeperError> {
    let failed = |operation| KeeperError::io(operation, dir);
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        if let Some(socket) = data_dir::knock(dir).map_err(failed("reach the keeper of"))? {
            return Ok(socket);
        }
        if let Some(lock) = data_dir::try_lock(dir).map_err(failed("lock"))? {
            return start(dir, lock, options).map_err(failed("start the keeper of"));
        }
        if Instant::now() >= deadline {
            let holder = std::fs::read_to_string(dir.join(data_dir::LOCK)).unwrap_or_default();
            return Err(KeeperError::InUse {
                path: dir.to_owned(),
                holder: format!(
                    "a process that does not answer ({})",
                    holder.trim().replace('\n', "; ")
                ),
            });
        }
        thread::sleep(RETRY);
    }
}

/// Starts a keeper for a directory whose lock is ours.
fn start(dir: &Path, lock: File, options: &KeeperOptions) -> io::Result<OwnedFd> {
    let (ours, theirs) = wire::pair()?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join(data_dir::LOG))?;
    let mut command = Command::new(&options.program);
    command
        .arg0("litefs")
        .args([SUBCOMMAND, "keeper"])
        .arg(dir)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::from(lock))
        .stderr(Stdio::from(log));
    // SAFETY: between fork and exec only this system call is made; nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            // It outlives the daemon's session and terminal.
            nix::unistd::setsid()?;
            Ok(())
        });
    }
    let mut child = command.spawn()?;
    // Collected when it ends before this process does.
    thread::Builder::new()
        .name("keeper-end".into())
        .spawn(move || child.wait())?;
    Ok(ours)
}

fn say_hello(socket: &OwnedFd, options: &KeeperOptions) -> io::Result<()> {
    let hello = ToKeeper::Hello {
        version: VERSION,
        process: std::process::id(),
        launcher: options.launcher,
        takeover_timeout_ms: u64::try_from(options.takeover_timeout.as_millis()).unwrap_or(u64::MAX),
    };
    wire::send(socket, &hello, &[])
}

fn await_welcome(dir: &Path, socket: &OwnedFd) -> Result<Welcomed, KeeperError> {
    let failed = KeeperError::io("hear the keeper of", dir);
    let gone = || KeeperError::Ended { path: dir.to_owned() };
    let short = || failed(wire::no_room());
    let (message, descriptors) = wire::receive::<FromKeeper>(socket)
        .map_err(&failed)?
        .ok_or_else(gone)?;
    let (connection, tree, nodes) = match message {
        FromKeeper::Welcome {
            connection,
            tree,
            nodes,
        } => (connection, tree, nodes),
        FromKeeper::Busy { holder } => {
            return Err(KeeperError::InUse {
                path: dir.to_owned(),
                holder,
            });
        }
        FromKeeper::Failed { message } => return Err(KeeperError::Refused(message)),
        FromKeeper::Node { .. } | FromKeeper::Opener { .. } | FromKeeper::Leave => return Err(gone()),
    };
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or_else(short);
    let (ledger, lock) = (File::from(next()?), File::from(next()?));
    let inheritance = match connection {
        false => None,
        true => Some(Inheritance {
            device: next()?,
            tree: if tree { Some(next()?) } else { None },
            nodes: receive_nodes(socket, nodes).map_err(&failed)?,
            pinned: Vec::new(),
        }),
    };
    Ok(Welcomed {
        ledger,
        lock,
        inheritance,
    })
}

fn receive_nodes(socket: &OwnedFd, count: usize) -> io::Result<Vec<(u64, OwnedFd)>> {
    let mut nodes = Vec::new();
    while nodes.len() < count {
        let Some((FromKeeper::Node { id }, descriptors)) = wire::receive::<FromKeeper>(socket)? else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        nodes.push((id, descriptors.into_iter().next().ok_or_else(wire::no_room)?));
    }
    Ok(nodes)
}
