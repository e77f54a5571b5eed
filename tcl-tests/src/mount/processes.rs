//! The processes of a litefs node, found by their command lines and by what the data directory says.
//!
//! `litefs mount` is a launcher; the daemon is its child, keeper and opener are detached and hold the mount while one daemon
//! follows another. Each of them names the node's configuration or its data directory in its last word.

use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Names in the directory of a node.
pub(super) const CONFIG: &str = "litefs.yml";
pub(super) const DATA: &str = "data";
/// In the data directory: who has it.
const LOCK: &str = "lock";

/// In the order in which they are ended: a launcher that is left would start the next daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Launcher,
    Daemon,
    Keeper,
    Opener,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Process {
    part: Part,
    id: i32,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match self.part {
            Part::Launcher => "launcher",
            Part::Daemon => "daemon",
            Part::Keeper => "keeper",
            Part::Opener => "opener",
        };
        write!(f, "{part}, process {}", self.id)
    }
}

/// Whose processes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose<'a> {
    /// Those of the node in this directory.
    Node(&'a Path),
    /// Those of all nodes in directories below this one.
    Below(&'a Path),
}

impl Whose<'_> {
    fn has(self, home: &Path) -> bool {
        match self {
            Whose::Node(node) => home == node,
            Whose::Below(directory) => home.starts_with(directory),
        }
    }
}

/// The processes that live. One that has ended and is not waited for yet is none.
pub(super) fn living(whose: Whose<'_>) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found: Vec<Process> = entries
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let words = fs::read(entry.path().join("cmdline")).ok()?;
            let (part, home) = parse(&words)?;
            whose.has(&home).then_some(Process { part, id })
        })
        .collect();
    found.sort();
    found
}

/// Waits until none lives. Returns those that do at the end of `limit`.
pub(super) fn wait_until_none(whose: Whose<'_>, limit: Duration) -> Vec<Process> {
    let deadline = Instant::now() + limit;
    loop {
        let left = living(whose);
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Kills what lives, also what is started meanwhile, for at most `limit`.
pub(super) fn kill_all(whose: Whose<'_>, limit: Duration) {
    let deadline = Instant::now() + limit;
    loop {
        let left = living(whose);
        for process in &left {
            // It may have ended by now, which is as good.
            let _ = kill(Pid::from_raw(process.id), Signal::SIGKILL);
        }
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The daemon that serves a data directory, as its keeper notes it.
pub(super) fn serving(data: &Path) -> Option<u32> {
    let text = fs::read_to_string(data.join(LOCK)).ok()?;
    daemon(&text)
}

fn daemon(text: &str) -> Option<u32> {
    let mut numbers = text
        .lines()
        .filter_map(|line| line.strip_prefix("daemon, process "));
    numbers.next()?.parse().ok()
}

/// What a command line says: the part of the process, and the directory of its node.
fn parse(words: &[u8]) -> Option<(Part, PathBuf)> {
    let words: Vec<&[u8]> = words.strip_suffix(b"\0")?.split(|byte| *byte == 0).collect();
    let path = Path::new(std::ffi::OsStr::from_bytes(words.last()?));
    let (part, name) = match words[..] {
        [_, b"mount", _, ..] => (Part::Launcher, CONFIG),
        [b"litefs", b"daemon", _, ..] => (Part::Daemon, CONFIG),
        [b"litefs", b"companion", b"keeper", _] => (Part::Keeper, DATA),
        [b"litefs", b"companion", b"opener", _] => (Part::Opener, DATA),
        _ => return None,
    };
    let named = path.is_absolute() && path.file_name()? == name;
    named.then(|| Some((part, path.parent()?.to_path_buf())))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_tells_part_and_node() {
        let parsed = |line: &str| parse((line.replace(' ', "\0") + "\0").as_bytes());
        let node = |part| Some((part, PathBuf::from("/w/m1")));
        assert_eq!(
            parsed("/bin/litefs mount -config /w/m1/litefs.yml"),
            node(Part::Launcher)
        );
        assert_eq!(
            parsed("litefs daemon --launcher 5 --config /w/m1/litefs.yml"),
            node(Part::Daemon)
        );
        assert_eq!(parsed("litefs companion keeper /w/m1/data"), node(Part::Keeper));
        assert_eq!(parsed("litefs companion opener /w/m1/data"), node(Part::Opener));
        for other in [
            "tail -f /w/m1/litefs.yml",
            "litefs companion worker",
            "ls /w/m1/data",
        ] {
            assert_eq!(parsed(other), None);
        }
    }

    #[test]
    fn a_node_below_another_is_not_the_same_node() {
        let (node, other) = (Path::new("/w/m1"), Path::new("/w/m1/replica"));
        assert!(Whose::Node(node).has(node) && !Whose::Node(node).has(other));
        assert!(Whose::Below(node).has(other) && !Whose::Below(other).has(node));
    }

    #[test]
    fn the_lock_file_names_the_daemon() {
        let text = "keeper, process 4\ndaemon, process 17\nlauncher, process 3\n";
        assert_eq!(daemon(text), Some(17));
        assert_eq!(daemon("keeper, process 4\n"), None);
    }
}
