//! Messages between the daemon and its companions: one JSON text per packet, descriptors beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longer than any path in a message.
const MAX_MESSAGE: usize = 64 * 1024;
/// Descriptors that come with one message at the most.
const MAX_DESCRIPTORS: usize = 4;

/// Two ends of a connection that keeps packets apart.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

pub(super) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(message).map_err(io::Error::other)?;
    let descriptors: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
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

/// Waits for a message and what comes with it; `None`: the other side is gone. A process that has as many files open as it may gets the
/// message without descriptors.
pub(super) fn receive<M: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut text = vec![0; MAX_MESSAGE];
    let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let socket = socket.as_fd().as_raw_fd();
    let mut parts = [IoSliceMut::new(&mut text)];
    let mut received = Vec::new();
    let length = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match socket::recvmsg::<()>(socket, &mut parts, Some(&mut control), flags) {
            Ok(message) => {
                let parts = match message.cmsgs() {
                    Ok(parts) => Some(parts),
                    // What was cut off: the kernel could not install all of them.
                    Err(Errno::ENOBUFS) => None,
                    Err(error) => return Err(error.into()),
                };
                for part in parts.into_iter().flatten() {
                    if let ControlMessageOwned::ScmRights(descriptors) = part {
                        // SAFETY: the kernel has just installed these descriptors for us; nobody else knows them.
                        let owned = descriptors
                            .into_iter()
                            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                        received.extend(owned);
                    }
                }
                break message.bytes;
            }
            // The other side died before it read all that we sent, which the kernel says once. What it sent before is still to come.
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&text[..length]).map_err(io::Error::other)?;
    Ok(Some((message, received)))
}

/// Why a descriptor that belongs to a message is not there.
pub(super) fn no_room() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

/// Whether the process at the other end has died.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn descriptors_travel_with_their_message_and_the_end_is_seen() {
        let (ours, theirs) = pair().unwrap();
        let mut files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        for (file, text) in files.iter_mut().zip(["one", "two"]) {
            file.write_all(text.as_bytes()).unwrap();
        }
        send(&ours, &"message", &[files[0].as_fd(), files[1].as_fd()]).unwrap();
        let (message, descriptors): (String, _) = receive(&theirs).unwrap().unwrap();
        assert_eq!(message, "message");
        let read = |fd: OwnedFd| {
            let (mut file, mut text) = (std::fs::File::from(fd), String::new());
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        let texts: Vec<String> = descriptors.into_iter().map(read).collect();
        assert_eq!(texts, ["one", "two"]);
        drop(ours);
        assert!(receive::<String>(&theirs).unwrap().is_none());
    }

    #[test]
    fn what_was_sent_is_heard_although_its_sender_died_with_an_answer_unread() {
        let (ours, theirs) = pair().unwrap();
        send(&theirs, &"answer", &[]).unwrap();
        send(&ours, &"last words", &[]).unwrap();
        drop(ours);
        let (message, _): (String, _) = receive(&theirs).unwrap().unwrap();
        assert_eq!(message, "last words");
        assert!(receive::<String>(&theirs).unwrap().is_none());
    }
}
