//! The daemon's file descriptors. Every inode that the kernel knows costs one and every open file another, so clients decide how many
//! there are; a part is kept from them, because what they commit could not be captured without.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parking_lot::Mutex;

use super::errno::{Answer, Errno};

/// Kept for the engine: a few files for each database in use, the log's segments, connections.
const RESERVE: usize = 4096;
/// Clients that meet the limit often try again in a loop.
const AGAIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Descriptors {
    for_clients: usize,
    told: Mutex<Option<Instant>>,
}

impl Descriptors {
    /// Raises the limit as far as the system lets this process.
    pub(crate) fn raise() -> Descriptors {
        Descriptors::within(raise())
    }

    fn within(limit: u64) -> Descriptors {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Descriptors {
            for_clients: limit - RESERVE.min(limit / 2),
            told: Mutex::new(None),
        }
    }

    /// Whether clients who use so many may have one more.
    pub(crate) fn check(&self, used: usize) -> Answer<()> {
        if used < self.for_clients {
            return Ok(());
        }
        let mut told = self.told.lock();
        if told.is_none_or(|at| at.elapsed() >= AGAIN) {
            *told = Some(Instant::now());
            tracing::warn!(
                used,
                "no more files can be opened in the mount: raise the daemon's limit of open files (`ulimit -n`, `LimitNOFILE=`)"
            );
        }
        Err(Errno::ENFILE)
    }
}

/// Raises the limit of this process as far as the system lets it. The limit in force afterwards.
pub(crate) fn raise() -> u64 {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let most = fs::read_to_string("/proc/sys/fs/nr_open")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(hard);
        if most > hard && setrlimit(Resource::RLIMIT_NOFILE, most, most).is_ok() {
            return Ok(());
        }
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        } else {
            Ok(())
        }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "raise the limit of open files");
    }
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_kept_from_clients_however_low_the_limit() {
        for (limit, for_clients) in [
            (1024, 512),
            (20_000, 20_000 - RESERVE),
            (u64::MAX, usize::MAX - RESERVE),
        ] {
            let descriptors = Descriptors::within(limit);
            assert!(descriptors.check(for_clients - 1).is_ok(), "{limit}");
            assert!(descriptors.check(for_clients) == Err(Errno::ENFILE), "{limit}");
        }
    }
}
