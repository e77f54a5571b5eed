//! A mount from its start, or from where an earlier daemon left it, to its end.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use engine::{Coherence, Kernel, OwnerDefaults, Side, Store};
use fuser::{BackgroundSession, Config, INodeNo, Notifier, Session};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use super::backing;
use super::connection::{Connection, Unanswered, unanswered};
use super::descriptors::Descriptors;
use super::edge::Edge;
use super::foreign::Foreign;
use super::former::FormerMounts;
use super::handle::Handles;
use super::kernel::MountKernel;
use super::mount::{self, Attached, Detach, MountError};
use super::mount_root;
use super::node::{NodeTable, ROOT};
use super::presence::Presence;
use super::refusals::Refusals;
use super::requests::Requests;
use super::serve::Serve;
use super::shm_keeper::ShmKeeper;
use super::takeover::TakenOver;
use super::virtual_files::{PRIMARY_NAME, VirtualFiles};
use super::wal_watch::WalWatch;
use crate::companion::{Companion, Inheritance, Keeper};
use crate::ledger::Mode;
use crate::processes;

/// How long a stop waits for the kernel to end the session.
const STOP_PATIENCE: Duration = Duration::from_millis(500);

/// Whether `-wal`, `-shm` and `-journal` are passed through (mode K) or intercepted (mode D).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passthrough {
    /// K where the kernel and our privileges allow it.
    #[default]
    Auto,
    /// K or no mount.
    On,
    /// D.
    Off,
}

#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Mount point; created if it is missing.
    pub path: PathBuf,
    /// Whether users other than the daemon's may use the mount.
    pub allow_other: bool,
    /// To whom the root of the mount is to belong.
    pub owners: OwnerDefaults,
    pub passthrough: Passthrough,
    /// Whether a mount that a killed daemon left behind is detached first.
    pub take_over: bool,
    /// Threads that serve requests.
    pub threads: usize,
    /// Whether requests that a daemon died with are delivered again where the kernel can do that. A mount keeps to it for its life.
    pub resend: bool,
}

impl MountOptions {
    pub fn new(path: impl Into<PathBuf>) -> MountOptions {
        MountOptions {
            path: path.into(),
            allow_other: false,
            owners: OwnerDefaults::default(),
            passthrough: Passthrough::default(),
            take_over: true,
            threads: 4,
            resend: true,
        }
    }
}

/// The processes beside the daemon.
#[derive(Clone)]
pub struct Beside {
    pub keeper: Arc<Keeper>,
    pub companion: Arc<Companion>,
}

/// A process that has files of the mount open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub process: u32,
    pub command: String,
}

/// A living mount. Dropping it detaches it.
pub struct Mount {
    edge: Arc<Edge>,
    notifier: Notifier,
    kernel: Arc<MountKernel>,
    detach: Detach,
    session: Option<BackgroundSession>,
    watcher: Option<JoinHandle<()>>,
}

impl Mount {
    /// Mounts the backing tree of `store`, or goes on with the mount of an earlier daemon.
    ///
    /// The store is started before the first request is served, and has to know by then what this node is.
    pub fn start(
        store: Arc<Store>,
        beside: Beside,
        presence: Arc<Presence>,
        options: &MountOptions,
        inheritance: Option<Inheritance>,
    ) -> Result<Mount, MountError> {
        let start = Start {
            store,
            beside,
            presence,
            options,
        };
        match inheritance {
            None => start.mount(),
            Some(inheritance) => start.take_over(inheritance),
        }
    }

    /// The mount as the engine sees it.
    pub fn kernel(&self) -> Arc<dyn Kernel> {
        self.kernel.clone()
    }

    /// Mode K or D.
    pub fn coherence(&self) -> Coherence {
        self.edge.coherence()
    }

    pub fn requests(&self) -> Arc<Requests> {
        self.edge.requests.clone()
    }

    /// `.primary` appeared, changed or disappeared.
    pub fn primary_changed(&self) {
        let told = self.notifier.inval_entry(INodeNo(ROOT), PRIMARY_NAME.as_ref());
        let told = told.and(self.notifier.inval_inode(INodeNo(ROOT), 0, 0));
        if let Err(error) = told {
            tracing::debug!(%error, "the kernel does not know the root directory");
        }
    }

    /// Has the kernel ask again for what it remembers and the start may have changed: what nobody had open, and names. What somebody has
    /// open, the start left alone.
    fn forget_what_changed(&self, taken: &TakenOver) {
        // What the kernel has forgotten meanwhile needs nothing.
        for inode in &taken.closed {
            let _ = self.notifier.inval_inode(INodeNo(*inode), 0, 0);
        }
        for (directory, name) in &taken.stale_names {
            let _ = self.notifier.inval_entry(INodeNo(*directory), name);
        }
    }

    /// Whether somebody unmounted it behind our back.
    pub fn has_ended(&self) -> bool {
        let session = self.session.as_ref();
        session.is_none_or(|session| session.guard.is_finished()) || !self.detach.is_attached()
    }

    /// Before the mount is detached for good and clients stay: SQLite looks for a journal by its path and finds none from then on, so what
    /// it would take back is not to be read. A reader that kept such pages would take them for those of a later commit with the same
    /// change counter.
    pub fn shut_unfinished(&self) {
        let edge = &self.edge;
        let unfinished = edge.store.databases().into_iter().filter(|database| {
            let unfinished = database.is_unfinished().unwrap_or(true);
            if unfinished {
                tracing::warn!(
                    db = %database.name(),
                    "a transaction was not finished: the database cannot be read until litefs starts again"
                );
            }
            unfinished
        });
        let nodes = unfinished.flat_map(|database| edge.table.by_part(database.name(), Side::Database));
        let unreadable: HashSet<u64> = nodes.map(|node| node.id()).collect();
        let unreadable = edge.unreadable.get_or_init(|| unreadable);
        for inode in unreadable {
            // What the kernel has forgotten meanwhile needs nothing.
            let _ = self.notifier.inval_inode(INodeNo(*inode), 0, 0);
        }
    }

    /// Removes the mount from the name space. Clients keep the files that they have open.
    pub fn detach(&self) -> io::Result<()> {
        self.detach.detach()
    }

    /// Files that clients have open.
    pub fn client_handles(&self) -> usize {
        self.edge.ledger.client_handles().count()
    }

    /// Who has them open, as far as this process may look.
    pub fn holders(&self) -> Vec<Holder> {
        let command = |process: u32| fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        processes::users(processes::device(self.detach.device()))
            .into_iter()
            .map(|process| Holder {
                process,
                command: command(process).trim().to_owned(),
            })
            .filter(|holder| !processes::is_companion(holder.process))
            .collect()
    }

    /// Ends the mount, which has no clients any more. The engine must have let go of its locks.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        self.edge.shm_keeper.stop();
        self.detach.detach()?;
        self.edge.keeper.drop_tree();
        // The opener, who has files of the mount open, ends with it.
        self.edge.keeper.end();
        let deadline = Instant::now() + STOP_PATIENCE;
        while !session.guard.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        self.edge.wal_watch.stop();
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
        if session.guard.is_finished() {
            return match session.join() {
                // The connection has ended, which is what was wanted.
                Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
                ended => ended,
            };
        }
        tracing::warn!("the mount is still in use; its users get errors from here on");
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "detach the mount");
        }
    }
}

/// What a mount is started with.
struct Start<'a> {
    store: Arc<Store>,
    beside: Beside,
    presence: Arc<Presence>,
    options: &'a MountOptions,
}

impl Start<'_> {
    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> MountError {
        let path = self.options.path.clone();
        move |source| MountError::Io {
            operation,
            path,
            source,
        }
    }

    /// A new mount. What an earlier one left at the mount point is dead.
    fn mount(self) -> Result<Mount, MountError> {
        let options = self.options;
        let beneath = match options.take_over && mount::is_stale(&options.path) {
            true => mount::attach_beneath(&mount::resolve_point(&options.path)?, options.allow_other),
            false => None,
        };
        let took_over = beneath.is_some();
        let (path, attached) = match beneath {
            Some(attached) => (mount::resolve_point(&options.path)?, attached),
            None => attach(options, self.store.files_dir())?,
        };
        let Attached { device, detach } = attached;
        let former = FormerMounts::begin(self.store.dir(), processes::device(detach.device()));
        let edge = self.new_edge(device, former).map_err(self.failed("prepare"));
        let edge = edge.inspect_err(|_| drop(detach.detach()))?;
        let begun = self.begin(&edge, &detach, &path);
        let session = begun.inspect_err(|_| drop(detach.detach()))?;
        let mount = self.serve(edge.clone(), session, detach, path.clone())?;
        if took_over {
            mount::uncover(&path)?;
        }
        let tree = mount.detach.tree();
        let kept = self
            .beside
            .keeper
            .keep_connection(edge.connection.as_fd(), tree.as_ref().map(AsFd::as_fd));
        kept.map_err(self.failed("keep"))?;
        Ok(mount)
    }

    /// Shakes hands with the kernel, and settles the mode.
    fn begin(&self, edge: &Arc<Edge>, detach: &Detach, path: &Path) -> Result<Session<Serve>, MountError> {
        let connection = &edge.connection;
        let init = connection.read_init().map_err(self.failed("serve"))?;
        let unanswered = self.unanswered(&init);
        if unanswered == Unanswered::Failed {
            tracing::warn!(
                "this kernel (before 6.9) cannot deliver requests again: those that a daemon is at when it dies fail"
            );
        }
        let serve = Serve { edge: edge.clone() };
        let session = connection
            .shake_hands(serve, self.config(), &init, true, unanswered)
            .map_err(self.failed("serve"))?;
        let coherence = self.settle_mode(edge, path)?;
        let mode = match coherence {
            Coherence::Passthrough => Mode::Passthrough,
            Coherence::Intercepted => Mode::Intercepted,
        };
        edge.ledger
            .begin_connection(&init, mode, detach.device())
            .map_err(self.failed("note the connection of"))?;
        Ok(session)
    }

    fn settle_mode(&self, edge: &Edge, path: &Path) -> Result<Coherence, MountError> {
        let probe = || {
            let file = tempfile::tempfile_in(&edge.files_dir)?;
            edge.connection.probe_passthrough(&file)
        };
        let coherence = match self.options.passthrough {
            Passthrough::Off => Coherence::Intercepted,
            Passthrough::Auto | Passthrough::On => match probe() {
                Ok(()) => Coherence::Passthrough,
                Err(source) if self.options.passthrough == Passthrough::On => {
                    return Err(MountError::NoPassthrough {
                        path: path.to_owned(),
                        source,
                    });
                }
                Err(error) => {
                    tracing::info!(%error, "no passthrough here: every write is intercepted");
                    Coherence::Intercepted
                }
            },
        };
        set_mode(edge, coherence);
        Ok(coherence)
    }

    /// Goes on with the mount of an earlier daemon: nothing of it changes for its clients.
    fn take_over(self, inheritance: Inheritance) -> Result<Mount, MountError> {
        let Inheritance {
            device,
            tree,
            nodes,
            pinned,
        } = inheritance;
        let path = mount::resolve_point(&self.options.path)?;
        let own = processes::device(self.beside.keeper.ledger().device());
        let former = FormerMounts::of(self.store.dir(), own);
        let edge = self.new_edge(device, former).map_err(self.failed("prepare"))?;
        set_mode(
            &edge,
            match edge.ledger.mode() {
                Mode::Passthrough => Coherence::Passthrough,
                Mode::Intercepted => Coherence::Intercepted,
            },
        );
        let taken = edge
            .take_over(nodes, pinned)
            .map_err(self.failed("find the open files of"))?;
        let (detach, tree) = mount::attach_again(&path, edge.ledger.device(), tree)?;
        let kept = self
            .beside
            .keeper
            .keep_connection(edge.connection.as_fd(), tree.as_ref().map(AsFd::as_fd));
        kept.map_err(self.failed("keep"))?;
        let init = edge.ledger.init_request();
        let unanswered = self.unanswered(&init);
        let serve = Serve { edge: edge.clone() };
        let session = edge
            .connection
            .shake_hands(serve, self.config(), &init, false, unanswered)
            .map_err(self.failed("serve"))?;
        match unanswered {
            Unanswered::Resent => edge.connection.resend().map_err(self.failed("serve"))?,
            Unanswered::Failed => {}
        }
        let mount = self.serve(edge, session, detach, path)?;
        mount.forget_what_changed(&taken);
        tracing::info!(
            nodes = taken.nodes,
            closed = taken.closed.len(),
            handles = taken.handles,
            lost = taken.lost,
            "took the mount over"
        );
        Ok(mount)
    }

    fn unanswered(&self, init: &[u8]) -> Unanswered {
        match self.options.resend {
            true => unanswered(init),
            false => Unanswered::Failed,
        }
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        config.n_threads = Some(self.options.threads.max(2));
        config
    }

    /// Starts the engine's work, then the threads that serve.
    fn serve(
        &self,
        edge: Arc<Edge>,
        session: Session<Serve>,
        detach: Detach,
        path: PathBuf,
    ) -> Result<Mount, MountError> {
        let companion = self.beside.companion.clone();
        let notifier = session.notifier();
        let kernel = Arc::new(MountKernel::new(
            edge.clone(),
            notifier.clone(),
            companion.clone(),
            path.clone(),
        ));
        kernel
            .inherit_locks()
            .map_err(self.failed("take over the locks of"))?;
        self.store
            .start(kernel.clone())
            .map_err(|error| self.failed("start the store of")(io::Error::other(error)))?;
        let session = session.spawn().map_err(self.failed("serve"))?;
        let watcher = edge
            .wal_watch
            .spawn(self.store.clone())
            .map_err(self.failed("watch WALs of"))?;
        edge.shm_keeper
            .spawn(companion, path.clone())
            .map_err(self.failed("guard"))?;
        tracing::info!(path = %path.display(), coherence = ?edge.coherence(), "mounted");
        Ok(Mount {
            edge,
            notifier,
            kernel,
            detach,
            session: Some(session),
            watcher: Some(watcher),
        })
    }

    fn new_edge(&self, device: OwnedFd, former: FormerMounts) -> io::Result<Arc<Edge>> {
        let files_dir = self.store.files_dir().to_owned();
        let stacked = statfs(&files_dir)?.filesystem_type() == OVERLAYFS_SUPER_MAGIC;
        let ledger = self.beside.keeper.ledger().clone();
        Ok(Arc::new(Edge {
            table: NodeTable::new(backing::open_root(&files_dir)?, ledger.clone())?,
            shm_keeper: ShmKeeper::new(files_dir.clone()),
            files_dir,
            store: self.store.clone(),
            companion: self.beside.companion.clone(),
            keeper: self.beside.keeper.clone(),
            connection: Connection::new(device),
            past: Default::default(),
            handles: Handles::new(ledger.clone()),
            virtual_files: VirtualFiles::new(ledger.clone()),
            ledger,
            presence: self.presence.clone(),
            requests: Arc::new(Requests::new()),
            refusals: Refusals::default(),
            foreign: Foreign::default(),
            wal_watch: WalWatch::new()?,
            started: SystemTime::now(),
            coherence: OnceLock::new(),
            descriptors: Descriptors::raise(),
            former,
            unreadable: OnceLock::new(),
            wants_passthrough: self.options.passthrough != Passthrough::Off,
            stack_depth: if stacked { 2 } else { 1 },
        }))
    }
}

fn set_mode(edge: &Edge, coherence: Coherence) {
    edge.coherence
        .set(coherence)
        .expect("set once, before the first request is served");
}

/// Attaches to the mount point after whatever a killed daemon left there is gone.
fn attach(options: &MountOptions, files: &Path) -> Result<(PathBuf, Attached), MountError> {
    let failed = |operation| {
        move |source: io::Error| MountError::Io {
            operation,
            path: options.path.clone(),
            source,
        }
    };
    if options.take_over {
        mount::detach_stale(&options.path)?;
    }
    fs::create_dir_all(&options.path).map_err(failed("create"))?;
    let path = fs::canonicalize(&options.path).map_err(failed("resolve"))?;
    let root = mount_root::Root {
        files,
        owners: options.owners,
        allow_other: options.allow_other,
    };
    root.follow(&path)
        .map_err(failed("give an owner to the root of"))?;
    let attached = mount::attach(&path, options.allow_other)?;
    Ok((path, attached))
}
