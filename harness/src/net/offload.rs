//! Segmentation offload of a device. With it, TCP hands over up to 64 KiB as one frame: fast, but a fault that counts frames would then
//! hit 45 segments at once, and a slow link would be busy with one frame for long.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const ETHTOOL_STSO: u32 = 0x1f;

/// `struct ethtool_value` of the kernel.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Switches TCP segmentation offload of `device`, in the namespace of the calling thread.
pub(crate) fn set_segmentation(device: &str, on: bool) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut value = EthtoolValue {
        command: ETHTOOL_STSO,
        data: u32::from(on),
    };
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes().take(room)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: `request` is an initialised `ifreq` whose data points to an `ethtool_value`; both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    Errno::result(result).map(drop).map_err(Into::into)
}
