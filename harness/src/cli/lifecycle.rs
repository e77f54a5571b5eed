//! Commands that start and end processes: of one node (or the lease server), or of the whole cluster.

use anyhow::Result;
use litefs_dev::Victims;

use super::{Target, Which};

macro_rules! one_station {
    ($(#[doc = $about:literal])* $name:ident, $call:ident, $done:literal) => {
        $(#[doc = $about])*
        #[derive(clap::Args)]
        pub(super) struct $name {
            #[command(flatten)]
            which: Which,
            /// n1, n2, …, primary or lease
            #[arg(required = true, value_name = "NODE")]
            nodes: Vec<Target>,
        }

        impl $name {
            pub(super) fn run(self) -> Result<()> {
                let cluster = self.which.open()?;
                for target in self.nodes {
                    let node = target.find(&cluster)?;
                    cluster.at(node).$call()?;
                    println!("{node} {}", $done);
                }
                Ok(())
            }
        }
    };
}

one_station! {
    /// Start a stopped node with the data it has
    Start, start, "started"
}
one_station! {
    /// Stop a node cleanly (SIGTERM) and wait for its end
    Stop, stop, "stopped"
}
one_station! {
    /// Let a fresh daemon take over without a gap (SIGHUP), with the configuration as it is now
    Reload, reload, "reloads"
}
one_station! {
    /// Freeze a node and its helpers (SIGSTOP), as when a virtual machine is suspended
    Pause, pause, "paused"
}
one_station! {
    /// Let a paused node go on (SIGCONT)
    Resume, resume, "resumed"
}

/// Kill a node (SIGKILL): its helpers and mount are left as a crash leaves them
#[derive(clap::Args)]
pub(super) struct Kill {
    #[command(flatten)]
    which: Which,
    /// n1, n2, …, primary or lease
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<Target>,
    /// Only the daemon, which the process that was started starts again
    #[arg(long, conflicts_with = "all")]
    daemon: bool,
    /// Everything of the node: companions too, which hold its mount and its locks
    #[arg(long)]
    all: bool,
}

impl Kill {
    pub(super) fn run(self) -> Result<()> {
        let victims = match (self.daemon, self.all) {
            (true, _) => Victims::Daemon,
            (false, true) => Victims::All,
            (false, false) => Victims::Node,
        };
        let cluster = self.which.open()?;
        for target in self.nodes {
            let node = target.find(&cluster)?;
            cluster.at(node).kill_of(victims)?;
            println!("{node} killed");
        }
        Ok(())
    }
}

/// Stop the whole cluster; its data stays
#[derive(clap::Args)]
pub(super) struct Down {
    #[command(flatten)]
    which: Which,
}

impl Down {
    pub(super) fn run(self) -> Result<()> {
        let cluster = self.which.open()?;
        cluster.down()?;
        println!(
            "cluster {name} is down; {dev} up --name {name} brings it back",
            name = cluster.name(),
            dev = terminal::typed("litefs-dev")
        );
        Ok(())
    }
}

/// Stop the whole cluster and remove its data
#[derive(clap::Args)]
pub(super) struct Destroy {
    #[command(flatten)]
    which: Which,
}

impl Destroy {
    pub(super) fn run(self) -> Result<()> {
        let cluster = self.which.open()?;
        cluster.destroy()?;
        println!("cluster {} is gone", cluster.name());
        Ok(())
    }
}
