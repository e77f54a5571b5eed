//! What launcher and daemon say to each other: one byte a message.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{MsgFlags, recv};

/// From the launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToDaemon {
    /// It is the daemon's turn.
    Go,
    /// The next daemon is ready: stop serving and leave the mount to it.
    Yield,
}

/// From the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToLauncher {
    /// The configuration is read and valid.
    Ready,
    Serving,
    /// Stopped, but for clients that have files open.
    Lingering,
}

impl From<ToDaemon> for u8 {
    fn from(message: ToDaemon) -> u8 {
        match message {
            ToDaemon::Go => b'g',
            ToDaemon::Yield => b'y',
        }
    }
}

impl From<ToLauncher> for u8 {
    fn from(message: ToLauncher) -> u8 {
        match message {
            ToLauncher::Ready => b'r',
            ToLauncher::Serving => b's',
            ToLauncher::Lingering => b'l',
        }
    }
}

pub(super) fn send(link: impl AsFd, byte: u8) -> io::Result<()> {
    let flags = MsgFlags::MSG_NOSIGNAL;
    nix::sys::socket::send(link.as_fd().as_raw_fd(), &[byte], flags)?;
    Ok(())
}

/// The next message of the daemon, if there is one.
pub(super) fn try_receive(link: &OwnedFd) -> Option<ToLauncher> {
    let mut byte = [0];
    loop {
        match recv(link.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT) {
            Ok(1) => {
                return match byte[0] {
                    b'r' => Some(ToLauncher::Ready),
                    b's' => Some(ToLauncher::Serving),
                    b'l' => Some(ToLauncher::Lingering),
                    _ => None,
                };
            }
            // It died before it read all that it was told, which the kernel says once. What it said before is still to come.
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            Ok(_) | Err(_) => return None,
        }
    }
}

/// The daemon's end.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// The descriptor that the launcher passed to this process.
    ///
    /// # Errors
    /// If it is not open.
    pub fn from_number(number: RawFd) -> io::Result<Link> {
        // SAFETY: only looked at; whether it is open is what the call tells.
        let passed = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl(passed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        // SAFETY: the launcher made the descriptor for this process, and nobody else here knows its number.
        Ok(Link(unsafe { OwnedFd::from_raw_fd(number) }))
    }

    pub(crate) fn ready(&self) {
        self.tell(ToLauncher::Ready);
    }

    pub(crate) fn serving(&self) {
        self.tell(ToLauncher::Serving);
    }

    pub(crate) fn lingering(&self) {
        self.tell(ToLauncher::Lingering);
    }

    fn tell(&self, message: ToLauncher) {
        if let Err(error) = send(&self.0, message.into()) {
            tracing::debug!(%error, ?message, "tell the launcher");
        }
    }

    /// Waits until it is this daemon's turn. `false`: the launcher is gone.
    pub(crate) fn await_turn(&self) -> bool {
        self.receive() == Some(ToDaemon::Go)
    }

    /// Waits until the next daemon is to take over. `false`: the launcher is gone.
    pub(crate) fn await_successor(&self) -> bool {
        self.receive() == Some(ToDaemon::Yield)
    }

    fn receive(&self) -> Option<ToDaemon> {
        let mut byte = [0];
        loop {
            match recv(self.0.as_raw_fd(), &mut byte, MsgFlags::empty()) {
                Ok(1) if byte[0] == b'g' => return Some(ToDaemon::Go),
                Ok(1) if byte[0] == b'y' => return Some(ToDaemon::Yield),
                Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::companion::pair;

    #[test]
    fn what_a_daemon_said_is_heard_although_it_died_with_a_message_unread() {
        let (ours, theirs) = pair().unwrap();
        send(&ours, ToDaemon::Yield.into()).unwrap();
        send(&theirs, ToLauncher::Lingering.into()).unwrap();
        drop(theirs);
        assert_eq!(try_receive(&ours), Some(ToLauncher::Lingering));
        assert_eq!(try_receive(&ours), None);
    }
}
