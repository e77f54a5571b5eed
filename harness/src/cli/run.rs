//! Commands that run something: SQL or a program on a node, the lease server, and the hidden ones this program starts itself with.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use litefs_dev::lease::LeaseServer as Server;
use litefs_dev::sql::{self, Rows};
use litefs_dev::{Owner, content, inside};
use serde_json::{Map, Value};

use super::{Target, Which, print_json};

/// Run SQL on a database of a node and print the rows
#[derive(clap::Args)]
pub(super) struct Sql {
    #[command(flatten)]
    which: Which,
    /// n1, n2, … or primary
    node: Target,
    /// Name of the database in the mount
    #[arg(value_name = "DB")]
    database: String,
    sql: String,
    /// How long to wait for locks of others
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    busy_timeout: Duration,
    /// Print the names of the columns first
    #[arg(long)]
    header: bool,
    /// Print an array of objects
    #[arg(long)]
    json: bool,
}

impl Sql {
    pub(super) fn run(self) -> Result<()> {
        let cluster = self.which.open()?;
        let result =
            cluster
                .at(self.node.find(&cluster)?)
                .sql_within(&self.database, &self.sql, self.busy_timeout)?;
        if self.json {
            let object = |row: &Vec<Value>| -> Map<String, Value> {
                result.columns.iter().cloned().zip(row.iter().cloned()).collect()
            };
            return print_json(&result.rows.iter().map(object).collect::<Vec<_>>());
        }
        if self.header {
            println!("{}", result.columns.join("|"));
        }
        for row in &result.rows {
            println!("{}", row.iter().map(Rows::text).collect::<Vec<_>>().join("|"));
        }
        Ok(())
    }
}

/// Run a program on a node: in its namespaces, in its mount
#[derive(clap::Args)]
pub(super) struct Exec {
    #[command(flatten)]
    which: Which,
    /// n1, n2, … or primary
    node: Target,
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<std::ffi::OsString>,
}

impl Exec {
    pub(super) fn run(self) -> Result<()> {
        let cluster = self.which.open()?;
        let (program, arguments) = self.command.split_first().context("no command")?;
        let error = cluster
            .at(self.node.find(&cluster)?)
            .exec(program)?
            .args(arguments)
            .exec();
        Err(error).with_context(|| format!("running {}", program.to_string_lossy()))
    }
}

/// Serve leases like Consul, without a cluster
#[derive(clap::Args)]
pub(super) struct LeaseServer {
    #[arg(long, default_value = "127.0.0.1:8500")]
    listen: SocketAddr,
    /// Keep keys and sessions in this file
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
}

impl LeaseServer {
    pub(super) fn run(self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let server = Server::start(self.listen, self.state).await?;
            tracing::info!(address = %server.address(), "serving leases");
            let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            tokio::select! {
                () = server.run() => {}
                _ = terminate.recv() => {}
                interrupt = tokio::signal::ctrl_c() => interrupt?,
            }
            Ok(())
        })
    }
}

#[derive(clap::Args)]
pub(super) struct Supervise {
    directory: PathBuf,
    /// End with this process, unless told to outlive it
    #[arg(long)]
    owner: Option<i32>,
    /// Leave the files then
    #[arg(long)]
    leave_files: bool,
}

impl Supervise {
    pub(super) fn run(self) -> Result<()> {
        let owner = self.owner.map(|pid| Owner {
            pid,
            leaves_files: self.leave_files,
        });
        Ok(litefs_dev::supervise(&self.directory, owner)?)
    }
}

#[derive(clap::Args)]
pub(super) struct RunSql {
    database: PathBuf,
    busy_timeout_ms: u64,
    /// Where names of databases that are attached begin
    #[arg(long)]
    directory: Option<PathBuf>,
}

impl RunSql {
    pub(super) fn run(self) -> Result<()> {
        let busy_timeout = Duration::from_millis(self.busy_timeout_ms);
        enter(self.directory)?;
        Ok(inside::child(|input| {
            sql::run(&self.database, busy_timeout, input)
        })?)
    }
}

#[derive(clap::Args)]
pub(super) struct ReadContent {
    database: PathBuf,
    busy_timeout_ms: u64,
    #[arg(long)]
    directory: Option<PathBuf>,
}

impl ReadContent {
    pub(super) fn run(self) -> Result<()> {
        let busy_timeout = Duration::from_millis(self.busy_timeout_ms);
        enter(self.directory)?;
        Ok(inside::child(|_| content::read(&self.database, busy_timeout))?)
    }
}

fn enter(directory: Option<PathBuf>) -> Result<()> {
    let Some(directory) = directory else {
        return Ok(());
    };
    std::env::set_current_dir(&directory).with_context(|| format!("entering {}", directory.display()))
}
