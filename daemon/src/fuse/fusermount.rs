//! The set-user-id helper `fusermount3`, for daemons that may not mount by themselves.
//!
//! Protocol: the helper mounts and sends the /dev/fuse descriptor over the socket named in `_FUSE_COMMFD`.

use std::ffi::OsStr;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{self, AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType};

use super::mount::MountError;

const PROGRAMS: [&str; 2] = ["fusermount3", "fusermount"];

pub(super) fn available() -> bool {
    program().is_some()
}

pub(super) fn mount(path: &Path, options: &str) -> Result<OwnedFd, MountError> {
    let failed = |source| MountError::Io {
        operation: "run fusermount3 for",
        path: path.to_owned(),
        source,
    };
    let program = program().ok_or(MountError::NotPrivileged {
        path: path.to_owned(),
    })?;
    let (ours, theirs) = socket::socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(|error| failed(error.into()))?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|error| failed(error.into()))?;
    let helper = Command::new(program)
        .args([
            OsStr::new("-o"),
            OsStr::new(options),
            OsStr::new("--"),
            path.as_os_str(),
        ])
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    drop(theirs);
    let device = receive_descriptor(&ours);
    let output = helper.wait_with_output().map_err(failed)?;
    match device.map_err(failed)? {
        Some(device) => Ok(device),
        None => Err(MountError::Fusermount {
            path: path.to_owned(),
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}

pub(super) fn unmount(path: &Path) -> io::Result<()> {
    let program = program().ok_or(io::ErrorKind::NotFound)?;
    let output = Command::new(program)
        .args(["-u", "-z", "--"])
        .arg(path)
        .output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
    }
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let candidates = PROGRAMS
        .iter()
        .flat_map(|name| std::env::split_paths(&path).map(move |dir| dir.join(name)));
    candidates.into_iter().find(|candidate| candidate.is_file())
}

fn receive_descriptor(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut control = nix::cmsg_space!([i32; 1]);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = socket::recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part
            && let Some(descriptor) = descriptors.first()
        {
            // SAFETY: the kernel has just installed this descriptor for us; nobody else knows it.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(*descriptor) }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn is_mounted(path: &Path) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
    }

    #[test]
    fn the_helper_mounts_and_hands_over_the_connection() {
        if !available() || fs::File::open("/dev/fuse").is_err() {
            return;
        }
        let dir = tempfile::TempDir::with_prefix("edge-fusermount-").unwrap();
        let device = mount(dir.path(), "fsname=litefs,subtype=litefs,default_permissions").unwrap();
        assert_eq!(
            nix::sys::stat::fstat(&device).unwrap().st_mode & libc::S_IFMT,
            libc::S_IFCHR
        );
        assert!(is_mounted(dir.path()));
        unmount(dir.path()).unwrap();
        assert!(!is_mounted(dir.path()));
        let refusal = mount(&dir.path().join("missing"), "fsname=litefs").unwrap_err();
        assert!(
            matches!(&refusal, MountError::Fusermount { message, .. } if !message.is_empty()),
            "{refusal}"
        );
    }
}
