//! `up`: makes a cluster, or brings a stopped one back.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use litefs_dev::binary::Wanted;
use litefs_dev::directory::{self, ClusterDirectory};
use litefs_dev::{Cluster, ClusterOptions, Durability, Keep, LeaseKind, Passthrough};

use super::{look, print_json};

const NAME: &str = "dev";
const NODES: usize = 3;

/// Start a cluster of N nodes, or bring a stopped one back with its data
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
    /// Whether the kernel serves -wal and -shm without asking the daemon
    #[arg(long, value_enum, default_value = "auto")]
    passthrough: Passthrough,
    /// What COMMIT waits for
    #[arg(long, value_enum, default_value = "follow")]
    durability: Durability,
    /// How long a lease lives without being renewed
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// How long nobody gets the lease after its holder was lost
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    lock_delay: Duration,
    /// The litefs binary [default: built from the workspace, else beside this program, else in the PATH]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Build litefs with the release profile
    #[arg(long)]
    release: bool,
    /// Let the daemons log details
    #[arg(long)]
    debug: bool,
    /// Where the chance of the wires comes from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long to wait until the cluster is of use
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print the status as JSON
    #[arg(long)]
    json: bool,
}

impl Up {
    pub(super) fn run(self) -> Result<()> {
        let directory = ClusterDirectory::of(&directory::root()?, &self.name)?;
        let before = if directory.exists() {
            directory.spec()?.nodes
        } else {
            NODES
        };
        let litefs = Wanted {
            binary: self.binary,
            release: self.release,
        };
        let cluster = Cluster::up(ClusterOptions {
            name: self.name,
            nodes: self.nodes.unwrap_or(before),
            keep: Keep::Yes,
            litefs,
            lease: if self.consul {
                LeaseKind::Consul
            } else {
                LeaseKind::Embedded
            },
            passthrough: self.passthrough,
            durability: self.durability,
            ttl: self.ttl,
            lock_delay: self.lock_delay,
            debug_log: self.debug,
            seed: self.seed,
            root: None,
        })?;
        let start = Instant::now();
        let ready = cluster.wait_until_ready(self.timeout);
        let status = cluster.status()?;
        if self.json {
            print_json(&status)?;
        } else {
            look::print_status(&status);
            look::print_invitation(&status);
        }
        ready?;
        if !self.json {
            println!("\nReady after {:.1} s.", start.elapsed().as_secs_f64());
        }
        Ok(())
    }
}
