//! Benchmarks of a mount against a plain directory, in the same run: rounds are interleaved, and what counts are the
//! medians and the ratios round by round, because machines drift. Requests to the daemon per operation are exact.

pub mod lag;
pub mod scale;
pub mod workloads;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::solo::{Solo, SoloOptions};
use crate::{Error, Result};
use workloads::{Run, WORKLOADS, Workload};

/// What is run.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    pub binary: PathBuf,
    /// Where directories and mounts are made.
    pub dir: PathBuf,
    pub duration: Duration,
    pub rounds: usize,
    /// Only workloads whose name contains one of these; empty = all.
    pub only: Vec<String>,
    /// `on` (mode K), `off` (mode D).
    pub modes: Vec<&'static str>,
}

/// Figures of one workload on one mount.
#[derive(Debug, Clone)]
pub struct Figure {
    pub workload: &'static str,
    pub mode: &'static str,
    pub plain: f64,
    pub mount: f64,
    pub ratio: f64,
    /// Requests per operation.
    pub requests: f64,
    pub gate: Option<f64>,
}

impl Figure {
    /// Whether the gate is kept.
    pub fn passes(&self) -> bool {
        self.gate.is_none_or(|gate| self.ratio >= gate)
    }
}

/// Runs the benchmarks; `progress` is told of each run.
pub fn run(options: &BenchOptions, mut progress: impl FnMut(&str)) -> Result<Vec<Figure>> {
    let plain = options.dir.join("plain");
    std::fs::create_dir_all(&plain).map_err(Error::file("mkdir", &plain))?;
    let mut mounts = Vec::new();
    for mode in &options.modes {
        let dir = options.dir.join(format!("mode-{mode}"));
        let solo = SoloOptions {
            binary: options.binary.clone(),
            dir,
            passthrough: mode,
            durability: "follow",
        };
        mounts.push((*mode, Solo::start(solo)?));
    }
    let chosen: Vec<&Workload> = WORKLOADS
        .iter()
        .filter(|w| options.only.is_empty() || options.only.iter().any(|part| w.name.contains(part.as_str())))
        .collect();
    if chosen.iter().any(|workload| workload.reads()) {
        progress("preparing a database of 100 MB on each side");
        workloads::prepare(&plain).map_err(bench_error)?;
        for (_, solo) in &mounts {
            workloads::prepare(&solo.mount()).map_err(bench_error)?;
        }
    }
    let mut figures = Vec::new();
    for workload in chosen {
        figures.extend(run_workload(options, workload, &plain, &mounts, &mut progress)?);
    }
    Ok(figures)
}

fn run_workload(
    options: &BenchOptions,
    workload: &Workload,
    plain: &Path,
    mounts: &[(&'static str, Solo)],
    progress: &mut impl FnMut(&str),
) -> Result<Vec<Figure>> {
    let mut base: Vec<Run> = Vec::new();
    let mut runs: BTreeMap<&'static str, Vec<(Run, f64)>> = BTreeMap::new();
    for round in 0..options.rounds {
        progress(&format!("{} round {}", workload.name, round + 1));
        base.push(workload.run(plain, options.duration).map_err(bench_error)?);
        for (mode, solo) in mounts {
            let before = requests(solo)?;
            let run = workload
                .run(&solo.mount(), options.duration)
                .map_err(bench_error)?;
            let after = requests(solo)?;
            runs.entry(mode)
                .or_default()
                .push((run, (after - before) / run.operations as f64));
        }
    }
    let figures = runs.into_iter().map(|(mode, runs)| {
        let ratios = runs
            .iter()
            .zip(&base)
            .map(|((run, _), base)| run.per_second / base.per_second);
        Figure {
            workload: workload.name,
            mode: if mode == "on" { "K" } else { "D" },
            plain: median(base.iter().map(|run| run.per_second)),
            mount: median(runs.iter().map(|(run, _)| run.per_second)),
            ratio: median(ratios),
            requests: median(runs.iter().map(|(_, requests)| *requests)),
            gate: if mode == "on" {
                workload.gate.0
            } else {
                workload.gate.1
            },
        }
    });
    Ok(figures.collect())
}

/// All requests that the daemon has answered so far.
fn requests(solo: &Solo) -> Result<f64> {
    let metrics = solo.get("/metrics")?;
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("litefs_fuse_requests_total"));
    Ok(lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum())
}

/// The table for people.
pub fn table(figures: &[Figure]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<24}{:>5}{:>14}{:>14}{:>9}{:>8}{:>12}",
        "workload", "mode", "plain/s", "mount/s", "ratio", "gate", "requests/op"
    );
    for figure in figures {
        let gate = match figure.gate {
            Some(gate) if figure.passes() => format!("≥{gate} ok"),
            Some(gate) => format!("≥{gate} MISS"),
            None => String::new(),
        };
        let _ = writeln!(
            out,
            "{:<24}{:>5}{:>14.0}{:>14.0}{:>9.3}{:>10}{:>10.2}",
            figure.workload, figure.mode, figure.plain, figure.mount, figure.ratio, gate, figure.requests
        );
    }
    out
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn bench_error(error: rusqlite::Error) -> Error {
    Error::Invalid(format!("the workload failed: {error}"))
}
