//! `litefs mount`: the launcher, and the daemon that it starts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use super::error::{CommandError, Result, USAGE};
use crate::config::{self, Config, ConfigError};
use crate::launcher::Link;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Read only this configuration file.
    #[arg(long, value_name = "PATH")]
    pub(super) config: Option<PathBuf>,
    /// Do not expand $NAME and ${NAME} in the configuration.
    #[arg(long)]
    pub(super) no_expand_env: bool,
    /// Do not unmount what a former process left behind at the mount point.
    #[arg(long)]
    pub(super) skip_unmount: bool,
    /// Log every request of the kernel.
    #[arg(long = "fuse.debug")]
    pub(super) fuse_debug: bool,
    /// Log more.
    #[arg(long)]
    pub(super) debug: bool,
    /// Write a trace of all operations to standard output.
    #[arg(long)]
    pub(super) tracing: bool,
    /// Words that lack the `--` in front.
    #[arg(hide = true)]
    stray: Vec<String>,
    /// Command to supervise, instead of the configuration's `exec`.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// What the launcher starts.
#[derive(Debug, clap::Args)]
pub(super) struct DaemonArgs {
    /// Number of the descriptor by which the launcher is reached.
    #[arg(long, value_name = "FD")]
    launcher: i32,
    #[command(flatten)]
    mount: Args,
}

/// Becomes the launcher, which starts the daemon with the same words: `args` with the program's name.
pub(super) fn launch(parsed: &Args, args: Vec<OsString>) -> Result<ExitCode> {
    refuse_command(parsed)?;
    let words = args.into_iter().skip(2).collect();
    crate::launcher::run(words).map_err(|error| {
        CommandError::new(format!("cannot start the daemon: {error}"))
            .hint("the system is short of something: check limits on processes, files and memory")
    })
}

/// The daemon.
pub(super) fn run(args: DaemonArgs) -> Result<ExitCode> {
    let DaemonArgs {
        launcher,
        mount: args,
    } = args;
    let link = Link::from_number(launcher)
        .map_err(|_| CommandError::new("this subcommand is started by `litefs mount` only").code(USAGE))?;
    let (path, config) = configuration(&args)?;
    say!("config file read from {}", path.display());
    say!("{}", super::version::line());
    crate::logging::start(&config.log, config.fuse.debug);
    let options = crate::node::Options {
        config,
        skip_unmount: args.skip_unmount,
        link,
    };
    crate::node::run(options).map_err(|error| CommandError {
        hint: error.hint().map(str::to_owned),
        ..CommandError::new(error.to_string())
    })
}

/// The configuration with the command line applied, checked.
fn configuration(args: &Args) -> Result<(PathBuf, Config)> {
    refuse_command(args)?;
    let path = config::find(args.config.as_deref(), config::search_path())?;
    let mut config = config::read(&path, !args.no_expand_env)?;
    config.fuse.debug |= args.fuse_debug;
    config.log.debug |= args.debug;
    config::validate(&config)?;
    config::check_supported(&config)?;
    if args.tracing {
        return Err(ConfigError::Unsupported {
            key: "-tracing",
            value: "true".to_string(),
            remedy: "drop the flag; -debug logs more to standard error",
        }
        .into());
    }
    Ok((path, config))
}

/// A command to supervise is not supported, and one without `--` in front is a mistake in LiteFS too.
fn refuse_command(args: &Args) -> Result<()> {
    if !args.stray.is_empty() {
        let error = CommandError::new("too many arguments, specify a '--' to specify an exec command");
        return Err(error.hint("litefs mount [flags]").code(USAGE));
    }
    if args.command.is_empty() {
        return Ok(());
    }
    Err(ConfigError::Unsupported {
        key: "exec",
        value: format!("\"{}\" on the command line", args.command.join(" ")),
        remedy: "drop everything after `--` and start the application beside litefs, when GET /info answers",
    }
    .into())
}
