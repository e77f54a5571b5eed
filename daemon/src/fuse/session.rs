//! A mount from its start to its end.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use engine::{Coherence, Kernel, Store};
use fuser::{BackgroundSession, Config, INodeNo, Notifier, Session, SessionACL};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use super::backing;
use super::descriptors::Descriptors;
use super::edge::Edge;
use super::handle::Handles;
use super::kernel::MountKernel;
use super::mount::{self, Attached, Detach, MountError};
use super::node::{NodeTable, ROOT};
use super::presence::Presence;
use super::refusals::Refusals;
use super::requests::Requests;
use super::serve::Serve;
use super::shm_keeper::ShmKeeper;
use super::virtual_files::{PRIMARY_NAME, VirtualFiles};
use super::wal_watch::WalWatch;
use crate::companion::Companion;

/// How long a stop waits for clients to close their files before it leaves them to themselves.
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
    pub passthrough: Passthrough,
    /// Whether a mount that a killed daemon left behind is detached first.
    pub take_over: bool,
    /// Threads that serve requests.
    pub threads: usize,
}

impl MountOptions {
    pub fn new(path: impl Into<PathBuf>) -> MountOptions {
        MountOptions {
            path: path.into(),
            allow_other: false,
            passthrough: Passthrough::default(),
            take_over: true,
            threads: 4,
        }
    }
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
    /// Mounts the backing tree of `store`. The companion must have been started before.
    pub fn start(
        store: Arc<Store>,
        companion: Arc<Companion>,
        presence: Arc<Presence>,
        options: &MountOptions,
    ) -> Result<Mount, MountError> {
        let failed = |operation| {
            move |source: io::Error| MountError::Io {
                operation,
                path: options.path.clone(),
                source,
            }
        };
        let beneath = match options.take_over && mount::is_stale(&options.path) {
            true => mount::attach_beneath(&mount::resolve_point(&options.path)?, options.allow_other),
            false => None,
        };
        let took_over = beneath.is_some();
        let (path, attached) = match beneath {
            Some(attached) => (mount::resolve_point(&options.path)?, attached),
            None => attach(options)?,
        };
        let edge =
            new_edge(store.clone(), companion.clone(), presence, options).map_err(failed("prepare"))?;
        let Attached { device, detach } = attached;
        let serving = serve(&edge, device, options)
            .inspect_err(|_| drop(detach.detach()))
            .map_err(|error| match error {
                ServeError::NoPassthrough(source) => MountError::NoPassthrough {
                    path: path.clone(),
                    source,
                },
                ServeError::Io(source) => failed("serve")(source),
            })?;
        let (session, notifier) = serving;
        if took_over {
            mount::uncover(&path)?;
        }
        let watcher = edge.wal_watch.spawn(store).map_err(failed("watch WALs of"))?;
        edge.shm_keeper
            .spawn(companion.clone(), path.clone())
            .map_err(failed("guard"))?;
        let kernel = Arc::new(MountKernel::new(
            edge.clone(),
            notifier.clone(),
            companion,
            path.clone(),
        ));
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

    /// Whether somebody unmounted it behind our back.
    pub fn has_ended(&self) -> bool {
        self.session
            .as_ref()
            .is_none_or(|session| session.guard.is_finished())
    }

    /// Detaches the mount and serves what clients still have open for a moment. The companion must have been stopped: it has files of the
    /// mount open.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        self.edge.shm_keeper.stop();
        self.detach.detach()?;
        let deadline = Instant::now() + STOP_PATIENCE;
        while !session.guard.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        self.edge.wal_watch.stop();
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
        if session.guard.is_finished() {
            return session.join();
        }
        tracing::warn!("clients still have files of the mount open; their next access will fail");
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

fn new_edge(
    store: Arc<Store>,
    companion: Arc<Companion>,
    presence: Arc<Presence>,
    options: &MountOptions,
) -> io::Result<Arc<Edge>> {
    let files_dir = store.files_dir().to_owned();
    let stacked = statfs(&files_dir)?.filesystem_type() == OVERLAYFS_SUPER_MAGIC;
    Ok(Arc::new(Edge {
        table: NodeTable::new(backing::open_root(&files_dir)?)?,
        shm_keeper: ShmKeeper::new(files_dir.clone()),
        files_dir,
        store,
        companion,
        handles: Handles::default(),
        virtual_files: VirtualFiles::default(),
        presence,
        requests: Arc::new(Requests::new()),
        refusals: Refusals::default(),
        wal_watch: WalWatch::new()?,
        started: SystemTime::now(),
        coherence: OnceLock::new(),
        descriptors: Descriptors::raise(),
        want_passthrough: AtomicBool::new(options.passthrough != Passthrough::Off),
        stack_depth: if stacked { 2 } else { 1 },
    }))
}

enum ServeError {
    NoPassthrough(io::Error),
    Io(io::Error),
}

/// Shakes hands with the kernel, settles the mode and starts the serving threads.
fn serve(
    edge: &Arc<Edge>,
    device: std::os::fd::OwnedFd,
    options: &MountOptions,
) -> Result<(BackgroundSession, Notifier), ServeError> {
    let mut config = Config::default();
    config.n_threads = Some(options.threads.max(2));
    // The kernel itself keeps other users out unless the mount says allow_other.
    let session = Session::from_fd(Serve { edge: edge.clone() }, device, SessionACL::All, config)
        .map_err(ServeError::Io)?;
    let coherence = match options.passthrough {
        Passthrough::Off => Coherence::Intercepted,
        Passthrough::Auto | Passthrough::On => match probe_passthrough(session.as_fd(), &edge.files_dir) {
            Ok(()) => Coherence::Passthrough,
            Err(error) if options.passthrough == Passthrough::On => {
                return Err(ServeError::NoPassthrough(error));
            }
            Err(error) => {
                tracing::info!(%error, "no passthrough here: every write is intercepted");
                Coherence::Intercepted
            }
        },
    };
    edge.coherence
        .set(coherence)
        .expect("set once, before the first request is served");
    let notifier = session.notifier();
    let session = session.spawn().map_err(ServeError::Io)?;
    Ok((session, notifier))
}

/// Registers a file of the backing file system for passthrough and takes it back: the only reliable way to learn whether the kernel is new
/// enough, we are privileged enough and the file system is not stacked too high.
fn probe_passthrough(device: std::os::fd::BorrowedFd<'_>, files_dir: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    nix::ioctl_write_ptr!(backing_close, 229, 2, u32);
    let file = tempfile::tempfile_in(files_dir)?;
    let id = fuser::BackingId::create_raw(device, &file)?;
    // SAFETY: the descriptor is a FUSE connection and the id was registered on it just now.
    unsafe { backing_close(device.as_raw_fd(), &id) }?;
    Ok(())
}

/// Attaches to the mount point after whatever a killed daemon left there is gone.
fn attach(options: &MountOptions) -> Result<(PathBuf, Attached), MountError> {
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
    let attached = mount::attach(&path, options.allow_other)?;
    Ok((path, attached))
}
