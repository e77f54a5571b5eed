//! What daemon, keeper and opener tell each other about a mount that outlives its daemon.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// Changes when a daemon and a keeper of different versions would misunderstand each other.
pub(super) const VERSION: u32 = 2;

/// From the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::companion) enum ToKeeper {
    /// The first message: a daemon wants the data directory.
    Hello {
        version: u32,
        process: u32,
        /// The process that starts it again when it dies.
        launcher: Option<u32>,
        /// How long clients wait for the next daemon.
        takeover_timeout_ms: u64,
    },
    /// This keeper takes the place of one that died: the ledger that the daemon goes on with comes with the message.
    Ledger,
    /// The daemon has mounted; /dev/fuse comes with the message.
    Connection,
    /// The mounted tree, to be attached again when it was detached; its descriptor comes with the message.
    Tree,
    /// The mount is going for good.
    DropTree,
    /// An inode that has no name any more and is open; its descriptor comes with the message.
    Node { id: u64 },
    /// It was closed.
    ForgetNode { id: u64 },
    /// Asks for a connection to the opener, which is started if there is none.
    Opener,
    /// An opener that is there already, whose keeper died; the connection to it comes with the message.
    AdoptOpener { process: u32 },
    /// The daemon was told to stop and clients have files open: it stays for them until the next one comes.
    Linger,
    /// Nobody has files of the mount open, and it is detached.
    Goodbye,
}

/// To the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::companion) enum FromKeeper {
    /// The data directory is the daemon's. With the message come the ledger, the data directory's lock, and, if there is a living
    /// connection, /dev/fuse and then the tree (if there is one). The inodes without a name follow.
    Welcome {
        connection: bool,
        tree: bool,
        nodes: usize,
    },
    /// One of them; its descriptor comes with the message.
    Node {
        id: u64,
    },
    /// Another daemon has the data directory.
    Busy {
        holder: String,
    },
    /// The connection to the opener comes with the message.
    Opener {
        process: u32,
    },
    /// A successor waits: end at once, without closing anything.
    Leave,
    Failed {
        message: String,
    },
}

/// From the keeper to the opener.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::companion) enum ToOpener {
    /// A daemon: the connection to it and the ledger come with the message.
    Attach,
    /// Nobody comes to serve the mount: keep every client from committing. Answered by [`FromOpener::Fenced`].
    Fence,
    /// Nothing is left to be done.
    End,
}

/// From the opener to the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::companion) enum FromOpener {
    /// `left` files could not be fenced: a client holds their lock.
    Fenced { left: usize },
}

/// A connection to the opener.
pub(in crate::companion) struct OpenerSocket {
    pub(in crate::companion) socket: OwnedFd,
    pub(in crate::companion) process: u32,
}
