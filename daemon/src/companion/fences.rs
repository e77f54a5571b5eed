//! The locks without which SQLite commits nothing, taken on a mount that nobody serves.
//!
//! Passthrough handles of clients go on working when their daemon is dead. For as long as it is known that another daemon will count what
//! they commit, they may; when that ends (the lease runs out, nobody comes), the opener takes, on the descriptors that it keeps, WAL_WRITE of
//! each wal-index and RESERVED of each main file. A lock that the dead daemon held there is the opener's too.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::ofd::try_lock;
use super::protocol::Fence;

/// WAL_WRITE of SQLite's wal-index.
const WAL_WRITE_BYTE: u64 = 120;
/// RESERVED of a main file.
const RESERVED_BYTE: u64 = 0x4000_0001;

/// A file of the mount, open.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) file: File,
    pub(super) fence: Fence,
    pub(super) path: PathBuf,
}

impl Kept {
    /// Takes the lock that stops its writers; `false`: a client holds it.
    pub(super) fn try_fence(&self) -> bool {
        try_lock(self.file.as_fd(), byte(self.fence), 1, true).unwrap_or_else(|error| {
            complain!("litefs opener: fence {}: {error}", self.path.display());
            false
        })
    }
}

fn byte(fence: Fence) -> u64 {
    match fence {
        Fence::Shm => WAL_WRITE_BYTE,
        Fence::Database => RESERVED_BYTE,
    }
}

#[cfg(test)]
mod tests {
    use super::super::ofd::unlock;
    use super::*;

    #[test]
    fn a_file_is_fenced_when_its_writer_has_let_go_and_readers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db-shm");
        File::create(&path).unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let client = open();
        let kept = Kept {
            file: open(),
            fence: Fence::Shm,
            path: path.clone(),
        };
        assert!(try_lock(client.as_fd(), WAL_WRITE_BYTE, 1, true).unwrap());
        assert!(!kept.try_fence());
        unlock(client.as_fd(), WAL_WRITE_BYTE, 1).unwrap();
        assert!(kept.try_fence() && kept.try_fence());
        assert!(!try_lock(client.as_fd(), WAL_WRITE_BYTE, 1, true).unwrap());
        assert!(
            try_lock(client.as_fd(), WAL_WRITE_BYTE + 3, 1, false).unwrap(),
            "readers go on"
        );
    }
}
