//! Faults that a test plants: which calls fail, and with what.

use std::io;

use crate::disk::Op;

/// Calls of certain operations fail with an errno.
#[derive(Debug, Clone)]
pub struct Fault {
    prefix: String,
    errno: i32,
    skip: u64,
    left: u64,
}

impl Fault {
    /// The next call of an operation whose name starts with `prefix` fails with `errno`.
    pub fn on(prefix: &str, errno: i32) -> Fault {
        Fault {
            prefix: prefix.to_owned(),
            errno,
            skip: 0,
            left: 1,
        }
    }

    /// Lets `calls` matching calls pass first.
    pub fn after(mut self, calls: u64) -> Fault {
        self.skip = calls;
        self
    }

    /// Fails that many matching calls instead of one.
    pub fn times(mut self, calls: u64) -> Fault {
        self.left = calls;
        self
    }

    pub fn forever(self) -> Fault {
        self.times(u64::MAX)
    }

    pub(in crate::disk) fn check(&mut self, op: Op) -> io::Result<()> {
        if !op.starts_with(&self.prefix) || self.left == 0 {
            return Ok(());
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Ok(());
        }
        self.left -= 1;
        Err(io::Error::from_raw_os_error(self.errno))
    }
}
