//! `litefs-dev`: the command line of the development cluster. See the library's documentation for how it works.

mod cli;

use std::process::ExitCode;

use clap::Parser;

/// As a shell counts a command that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LITEFS_DEV_LOG");
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    terminal::end_without_reader();
    litefs_dev::binary::announce_litefs_dev();
    match cli::Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("litefs-dev: {}", terminal::explain(&error));
            match error.downcast_ref() {
                Some(litefs_dev::Error::Interrupted) => ExitCode::from(INTERRUPTED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
