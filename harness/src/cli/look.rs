//! Commands that look at a cluster and change nothing: `status`, `ls`, `logs`, `wait`, `verify`.

use std::io::{Read, Seek, SeekFrom, Write};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use litefs_dev::binary::in_path;
use litefs_dev::directory::{self, ClusterDirectory};
use litefs_dev::{ClusterStatus, Condition, NodeRole, ProcessState, Station};
use serde_json::json;

use super::{Target, Which, print_json, table};

/// Show roles, positions, mounts, URLs and faults
#[derive(clap::Args)]
pub(super) struct Status {
    #[command(flatten)]
    which: Which,
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self) -> Result<()> {
        let status = self.which.open()?.status()?;
        if self.json {
            return print_json(&status);
        }
        print_status(&status);
        Ok(())
    }
}

pub(super) fn print_status(status: &ClusterStatus) {
    let rows: Vec<_> = status
        .nodes
        .iter()
        .map(|node| {
            let databases = node.node.iter().flat_map(|said| &said.databases);
            let positions: Vec<_> = databases
                .map(|found| format!("{}@{:x}", found.name, found.txid.0))
                .collect();
            [
                node.name.to_string(),
                node.role.to_string(),
                process(&node.process),
                node.api.clone().unwrap_or_else(|| "-".into()),
                node.mount.display().to_string(),
                positions.join(" "),
            ]
        })
        .collect();
    println!(
        "cluster {}{}, {}",
        status.name,
        if status.running { "" } else { " (not running)" },
        status.binary.display()
    );
    table::print(["NODE", "ROLE", "PROCESS", "API", "MOUNT", "POSITIONS"], &rows);
    if let Some(lease) = &status.lease {
        println!("lease  {}  {}", process(&lease.process), lease.api);
    }
    for node in &status.nodes {
        if let Some(error) = &node.error {
            println!("{}: {error}", node.name);
        }
    }
    for link in &status.links {
        let (setting, traffic) = (&link.setting, &link.traffic);
        let cut = if setting.cut { "cut, " } else { "" };
        let (from, to) = (link.direction.from, link.direction.to);
        println!(
            "{from} -> {to}: {cut}{} ({} forwarded, {} dropped)",
            setting.policy, traffic.forwarded, traffic.dropped
        );
    }
    if status.user_namespace {
        println!(
            "The mounts are visible only inside the cluster's namespaces: use {dev} exec and {dev} sql.",
            dev = terminal::typed("litefs-dev")
        );
    }
}

fn process(state: &ProcessState) -> String {
    match state {
        ProcessState::Running { pid } => format!("pid {pid}"),
        ProcessState::Paused { pid } => format!("pid {pid}, paused"),
        ProcessState::Stopped { exit: Some(exit) } => format!("stopped ({exit})"),
        ProcessState::Stopped { exit: None } => "stopped".into(),
    }
}

/// What to do next, ready to be pasted.
pub(super) fn print_invitation(status: &ClusterStatus) {
    println!();
    for node in &status.nodes {
        println!("{} log  {}", node.name, node.log.display());
    }
    println!();
    let (dev, name) = (terminal::typed("litefs-dev"), &status.name);
    let has_shell = in_path("sqlite3").is_some();
    for node in &status.nodes {
        match (has_shell, status.user_namespace) {
            (true, false) => println!("sqlite3 {}", node.mount.join("app.db").display()),
            (true, true) => println!("{dev} exec --name {name} {} -- sqlite3 app.db", node.name),
            (false, _) => println!("{dev} sql --name {name} {} app.db 'SELECT 1'", node.name),
        }
    }
}

/// List the clusters of this user
#[derive(clap::Args)]
pub(super) struct List {
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) fn run(self) -> Result<()> {
        let root = directory::root()?;
        let mut found = Vec::new();
        for directory in ClusterDirectory::all(&root)? {
            found.push((
                directory.name(),
                directory.is_running()?,
                directory.spec()?.nodes,
                directory,
            ));
        }
        if self.json {
            let describe = |(name, running, nodes, directory): &(String, bool, usize, ClusterDirectory)| json!({"name": name, "running": running, "nodes": nodes, "directory": directory.path()});
            return print_json(&found.iter().map(describe).collect::<Vec<_>>());
        }
        let rows: Vec<_> = found
            .into_iter()
            .map(|(name, running, nodes, directory)| {
                let state = if running { "running" } else { "down" };
                [
                    name,
                    state.into(),
                    nodes.to_string(),
                    directory.path().display().to_string(),
                ]
            })
            .collect();
        table::print(["NAME", "STATE", "NODES", "DIRECTORY"], &rows);
        Ok(())
    }
}

/// Print the log of a node, of the lease server, or of the supervisor
#[derive(clap::Args)]
pub(super) struct Logs {
    #[command(flatten)]
    which: Which,
    /// n1, n2, …, primary, lease or supervisor
    node: String,
    /// Go on printing what is added
    #[arg(short, long)]
    follow: bool,
}

impl Logs {
    pub(super) fn run(self) -> Result<()> {
        let cluster = self.which.open()?;
        let path = match self.node.as_str() {
            "supervisor" => cluster.directory().supervisor_log(),
            station => cluster.at(station.parse::<Target>()?.find(&cluster)?).log(),
        };
        let mut file = std::fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let mut output = std::io::stdout().lock();
        let mut at = 0;
        loop {
            // A log that became shorter was begun anew.
            if file.metadata()?.len() < at {
                at = 0;
            }
            file.seek(SeekFrom::Start(at))?;
            let mut added = Vec::new();
            at += u64::try_from(file.read_to_end(&mut added)?)?;
            match output.write_all(&added).and_then(|()| output.flush()) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
            if !self.follow {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Wait until something is the case; without an option, until one primary is followed by all running nodes
#[derive(clap::Args)]
pub(super) struct Wait {
    #[command(flatten)]
    which: Which,
    /// The node; without it some node (--role) or all live nodes (--position, --caught-up). Alone: it is the primary or follows it
    node: Option<Station>,
    /// A role is held: primary, replica or down; or by a node: n2=primary
    #[arg(long, value_name = "[NODE=]ROLE", group = "condition")]
    role: Option<String>,
    /// A transaction (hexadecimal, as the status shows it) is applied
    #[arg(long, value_name = "DB=TXID", group = "condition")]
    position: Option<String>,
    /// The primary's positions are reached
    #[arg(long, group = "condition")]
    caught_up: bool,
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

impl Wait {
    pub(super) fn run(self) -> Result<()> {
        let node = self.node;
        let condition = match (self.role, self.position, self.caught_up) {
            (Some(role), _, _) => role_condition(node, &role)?,
            (_, Some(position), _) => {
                let (database, txid) = position
                    .rsplit_once('=')
                    .context("a position is written DB=TXID")?;
                Condition::Position {
                    node,
                    database: database.into(),
                    txid: txid.parse()?,
                }
            }
            (_, _, true) => Condition::CaughtUp { node },
            (None, None, false) => match node {
                Some(node) => Condition::Joined { node },
                None => Condition::Settled,
            },
        };
        let waited = self.which.open()?.wait(&condition, self.timeout)?;
        println!("after {:.2} s: {condition}", waited.as_secs_f64());
        Ok(())
    }
}

fn role_condition(node: Option<Station>, text: &str) -> Result<Condition> {
    let (node, role) = match text.split_once('=') {
        Some((name, role)) => (Some(name.parse()?), role),
        None => (node, text),
    };
    let role = NodeRole::from_str(role, true)
        .map_err(|_| anyhow!("{role:?} is no role: primary, replica or down"))?;
    Ok(Condition::Role { node, role })
}

/// Compare all live nodes: positions, bytes (CRC-64/XZ of each export, and what clients of the mount read) and SQLite's integrity_check
#[derive(clap::Args)]
pub(super) struct Verify {
    #[command(flatten)]
    which: Which,
    /// How long the nodes may take to reach the same positions
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn run(self) -> Result<()> {
        let result = self.which.open()?.verify(self.timeout)?;
        if self.json {
            print_json(&result)?;
        } else {
            let rows: Vec<_> = result
                .databases
                .iter()
                .map(|found| {
                    [
                        found.name.clone(),
                        found.position.clone(),
                        found.bytes.to_string(),
                        found.digest.clone(),
                    ]
                })
                .collect();
            table::print(["DATABASE", "POSITION", "BYTES", "CRC-64/XZ"], &rows);
            result
                .problems
                .iter()
                .for_each(|problem| println!("PROBLEM {problem}"));
        }
        if !result.is_clean() {
            bail!("the nodes differ: {} problems", result.problems.len());
        }
        if !self.json {
            let nodes: Vec<_> = result.nodes.iter().map(Station::to_string).collect();
            println!("clean: {} hold the same", nodes.join(", "));
        }
        Ok(())
    }
}
