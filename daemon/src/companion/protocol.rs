//! What the daemon asks of opener and worker, and what they answer.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What the daemon asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) task: Task,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Task {
    /// Opens a file of the mount for reading and writing. The opener keeps it under the request's id. Of one inode there is one open file
    /// description, however often it is opened: what one daemon has locked the next one finds locked for itself.
    Open {
        path: PathBuf,
        create: bool,
        fence: Fence,
    },
    /// Keeps a file that the daemon has open already, which comes with the message: the opener that opened it died. Not answered.
    Keep { path: PathBuf, inode: u64, fence: Fence },
    /// Asks for the next file, by inode, that is kept from the time of earlier daemons: it is kept under this request's id too.
    Inherit { after: u64 },
    /// Drops what is kept under these ids. Not answered.
    Close { ids: Vec<u64> },
    /// What the opener kept for earlier daemons, and this one has not opened again, can go. Not answered.
    Settled,
    /// Another keeper: the connection to it comes with the message. Not answered.
    Control,
    Checkpoint {
        path: PathBuf,
        mode: Checkpoint,
        busy_ms: u64,
    },
    /// The daemon stops in good order and nobody has files of the mount open: exit without fencing. Not answered.
    Goodbye,
}

/// Which byte stops all writers of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Fence {
    /// WAL_WRITE of the wal-index.
    Shm,
    /// RESERVED of the main file.
    Database,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Checkpoint {
    Passive,
    Truncate,
}

/// The answer to the request with the same id.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) id: u64,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Outcome {
    /// The first message of an opener to each daemon: the thread whose requests to the mount are the daemon's own.
    Ready {
        thread: u32,
    },
    /// The descriptor comes with the message.
    Opened {
        inode: u64,
    },
    /// The descriptor comes with the message.
    Kept {
        path: PathBuf,
        inode: u64,
        fence: Fence,
    },
    /// There are no more.
    NothingKept,
    Checkpointed {
        busy: bool,
        log: i64,
        checkpointed: i64,
    },
    Failed {
        errno: Option<i32>,
        message: String,
    },
}

impl Outcome {
    pub(super) fn failed(error: &io::Error) -> Outcome {
        Outcome::Failed {
            errno: error.raw_os_error(),
            message: error.to_string(),
        }
    }
}
