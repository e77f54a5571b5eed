//! What a run found: per file, and as a whole.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::execution::{FileRun, Outcome};
use crate::expectations::Expectations;
use crate::verdict::{Status, Verdict, judge};

/// One file, natively and on the mount.
#[derive(Debug, Clone)]
pub struct FileResult {
    pub file: String,
    pub native: FileRun,
    pub mount: FileRun,
    pub verdict: Verdict,
    /// The status of the first try, when only the second, alone, equalled native.
    pub flaky: Option<Status>,
    /// Two native runs do not agree in their cases: the file draws lots, and only its errors can be compared.
    pub varying: bool,
    /// Databases compared with the replica and the log after the file.
    pub databases: Databases,
}

/// The deep criterion, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Databases {
    pub compared: u32,
    /// Of those, with a log short enough to replay.
    #[serde(default)]
    pub replayed: u32,
    /// Not databases, or not replicated, and the node says so.
    pub local: u32,
    pub different: u32,
}

impl FileResult {
    pub fn new(file: &str, native: FileRun, mount: FileRun) -> FileResult {
        let verdict = judge(&native, &mount);
        let file = file.to_string();
        FileResult {
            file,
            native,
            mount,
            verdict,
            flaky: None,
            varying: false,
            databases: Databases::default(),
        }
    }

    /// A dead mount, a failed clean-up or a differing replica is never a matter of timing.
    pub(super) fn worth_another_try(&self) -> bool {
        !self.verdict.equal && self.mount.findings.is_empty() && self.mount.outcome != Outcome::MountDied
    }

    /// Takes a second try into account.
    pub(super) fn again(&mut self, second: FileResult) {
        let first = std::mem::replace(self, second);
        let both_ok = |a: &FileRun, b: &FileRun| a.outcome == Outcome::Ok && b.outcome == Outcome::Ok;
        if self.verdict.equal {
            self.flaky = Some(first.verdict.status);
        }
        let native_varies = both_ok(&first.native, &self.native)
            && first.native.transcript.passed != self.native.transcript.passed;
        if native_varies && self.mount.outcome == Outcome::Ok {
            self.varying = true;
            self.flaky = None;
            if self.mount.findings.is_empty() {
                self.verdict = Verdict {
                    status: Status::Ok,
                    equal: true,
                    alarm: false,
                    differences: Vec::new(),
                };
            }
        }
    }
}

/// A finished run.
#[derive(Debug)]
pub struct RunResult {
    pub results: Vec<FileResult>,
    /// Of the mounts as a whole, such as one that did not stop.
    pub findings: Vec<String>,
    pub wall: Duration,
    pub walls: Option<Walls>,
    pub interrupted: bool,
}

/// Wall time of all files natively and of all files on the mount, each alone on the machine.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Walls {
    pub native_seconds: f64,
    pub mount_seconds: f64,
}

impl Walls {
    pub fn ratio(&self) -> f64 {
        self.mount_seconds / self.native_seconds.max(0.001)
    }
}

/// What a run was about and what it found, as it is kept for reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    pub sqlite: String,
    pub options: String,
    pub permutation: String,
    pub mode: String,
    pub layout: String,
    pub replica: bool,
    pub jobs: usize,
    /// All files of the permutation, not a selection.
    pub full: bool,
    pub date: String,
    pub machine: String,
    pub wall_seconds: f64,
    #[serde(default)]
    pub walls: Option<Walls>,
    pub interrupted: bool,
    pub findings: Vec<String>,
    /// What the ratchet objects to; empty means success.
    pub objections: Vec<String>,
    pub files: Vec<FileSummary>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FileSummary {
    pub file: String,
    pub status: Status,
    pub equal: bool,
    pub alarm: bool,
    pub flaky: Option<Status>,
    pub varying: bool,
    /// The reason from the list of exceptions.
    pub exception: Option<String>,
    pub native: Side,
    pub mount: Side,
    pub databases: Databases,
    pub differences: Vec<String>,
    pub failures: Vec<String>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Side {
    pub outcome: Outcome,
    pub cases: u32,
    pub errors: u32,
    pub seconds: f64,
    pub cpu_seconds: f64,
}

impl Side {
    fn of(run: &FileRun) -> Side {
        Side {
            outcome: run.outcome,
            cases: run.transcript.cases(),
            errors: run.transcript.errors(),
            seconds: run.seconds,
            cpu_seconds: run.cpu_seconds,
        }
    }
}

/// How many failed cases of a file are kept in the summary.
const FAILURES: usize = 5;

impl FileSummary {
    pub fn of(result: &FileResult, expectations: &Expectations) -> FileSummary {
        let failures = result.mount.transcript.failures.iter().take(FAILURES);
        FileSummary {
            file: result.file.clone(),
            status: result.verdict.status,
            equal: result.verdict.equal,
            alarm: result.verdict.alarm,
            flaky: result.flaky,
            varying: result.varying,
            exception: expectations
                .get(&result.file)
                .map(|exception| exception.reason.clone()),
            native: Side::of(&result.native),
            mount: Side::of(&result.mount),
            databases: result.databases,
            differences: result.verdict.differences.clone(),
            failures: failures
                .map(|failure| format!("{}: {}", failure.name, failure.detail))
                .collect(),
        }
    }
}

impl RunResult {
    /// Everything that keeps the run from being equal to what is expected.
    pub fn objections(&self, expectations: &Expectations) -> Vec<String> {
        let files = self
            .results
            .iter()
            .filter_map(|result| expectations.objection(&result.file, &result.verdict));
        let findings = self.findings.iter().map(|finding| format!("finding: {finding}"));
        let interrupted = self.interrupted.then(|| "interrupted".to_string());
        let nothing = self.results.is_empty().then(|| "no file was run".to_string());
        files.chain(findings).chain(interrupted).chain(nothing).collect()
    }
}

impl Summary {
    pub fn count(&self, status: Status) -> usize {
        self.files.iter().filter(|file| file.status == status).count()
    }

    pub fn cases(&self) -> (u64, u64) {
        let sum =
            |side: fn(&FileSummary) -> Side| self.files.iter().map(|file| u64::from(side(file).cases)).sum();
        (sum(|file| file.native), sum(|file| file.mount))
    }

    pub fn seconds(&self) -> (f64, f64) {
        let sum = |side: fn(&FileSummary) -> Side| self.files.iter().map(|file| side(file).seconds).sum();
        (sum(|file| file.native), sum(|file| file.mount))
    }

    pub fn databases(&self) -> Databases {
        self.files
            .iter()
            .fold(Databases::default(), |sum, file| Databases {
                compared: sum.compared + file.databases.compared,
                replayed: sum.replayed + file.databases.replayed,
                local: sum.local + file.databases.local,
                different: sum.different + file.databases.different,
            })
    }
}
