//! `litefs-tcl`: see the library for the tour.

use std::process::ExitCode;

use clap::Parser;
use litefs_tcl::cli::Command;

fn main() -> ExitCode {
    match Command::parse().run() {
        Ok(code) => code,
        Err(error) => {
            litefs_tcl::work::tell(&format!("ERROR: {}", terminal::explain(&error)));
            ExitCode::from(2)
        }
    }
}
