//! `litefs` with faults on purpose, see `engine::canary`.

fn main() -> std::process::ExitCode {
    if let Some(code) = litefs::companion::run(std::env::args_os().skip(1)) {
        return code;
    }
    litefs::cli::main(std::env::args_os())
}
