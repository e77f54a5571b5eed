//! Counts of requests the kernel sends, by operation and kind of file: `litefs_fuse_requests_total{op,file}`.
//!
//! The number of requests per transaction is exact on any machine and therefore the gate for "native speed". Counting costs two relaxed
//! additions; the metric handle of a cell is registered the first time the cell is used.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::Counter;

use crate::metrics::FUSE_REQUESTS_TOTAL;

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Database,
    Wal,
    Shm,
    Journal,
    Other,
}

macro_rules! operations {
    ($($name:ident => $label:literal),+ $(,)?) => {
        /// Operations as the kernel names them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Op { $($name),+ }

        const OPS: &[(Op, &str)] = &[$((Op::$name, $label)),+];
    };
}

operations! {
    Lookup => "lookup", Forget => "forget", Getattr => "getattr", Setattr => "setattr", Readlink => "readlink",
    Symlink => "symlink", Mknod => "mknod", Mkdir => "mkdir", Unlink => "unlink", Rmdir => "rmdir",
    Rename => "rename", Link => "link", Open => "open", Read => "read", Write => "write", Statfs => "statfs",
    Release => "release", Fsync => "fsync", Xattr => "xattr", Flush => "flush", Opendir => "opendir",
    Readdir => "readdir", Fsyncdir => "fsyncdir", Access => "access", Create => "create",
    Fallocate => "fallocate", Lseek => "lseek", CopyFileRange => "copy_file_range", Ioctl => "ioctl",
}

const KINDS: [(FileKind, &str); 5] = [
    (FileKind::Database, "database"),
    (FileKind::Wal, "wal"),
    (FileKind::Shm, "shm"),
    (FileKind::Journal, "journal"),
    (FileKind::Other, "other"),
];

/// All counters of one mount.
pub struct Requests {
    cells: Vec<[Cell; KINDS.len()]>,
}

#[derive(Default)]
struct Cell {
    count: AtomicU64,
    metric: OnceLock<Counter>,
}

impl Requests {
    pub(crate) fn new() -> Requests {
        Requests {
            cells: OPS.iter().map(|_| Default::default()).collect(),
        }
    }

    pub(crate) fn count(&self, op: Op, kind: FileKind) {
        tracing::trace!(op = OPS[op as usize].1, file = KINDS[kind as usize].1, "request");
        let cell = &self.cells[op as usize][kind as usize];
        cell.count.fetch_add(1, Ordering::Relaxed);
        let register = || metrics::counter!(FUSE_REQUESTS_TOTAL, "op" => OPS[op as usize].1, "file" => KINDS[kind as usize].1);
        cell.metric.get_or_init(register).increment(1);
    }

    /// A copy of all counters, to be subtracted from a later one.
    pub fn snapshot(&self) -> Snapshot {
        let read = |cells: &[Cell; KINDS.len()]| {
            let mut counts = [0; KINDS.len()];
            for (count, cell) in counts.iter_mut().zip(cells) {
                *count = cell.count.load(Ordering::Relaxed);
            }
            counts
        };
        Snapshot {
            counts: self.cells.iter().map(read).collect(),
        }
    }
}

/// Counters at one moment, or the difference between two.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    counts: Vec<[u64; KINDS.len()]>,
}

impl Snapshot {
    pub fn since(&self, earlier: &Snapshot) -> Snapshot {
        let subtract = |(now, then): (&[u64; KINDS.len()], &[u64; KINDS.len()])| {
            let mut left = *now;
            for (now, then) in left.iter_mut().zip(then) {
                *now -= then;
            }
            left
        };
        Snapshot {
            counts: self.counts.iter().zip(&earlier.counts).map(subtract).collect(),
        }
    }

    /// Requests somebody waited for: FORGET has no reply and RELEASE is sent after `close` returned, yet RELEASE is counted because
    /// it takes the daemon's time.
    pub fn total(&self) -> u64 {
        let forgotten: u64 = self.counts[Op::Forget as usize].iter().sum();
        self.counts.iter().flatten().sum::<u64>() - forgotten
    }

    pub fn get(&self, op: Op, kind: FileKind) -> u64 {
        self.counts[op as usize][kind as usize]
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (op, label) in OPS {
            for (kind, kind_label) in KINDS {
                let count = self.get(*op, kind);
                if count > 0 {
                    map.entry(&format_args!("{label}.{kind_label}"), &count);
                }
            }
        }
        map.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_where_the_enums_point() {
        for (index, (op, _)) in OPS.iter().enumerate() {
            assert_eq!(*op as usize, index);
        }
        for (index, (kind, _)) in KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, index);
        }
    }

    #[test]
    fn a_difference_holds_only_what_came_between() {
        let requests = Requests::new();
        requests.count(Op::Write, FileKind::Wal);
        let before = requests.snapshot();
        requests.count(Op::Fsync, FileKind::Wal);
        requests.count(Op::Forget, FileKind::Other);
        let between = requests.snapshot().since(&before);
        assert_eq!(between.get(Op::Write, FileKind::Wal), 0);
        assert_eq!(between.get(Op::Fsync, FileKind::Wal), 1);
        assert_eq!(between.total(), 1);
        assert_eq!(format!("{between:?}"), r#"{forget.other: 1, fsync.wal: 1}"#);
    }
}
