//! Whatever happens in whatever order: who may write, and that each lock is released once.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use sqlite_format::wal_index::lock;

use super::*;
use crate::name::Side;

/// The writer's lock through one open file description, as a database and its apply share it.
#[derive(Default)]
struct OneLock(AtomicBool);

impl LockFiles for OneLock {
    fn database_write_locked(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn database_locked(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn locked(&self, _: Side, _: u64) -> io::Result<bool> {
        Ok(true)
    }

    fn write_locked(&self, _: Side, _: u64) -> io::Result<bool> {
        Ok(false)
    }

    fn try_lock(&self, _: Side, start: u64, _: u64, _: bool) -> io::Result<bool> {
        if start == lock::WRITE {
            self.0.store(true, Ordering::Relaxed);
        }
        Ok(true)
    }

    fn unlock(&self, _: Side, start: u64, _: u64) -> io::Result<()> {
        if start == lock::WRITE {
            self.0.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    fn has_shm(&self) -> bool {
        true
    }

    fn shm_inode(&self) -> u64 {
        0
    }

    fn read_shm(&self, _: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
}

fn any_input() -> impl Strategy<Value = Input> {
    prop_oneof![
        Just(Input::Promoting),
        Just(Input::Promoted),
        Just(Input::Demoted),
        any::<bool>().prop_map(|sealed| Input::Ended { sealed }),
        Just(Input::DiskFailed),
        Just(Input::Unconnected),
        Just(Input::Taken),
        Just(Input::Taken),
        Just(Input::HeldOut),
        Just(Input::Looked),
        Just(Input::Alone),
        Just(Input::IndexInvalid),
        Just(Input::Borrowed),
        Just(Input::Acquired),
        Just(Input::GivenBack),
        Just(Input::FilesReplaced),
    ]
}

/// What the rest of the process does with a database's guards.
struct World {
    writers: Writers,
    locks: Arc<OneLock>,
    primary: bool,
    failed: bool,
    /// The guard that an apply has.
    apply: Option<Fence>,
}

impl World {
    fn opened(primary: bool, wrote: bool) -> World {
        let writers = Writers::new();
        let _ = writers.enter(Input::Opened { primary, wrote });
        World {
            writers,
            locks: Arc::default(),
            primary,
            failed: false,
            apply: None,
        }
    }

    fn act(&mut self, input: Input) {
        let locks: Arc<dyn LockFiles> = self.locks.clone();
        match input {
            Input::Taken => {
                let Ok(fence::Attempt::Taken(fence)) = Fence::attempt(&locks, false) else {
                    unreachable!("nobody is in the way");
                };
                let _ = self.writers.take(fence);
            }
            Input::Borrowed if self.apply.is_none() => {
                let lent = self.writers.lend(&locks);
                let fence = lent.unwrap_or_else(|| Fence::over(locks.clone()));
                locks.try_lock(Side::Shm, lock::WRITE, 1, true).unwrap();
                self.apply = Some(fence);
            }
            // An apply has the turn: neither the settler nor another apply comes in between.
            Input::Borrowed | Input::Alone | Input::IndexInvalid if self.apply.is_some() => {}
            // An apply holds SHARED, which keeps the files from being replaced.
            Input::FilesReplaced if self.apply.is_some() => {}
            Input::Acquired if self.apply.is_none() => {}
            Input::Acquired => {
                locks.try_lock(Side::Shm, lock::WRITE, 1, true).unwrap();
                let _ = self.writers.enter(input);
            }
            Input::GivenBack => {
                if let Some(fence) = self.apply.take() {
                    self.writers.give_back(fence);
                }
            }
            Input::FilesReplaced => {
                let _ = self.writers.enter(input);
                self.locks = Arc::default();
            }
            Input::Opened { .. }
            | Input::Promoting
            | Input::Promoted
            | Input::Demoted
            | Input::Ended { .. }
            | Input::DiskFailed
            | Input::Unconnected
            | Input::HeldOut
            | Input::Looked
            | Input::Alone
            | Input::Borrowed
            | Input::IndexInvalid => {
                let _ = self.writers.enter(input);
            }
        }
        self.primary = match self.primary {
            true => input != Input::Demoted,
            false => input == Input::Promoted,
        };
        self.failed |= input == Input::DiskFailed;
    }

    fn is_locked(&self) -> bool {
        self.locks.0.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let held = self.writers.held.lock();
        let access = held.access;
        prop_assert!(
            access != Access::Writing || self.primary,
            "no primary: {access:?}"
        );
        prop_assert_eq!(self.failed, matches!(access, Access::Failed(_)), "{:?}", access);
        let fenced = access.barrier() == Barrier::Fenced;
        prop_assert_eq!(held.fence.is_some(), fenced, "{:?}", access);
        prop_assert!(!fenced || self.is_locked(), "a fence without its lock");
        Ok(())
    }
}

proptest! {
    #[test]
    fn no_order_of_events_lets_the_wrong_ones_write(
        primary: bool,
        wrote: bool,
        inputs in prop::collection::vec(any_input(), 0..60),
    ) {
        let mut world = World::opened(primary, wrote);
        world.check()?;
        for input in inputs {
            world.act(input);
            world.check()?;
        }
        // When the apply is done and the node is the primary, nothing is locked any more, unless the disk failed.
        world.act(Input::GivenBack);
        world.act(Input::Promoted);
        world.check()?;
        prop_assert!(world.failed || !world.is_locked());
    }
}

#[test]
fn a_fence_taken_during_an_apply_outlives_it() {
    let mut world = World::opened(true, false);
    for input in [Input::Borrowed, Input::Demoted, Input::Taken, Input::GivenBack] {
        world.act(input);
    }
    assert_eq!(world.writers.access(), Access::Draining(Barrier::Fenced));
    assert!(world.is_locked());
}

#[test]
fn a_fence_that_comes_after_a_promotion_is_released() {
    let mut world = World::opened(false, false);
    for input in [Input::Promoted, Input::Taken] {
        world.act(input);
    }
    assert_eq!(world.writers.access(), Access::Writing);
    assert!(!world.is_locked());
}
