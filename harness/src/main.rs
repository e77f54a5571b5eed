//! `litefs-dev`: the command line of the development cluster. See the library's documentation for how it works.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LITEFS_DEV_LOG");
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    end_without_reader();
    litefs_dev::binary::announce_litefs_dev();
    match cli::Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("litefs-dev: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A reader that has seen enough (`litefs-dev status | head -1`) ends a command as it ends others, without a word.
fn end_without_reader() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        use nix::libc::SIGPIPE;
        if message.starts_with("failed printing to std") && message.contains("Broken pipe") {
            std::process::exit(128 + SIGPIPE);
        }
        tell(panic);
    }));
}
