//! The kernel's mount table, read without touching any mounted directory.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const TABLE: &str = "/proc/self/mountinfo";

/// Whether something is mounted exactly at `directory` (an absolute path without symbolic links).
pub(super) fn is_mounted(directory: &Path) -> bool {
    let table = std::fs::read(TABLE).unwrap_or_default();
    let wanted = escaped(directory);
    table
        .split(|byte| *byte == b'\n')
        .any(|line| line.split(|byte| *byte == b' ').nth(4) == Some(&wanted[..]))
}

/// What is mounted below `directory`, the innermost last.
pub(super) fn mounted_below(directory: &Path) -> Vec<PathBuf> {
    let table = std::fs::read(TABLE).unwrap_or_default();
    let mut prefix = escaped(directory);
    if !prefix.ends_with(b"/") {
        prefix.push(b'/');
    }
    let points = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .filter(|point| point.starts_with(&prefix));
    points
        .map(|point| directory.join(OsStr::from_bytes(&unescaped(&point[prefix.len()..]))))
        .collect()
}

fn unescaped(mut text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some((first, rest)) = text.split_first() {
        let octal = rest.get(..3).filter(|_| *first == b'\\');
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(*first));
        text = if value.is_some() { &rest[3..] } else { rest };
    }
    bytes
}

/// The table writes white space and backslashes in octal.
fn escaped(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => bytes.extend(format!("\\{byte:03o}").bytes()),
            byte => bytes.push(*byte),
        }
    }
    bytes
}

/// Wakes up when the table changes.
pub(super) struct Changes(File);

impl Changes {
    pub(super) fn open() -> Result<Changes> {
        Ok(Changes(
            File::open(TABLE).with_context(|| format!("open {TABLE}"))?,
        ))
    }

    /// Returns after a change or after `limit`, whichever is first.
    pub(super) fn wait(&mut self, limit: Duration) {
        let mut fds = [PollFd::new(
            self.0.as_fd(),
            PollFlags::POLLPRI | PollFlags::POLLERR,
        )];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
        // An interrupted wait is a short wait: the caller looks again in any case.
        let _ = poll(&mut fds, limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_exact_path() {
        assert!(is_mounted(Path::new("/proc")));
        assert!(!is_mounted(Path::new("/proc/self")));
        assert!(!is_mounted(Path::new("/no-such-directory")));
    }

    #[test]
    fn white_space_in_a_path_is_written_as_the_kernel_writes_it() {
        assert_eq!(escaped(Path::new("/a b\\c")), b"/a\\040b\\134c");
        assert_eq!(unescaped(b"/a\\040b\\134c"), b"/a b\\c");
    }

    #[test]
    fn what_is_mounted_below_a_directory_is_found() {
        assert!(mounted_below(Path::new("/")).contains(&PathBuf::from("/proc")));
        assert!(mounted_below(Path::new("/no-such-directory")).is_empty());
    }
}
