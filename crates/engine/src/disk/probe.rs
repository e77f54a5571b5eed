//! Whether a file system can be written, found out before somebody needs it: one with an error turns read-only by itself (ext4's
//! `errors=remount-ro`), and clients that write past the daemon are told so when it is not.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Disk, OpenMode, Result};

/// How often it is tried. It costs a write that nobody waits for.
const PAUSE: Duration = Duration::from_secs(5);
const NAME: &str = "probe";

/// Tries now and then.
#[derive(Debug)]
pub(crate) struct Probe {
    next: Instant,
}

impl Probe {
    pub(crate) fn new() -> Probe {
        Probe {
            next: Instant::now() + PAUSE,
        }
    }

    /// Whether it is time to try, and the file system that `dir` is on was found read-only.
    pub(crate) fn finds_read_only(&mut self, disk: &dyn Disk, dir: &Path) -> bool {
        if Instant::now() < self.next {
            return false;
        }
        self.next = Instant::now() + PAUSE;
        write(disk, dir).is_err_and(|error| error.errno() == Some(libc::EROFS))
    }
}

fn write(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let path = dir.join(NAME);
    let file = disk.open("probe.open", &path, OpenMode::Truncate)?;
    file.write_all_at("probe.write", b"?", 0)?;
    disk.remove_file("probe.remove", &path)
}
