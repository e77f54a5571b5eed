//! What the developer's tools have in common towards whoever types them: errors as text, the end of a reader, Ctrl-C, and the name that
//! gets at the program again.
//!
//! Used by the `main` of `litefs-dev`, `litefs-bench`, `litefs-tui` and `litefs-tcl`, and wherever those turn an error into text. The
//! daemon is not among them: its own output outlives every reader.

pub mod interrupt;

use std::path::Path;

/// An error with its causes. Many errors hold the text of their cause in their own and name it as their source too; a cause that was
/// told already is left out.
pub fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// A reader that has seen enough (`litefs-dev status | head -1`) ends a command as it ends others, without a word.
///
/// Not for a program that leaves mounts or processes behind when it ends on the spot.
pub fn end_without_reader() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to std") && message.contains("Broken pipe") {
            std::process::exit(128 + libc::SIGPIPE);
        }
        tell(panic);
    }));
}

/// How this program was started, for hints that can be pasted: `name` if it was found by the `PATH`, otherwise the path that was typed.
pub fn typed(name: &str) -> String {
    let first = std::env::args_os().next().unwrap_or_default();
    match first.to_str() {
        Some(path) if Path::new(path).components().count() > 1 => quoted(path),
        _ => name.to_owned(),
    }
}

/// As a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    match word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::io;

    use anyhow::Context;

    use super::*;

    /// Tells its cause and has it as its source, as errors here do.
    #[derive(Debug)]
    struct Told(io::Error);

    impl std::fmt::Display for Told {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "opening x: {}", self.0)
        }
    }

    impl Error for Told {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn each_cause_is_told_once() {
        let told = || Told(io::Error::other("disk on fire"));
        assert_eq!(explain(&told().into()), "opening x: disk on fire");
        let above = Err::<(), _>(told()).context("starting n1").unwrap_err();
        assert_eq!(explain(&above), "starting n1: opening x: disk on fire");
        let silent = Err::<(), _>(io::Error::other("disk on fire"))
            .context("opening x")
            .unwrap_err();
        assert_eq!(explain(&silent), "opening x: disk on fire");
    }

    #[test]
    fn a_path_with_a_blank_can_be_pasted() {
        assert_eq!(quoted("./target/debug/litefs-dev"), "./target/debug/litefs-dev");
        assert_eq!(quoted("/my clone/it's"), r"'/my clone/it'\''s'");
    }
}
