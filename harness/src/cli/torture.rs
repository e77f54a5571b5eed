//! `torture`, and the hidden command of its clients.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use litefs_dev::binary::Wanted;
use litefs_dev::torture::fault::FaultKind;
use litefs_dev::torture::profile::JournalMode;
use litefs_dev::torture::{self, TortureOptions, client};
use litefs_dev::{Durability, Passthrough};
use tokio::signal::unix::{SignalKind, signal};

use super::print_json;

/// Let faults happen to daemons whose clients keep their connections, and judge what became of what they were promised
///
/// Prints the seed, each fault with its time, and a JSON summary at the end. Fails when an oracle is hurt, and then keeps the directory. Interrupted,
/// it judges what has happened so far.
#[derive(clap::Args)]
pub(super) struct Torture {
    /// Where the course comes from [default: by chance]
    #[arg(long)]
    seed: Option<u64>,
    /// How many faults
    #[arg(long, default_value_t = 100)]
    faults: usize,
    /// Only these kinds, separated by commas [default: all that this litefs knows]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND")]
    kinds: Vec<FaultKind>,
    /// 1 for a single node with a static lease
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    #[arg(long, value_enum, default_value = "auto")]
    passthrough: Passthrough,
    #[arg(long, value_enum, default_value = "follow")]
    durability: Durability,
    /// Only clients of this journal mode (and two that measure)
    #[arg(long, value_enum)]
    journal: Option<JournalMode>,
    /// Judge after each fault, and end with the first that hurt an oracle
    #[arg(long)]
    stop_at_first: bool,
    /// The litefs binary [default: $LITEFS_BINARY, else built from the workspace with the profile of this program, else beside this program, else in the PATH]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Build litefs with the release profile, also where this program was built with the debug one
    #[arg(long)]
    release: bool,
    /// Where the run keeps its files [default: a new directory for temporary files]
    #[arg(long, value_name = "PATH")]
    directory: Option<PathBuf>,
    /// Keep the directory of a run that went well too
    #[arg(long)]
    keep: bool,
}

impl Torture {
    pub(super) fn run(self) -> Result<()> {
        let interrupted = watch_interrupt()?;
        let keep = self.keep;
        let options = self.options()?;
        println!(
            "seed {}, directory {}, {}",
            options.seed,
            options.directory.display(),
            options.binary.display()
        );
        let done = torture::run(&options, &interrupted, &mut |line| println!("{line}"));
        let cleaned = torture::clean_up(&options.directory);
        let summary = done.with_context(|| format!("the run is kept in {}", options.directory.display()))?;
        summary.gates().iter().for_each(|gate| println!("{gate}"));
        print_json(&summary)?;
        cleaned?;
        if !summary.is_clean() {
            let problems = summary.problems.join("\n  ");
            bail!(
                "seed {}:\n  {problems}\nkept in {}",
                options.seed,
                options.directory.display()
            );
        }
        if !keep {
            torture::remove(&options.directory)?;
        }
        Ok(())
    }

    fn options(self) -> Result<TortureOptions> {
        let litefs = Wanted {
            binary: self.binary,
            release: self.release,
        };
        let directory = match self.directory {
            Some(directory) => directory,
            None => tempfile::Builder::new().prefix("torture-").tempdir()?.keep(),
        };
        Ok(TortureOptions {
            binary: litefs.find()?,
            seed: self.seed.unwrap_or_else(rand::random),
            faults: self.faults,
            kinds: self.kinds,
            nodes: usize::from(self.nodes),
            passthrough: self.passthrough,
            durability: self.durability,
            journal: self.journal,
            stop_at_first: self.stop_at_first,
            directory,
        })
    }
}

/// True once somebody has typed Ctrl-C. Nothing that waits ends by it: what has happened is yet to be judged.
fn watch_interrupt() -> Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut typed = runtime.block_on(async { signal(SignalKind::interrupt()) })?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let noted = interrupted.clone();
    std::thread::spawn(move || {
        runtime.block_on(typed.recv());
        noted.store(true, Ordering::SeqCst);
    });
    Ok(interrupted)
}

#[derive(clap::Args)]
pub(super) struct TortureClient {
    orders: String,
}

impl TortureClient {
    pub(super) fn run(self) -> Result<()> {
        Ok(client::run(serde_json::from_str(&self.orders)?)?)
    }
}
