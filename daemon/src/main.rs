//! The `litefs` program.

fn main() -> std::process::ExitCode {
    // Before anything else: the companion processes are this program too, and must stay small.
    if let Some(code) = litefs::companion::run(std::env::args_os().skip(1)) {
        return code;
    }
    litefs::cli::main(std::env::args_os())
}
