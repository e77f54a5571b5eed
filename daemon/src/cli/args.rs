//! Go's flag notation for clap: `-config X`, `-config=X` and `--config X` are the same.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Turns `-name` into `--name`, up to `--`. Single letters are left alone, and so is `-` itself.
pub(crate) fn double_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut flags_end = false;
    args.into_iter()
        .map(|arg| {
            flags_end |= arg.as_bytes() == b"--";
            if flags_end || !is_long_flag(arg.as_bytes()) {
                arg
            } else {
                with_dash(&arg)
            }
        })
        .collect()
}

fn is_long_flag(arg: &[u8]) -> bool {
    match arg {
        [b'-', first, rest @ ..] => first.is_ascii_alphabetic() && !rest.is_empty() && rest[0] != b'=',
        _ => false,
    }
}

fn with_dash(arg: &OsString) -> OsString {
    let mut doubled = vec![b'-'];
    doubled.extend_from_slice(arg.as_bytes());
    OsString::from_vec(doubled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubled(args: &[&str]) -> Vec<String> {
        let args = args.iter().map(OsString::from);
        double_dashes(args)
            .into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect()
    }

    #[test]
    fn long_flags_get_a_second_dash_up_to_the_separator() {
        assert_eq!(
            doubled(&["litefs", "mount", "-config", "x"]),
            ["litefs", "mount", "--config", "x"]
        );
        assert_eq!(
            doubled(&["-config=a-b", "--debug", "-h", "-v"]),
            ["--config=a-b", "--debug", "-h", "-v"]
        );
        assert_eq!(
            doubled(&["-fuse.debug", "--", "-serve"]),
            ["--fuse.debug", "--", "-serve"]
        );
        assert_eq!(doubled(&["-", "-1", "-v=true"]), ["-", "-1", "-v=true"]);
    }
}
