//! Why a node did not start or ended early, and what to do about it.

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
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            NodeError::Io { .. } => {
                "the system is short of something: check limits on files, processes and memory"
            }
            NodeError::DataDir { .. }
            | NodeError::Keeper(KeeperError::Io { .. } | KeeperError::Ended { .. }) => {
                "set `data.dir` to a directory that can be created and written"
            }
            NodeError::Bind { .. } => "set `http.addr` to a free port, or stop the process that has it",
            NodeError::Keeper(KeeperError::Refused(_)) => {
                "end the processes that use the mount, then those of litefs, and start again"
            }
            NodeError::Keeper(KeeperError::InUse { .. }) => {
                "one process per data directory: stop the other one, or set another `data.dir`"
            }
            NodeError::Store(error) if error.is_out_of_descriptors() => {
                "raise the limit of open files (`ulimit -n`, `LimitNOFILE=`; `fs.file-max` where the machine is at its own)"
            }
            NodeError::Store(_) => "check the disk under `data.dir`; `litefs ltx verify` looks into the logs",
            NodeError::Mount(_) => "check `fuse.dir`, and that this process may mount",
            NodeError::Lease(_) => "check `lease.consul.url`",
            NodeError::Thread => "this is a defect; the log has the details",
            NodeError::MountEnded => "leave the mount to litefs: it goes when litefs stops",
        }
    }
}
