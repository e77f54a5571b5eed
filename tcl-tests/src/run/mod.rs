//! A run: files are taken from a queue by slots, each with a mount of its own, natively and on the mount one
//! after the other, so that both see the same load. What does not equal native is run once more alone.
//! To compare the time of whole runs, all files run natively before the first one runs on the mount ([`Native::Before`]).

mod progress;
mod result;
mod slot;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;

pub use progress::Progress;
pub use result::{Databases, FileResult, FileSummary, RunResult, Side, Summary, Walls};

use crate::baseline::Baseline;
use crate::execution::{Bench, FileRun};
use crate::expectations::Expectations;
use crate::interrupt;
use crate::mount::{Mount, Spec};
use slot::Slot;

/// Where a file runs below the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// Each in a directory of its own; the mount serves many files.
    Directory,
    /// In the root of a fresh mount, as LiteFS's own runner did.
    Root,
}

/// Where native results come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Native {
    /// Each file runs natively too.
    Beside,
    /// From the cache where there is a result.
    Cached,
    /// All files run natively first, then all on the mount: only so the wall time of both can be compared.
    Before,
}

/// Everything that decides a run.
#[derive(Debug)]
pub struct Plan {
    pub bench: Bench,
    pub spec: Spec,
    pub files: Vec<String>,
    pub jobs: usize,
    pub layout: Layout,
    pub native: Native,
    pub baseline: Baseline,
    /// Check databases against the replica and the log after each file.
    pub replica: bool,
    /// Longest time of one file on the mount and natively; see [`Plan::mount_limit`].
    pub limit: Duration,
    /// Scratch space: native directories, mount points, data directories.
    pub work: PathBuf,
    /// Logs of the files that did not equal native.
    pub logs: PathBuf,
    pub expectations: Expectations,
}

type Queue = Mutex<VecDeque<String>>;

fn take(queue: &Queue) -> Option<String> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

/// When more files than this differ, something is broken as a whole and running them again tells nothing.
const WORTH_ANOTHER_TRY: usize = 40;

impl Plan {
    /// Runs all files. `Err` is a failure of the runner, not of a test.
    pub fn run(&self) -> Result<RunResult> {
        for directory in [&self.work, &self.logs] {
            std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        }
        self.try_mount()?;
        let start = Instant::now();
        let weights: BTreeMap<String, f64> = self
            .files
            .iter()
            .map(|file| (file.clone(), self.expected_seconds(file)))
            .collect();
        let mut files: Vec<String> = weights.keys().cloned().collect();
        // Longest first, so that no slot sits on a long file when the others have nothing left.
        files.sort_by(|a, b| weights[b].total_cmp(&weights[a]));
        let mut progress = Progress::new(weights);
        let natives = match self.native {
            Native::Beside | Native::Cached => BTreeMap::new(),
            Native::Before => self.run_natively(&files, &progress)?,
        };
        let native_wall = start.elapsed();
        let (mut results, mut findings) = self.run_all(files, &natives, &mut progress)?;
        let walls = (self.native == Native::Before).then(|| Walls {
            native_seconds: native_wall.as_secs_f64(),
            mount_seconds: (start.elapsed() - native_wall).as_secs_f64(),
        });
        findings.extend(self.run_again(&mut results, &mut progress)?);
        progress.finish();
        results.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(RunResult {
            results,
            findings,
            wall: start.elapsed(),
            walls,
            interrupted: interrupt::requested(),
        })
    }

    /// A machine on which nothing can be mounted is told at once, not file by file.
    fn try_mount(&self) -> Result<()> {
        let trial = Mount::start(&self.spec, &self.work.join("trial"))
            .context("nothing can be mounted (in Docker: --device /dev/fuse --cap-add SYS_ADMIN)")?;
        trial
            .stop()
            .map_err(anyhow::Error::msg)
            .context("the mount cannot be ended")
    }

    fn expected_seconds(&self, file: &str) -> f64 {
        self.baseline.seconds(file).unwrap_or(0.2)
    }

    /// On a loaded machine a mount may be slower by a factor, not by any amount.
    pub fn mount_limit(&self, native_seconds: f64) -> Duration {
        self.limit.max(Duration::from_secs_f64(native_seconds * 15.0))
    }

    /// All files in plain directories, as many at a time as on the mount.
    fn run_natively(&self, files: &[String], progress: &Progress) -> Result<BTreeMap<String, FileRun>> {
        progress.note(&format!("running {} files natively first", files.len()));
        let queue = Mutex::new(files.iter().cloned().collect::<VecDeque<_>>());
        std::thread::scope(|scope| {
            let slots: Vec<_> = (0..self.jobs(files))
                .map(|number| {
                    let queue = &queue;
                    scope.spawn(move || self.serve_natively(number, queue))
                })
                .collect();
            let mut natives = BTreeMap::new();
            for slot in slots {
                natives.extend(slot.join().expect("a slot does not panic")?);
            }
            Ok(natives)
        })
    }

    fn serve_natively(&self, number: usize, queue: &Queue) -> Result<Vec<(String, FileRun)>> {
        let slot = Slot::new(self, number)?;
        let mut runs = Vec::new();
        while !interrupt::requested() {
            let Some(file) = take(queue) else { break };
            let run = slot.native(&file)?;
            runs.push((file, run));
        }
        Ok(runs)
    }

    fn jobs(&self, files: &[String]) -> usize {
        self.jobs.clamp(1, files.len().max(1))
    }

    fn run_all(
        &self,
        files: Vec<String>,
        natives: &BTreeMap<String, FileRun>,
        progress: &mut Progress,
    ) -> Result<(Vec<FileResult>, Vec<String>)> {
        let jobs = self.jobs(&files);
        let queue = Mutex::new(VecDeque::from(files));
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            let slots: Vec<_> = (0..jobs)
                .map(|number| {
                    let (queue, sender) = (&queue, sender.clone());
                    scope.spawn(move || self.serve_queue(number, queue, natives, &sender))
                })
                .collect();
            drop(sender);
            let mut results = Vec::new();
            for result in receiver {
                progress.done(&result);
                results.push(result);
            }
            let mut findings = Vec::new();
            for slot in slots {
                findings.extend(slot.join().expect("a slot does not panic")?);
            }
            Ok((results, findings))
        })
    }

    fn serve_queue(
        &self,
        number: usize,
        queue: &Queue,
        natives: &BTreeMap<String, FileRun>,
        results: &mpsc::Sender<FileResult>,
    ) -> Result<Vec<String>> {
        let mut slot = Slot::new(self, number)?;
        while !interrupt::requested() {
            let Some(file) = take(queue) else { break };
            let known = match self.native {
                Native::Beside => None,
                Native::Cached => self.baseline.load(&file),
                Native::Before => natives.get(&file).cloned(),
            };
            let result = slot.run(&file, known)?;
            // A file that was cut off by the interrupt has no result.
            if interrupt::requested() || results.send(result).is_err() {
                break;
            }
        }
        Ok(slot.finish())
    }

    /// Runs what does not equal native once more, alone: some files depend on timing.
    fn run_again(&self, results: &mut [FileResult], progress: &mut Progress) -> Result<Vec<String>> {
        let different: Vec<usize> = (0..results.len())
            .filter(|index| results[*index].worth_another_try())
            .collect();
        if different.is_empty() || different.len() > WORTH_ANOTHER_TRY || interrupt::requested() {
            return Ok(Vec::new());
        }
        progress.note(&format!("running {} files again, alone", different.len()));
        let mut slot = Slot::new(self, 0)?;
        for index in different {
            if interrupt::requested() {
                break;
            }
            let again = slot.run(&results[index].file, None)?;
            if !interrupt::requested() {
                results[index].again(again);
                progress.again(&results[index]);
            }
        }
        Ok(slot.finish())
    }
}
