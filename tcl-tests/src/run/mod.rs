//! A run: files are taken from a queue by slots, each with a mount of its own, natively and on the mount one
//! after the other, so that both see the same load. What does not equal native is run once more alone, which tells what kind of difference
//! it is and never takes it back.
//! To compare the time of whole runs, all files run natively before the first one runs on the mount ([`Native::Before`]).

mod progress;
mod result;
mod slot;

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use terminal::{explain, interrupt};

pub use progress::Progress;
pub use result::{Databases, FileResult, FileSummary, Reloaded, RunResult, Side, Summary, Walls};

use crate::baseline::Baseline;
use crate::execution::{Bench, FileRun};
use crate::expectations::Expectations;
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

impl Layout {
    pub fn name(self) -> &'static str {
        match self {
            Layout::Directory => "directory",
            Layout::Root => "root",
        }
    }
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

impl Native {
    pub fn name(self) -> &'static str {
        match self {
            Native::Beside => "beside",
            Native::Cached => "cached",
            Native::Before => "before",
        }
    }
}

/// Everything that decides a run.
#[derive(Debug)]
pub struct Plan {
    pub bench: Bench,
    pub spec: Spec,
    /// Version of what is mounted, from before the run: a new build may take its place meanwhile.
    pub daemon: String,
    /// How the kernel edge of the mount works: what `auto` came to.
    pub mode: String,
    pub files: Vec<String>,
    pub jobs: NonZeroUsize,
    pub layout: Layout,
    pub native: Native,
    pub baseline: Baseline,
    /// Check databases against the replica and the log after each file.
    pub replica: bool,
    /// Longest time of one file on the mount and natively; see [`Plan::mount_limit`].
    pub limit: Duration,
    /// Scratch space: native directories, mount points, data directories.
    pub work: PathBuf,
    /// Keep the data of mounts that ended.
    pub keep: bool,
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
    /// Runs all files. `Err` is a failure of the runner before any result.
    pub fn run(&self) -> Result<RunResult> {
        self.clear_logs()?;
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
        let mut run = self.run_all(files, &natives, &mut progress);
        let walls = (self.native == Native::Before).then(|| Walls {
            native_seconds: native_wall.as_secs_f64(),
            mount_seconds: (start.elapsed() - native_wall).as_secs_f64(),
        });
        let again = self.run_again(&mut run.results, &mut progress);
        run.add(again);
        progress.finish();
        run.results.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(RunResult {
            results: run.results,
            findings: run.findings,
            errors: run.errors,
            wall: start.elapsed(),
            walls,
            reloads: self.spec.reloads().map(Reloaded::of),
            interrupted: interrupt::requested(),
        })
    }

    /// What an earlier run left there would be taken for this one's.
    fn clear_logs(&self) -> Result<()> {
        let told = || format!("clear {}", self.logs.display());
        std::fs::create_dir_all(&self.logs).with_context(told)?;
        for entry in std::fs::read_dir(&self.logs).with_context(told)? {
            let path = entry.with_context(told)?.path();
            if path.extension().is_some_and(|ending| ending == "log") {
                std::fs::remove_file(&path).with_context(told)?;
            }
        }
        Ok(())
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
        self.jobs.get().min(files.len()).max(1)
    }

    /// An error of one slot ends that slot only: the results of hours are not lost with it.
    fn run_all(
        &self,
        files: Vec<String>,
        natives: &BTreeMap<String, FileRun>,
        progress: &mut Progress,
    ) -> Part {
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
            let mut run = Part::default();
            for result in receiver {
                progress.done(&result);
                run.results.push(result);
            }
            for slot in slots {
                run.add(slot.join().expect("a slot does not panic"));
            }
            run
        })
    }

    fn serve_queue(
        &self,
        number: usize,
        queue: &Queue,
        natives: &BTreeMap<String, FileRun>,
        results: &mpsc::Sender<FileResult>,
    ) -> Part {
        let slot = Slot::new(self, number);
        self.serve(slot, |slot| {
            while !interrupt::requested() {
                let Some(file) = take(queue) else { break };
                let known = match self.native {
                    Native::Beside => None,
                    Native::Cached => self.baseline.load(&file),
                    Native::Before => natives.get(&file).cloned(),
                };
                let result = slot.run(&file, known).with_context(|| file)?;
                // A file that was cut off by the interrupt has no result.
                if interrupt::requested() || results.send(result).is_err() {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Does work in a slot, and ends the slot however that went.
    fn serve(&self, slot: Result<Slot<'_>>, work: impl FnOnce(&mut Slot<'_>) -> Result<()>) -> Part {
        let mut part = Part::default();
        let served = slot.and_then(|mut slot| {
            let served = work(&mut slot);
            part.findings = slot.finish();
            served
        });
        part.errors.extend(served.err().as_ref().map(explain));
        part
    }

    /// Runs what does not equal native once more, alone: some files depend on timing, some draw lots.
    fn run_again(&self, results: &mut [FileResult], progress: &mut Progress) -> Part {
        let different: Vec<&mut FileResult> = results
            .iter_mut()
            .filter(|result| result.worth_another_try(&self.expectations))
            .collect();
        if different.is_empty() || different.len() > WORTH_ANOTHER_TRY || interrupt::requested() {
            return Part::default();
        }
        progress.note(&format!("running {} files again, alone", different.len()));
        self.serve(Slot::again(self), |slot| {
            for result in different {
                if interrupt::requested() {
                    break;
                }
                self.try_again(slot, result)
                    .with_context(|| result.file.clone())?;
                progress.again(result);
            }
            Ok(())
        })
    }

    fn try_again(&self, slot: &mut Slot<'_>, result: &mut FileResult) -> Result<()> {
        if self.native == Native::Cached {
            let native = slot.native(&result.file)?;
            if !interrupt::requested() {
                result.compare_with(native);
            }
            if !result.worth_another_try(&self.expectations) {
                return Ok(());
            }
        }
        let mut tries = Vec::new();
        loop {
            let again = slot.run(&result.file, None)?;
            if interrupt::requested() {
                return Ok(());
            }
            tries.push(again);
            if !result.again(&tries) {
                return Ok(());
            }
        }
    }
}

/// What one or several slots brought.
#[derive(Default)]
struct Part {
    results: Vec<FileResult>,
    findings: Vec<String>,
    errors: Vec<String>,
}

impl Part {
    fn add(&mut self, other: Part) {
        self.results.extend(other.results);
        self.findings.extend(other.findings);
        self.errors.extend(other.errors);
    }
}

/// A machine on which nothing can be mounted is told at once, not file by file. Returns the mode of the mount.
pub fn try_mount(spec: &Spec, work: &Path) -> Result<Option<String>> {
    let trial = Mount::start(spec, &work.join("trial"))
        .context("nothing can be mounted (in Docker: --device /dev/fuse --cap-add SYS_ADMIN)")?;
    let mode = trial.mode()?;
    trial
        .stop()
        .map_err(anyhow::Error::msg)
        .context("the mount cannot be ended")?;
    Ok(mode)
}
