//! Live progress: a bar with the time left on a terminal, lines in a log; failures as they happen in both.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::FileResult;
use crate::text::cut;
use crate::verdict::Status;
use crate::work::tell;

pub struct Progress {
    bar: Option<ProgressBar>,
    files: usize,
    done: usize,
    counts: BTreeMap<Status, usize>,
    different: usize,
    /// What each file was expected to take, in all, and of the files that are done: what the estimate is made from.
    weights: BTreeMap<String, f64>,
    expected: f64,
    passed: f64,
    start: Instant,
    last_line: Instant,
}

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// The bar counts expected milliseconds, so that its estimate knows long files from short ones.
fn units(seconds: f64) -> u64 {
    (seconds.max(0.001) * 1000.0) as u64
}

impl Progress {
    /// Expected seconds of each file; only their proportions matter.
    pub fn new(weights: BTreeMap<String, f64>) -> Progress {
        let expected = weights.values().sum();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(units(expected));
            let style =
                ProgressStyle::with_template("{wide_bar} {percent:>3} %  {msg}  {elapsed}, {eta} left");
            bar.set_style(style.expect("the template is valid"));
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        let now = Instant::now();
        Progress {
            bar,
            files: weights.len(),
            weights,
            done: 0,
            counts: BTreeMap::new(),
            different: 0,
            expected,
            passed: 0.0,
            start: now,
            last_line: now,
        }
    }

    pub fn done(&mut self, result: &FileResult) {
        self.done += 1;
        *self.counts.entry(result.verdict.status).or_default() += 1;
        if !result.verdict.equal {
            self.different += 1;
            self.note(&describe(result));
        }
        let weight = self.weights.get(&result.file).copied().unwrap_or(0.0);
        self.passed += weight;
        match &self.bar {
            Some(bar) => {
                bar.inc(units(weight));
                bar.set_message(self.line());
            }
            None if self.last_line.elapsed() > LINE_EVERY => {
                self.last_line = Instant::now();
                tell(&format!("{}, {}", self.line(), self.left()));
            }
            None => {}
        }
    }

    /// The outcome of a second try.
    pub fn again(&mut self, result: &FileResult) {
        let told = match (result.verdict.equal, result.flaky) {
            _ if result.varying => "draws lots: two native runs differ too".to_string(),
            (true, _) => "equals a fresh native run".to_string(),
            (false, Some(first)) => format!("flaky: {first} at first, equal when alone"),
            (false, None) => format!("still {}", result.verdict.status),
        };
        self.note(&format!("{}: {told}", result.file));
    }

    pub fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => tell(line),
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn line(&self) -> String {
        let count = |status| self.counts.get(&status).copied().unwrap_or(0);
        format!(
            "{}/{} files, {} ok, {} skip, {} differ",
            self.done,
            self.files,
            count(Status::Ok),
            count(Status::Skip),
            self.different
        )
    }

    fn left(&self) -> String {
        if self.passed <= 0.0 {
            return "time left unknown".to_string();
        }
        let left = self.start.elapsed().as_secs_f64() * (self.expected - self.passed) / self.passed;
        format!("about {left:.0} s left")
    }
}

fn describe(result: &FileResult) -> String {
    let mut text = format!("{}: {}", result.file, result.verdict.status);
    if result.verdict.alarm {
        text.push_str(" (ALARM: no case ran)");
    }
    for failure in result.mount.transcript.failures.iter().take(3) {
        text.push_str(&format!("\n    {}: {}", failure.name, cut(&failure.detail, 300)));
    }
    for difference in result.verdict.differences.iter().take(4) {
        text.push_str(&format!("\n    {}", cut(difference, 300)));
    }
    text
}
