//! `litefs version`.

use std::process::ExitCode;

use super::error::Result;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ignored.
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(super) fn run() -> Result<ExitCode> {
    say!("{}", line());
    Ok(ExitCode::SUCCESS)
}

/// The line that `version` and `mount` print. A release sets `LITEFS_COMMIT` when it is built.
pub(super) fn line() -> String {
    let version = env!("CARGO_PKG_VERSION");
    match option_env!("LITEFS_COMMIT") {
        Some(commit) => format!("LiteFS {version}, commit={commit}"),
        None => format!("LiteFS {version} development build"),
    }
}
