//! Network namespaces, held open by a descriptor and by nothing else: no name under /run, nothing left behind when the holder ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Error, Result};

/// A network namespace. It lives as long as this value, a process in it, or a socket of it.
#[derive(Debug)]
pub struct NetNamespace(File);

impl NetNamespace {
    /// A new namespace. A thread moves into it and hands out the descriptor; the calling thread stays where it is.
    pub fn create() -> Result<Self> {
        let create = || -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        };
        let created = std::thread::scope(|scope| scope.spawn(create).join());
        created.expect("creating a namespace does not panic").map(Self).map_err(|source| {
            if source.kind() == io::ErrorKind::PermissionDenied {
                let hint = "run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN (containers: --cap-add SYS_ADMIN --cap-add NET_ADMIN), \
                            or as an ordinary user where user namespaces are allowed (sysctl user.max_user_namespaces)";
                return Error::refused("creating a network namespace: operation not permitted", hint);
            }
            Error::System { operation: "creating a network namespace".into(), source }
        })
    }

    /// Runs `work` on a thread inside the namespace. Sockets made there belong to the namespace for ever.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let entered = std::thread::scope(|scope| {
            let inside = || setns(self, CloneFlags::CLONE_NEWNET).map(|()| work());
            scope.spawn(inside).join()
        });
        match entered {
            Ok(result) => result.map_err(Error::errno("entering a network namespace")),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Starts a thread that stays inside the namespace.
    pub(crate) fn spawn(
        &self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<std::thread::JoinHandle<()>> {
        let namespace = self
            .0
            .try_clone()
            .map_err(Error::system("duplicating a namespace descriptor"))?;
        let inside = move || match setns(&namespace, CloneFlags::CLONE_NEWNET) {
            Ok(()) => work(),
            Err(errno) => tracing::error!(%errno, "entering a network namespace"),
        };
        std::thread::Builder::new()
            .name(name.into())
            .spawn(inside)
            .map_err(Error::system(format!("starting thread {name}")))
    }

    pub(crate) fn try_clone(&self) -> Result<Self> {
        self.0
            .try_clone()
            .map(Self)
            .map_err(Error::system("duplicating a namespace descriptor"))
    }

    /// Kills every process inside: helpers a daemon left behind, forgotten shells.
    pub(crate) fn kill_processes(&self) {
        let identity = |file: io::Result<std::fs::Metadata>| file.ok().map(|file| (file.dev(), file.ino()));
        let Some(ours) = identity(self.0.metadata()) else {
            return;
        };
        let Ok(processes) = std::fs::read_dir("/proc") else {
            return;
        };
        for process in processes.flatten() {
            let Some(pid) = process
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok())
            else {
                continue;
            };
            if identity(std::fs::metadata(process.path().join("ns/net"))) == Some(ours) {
                tracing::info!(pid, "killing a process left in a namespace of the cluster");
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for NetNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
