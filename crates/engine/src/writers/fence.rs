//! The fence: WAL_WRITE, which keeps clients from writing the WAL, and DMS, which keeps them the wal-index that they have. The owner
//! of the value has the locks.

use std::io;
use std::sync::Arc;

use sqlite_format::wal_index::lock;

use crate::kernel::LockFiles;
use crate::name::Side;

/// WAL_WRITE and DMS, released when dropped.
pub(crate) struct Fence {
    /// `None` once it is left.
    locks: Option<Arc<dyn LockFiles>>,
}

/// What came of an attempt to fence.
pub(crate) enum Attempt {
    /// No client is connected in WAL mode.
    Unconnected,
    Taken(Fence),
    /// A client holds the lock.
    Busy,
}

impl Fence {
    /// The guard of locks that its owner takes one by one. To release one that was not taken changes nothing.
    pub(crate) fn over(locks: Arc<dyn LockFiles>) -> Fence {
        Fence { locks: Some(locks) }
    }

    /// Only clients from before can write past the daemon. Without any, the lock would but keep the first new one
    /// from building its wal-index. With some, DMS keeps the wal-index that they have. `awaited`: one has the WAL open, and may be about to
    /// connect.
    pub(crate) fn attempt(locks: &Arc<dyn LockFiles>, awaited: bool) -> io::Result<Attempt> {
        if !awaited && !locks.locked(Side::Shm, lock::DMS)? {
            return Ok(Attempt::Unconnected);
        }
        if !locks.try_lock(Side::Shm, lock::WRITE, 1, true)? {
            return Ok(Attempt::Busy);
        }
        let fence = Fence::over(locks.clone());
        match locks.try_lock(Side::Shm, lock::DMS, 1, false)? {
            true => Ok(Attempt::Taken(fence)),
            false => Ok(Attempt::Busy),
        }
    }

    /// Whether these are the files that are locked.
    pub(crate) fn is_on(&self, locks: &Arc<dyn LockFiles>) -> bool {
        self.locks.as_ref().is_some_and(|own| Arc::ptr_eq(own, locks))
    }

    /// Releases nothing: the locks end with the descriptors, or another guard has them.
    pub(crate) fn leave(mut self) {
        self.locks = None;
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        let Some(locks) = &self.locks else { return };
        let write = locks.unlock(Side::Shm, lock::WRITE, 1);
        if let Err(error) = write.and(locks.unlock(Side::Shm, lock::DMS, 1)) {
            tracing::error!(%error, "cannot release WAL_WRITE");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::OfdLocks;
    use std::fs::File;

    /// The same two files, through other descriptors.
    fn files(dir: &std::path::Path) -> Arc<dyn LockFiles> {
        let open = |name| {
            let mut options = File::options();
            let options = options.read(true).write(true).create(true).truncate(false);
            options.open(dir.join(name)).unwrap()
        };
        Arc::new(OfdLocks::new(open("db"), open("db-shm")).unwrap())
    }

    fn is_fenced(others: &dyn LockFiles) -> bool {
        others.locked(Side::Shm, lock::WRITE).unwrap()
    }

    #[test]
    fn locks_last_as_long_as_the_guard() {
        let dir = tempfile::tempdir().unwrap();
        let (own, client) = (files(dir.path()), files(dir.path()));
        assert!(matches!(
            Fence::attempt(&own, false).unwrap(),
            Attempt::Unconnected
        ));
        assert!(client.try_lock(Side::Shm, lock::DMS, 1, false).unwrap());
        let Attempt::Taken(fence) = Fence::attempt(&own, false).unwrap() else {
            panic!("nobody is in the way");
        };
        assert!(is_fenced(&*client) && fence.is_on(&own) && !fence.is_on(&client));
        let moved = Some(fence);
        assert!(is_fenced(&*client));
        drop(moved);
        assert!(!is_fenced(&*client));
    }

    #[test]
    fn who_is_about_to_connect_finds_the_fence() {
        let dir = tempfile::tempdir().unwrap();
        let (own, client) = (files(dir.path()), files(dir.path()));
        let Attempt::Taken(_fence) = Fence::attempt(&own, true).unwrap() else {
            panic!("nobody is in the way");
        };
        assert!(is_fenced(&*client));
        let first = client.try_lock(Side::Shm, lock::DMS, 1, true).unwrap();
        assert!(!first, "it must not empty the wal-index");
    }

    #[test]
    fn a_busy_writer_leaves_nothing_locked() {
        let dir = tempfile::tempdir().unwrap();
        let (own, client) = (files(dir.path()), files(dir.path()));
        assert!(client.try_lock(Side::Shm, lock::DMS, 1, true).unwrap());
        assert!(matches!(Fence::attempt(&own, false).unwrap(), Attempt::Busy));
        assert!(!is_fenced(&*client));
        assert!(client.try_lock(Side::Shm, lock::WRITE, 1, true).unwrap());
        assert!(matches!(Fence::attempt(&own, false).unwrap(), Attempt::Busy));
    }

    #[test]
    fn a_fence_that_is_left_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (own, client) = (files(dir.path()), files(dir.path()));
        assert!(client.try_lock(Side::Shm, lock::DMS, 1, false).unwrap());
        let Attempt::Taken(fence) = Fence::attempt(&own, false).unwrap() else {
            panic!("nobody is in the way");
        };
        fence.leave();
        assert!(is_fenced(&*client));
    }
}
