//! `litefs ltx`: look into the logs of a data directory. Reads only, so it may run beside a daemon and on a copy of a
//! directory whose node is gone.

mod dump;
mod export;
mod list;
mod verify;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use engine::DbName;
use engine::disk::OsDisk;
use engine::log::{Log, LogError, Record};
use ltx::Txid;

use super::error::{CommandError, Result};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the databases, or the records of one.
    Ls(list::Args),
    /// Print what a record says and which pages it holds.
    Dump(dump::Args),
    /// Read every record and check it, and that each follows the one before.
    Verify(verify::Args),
    /// Write records as ordinary .ltx files.
    Export(export::Args),
}

/// Where the logs are.
#[derive(Debug, clap::Args)]
struct Data {
    /// Data directory of the node.
    #[arg(long = "data", value_name = "DIR", default_value = "/var/lib/litefs")]
    dir: PathBuf,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    let done = match args.command {
        Command::Ls(args) => list::run(&args, &mut out),
        Command::Dump(args) => dump::run(&args, &mut out),
        Command::Verify(args) => verify::run(&args, &mut out),
        Command::Export(args) => export::run(&args, &mut out),
    };
    match done {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(Stop::Pipe) => Ok(ExitCode::SUCCESS),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// Why a command ends early.
#[derive(Debug)]
enum Stop {
    Failed(CommandError),
    /// Who reads the output has seen enough, as `head` does.
    Pipe,
}

type Done = std::result::Result<(), Stop>;

impl From<CommandError> for Stop {
    fn from(error: CommandError) -> Stop {
        Stop::Failed(error)
    }
}

impl From<LogError> for Stop {
    fn from(error: LogError) -> Stop {
        let hint = "`litefs ltx verify` tells which records can be read; a replica has the others";
        Stop::Failed(CommandError::new(error.to_string()).hint(hint))
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Stop::Pipe,
            _ => Stop::Failed(CommandError::new(format!("cannot write the output: {error}"))),
        }
    }
}

impl Data {
    /// The databases by name; damaged logs come with their error.
    fn logs(&self) -> Result<Vec<(DbName, std::result::Result<Log, LogError>)>> {
        engine::inspect::logs(&OsDisk::shared(), &self.dir).map_err(|error| {
            CommandError::new(error.to_string()).hint("name the node's `data.dir` with -data DIR")
        })
    }

    fn log(&self, name: &str) -> std::result::Result<Log, Stop> {
        let mut logs = self.logs()?;
        match logs.iter().position(|(known, _)| known.as_str() == name) {
            Some(index) => Ok(logs.swap_remove(index).1?),
            None => {
                let names: Vec<_> = logs.iter().map(|(known, _)| known.as_str()).collect();
                let error = CommandError::new(format!("database not found: {name:?}"));
                Err(error.hint(format!("known are: {}", names.join(", "))).into())
            }
        }
    }
}

/// A transaction number as the other commands print it; leading zeros may be left out.
fn parse_txid(text: &str) -> std::result::Result<Txid, String> {
    let padded = format!("{text:0>16}");
    padded
        .parse()
        .map_err(|_| "not a TXID: up to 16 hexadecimal digits".to_owned())
}

fn time(timestamp_ms: i64) -> String {
    let since = u64::try_from(timestamp_ms).unwrap_or(0);
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(since);
    humantime::format_rfc3339_millis(time).to_string()
}

fn file_name(record: &Record) -> String {
    ltx::file_name(record.info.min, record.info.max)
}

#[cfg(test)]
mod tests;
