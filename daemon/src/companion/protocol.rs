//! Messages between the daemon and its companion processes: one JSON text per packet, descriptors beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::{self, ControlMessage, ControlMessageOwned, MsgFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longer than any path in a message.
const MAX_MESSAGE: usize = 64 * 1024;

/// What the daemon asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) task: Task,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Task {
    /// Opens a file of the mount for reading and writing. The opener keeps a duplicate under the request's id for the guardian.
    Open {
        path: PathBuf,
        create: bool,
        fence: Fence,
    },
    /// Drops the duplicates kept for these ids. Not answered.
    Close {
        ids: Vec<u64>,
    },
    Checkpoint {
        path: PathBuf,
        mode: Checkpoint,
        busy_ms: u64,
    },
    Recover {
        path: PathBuf,
        busy_ms: u64,
    },
    /// The daemon stops in good order: exit without fencing. Not answered.
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
    /// The descriptor comes with the message.
    Opened {
        inode: u64,
    },
    Checkpointed {
        busy: bool,
        log: i64,
        checkpointed: i64,
    },
    Recovered,
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

pub(super) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let text = serde_json::to_vec(message).map_err(io::Error::other)?;
    let descriptors: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let control = if descriptors.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    let socket = socket.as_fd().as_raw_fd();
    loop {
        match socket::sendmsg::<()>(
            socket,
            &[IoSlice::new(&text)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits for a message; `None`: the other side is gone.
pub(super) fn receive<M: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(M, Option<OwnedFd>)>> {
    let mut text = vec![0; MAX_MESSAGE];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let socket = socket.as_fd().as_raw_fd();
    let mut parts = [IoSliceMut::new(&mut text)];
    let (length, descriptor) = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match socket::recvmsg::<()>(socket, &mut parts, Some(&mut control), flags) {
            Ok(message) => {
                let mut descriptor = None;
                for part in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(descriptors) = part {
                        for fd in descriptors {
                            // SAFETY: the kernel has just installed this descriptor for us; nobody else knows it.
                            descriptor = Some(unsafe { OwnedFd::from_raw_fd(fd) });
                        }
                    }
                }
                break (message.bytes, descriptor);
            }
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    };
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&text[..length]).map_err(io::Error::other)?;
    Ok(Some((message, descriptor)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    #[test]
    fn a_descriptor_travels_with_its_message_and_the_end_is_seen() {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"text").unwrap();
        let reply = Reply {
            id: 7,
            outcome: Outcome::Opened { inode: 9 },
        };
        send(&ours, &reply, Some(file.as_fd())).unwrap();
        let (reply, descriptor): (Reply, _) = receive(&theirs).unwrap().unwrap();
        assert_eq!(reply.id, 7);
        let mut passed = std::fs::File::from(descriptor.unwrap());
        passed.rewind().unwrap();
        let mut text = String::new();
        passed.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        drop(ours);
        assert!(receive::<Reply>(&theirs).unwrap().is_none());
    }
}
