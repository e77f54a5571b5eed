//! `litefs ltx`: look into a database's log.

use std::process::ExitCode;

use super::error::{CommandError, Result};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    Err(CommandError::new(format!(
        "litefs ltx {}: unknown command",
        args.words.join(" ")
    )))
}
