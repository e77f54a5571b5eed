//! Mounts that belong to a cluster: found in the mount table, never by looking at them, because a dead mount answers nobody.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use crate::error::{Error, Result};

/// The mount points at or below `directory`, innermost first. `directory` must be free of symbolic links.
pub(crate) fn mounted_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let table = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(table).map_err(Error::file("reading", table))?;
    let mut found: Vec<_> = mount_points(&text)
        .filter(|point| point.starts_with(directory))
        .collect();
    found.reverse();
    Ok(found)
}

/// Detaches every mount at or below `directory`. Processes that still use one keep it until they let go.
pub(crate) fn detach_below(directory: &Path) -> Result<()> {
    for point in mounted_below(directory)? {
        tracing::info!(point = %point.display(), "detaching a left-over mount");
        umount2(&point, MntFlags::MNT_DETACH)
            .map_err(|errno| Error::file("unmounting", &point)(errno.into()))?;
    }
    Ok(())
}

fn mount_points(mountinfo: &[u8]) -> impl Iterator<Item = PathBuf> {
    let lines = mountinfo.split(|&byte| byte == b'\n');
    lines
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(unescape)
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let table =
            b"36 35 98:0 / /a\\040b/mnt rw - fuse.litefs litefs rw\n37 35 0:1 / /plain rw - tmpfs t rw\n";
        let found: Vec<_> = mount_points(table).collect();
        assert_eq!(found, [PathBuf::from("/a b/mnt"), PathBuf::from("/plain")]);
    }
}
