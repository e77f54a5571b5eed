//! `litefs-bench`: the mount against a plain directory. Exit status 1 if a gate is missed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use litefs_dev::bench::{BenchOptions, run, table};

/// Measures a LiteFS mount against a plain directory, interleaved, and prints medians and ratios.
#[derive(Parser)]
struct Args {
    /// The daemon to measure.
    #[arg(long, default_value = "target/release/litefs")]
    binary: PathBuf,
    /// Directory for databases and mounts; a temporary one by default.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Seconds per run.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only workloads whose name contains this; can be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// K (passthrough), D (intercepted), or both.
    #[arg(long, default_value = "both")]
    mode: String,
}

fn main() -> ExitCode {
    match bench(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("litefs-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn bench(args: &Args) -> anyhow::Result<bool> {
    let modes = match args.mode.as_str() {
        "K" => vec!["on"],
        "D" => vec!["off"],
        "both" => vec!["on", "off"],
        other => anyhow::bail!("--mode is K, D or both, not {other:?}"),
    };
    let temporary = tempfile::tempdir()?;
    let options = BenchOptions {
        binary: std::path::absolute(&args.binary)?,
        dir: args.dir.clone().unwrap_or_else(|| temporary.path().to_owned()),
        duration: Duration::from_secs_f64(args.seconds),
        rounds: args.rounds,
        only: args.only.clone(),
        modes,
    };
    let figures = run(&options, |what| eprintln!("{what}"))?;
    print!("{}", table(&figures));
    Ok(figures.iter().all(|figure| figure.passes()))
}
