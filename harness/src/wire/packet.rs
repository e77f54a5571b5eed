//! A raw socket on one end of a cable: whole Ethernet frames in and out. Used by the switch alone.
//!
//! Frames are preceded by the kernel's virtio-net header, which is carried over unread: it tells that a checksum is still to be filled in
//! and that a frame is to be cut into segments, so that the receiving kernel sees what the sending one meant and TCP stays fast.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// Length of the virtio-net header before each frame.
pub(crate) const PREFIX: usize = 10;

/// The largest frame with its prefix: a 64 KiB segmentation unit and its Ethernet header, with room to spare.
pub(crate) const LARGEST: usize = PREFIX + 14 + 4 + 65_536;

const BUFFER_BYTES: libc::c_int = 8 << 20;

#[derive(Debug)]
pub(crate) struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens the socket on `interface` of the calling thread's network namespace.
    pub(crate) fn open(interface: &str) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        let socket = Self(fd);
        socket.set_option(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        socket.set_option(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        // Bursts wait in the kernel while the switch sleeps. The forced variant may be refused; the plain one is capped, not refused.
        if socket
            .set_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER_BYTES)
            .is_err()
        {
            socket.set_option(libc::SOL_SOCKET, libc::SO_RCVBUF, BUFFER_BYTES)?;
        }
        socket.bind(interface)?;
        Ok(socket)
    }

    fn set_option(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let length = libc::socklen_t::try_from(size_of_val(&value)).expect("an int is small");
        // SAFETY: `value` lives during the call and `length` is its size.
        let result =
            unsafe { libc::setsockopt(self.0.as_raw_fd(), level, name, (&raw const value).cast(), length) };
        Errno::result(result).map(drop).map_err(Into::into)
    }

    fn bind(&self, interface: &str) -> io::Result<()> {
        let index = nix::net::if_::if_nametoindex(interface)?;
        // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
        let length = libc::socklen_t::try_from(size_of_val(&address)).expect("an address is small");
        // SAFETY: `address` is a valid `sockaddr_ll` of `length` bytes for the duration of the call.
        let result = unsafe { libc::bind(self.0.as_raw_fd(), (&raw const address).cast(), length) };
        Errno::result(result).map(drop).map_err(Into::into)
    }

    /// The next frame with its prefix, or `None` if none is waiting.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let flags = nix::sys::socket::MsgFlags::empty();
        match nix::sys::socket::recv(self.0.as_raw_fd(), buffer, flags) {
            Ok(length) => Ok(Some(length)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends a frame with its prefix. A frame the kernel has no room for is lost, as on any wire.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        match nix::unistd::write(&self.0, frame) {
            Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
