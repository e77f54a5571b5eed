//! The scratch space of a run: mount points, data directories, native directories.
//!
//! Each run has a directory of its own and holds a lock in it, so that what a killed run left behind can be told from what
//! another one is using. A run that begins cures the former: it ends daemons, detaches mounts and removes the directory.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::mount::end_below;

const PREFIX: &str = "litefs-tcl-";
/// Held as long as the run lives.
const LOCK: &str = "lock";
/// Marks a directory that was to be kept.
const KEPT: &str = "kept";

/// A directory that nobody else uses.
#[derive(Debug)]
pub struct Work {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Work {
    /// Makes a directory below `base`, and clears away those of runs that were killed.
    pub fn claim(base: &Path) -> Result<Work> {
        let base = base
            .canonicalize()
            .with_context(|| format!("find {}", base.display()))?;
        clear_left(&base);
        // Always of one length: the suite has cases whose names depend on the length of the path they run in.
        let directory = base.join(format!("{PREFIX}{:07}", std::process::id()));
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let path = directory.join(LOCK);
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| error)
            .with_context(|| format!("lock {}", path.display()))?;
        Ok(Work {
            directory,
            _lock: lock,
        })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Leaves the directory for a look at it.
    pub fn keep(self) -> Result<()> {
        let path = self.directory.join(KEPT);
        File::create(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(())
    }

    pub fn remove(self) {
        remove(&self.directory);
    }
}

/// Clears away what killed runs left below `base`, and tells.
fn clear_left(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let named = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        let own =
            || std::fs::metadata(&path).is_ok_and(|found| found.uid() == nix::unistd::geteuid().as_raw());
        if !named || path.join(KEPT).exists() || !own() {
            continue;
        }
        // Without the lock file nobody can tell: another program may own it.
        let Ok(file) = File::open(path.join(LOCK)) else {
            continue;
        };
        if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
            tell(&format!("removing what a killed run left: {}", path.display()));
            end_below(&path);
            remove(&path);
        }
    }
}

/// Removes a directory, without crossing into something that is still mounted.
pub fn remove(directory: &Path) {
    if try_remove(directory) {
        return;
    }
    // A node seals a WAL that nobody may write any more, also against root.
    let unsealed = [
        "-xdev", "-type", "f", "-exec", "chattr", "-f", "-i", "--", "{}", "+",
    ];
    succeeds(Command::new("find").arg(directory).args(unsealed));
    if !try_remove(directory) {
        tell(&format!("could not remove {}", directory.display()));
    }
}

fn try_remove(directory: &Path) -> bool {
    let words = ["-rf", "--one-file-system", "--"];
    succeeds(Command::new("rm").args(words).arg(directory))
}

fn succeeds(command: &mut Command) -> bool {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Prints a line for people. A terminal that went away is no reason to leave mounts behind, so errors do not count.
pub fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_run_left_is_removed_and_what_is_in_use_or_kept_is_not() {
        let base = tempfile::tempdir().unwrap();
        let place = |name: &str, lock: bool| {
            let path = base.path().join(format!("{PREFIX}{name}"));
            std::fs::create_dir_all(path.join("00/data")).unwrap();
            if lock {
                File::create(path.join(LOCK)).unwrap();
            }
            path
        };
        let (dead, kept, used) = (place("1", true), place("2", true), place("3", true));
        let (unknown, foreign) = (place("4", false), base.path().join("other"));
        File::create(kept.join(KEPT)).unwrap();
        std::fs::create_dir(&foreign).unwrap();
        let held = Flock::lock(File::open(used.join(LOCK)).unwrap(), FlockArg::LockExclusive).unwrap();
        let work = Work::claim(base.path()).unwrap();
        assert!(!dead.exists());
        for path in [&kept, &used, &unknown, &foreign] {
            assert!(path.exists(), "{}", path.display());
        }
        drop(held);
        let directory = work.directory().to_path_buf();
        assert!(directory.exists());
        work.remove();
        assert!(!directory.exists());
    }
}
