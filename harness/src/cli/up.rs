//! `up`: makes a cluster, or brings a stopped one back.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use litefs_dev::binary::Wanted;
use litefs_dev::directory::{self, ClusterDirectory};
use litefs_dev::{Cluster, ClusterOptions, Durability, Error, Keep, LeaseKind, Passthrough};
use terminal::interrupt;

use super::{look, print_json};

const NAME: &str = "dev";

/// Start a cluster of N nodes, or bring a stopped one back with its data and as it was, but for the options given
#[derive(clap::Args)]
pub(super) struct Up {
    /// How many nodes [default: as before, or 3]
    #[arg(value_name = "N")]
    nodes: Option<usize>,
    /// Name of the cluster
    #[arg(long, env = "LITEFS_DEV_CLUSTER", default_value = NAME)]
    name: String,
    /// Run a real `consul agent -dev` instead of the embedded lease server
    #[arg(long)]
    consul: bool,
    /// Back to the embedded lease server
    #[arg(long, conflicts_with = "consul")]
    no_consul: bool,
    /// Whether the kernel serves -wal and -shm without asking the daemon [default: auto]
    #[arg(long, value_enum)]
    passthrough: Option<Passthrough>,
    /// What COMMIT waits for [default: follow]
    #[arg(long, value_enum)]
    durability: Option<Durability>,
    /// How long a lease lives without being renewed [default: 10s]
    #[arg(long, value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// How long nobody gets the lease after its holder was lost [default: 1s]
    #[arg(long, value_parser = humantime::parse_duration)]
    lock_delay: Option<Duration>,
    /// The litefs binary [default: $LITEFS_BINARY, else built from the workspace with the profile of this program, else beside this program, else in the PATH]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Build litefs with the release profile, also where this program was built with the debug one
    #[arg(long)]
    release: bool,
    /// Let the daemons log details
    #[arg(long)]
    debug: bool,
    /// Where the chance of the wires comes from [default: 1]
    #[arg(long)]
    seed: Option<u64>,
    /// How long to wait until the cluster is of use
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print the status as JSON
    #[arg(long)]
    json: bool,
}

impl Up {
    pub(super) fn run(self) -> Result<()> {
        interrupt::watch()?;
        let json = self.json;
        let timeout = self.timeout;
        let cluster = Cluster::up(self.options()?)?;
        if let Err(error) = cluster.wait_until_ready(timeout) {
            return Err(give_up(&cluster, error)?.into());
        }
        let status = cluster.status()?;
        if json {
            return print_json(&status);
        }
        look::print_status(&status);
        look::print_invitation(&status);
        println!("\nReady after {:.1} s.", cluster.since().elapsed().as_secs_f64());
        Ok(())
    }

    fn options(self) -> Result<ClusterOptions> {
        let directory = ClusterDirectory::of(&directory::root()?, &self.name)?;
        let before = match directory.exists() {
            true => ClusterOptions::from(&directory.spec()?),
            false => ClusterOptions::default(),
        };
        let lease = match (self.consul, self.no_consul) {
            (true, _) => LeaseKind::Consul,
            (_, true) => LeaseKind::Embedded,
            (false, false) => before.lease,
        };
        Ok(ClusterOptions {
            name: self.name,
            nodes: self.nodes.unwrap_or(before.nodes),
            keep: Keep::Yes,
            litefs: Wanted {
                binary: self.binary,
                release: self.release,
            },
            lease,
            passthrough: self.passthrough.unwrap_or(before.passthrough),
            durability: self.durability.unwrap_or(before.durability),
            ttl: self.ttl.unwrap_or(before.ttl),
            lock_delay: self.lock_delay.unwrap_or(before.lock_delay),
            debug_log: self.debug || before.debug_log,
            seed: self.seed.unwrap_or(before.seed),
            root: None,
        })
    }
}

/// Ends a cluster that is not of use. One that was interrupted is as before; one that failed has logs to be read.
fn give_up(cluster: &Cluster, error: Error) -> Result<Error> {
    let (dev, name) = (terminal::typed("litefs-dev"), cluster.name());
    if matches!(error, Error::Interrupted) {
        cluster.undo()?;
        return Ok(error);
    }
    cluster.down()?;
    Ok(Error::Refused {
        message: format!("cluster {name} is not of use and was stopped: {error}"),
        hint: format!(
            "{dev} logs --name {name} n1 (or n2, ..., lease, supervisor) tells more; {dev} up --name {name} tries again, \
             {dev} destroy --name {name} removes it"
        ),
    })
}
