//! The command line: what each command accepts, prints and exits with.
//!
//! Commands, flags and exit codes are LiteFS 0.5's. One file per command; a command does its work through the HTTP API
//! or by handing a configuration to `node`.

mod args;
mod error;
mod export;
mod import;
mod ltx;
mod mount;
mod reload;
mod run;
mod version;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

use error::{CommandError, USAGE};

/// SQLite replication as a file system.
#[derive(Debug, Parser)]
#[command(name = "litefs", disable_help_subcommand = true, max_term_width = 100)]
struct Litefs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount the file system and replicate the databases on it.
    Mount(mount::Args),
    /// The daemon that `mount` starts.
    #[command(hide = true)]
    Daemon(mount::DaemonArgs),
    /// Replace the running daemon by a new one, which reads program and configuration anew.
    Reload(reload::Args),
    /// Run a command, on the primary or on a candidate only.
    Run(run::Args),
    /// Write a copy of a database to a file.
    Export(export::Args),
    /// Create or replace a database with an SQLite file.
    Import(import::Args),
    /// List, dump, verify and export records of a database's log.
    Ltx(ltx::Args),
    /// Print the version.
    Version(version::Args),
}

/// Runs the command that `args` (with the program's name) asks for.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = args::double_dashes(args);
    let command = args.get(1).and_then(|arg| arg.to_str());
    if matches!(command, None | Some("help")) || command.is_some_and(|word| word.starts_with('-')) {
        say!("{}", Litefs::command().render_help().to_string().trim_end());
        return ExitCode::from(USAGE);
    }
    match parse(&args) {
        Ok(command) => execute(command, args),
        Err(error) => refuse(&error, command.unwrap_or_default()),
    }
}

fn parse(args: &[OsString]) -> Result<Command, clap::Error> {
    let matches = definition().try_get_matches_from(args)?;
    Litefs::from_arg_matches(&matches).map(|litefs| litefs.command)
}

/// The commands, with switches that accept `-debug=false` as Go's do.
fn definition() -> clap::Command {
    Litefs::command().mut_subcommands(|command| command.mut_args(go_switch))
}

fn go_switch(arg: clap::Arg) -> clap::Arg {
    match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_value("false")
            .default_missing_value("true")
            .hide_default_value(true)
            .hide_possible_values(true),
        _ => arg,
    }
}

fn execute(command: Command, args: Vec<OsString>) -> ExitCode {
    let result = match command {
        // The daemon reads the words again.
        Command::Mount(parsed) => mount::launch(&parsed, args),
        Command::Daemon(args) => mount::run(args),
        Command::Reload(args) => reload::run(args),
        Command::Run(args) => run::run(args),
        Command::Export(args) => export::run(args),
        Command::Import(args) => import::run(args),
        Command::Ltx(args) => ltx::run(args),
        Command::Version(_) => version::run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => error.report(),
    }
}

/// Words that are not understood: help goes to standard output, anything else is an error of the command.
fn refuse(error: &clap::Error, command: &str) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            say!("{}", error.to_string().trim_end());
            ExitCode::from(USAGE)
        }
        ErrorKind::InvalidSubcommand if Litefs::command().find_subcommand(command).is_none() => {
            CommandError::new(format!("litefs {command}: unknown command"))
                .hint("`litefs help` lists the commands")
                .report()
        }
        _ => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
            let lacks_path =
                matches!(command, "import" | "export") && error.kind() == ErrorKind::MissingRequiredArgument;
            let code = if matches!(command, "mount" | "daemon") || lacks_path {
                USAGE
            } else {
                error::FAILURE
            };
            CommandError::new(text).code(code).report()
        }
    }
}

/// A runtime for commands that only talk to a node.
fn client_runtime() -> error::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::new(format!("cannot start: {error}")))
}

/// The node a client command talks to.
#[derive(Debug, clap::Args)]
struct Node {
    /// URL of the node's API.
    #[arg(long, value_name = "URL", default_value = "http://localhost:20202")]
    url: String,
}

impl Node {
    fn client(&self) -> error::Result<litefs_api::Client> {
        Ok(litefs_api::Client::new(&self.url)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Command, clap::Error> {
        let args = std::iter::once("litefs")
            .chain(args.iter().copied())
            .map(OsString::from);
        super::parse(&args::double_dashes(args))
    }

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
    }

    #[test]
    fn go_style_flags_are_understood() {
        let Ok(Command::Mount(args)) = parse(&[
            "mount",
            "-config",
            "x.yml",
            "-skip-unmount",
            "-debug=false",
            "-fuse.debug",
        ]) else {
            panic!("mount");
        };
        assert_eq!(args.config.as_deref(), Some(std::path::Path::new("x.yml")));
        assert!(args.skip_unmount && !args.debug && args.fuse_debug && !args.tracing && !args.no_expand_env);
        let Ok(Command::Run(args)) = parse(&["run", "-promote", "-url=http://h:1", "--", "ls", "-l"]) else {
            panic!("run");
        };
        assert!(args.promote && !args.if_candidate);
        assert_eq!(args.command, ["ls", "-l"]);
    }

    #[test]
    fn unknown_flags_are_errors() {
        assert!(parse(&["mount", "-confg", "x"]).is_err());
        assert!(parse(&["export", "-name", "x", "a", "b"]).is_err());
    }
}
