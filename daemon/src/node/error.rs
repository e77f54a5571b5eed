//! Why a node did not start or ended early, and what to do about it.

use std::io::ErrorKind;
use std::path::PathBuf;

use crate::companion::KeeperError;
use crate::fuse::MountError;
use crate::lease::LeaseError;

/// Failure of a node.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("cannot {operation}: {source}")]
    Io {
        operation: &'static str,
        source: std::io::Error,
    },
    #[error("cannot use data directory {}: {source}", .path.display())]
    DataDir { path: PathBuf, source: std::io::Error },
    #[error("cannot listen on {address}: {source}")]
    Bind { address: String, source: std::io::Error },
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    #[error("cannot open the store: {0}")]
    Store(#[from] engine::Error),
    #[error("cannot mount: {0}")]
    Mount(#[from] MountError),
    #[error("cannot set up the lease: {0}")]
    Lease(#[from] LeaseError),
    #[error("a thread of the start ended unexpectedly")]
    Thread,
    #[error("somebody detached the mount")]
    MountEnded,
}

impl NodeError {
    /// What to do about it, where the error does not say that itself.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            NodeError::Io { .. } => {
                "the system is short of something: check limits on files, processes and memory"
            }
            NodeError::DataDir { .. }
            | NodeError::Keeper(KeeperError::Io { .. } | KeeperError::Ended { .. }) => {
                "set `data.dir` to a directory that can be created and written"
            }
            NodeError::Bind { source, .. } => match source.kind() {
                ErrorKind::AddrInUse => "set `http.addr` to a free port, or stop the process that has it",
                ErrorKind::PermissionDenied => {
                    "set `http.addr` to a port that this user may have, such as :20202"
                }
                _ => "set `http.addr` to an address of this machine, or to a port alone, such as :20202",
            },
            NodeError::Keeper(KeeperError::Refused(_)) => {
                "end the processes that use the mount, then those of litefs, and start again"
            }
            NodeError::Keeper(KeeperError::InUse { .. }) => {
                "one process per data directory: stop the other one, or set another `data.dir`"
            }
            NodeError::Store(engine::Error::Invalid(_)) => return None,
            NodeError::Store(error) if error.is_out_of_descriptors() => {
                "raise the limit of open files (`ulimit -n`, `LimitNOFILE=`; `fs.file-max` where the machine is at its own)"
            }
            NodeError::Store(_) => "check the disk under `data.dir`; `litefs ltx verify` looks into the logs",
            NodeError::Mount(
                MountError::NoDevice
                | MountError::DevicePermission
                | MountError::NotPrivileged { .. }
                | MountError::AlreadyMounted { .. }
                | MountError::BrokenStranger { .. }
                | MountError::NoPassthrough { .. }
                | MountError::Lost { .. },
            ) => return None,
            NodeError::Mount(
                MountError::TakeOver { .. } | MountError::Fusermount { .. } | MountError::Io { .. },
            ) => "check `fuse.dir`, and that this process may mount",
            NodeError::Lease(error) => error.hint().unwrap_or("check `lease.consul.url`"),
            NodeError::Thread => "this is a defect; the log has the details",
            NodeError::MountEnded => "leave the mount to litefs: it goes when litefs stops",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_hint_says_nothing_that_the_error_contradicts() {
        let bind = |kind: ErrorKind| {
            let (address, source) = (":1".to_owned(), io::Error::from(kind));
            NodeError::Bind { address, source }.hint().unwrap()
        };
        assert!(bind(ErrorKind::AddrInUse).contains("stop the process"));
        assert!(!bind(ErrorKind::AddrNotAvailable).contains("stop the process"));
        assert!(bind(ErrorKind::PermissionDenied).contains("may have"));
        // These tell what to do themselves, and it is not `fuse.dir` or the disk.
        let (path, source) = (PathBuf::from("/m"), io::Error::from(ErrorKind::Unsupported));
        let passthrough = NodeError::Mount(MountError::NoPassthrough { path, source });
        assert_eq!(passthrough.hint(), None);
        let original = engine::Error::Invalid("holds the databases of a LiteFS 0.5".to_owned());
        assert_eq!(NodeError::Store(original).hint(), None);
    }
}
