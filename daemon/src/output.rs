//! Standard output and standard error of all processes of the node. Whoever reads them may have died (`litefs mount 2>&1 | logger`), which
//! makes a word unheard and is no reason to end: `println!` and `eprintln!` panic then, and are not used.

use std::fmt::Arguments;
use std::io::{self, Write};

/// As `println!`, whoever hears it.
macro_rules! say {
    ($($words:tt)*) => { $crate::output::say(format_args!($($words)*)) };
}

/// As `eprintln!`, whoever hears it.
macro_rules! complain {
    ($($words:tt)*) => { $crate::output::complain(format_args!($($words)*)) };
}

pub(crate) fn say(words: Arguments<'_>) {
    let _ = writeln!(io::stdout().lock(), "{words}");
}

pub(crate) fn complain(words: Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{words}");
}

/// Standard error for log lines.
pub(crate) struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().lock().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
