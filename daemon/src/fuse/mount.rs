//! Attaching a /dev/fuse connection to a directory, and detaching it.
//!
//! The daemon mounts by itself: it must never unmount what is not its own, unmounting must not fail because a client has a file open, and a
//! mount left behind by a killed daemon must be taken over. Three ways lead to a connection, tried in this order: `mount(2)` as root,
//! `mount(2)` in a user namespace, and the set-user-id helper `fusermount3`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use parking_lot::Mutex;
use thiserror::Error;

use super::fusermount;
use super::mount_beneath::mount_beneath;
use super::mount_tree;

/// The source column of our mounts in the mount table; how a stale mount is recognised.
pub const FSNAME: &str = "litefs";
const FSTYPE: &str = "fuse.litefs";
const DEVICE: &str = "/dev/fuse";

/// Why the mount did not come about, and what the operator can do about it.
#[derive(Debug, Error)]
pub enum MountError {
    #[error(
        "{DEVICE} does not exist: load the kernel module (modprobe fuse), or give the container the device (docker run --device /dev/fuse)"
    )]
    NoDevice,
    #[error(
        "no permission to open {DEVICE} and no fusermount3 to open it for us: run as root, chmod 0666 {DEVICE}, or install the package fuse3"
    )]
    DevicePermission,
    #[error(
        "no permission to mount on {path}: run as root, give the container CAP_SYS_ADMIN (docker run --cap-add SYS_ADMIN), start inside a user namespace (unshare -Urm), or install the package fuse3"
    )]
    NotPrivileged { path: PathBuf },
    #[error("{path} is already mounted by a living litefs: stop it first (pid in <data>/lock)")]
    AlreadyMounted { path: PathBuf },
    #[error(
        "{path} is a broken mount of another file system ({fstype}, {fsname}): unmount it (umount -l {path}) if it is not needed"
    )]
    BrokenStranger {
        path: PathBuf,
        fstype: String,
        fsname: String,
    },
    #[error(
        "fuse.passthrough is on, but the kernel refuses it for {path} ({source}): it needs Linux 6.9 and CAP_SYS_ADMIN outside any user namespace; set fuse.passthrough to auto or off"
    )]
    NoPassthrough { path: PathBuf, source: io::Error },
    #[error(
        "the living mount was detached from {path} and cannot be attached again: its clients have to close their files first"
    )]
    Lost { path: PathBuf },
    #[error("{path}: {source}")]
    TakeOver { path: PathBuf, source: io::Error },
    #[error("fusermount3 refused to mount on {path}: {message}")]
    Fusermount { path: PathBuf, message: String },
    #[error("{operation} {path}: {source}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// A connection to the kernel that is attached to a directory.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) device: OwnedFd,
    pub(crate) detach: Detach,
}

/// How to undo the attachment.
#[derive(Debug)]
pub(crate) struct Detach {
    path: PathBuf,
    /// Device of the mount; proof that what is mounted there now is still ours.
    dev: u64,
    by_helper: bool,
}

/// Attaches the tree of a living mount at its place again, unless it is there: an earlier daemon detached it, or somebody else did.
///
/// Returns the tree as it can be attached once more, where that is possible.
pub(crate) fn attach_again(
    path: &Path,
    dev: u64,
    tree: Option<OwnedFd>,
) -> Result<(Detach, Option<OwnedFd>), MountError> {
    let detach = Detach {
        path: path.to_owned(),
        dev,
        by_helper: nix::unistd::geteuid().as_raw() != 0,
    };
    if detach.is_attached() {
        return Ok((detach, tree));
    }
    let Some(tree) = tree else {
        return Err(MountError::Lost {
            path: path.to_owned(),
        });
    };
    detach_stale(path)?;
    fs::create_dir_all(path).map_err(|error| io_error("create", path, error))?;
    mount_tree::attach(&tree, path)
        .map_err(|error| io_error("attach the living mount again to", path, error))?;
    let again = mount_tree::copy(path)
        .inspect_err(|error| tracing::debug!(%error, "a mount that is detached cannot be attached again"));
    Ok((detach, again.ok()))
}

/// Attaches a new connection to `path`, creating the directory if it is missing. A stale mount of ours must have been dealt with.
pub(crate) fn attach(path: &Path, allow_other: bool) -> Result<Attached, MountError> {
    let by_helper = |refusal| match fusermount::available() {
        true => fusermount::mount(path, &options(path, allow_other, None)?).map(|device| (device, true)),
        false => Err(refusal),
    };
    tell_covered(path);
    let (device, by_helper) = match open_device() {
        Ok(device) => match mount_directly(path, allow_other, &device) {
            Ok(()) => (OwnedFd::from(device), false),
            Err(MountError::NotPrivileged { path }) => by_helper(MountError::NotPrivileged { path })?,
            Err(error) => return Err(error),
        },
        Err(MountError::DevicePermission) => by_helper(MountError::DevicePermission)?,
        Err(error) => return Err(error),
    };
    let dev = top_mount(path).map_or(0, |mount| mount.dev);
    Ok(Attached {
        device,
        detach: Detach {
            path: path.to_owned(),
            dev,
            by_helper,
        },
    })
}

/// Says what cannot be seen while the mount is there.
fn tell_covered(path: &Path) {
    if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
        tracing::warn!(
            path = %path.display(),
            "the directory below the mount point is not empty: what it holds is hidden, and is not in the mount"
        );
    }
}

/// Whether a killed daemon left a dead mount on `path` that is to be taken over.
pub(crate) fn is_stale(path: &Path) -> bool {
    is_dead(path) && top_mount(path).is_some_and(|mount| is_ours(&mount))
}

/// The absolute path of a mount point that cannot be asked itself.
pub(crate) fn resolve_point(path: &Path) -> Result<PathBuf, MountError> {
    let absolute = std::path::absolute(path).map_err(|error| io_error("resolve", path, error))?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = fs::canonicalize(parent).map_err(|error| io_error("resolve", path, error))?;
            Ok(parent.join(name))
        }
        (Some(_) | None, _) => Ok(absolute),
    }
}

/// Attaches a new connection beneath a stale mount. The dead mount goes on answering until [`uncover`]; nobody sees the
/// directory below. `None` where the kernel cannot do that.
pub(crate) fn attach_beneath(path: &Path, allow_other: bool) -> Option<Attached> {
    let device = open_device().ok()?;
    if let Err(error) = mount_beneath(path, allow_other, &device) {
        tracing::debug!(%error, "cannot mount beneath the stale mount, taking it away first");
        return None;
    }
    let dev = top_mount(path).map_or(0, |mount| mount.dev);
    let detach = Detach {
        path: path.to_owned(),
        dev,
        by_helper: false,
    };
    Some(Attached {
        device: OwnedFd::from(device),
        detach,
    })
}

/// Takes the dead mount away from above the new one.
pub(crate) fn uncover(path: &Path) -> Result<(), MountError> {
    while is_dead(path) {
        detach_top(path).map_err(|source| io_error("detach the stale mount on", path, source))?;
    }
    Ok(())
}

/// Takes over a mount point on which a killed daemon left a dead mount. Returns whether there was one: clients may then still hold
/// passthrough handles, which go on working.
pub fn detach_stale(path: &Path) -> Result<bool, MountError> {
    let mut found = false;
    // Several dead daemons can have left a stack of mounts.
    while let Some(mount) = top_mount(path) {
        match (is_ours(&mount), is_dead(path)) {
            (true, true) => {
                detach_top(path).map_err(|source| io_error("detach the stale mount on", path, source))?;
                found = true;
            }
            (true, false) => {
                return Err(MountError::AlreadyMounted {
                    path: path.to_owned(),
                });
            }
            (false, true) => {
                let Mounted { fstype, fsname, .. } = mount;
                return Err(MountError::BrokenStranger {
                    path: path.to_owned(),
                    fstype,
                    fsname,
                });
            }
            (false, false) => break,
        }
    }
    Ok(found)
}

fn is_ours(mount: &Mounted) -> bool {
    mount.fsname == FSNAME && mount.fstype.starts_with("fuse")
}

/// Whether nobody serves what is mounted there. Attributes may still be cached; the state of the file system never is.
fn is_dead(path: &Path) -> bool {
    matches!(
        nix::sys::statfs::statfs(path),
        Err(Errno::ENOTCONN | Errno::ECONNABORTED)
    )
}

impl Detach {
    pub(crate) fn device(&self) -> u64 {
        self.dev
    }

    /// Whether the mount is in the name space, maybe covered by another one.
    pub(crate) fn is_attached(&self) -> bool {
        mounts_on(&self.path).any(|mount| mount.dev == self.dev)
    }

    /// The mounted tree, to be attached again when it was detached; none where this process may not copy mounts.
    pub(crate) fn tree(&self) -> Option<OwnedFd> {
        mount_tree::copy(&self.path)
            .inspect_err(|error| tracing::debug!(%error, "a mount that is detached cannot be attached again"))
            .ok()
    }

    /// Removes the mount from the name space. Clients with open files keep them until they close them; nobody waits.
    pub(crate) fn detach(&self) -> io::Result<()> {
        match top_mount(&self.path) {
            Some(mount) if mount.dev == self.dev => {}
            // Somebody unmounted it already, or mounted something over it, which is not ours to take away.
            Some(_) | None => return Ok(()),
        }
        match nix::mount::umount2(&self.path, MntFlags::MNT_DETACH) {
            Ok(()) => Ok(()),
            Err(Errno::EPERM) if self.by_helper => fusermount::unmount(&self.path),
            Err(error) => Err(error.into()),
        }
    }
}

fn detach_top(path: &Path) -> io::Result<()> {
    match nix::mount::umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) if fusermount::available() => fusermount::unmount(path),
        Err(error) => Err(error.into()),
    }
}

fn open_device() -> Result<File, MountError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => MountError::NoDevice,
            Some(libc::EACCES | libc::EPERM) => MountError::DevicePermission,
            _ => io_error("open", Path::new(DEVICE), error),
        })
}

fn mount_directly(path: &Path, allow_other: bool, device: &File) -> Result<(), MountError> {
    let options = options(path, allow_other, Some(device))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    match nix::mount::mount(Some(FSNAME), path, Some(FSTYPE), flags, Some(options.as_str())) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM | Errno::EACCES) => Err(MountError::NotPrivileged {
            path: path.to_owned(),
        }),
        Err(error) => Err(io_error("mount on", path, error.into())),
    }
}

/// The option string of `mount(2)`, or of `fusermount3`, which fills in the descriptor and the ids itself.
fn options(path: &Path, allow_other: bool, device: Option<&File>) -> Result<String, MountError> {
    let mut options = match device {
        Some(device) => {
            use std::os::unix::fs::MetadataExt;
            let root = fs::metadata(path).map_err(|error| io_error("stat", path, error))?;
            let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
            let kind = root.mode() & libc::S_IFMT;
            format!(
                "fd={},rootmode={kind:o},user_id={uid},group_id={gid}",
                device.as_raw_fd()
            )
        }
        None => format!("fsname={FSNAME},subtype=litefs,nosuid,nodev"),
    };
    options.push_str(",default_permissions");
    if allow_other {
        options.push_str(",allow_other");
    }
    Ok(options)
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> MountError {
    MountError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// One line of the mount table.
#[derive(Debug, PartialEq)]
struct Mounted {
    point: PathBuf,
    fstype: String,
    fsname: String,
    dev: u64,
}

/// What a path lookup of `path` ends on, if it is a mount point.
fn top_mount(path: &Path) -> Option<Mounted> {
    mounts_on(path).last()
}

/// What is mounted on `path`, the lowest first. Reads the table only: a dead mount cannot be asked.
fn mounts_on(path: &Path) -> impl Iterator<Item = Mounted> {
    let point = point_of(path);
    let table = table().unwrap_or_else(|error| {
        tracing::error!(%error, "read the table of mounts");
        Vec::new()
    });
    let mounts: Vec<Mounted> = table
        .split(|byte| *byte == b'\n')
        .filter_map(parse_mountinfo)
        .filter(|mount| point.as_ref() == Some(&mount.point))
        .collect();
    mounts.into_iter()
}

/// The table of mounts. Its file stays open: a process that has as many files open as it may must not take its mount for gone.
fn table() -> io::Result<Vec<u8>> {
    static TABLE: Mutex<Option<File>> = Mutex::new(None);
    let mut table = TABLE.lock();
    let file = match &mut *table {
        Some(file) => file,
        none => none.insert(File::open("/proc/self/mountinfo")?),
    };
    let mut text = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut text)?;
    Ok(text)
}

/// The absolute path under which the table lists a mount point.
fn point_of(path: &Path) -> Option<PathBuf> {
    // The directory above a mount point can be resolved even when the mount itself is dead.
    match (
        path.parent().filter(|p| !p.as_os_str().is_empty()),
        path.file_name(),
    ) {
        (Some(parent), Some(name)) => Some(fs::canonicalize(parent).ok()?.join(name)),
        (None, Some(name)) => Some(std::env::current_dir().ok()?.join(name)),
        (_, None) => Some(path.to_owned()),
    }
}

/// `36 35 98:0 /root /point options [optional fields] - fstype source superoptions`; octal escapes for blanks.
fn parse_mountinfo(line: &[u8]) -> Option<Mounted> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &&[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let (major, minor) = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
    Some(Mounted {
        point: PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.get(4)?))),
        fstype: text(fields.get(dash + 1)?),
        fsname: text(fields.get(dash + 2)?),
        dev: libc::makedev(major.parse().ok()?, minor.parse().ok()?),
    })
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                plain.push(byte);
                rest = &tail[3..];
            }
            Some(_) | None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_lines_with_blanks_and_optional_fields() {
        let line = br"36 35 0:47 / /mnt/a\040b rw,nosuid shared:1 master:2 - fuse.litefs litefs rw,user_id=0";
        let mount = parse_mountinfo(line).unwrap();
        assert_eq!(mount.point, Path::new("/mnt/a b"));
        assert_eq!(
            (mount.fstype.as_str(), mount.fsname.as_str()),
            ("fuse.litefs", "litefs")
        );
        assert_eq!(mount.dev, libc::makedev(0, 47));
        assert_eq!(parse_mountinfo(b""), None);
    }

    #[test]
    fn the_root_directory_is_found_in_the_table() {
        assert!(top_mount(Path::new("/")).is_some());
        assert_eq!(top_mount(Path::new("/nonexistent-directory/x")), None);
    }
}
