//! `litefs-bench`: the mount against a plain directory. Exit status 1 if a gate is missed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use litefs_dev::bench::{BenchOptions, lag, run, scale, table};
use litefs_dev::{Cluster, ClusterOptions};

/// Measures a LiteFS mount against a plain directory, interleaved, and prints medians and ratios.
#[derive(Parser)]
struct Args {
    /// What to measure.
    #[arg(value_enum, default_value = "ratios")]
    what: What,
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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Workloads against a plain directory.
    Ratios,
    /// CPU time per commit in a 1 GiB and in a 1 MiB database.
    CommitCost,
    /// Time to start on a 1 GiB database.
    Start,
    /// Replica lag at 200 commits per second in a cluster.
    Lag,
    /// All of these.
    All,
}

fn main() -> ExitCode {
    terminal::end_without_reader();
    match bench(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("litefs-bench: {}", terminal::explain(&error));
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
    let wants = |what| args.what == what || args.what == What::All;
    let tell = |what: &str| eprintln!("{what}");
    let mut passed = true;
    if wants(What::Ratios) {
        let figures = run(&options, tell)?;
        print!("{}", table(&figures));
        passed &= figures.iter().all(|figure| figure.passes());
    }
    if wants(What::CommitCost) {
        let comparison = scale::commit_cost(&options, tell)?;
        println!("{}", comparison.line());
        passed &= comparison.passes();
    }
    if wants(What::Start) {
        for comparison in scale::start_time(&options, tell)? {
            println!("{}", comparison.line());
            passed &= comparison.passes();
        }
    }
    if wants(What::Lag) {
        passed &= lag(&options)?;
    }
    Ok(passed)
}

fn lag(options: &BenchOptions) -> anyhow::Result<bool> {
    let mut cluster = ClusterOptions {
        nodes: 3,
        ..ClusterOptions::default()
    };
    cluster.litefs.binary = Some(options.binary.clone());
    let cluster = Cluster::up(cluster)?;
    cluster.wait_until_ready(Duration::from_secs(30))?;
    let lag = lag::measure(&cluster, 200, Duration::from_secs(10))?;
    let passes = lag.p99 < lag::GATE_MS;
    println!(
        "replica lag at 200 commits/s over {} commits: p50 {:.2} ms, p99 {:.2} ms, worst {:.2} ms (gate p99 <{} ms) {}",
        lag.commits,
        lag.p50,
        lag.p99,
        lag.worst,
        lag::GATE_MS,
        if passes { "ok" } else { "MISS" }
    );
    Ok(passes)
}
