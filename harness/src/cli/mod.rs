//! The command line: arguments into calls of [`litefs_dev::Cluster`], results into tables or JSON. One file per group of commands.

mod faults;
mod lifecycle;
mod look;
mod run;
mod table;
mod torture;
mod up;

use anyhow::Result;
use clap::{Parser, Subcommand};
use litefs_dev::{Cluster, Station};

/// A LiteFS cluster on this machine, with faults on demand.
///
/// Every node has a network namespace of its own; what they send each other passes wires that delay, lose, duplicate, reorder and cut
/// on command. Data is kept in $LITEFS_DEV_DIR, $XDG_STATE_HOME/litefs-dev or ~/.local/state/litefs-dev.
#[derive(Parser)]
#[command(name = "litefs-dev", version, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Try:
  litefs-dev up 3
  litefs-dev sql n1 app.db 'CREATE TABLE t (a); INSERT INTO t VALUES (1)'
  litefs-dev sql n3 app.db 'SELECT * FROM t'
  litefs-dev partition n1 / n2,n3,lease
  litefs-dev wait --role primary && litefs-dev status
  litefs-dev heal && litefs-dev wait --caught-up && litefs-dev verify
  litefs-dev destroy";

/// Which cluster a command is about.
#[derive(clap::Args)]
struct Which {
    /// The cluster; the only one if not given
    #[arg(long, env = "LITEFS_DEV_CLUSTER")]
    name: Option<String>,
}

impl Which {
    fn open(&self) -> litefs_dev::Result<Cluster> {
        Cluster::open(self.name.as_deref())
    }
}

/// A node by name, or by what it is at the moment.
#[derive(Clone)]
enum Target {
    Primary,
    Station(Station),
}

impl std::str::FromStr for Target {
    type Err = litefs_dev::Error;

    fn from_str(text: &str) -> litefs_dev::Result<Self> {
        if text == "primary" {
            Ok(Self::Primary)
        } else {
            text.parse().map(Self::Station)
        }
    }
}

impl Target {
    fn find(&self, cluster: &Cluster) -> litefs_dev::Result<Station> {
        match self {
            Self::Primary => cluster.primary().map(|node| node.station()),
            Self::Station(station) => Ok(*station),
        }
    }
}

#[derive(Subcommand)]
enum Command {
    Up(up::Up),
    Status(look::Status),
    Ls(look::List),
    Logs(look::Logs),
    Sql(run::Sql),
    Exec(run::Exec),
    Start(lifecycle::Start),
    Stop(lifecycle::Stop),
    Kill(lifecycle::Kill),
    Reload(lifecycle::Reload),
    Pause(lifecycle::Pause),
    Resume(lifecycle::Resume),
    Partition(faults::Partition),
    Heal(faults::Heal),
    Link(faults::Link),
    Wait(look::Wait),
    Verify(look::Verify),
    Down(lifecycle::Down),
    Destroy(lifecycle::Destroy),
    Torture(torture::Torture),
    LeaseServer(run::LeaseServer),
    #[command(hide = true)]
    Supervise(run::Supervise),
    #[command(hide = true)]
    RunSql(run::RunSql),
    #[command(hide = true)]
    ReadContent(run::ReadContent),
    #[command(hide = true)]
    TortureClient(torture::TortureClient),
}

impl Arguments {
    pub(crate) fn run(self) -> Result<()> {
        match self.command {
            Command::Up(command) => command.run(),
            Command::Status(command) => command.run(),
            Command::Ls(command) => command.run(),
            Command::Logs(command) => command.run(),
            Command::Sql(command) => command.run(),
            Command::Exec(command) => command.run(),
            Command::Start(command) => command.run(),
            Command::Stop(command) => command.run(),
            Command::Kill(command) => command.run(),
            Command::Reload(command) => command.run(),
            Command::Pause(command) => command.run(),
            Command::Resume(command) => command.run(),
            Command::Partition(command) => command.run(),
            Command::Heal(command) => command.run(),
            Command::Link(command) => command.run(),
            Command::Wait(command) => command.run(),
            Command::Verify(command) => command.run(),
            Command::Down(command) => command.run(),
            Command::Destroy(command) => command.run(),
            Command::Torture(command) => command.run(),
            Command::LeaseServer(command) => command.run(),
            Command::Supervise(command) => command.run(),
            Command::RunSql(command) => command.run(),
            Command::ReadContent(command) => command.run(),
            Command::TortureClient(command) => command.run(),
        }
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
