//! The `litefs` program.

fn main() -> std::process::ExitCode {
    litefs::cli::main(std::env::args_os())
}
