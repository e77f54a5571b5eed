//! Commands that start and end processes: of one node (or the lease server), or of the whole cluster.

use anyhow::Result;

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
    /// Kill a node (SIGKILL): its helpers and mount are left as a crash leaves them
    Kill, kill, "killed"
}
one_station! {
    /// Freeze a node and its helpers (SIGSTOP), as when a virtual machine is suspended
    Pause, pause, "paused"
}
one_station! {
    /// Let a paused node go on (SIGCONT)
    Resume, resume, "resumed"
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
            "cluster {name} is down; litefs-dev up --name {name} brings it back",
            name = cluster.name()
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
