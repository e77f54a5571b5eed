//! The processes of a node: the one that the user starts, the daemon below it, and the companions, which are nobody's children.
//!
//! Companions are found by what they hold: the data directory's lock names the keeper, and every companion has the directory in its
//! command line or a file of it open. Nothing here asks a mount, which may answer nobody.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const COMPANION: &[u8] = b"companion";
/// How long a killed process may take to end: one with a request in the kernel ends late.
const DEATH: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(2);

/// What a companion is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Companion {
    /// Holds /dev/fuse, and so the mount, while there is no daemon.
    Keeper,
    /// Holds locks.
    Opener,
    Any,
}

impl Companion {
    fn is_called(self, part: &[u8]) -> bool {
        match self {
            Self::Keeper => part == b"keeper",
            Self::Opener => part == b"opener",
            Self::Any => true,
        }
    }
}

/// Who holds a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    Nobody,
    /// A keeper: its mount lives, whether or not a daemon serves it.
    Keeper(Option<i32>),
    /// A daemon, or the opener of a dead one; neither leaves a mount that could be taken over.
    Other(Option<i32>),
}

impl Holder {
    pub fn is_keeper(&self) -> bool {
        match self {
            Self::Keeper(_) => true,
            Self::Nobody | Self::Other(_) => false,
        }
    }
}

/// Who holds the data directory `data`, by its lock. Takes the lock for a moment if nobody does.
pub fn holder(data: &Path) -> Holder {
    let path = data.join("lock");
    let Ok(file) = File::open(&path) else {
        return Holder::Nobody;
    };
    // Shared, so that two who ask at once do not deceive each other.
    match file.try_lock_shared() {
        Ok(()) | Err(TryLockError::Error(_)) => Holder::Nobody,
        Err(TryLockError::WouldBlock) => named(&std::fs::read_to_string(&path).unwrap_or_default()),
    }
}

/// The holder that a lock file names: `keeper, process 12`.
fn named(text: &str) -> Holder {
    let pid = text.split_whitespace().last().and_then(|word| word.parse().ok());
    match text.trim_start().starts_with("keeper") {
        true => Holder::Keeper(pid),
        false => Holder::Other(pid),
    }
}

/// The companions of that kind which serve the data directory.
pub fn companions(data: &Path, kind: Companion) -> Vec<i32> {
    let named = match holder(data) {
        Holder::Keeper(pid) | Holder::Other(pid) => pid,
        Holder::Nobody => None,
    };
    let is_ours = |pid: &i32| {
        let words = command_line(*pid);
        let is_companion = words.get(1).is_some_and(|word| word == COMPANION)
            && words.get(2).is_some_and(|part| kind.is_called(part));
        is_companion && (named == Some(*pid) || mentions(&words, data) || has_open(*pid, data))
    };
    all().filter(is_ours).collect()
}

/// All processes that serve the data directory and that `launcher` does not lead to: companions, and daemons that go on for the clients
/// of a node that was stopped.
pub fn left_behind(data: &Path) -> Vec<i32> {
    let mut found: BTreeSet<_> = companions(data, Companion::Any).into_iter().collect();
    found.extend(all().filter(|&pid| is_litefs(pid) && has_open(pid, data)));
    for pid in found.clone() {
        found.extend(descendants(pid));
    }
    found.into_iter().collect()
}

/// The children of `launcher` that are daemons; none where the launcher is the daemon itself.
pub fn daemons_of(launcher: i32) -> Vec<i32> {
    let is_daemon = |pid: &i32| command_line(*pid).get(1).is_none_or(|word| word != COMPANION);
    let parents = parents();
    let children = parents.iter().filter(|(_, parent)| *parent == launcher);
    children.map(|(pid, _)| *pid).filter(is_daemon).collect()
}

/// All processes below `pid`, without it.
pub fn descendants(pid: i32) -> Vec<i32> {
    let parents = parents();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        found.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(pid, _)| *pid),
        );
    }
    found.split_off(1)
}

/// SIGKILL to each, and waits until none is left; returns those that do not end.
pub fn end(pids: &[i32]) -> Vec<i32> {
    for &pid in pids {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let deadline = Instant::now() + DEATH;
    let mut left = pids.to_vec();
    loop {
        left.retain(|&pid| lives(pid));
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(LOOK);
    }
}

/// Ends whatever serves the data directory. What a killed process started meanwhile is found by looking again.
pub fn end_left_behind(data: &Path) {
    for _ in 0..3 {
        let found = left_behind(data);
        if found.is_empty() {
            return;
        }
        tracing::info!(?found, data = %data.display(), "ending what a node left behind");
        end(&found);
    }
}

/// Whether the process runs; one that only waits for its parent's attention does not. Its first thread may wait for that while others
/// still end, with all that the process has open.
pub fn lives(pid: i32) -> bool {
    match status(pid) {
        None => false,
        Some(('Z' | 'X', _)) => {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
            threads.is_ok_and(|threads| threads.count() > 1)
        }
        Some(_) => true,
    }
}

fn all() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Each process with its parent.
fn parents() -> Vec<(i32, i32)> {
    all()
        .filter_map(|pid| status(pid).map(|(_, parent)| (pid, parent)))
        .collect()
}

/// State and parent. The name before them may hold anything, also blanks and parentheses.
fn status(pid: i32) -> Option<(char, i32)> {
    parse_status(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_status(text: &str) -> Option<(char, i32)> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

fn command_line(pid: i32) -> Vec<Vec<u8>> {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    text.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect()
}

/// Whether the process is a daemon, by its program or by how it was started.
fn is_litefs(pid: i32) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    // A program that was built anew since then is marked as deleted.
    let name = program.file_name().unwrap_or_default().as_bytes();
    name == b"litefs"
        || name == b"litefs (deleted)"
        || command_line(pid).get(1).is_some_and(|word| word == b"mount")
}

fn mentions(words: &[Vec<u8>], data: &Path) -> bool {
    words
        .iter()
        .any(|word| Path::new(OsStr::from_bytes(word)).starts_with(data))
}

fn has_open(pid: i32, data: &Path) -> bool {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    let targets = open.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
    targets
        .into_iter()
        .any(|target: PathBuf| target.starts_with(data))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_lock_file_names_its_holder() {
        assert_eq!(named("keeper, process 12\n"), Holder::Keeper(Some(12)));
        assert_eq!(named("litefs, process 7\n"), Holder::Other(Some(7)));
        assert_eq!(named(""), Holder::Other(None));
    }

    #[test]
    fn nobody_holds_a_directory_without_a_lock_or_with_a_free_one() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(holder(directory.path()), Holder::Nobody);
        std::fs::write(directory.path().join("lock"), "keeper, process 1\n").unwrap();
        assert_eq!(holder(directory.path()), Holder::Nobody);
        let taken = File::open(directory.path().join("lock")).unwrap();
        taken.try_lock().unwrap();
        assert_eq!(holder(directory.path()), Holder::Keeper(Some(1)));
        drop(taken);
        assert_eq!(holder(directory.path()), Holder::Nobody);
    }

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_parent() {
        assert_eq!(parse_status("5 (a) b (c)) S 17 5 5 0"), Some(('S', 17)));
        assert_eq!(parse_status("5 (a"), None);
    }

    #[test]
    fn children_are_found_and_ended_and_what_waits_to_be_reaped_counts_as_ended() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 100 & wait"])
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let deadline = Instant::now() + DEATH;
        while descendants(pid).is_empty() {
            assert!(Instant::now() < deadline, "the child has no child");
            std::thread::sleep(LOOK);
        }
        let below = descendants(pid);
        assert!(descendants(std::process::id().cast_signed()).contains(&pid));
        assert!(lives(pid));
        assert!(end(&[pid]).is_empty());
        assert!(!lives(pid), "it is not reaped yet");
        child.wait().unwrap();
        assert!(end(&below).is_empty());
    }

    #[test]
    fn a_process_that_has_a_file_of_the_directory_open_is_no_companion_by_that() {
        let directory = tempfile::tempdir().unwrap();
        let held = directory.path().canonicalize().unwrap().join("held");
        std::fs::write(&held, "").unwrap();
        let mut command = Command::new("sleep");
        let mut other = command
            .arg("100")
            .stdin(File::open(&held).unwrap())
            .spawn()
            .unwrap();
        let (pid, data) = (i32::try_from(other.id()).unwrap(), held.parent().unwrap());
        assert!(has_open(pid, data));
        assert!(left_behind(data).is_empty());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
