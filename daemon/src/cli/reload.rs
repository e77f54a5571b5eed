//! `litefs reload`: replace the running daemon by a new one, without a gap for its clients.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::{CommandError, Result};
use crate::companion::Inhabitants;
use crate::config;

/// How long a daemon may take to start and take over.
const PATIENCE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(10);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Read only this configuration file.
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Do not expand $NAME and ${NAME} in the configuration.
    #[arg(long)]
    no_expand_env: bool,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let path = config::find(args.config.as_deref(), config::search_path())?;
    let config = config::read(&path, !args.no_expand_env)?;
    config::validate(&config)?;
    config::check_supported(&config)?;
    let dir = &config.data.dir;
    let before = Inhabitants::of(dir);
    let nobody = || {
        CommandError::new(format!("no litefs serves {}", dir.display())).hint("start one with `litefs mount`")
    };
    let (Some(launcher), Some(old)) = (before.launcher, before.daemon) else {
        return Err(nobody());
    };
    kill(Pid::from_raw(launcher.cast_signed()), Signal::SIGHUP).map_err(|error| match error {
        // What is left of a node that has just ended.
        Errno::ESRCH => nobody(),
        error => unreachable_launcher(launcher, error),
    })?;
    let new = await_change(dir, old).ok_or_else(|| {
        CommandError::new("the running daemon was not replaced; it goes on")
            .hint("its output says why the new one did not start")
    })?;
    say!("reloaded: process {new} has taken over from process {old}");
    Ok(ExitCode::SUCCESS)
}

fn unreachable_launcher(launcher: u32, error: Errno) -> CommandError {
    CommandError::new(format!(
        "cannot signal process {launcher}, which started the daemon: {error}"
    ))
    .hint("run this as the user who runs `litefs mount`")
}

/// The process that has taken over.
fn await_change(dir: &Path, old: u32) -> Option<u32> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(new) = Inhabitants::of(dir).daemon.filter(|new| *new != old) {
            return Some(new);
        }
        std::thread::sleep(POLL);
    }
    None
}
