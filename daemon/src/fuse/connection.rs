//! The connection to the kernel: its first exchange, and the files that it reads and writes itself.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use fuser::{BackingId, Config, Filesystem, Session, SessionACL};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

/// Larger than any request that can come before INIT is answered.
const FIRST_READ: usize = 128 * 1024;
/// `FUSE_NOTIFY_RESEND` of the kernel's `linux/fuse.h`, with the header that it comes in.
const RESEND: i32 = 7;
const OUT_HEADER_SIZE: u32 = 16;
/// `FUSE_HAS_RESEND` is bit 39 of the capabilities, bit 7 of the second word of flags.
const HAS_RESEND: u32 = 1 << 7;
/// Where the second word of flags stands in an INIT request: behind the header (40 bytes) and four words.
const SECOND_FLAGS: usize = 40 + 16;

nix::ioctl_write_ptr!(backing_close, 229, 2, u32);
nix::ioctl_read!(device_clone, 229, 0, u32);

/// What becomes of requests that a daemon has read and not answered when it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// The kernel delivers them again (Linux 6.9).
    Resent,
    /// They fail: each daemon reads from a descriptor of its own, whose end ends them. Otherwise they would never be answered.
    Failed,
}

/// A descriptor of /dev/fuse.
#[derive(Debug)]
pub(crate) struct Connection(OwnedFd);

impl Connection {
    pub(crate) fn new(device: OwnedFd) -> Arc<Connection> {
        Arc::new(Connection(device))
    }

    /// Waits for the kernel's first request, INIT. It is to be answered by [`Connection::shake_hands`].
    pub(crate) fn read_init(&self) -> io::Result<Vec<u8>> {
        let mut request = vec![0; FIRST_READ];
        let length = loop {
            match nix::unistd::read(&self.0, &mut request) {
                Err(nix::errno::Errno::EINTR | nix::errno::Errno::ENOENT | nix::errno::Errno::EAGAIN) => {}
                read => break read?,
            }
        };
        request.truncate(length);
        Ok(request)
    }

    /// Makes a session of the connection. INIT comes from `init`, because the kernel sends it once in the life of a connection, which more
    /// than one process serves: the session reads it from a socket, and the device takes the socket's place afterwards. `answers`: the
    /// kernel has yet to be answered.
    pub(crate) fn shake_hands<F: Filesystem>(
        &self,
        filesystem: F,
        mut config: Config,
        init: &[u8],
        answers: bool,
        unanswered: Unanswered,
    ) -> io::Result<Session<F>> {
        config.clone_fd = unanswered == Unanswered::Failed;
        let (theirs, ours) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        nix::unistd::write(&ours, init)?;
        // The kernel itself keeps other users out unless the mount says allow_other.
        let session = Session::from_fd(filesystem, theirs, SessionACL::All, config)?;
        let mut answer = vec![0; FIRST_READ];
        let length = nix::unistd::read(&ours, &mut answer)?;
        if answers {
            nix::unistd::write(&self.0, &answer[..length])?;
        }
        let own = match unanswered {
            Unanswered::Resent => None,
            Unanswered::Failed => Some(self.clone_device()?),
        };
        let device = own.as_ref().unwrap_or(&self.0);
        let socket = session.as_fd().as_raw_fd();
        // SAFETY: the session goes on to own the number, which means another open file from here on.
        let replaced = unsafe { libc::dup3(device.as_raw_fd(), socket, libc::O_CLOEXEC) };
        nix::errno::Errno::result(replaced)?;
        Ok(session)
    }

    /// A descriptor of the connection with a queue of its own for what was read through it.
    fn clone_device(&self) -> io::Result<OwnedFd> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let mut source = self.0.as_raw_fd() as u32;
        // SAFETY: the request reads the number of a descriptor, which is open, from the place given.
        unsafe { device_clone(device.as_raw_fd(), &mut source) }?;
        Ok(device.into())
    }

    /// Has the kernel deliver again what another process had read and not answered; before anything is read here.
    pub(crate) fn resend(&self) -> io::Result<()> {
        let mut message = OUT_HEADER_SIZE.to_ne_bytes().to_vec();
        message.extend(RESEND.to_ne_bytes());
        message.extend(0u64.to_ne_bytes());
        nix::unistd::write(&self.0, &message)?;
        Ok(())
    }

    /// Has the kernel read and write a file itself; the number that it knows the file by.
    pub(crate) fn back(self: &Arc<Self>, file: &File) -> io::Result<BackingFile> {
        let id = BackingId::create_raw(&self.0, file)?;
        Ok(self.backed(id))
    }

    /// A file that the kernel knows by this number already.
    pub(crate) fn backed(self: &Arc<Self>, id: u32) -> BackingFile {
        BackingFile {
            id,
            connection: self.clone(),
        }
    }

    /// Registers a file of the backing file system for passthrough and takes it back: the only reliable way to learn whether the kernel is
    /// new enough, we are privileged enough and the file system is not stacked too high.
    pub(crate) fn probe_passthrough(self: &Arc<Self>, file: &File) -> io::Result<()> {
        self.back(file).map(drop)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What the kernel that sent this INIT can do for requests that were not answered.
pub(crate) fn unanswered(init: &[u8]) -> Unanswered {
    let flags = init.get(SECOND_FLAGS..SECOND_FLAGS + 4);
    let flags = flags.map_or(0, |flags| {
        u32::from_ne_bytes(flags.try_into().expect("four bytes"))
    });
    match flags & HAS_RESEND {
        0 => Unanswered::Failed,
        _ => Unanswered::Resent,
    }
}

/// A file that the kernel reads and writes itself, registered until dropped.
#[derive(Debug)]
pub(crate) struct BackingFile {
    id: u32,
    connection: Arc<Connection>,
}

impl BackingFile {
    pub(crate) fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for BackingFile {
    fn drop(&mut self) {
        // SAFETY: the descriptor is a FUSE connection on which the id was registered.
        if let Err(error) = unsafe { backing_close(self.connection.0.as_raw_fd(), &self.id) } {
            tracing::debug!(%error, id = self.id, "take a file back from the kernel");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_word_of_flags_tells_whether_requests_can_come_again() {
        let mut init = vec![0; 104];
        assert_eq!(unanswered(&init), Unanswered::Failed);
        assert_eq!(unanswered(&init[..56]), Unanswered::Failed);
        init[SECOND_FLAGS] = 0x80;
        assert_eq!(unanswered(&init), Unanswered::Resent);
    }
}
