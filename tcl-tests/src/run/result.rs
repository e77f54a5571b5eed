//! What a run found: per file, and as a whole.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::execution::{FileRun, Outcome};
use crate::expectations::Expectations;
use crate::mount::Reloads;
use crate::verdict::{Drawn, Lots, Status, Verdict, judge};

/// One file, natively and on the mount.
#[derive(Debug, Clone)]
pub struct FileResult {
    pub file: String,
    pub native: FileRun,
    pub mount: FileRun,
    pub verdict: Verdict,
    /// The status of the first try, when only the second, alone, equalled native. Everything else here stays the first's.
    pub flaky: Option<Status>,
    /// Two native runs do not agree in their cases: the file draws lots, and is compared in what both passed.
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
    /// Files, on the mount or on the replica's, of a database of which only the other views were compared.
    #[serde(default)]
    pub uncompared: u32,
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

    /// Whether a second try can tell anything. A dead mount, a failed clean-up or a differing replica is never a matter of
    /// timing; a file that is killed at the limit natively only costs the same time again.
    pub(super) fn worth_another_try(&self, expectations: &Expectations) -> bool {
        let settled =
            self.verdict.found || matches!(self.mount.outcome, Outcome::MountDied | Outcome::NotRun);
        !self.verdict.equal && !settled && expectations.objection(&self.file, &self.verdict).is_some()
    }

    /// Compares with another native run, because the one so far may be of a machine that has changed since.
    pub(super) fn compare_with(&mut self, native: FileRun) {
        self.verdict = judge(&native, &self.mount);
        self.native = native;
    }

    /// Takes further tries into account, which never take back what the first one showed. Returns whether one more can
    /// tell something.
    pub(super) fn again(&mut self, tries: &[FileResult]) -> bool {
        match self.lots(tries) {
            Some(Drawn::Equal(verdict)) => {
                self.varying = true;
                self.verdict = verdict;
                return false;
            }
            Some(Drawn::Unsettled) if tries.len() < MOST_TRIES => return true,
            Some(Drawn::Unsettled | Drawn::Bad) | None => {}
        }
        let found = tries.iter().filter(|again| again.verdict.found);
        let more: Vec<_> = found.flat_map(|again| &again.verdict.differences).collect();
        if !more.is_empty() {
            self.verdict.found = true;
            let told = more
                .into_iter()
                .map(|difference| format!("run again: {difference}"));
            self.verdict.differences.extend(told);
        } else if tries.iter().any(|again| again.verdict.equal) {
            self.flaky = Some(self.verdict.status);
            self.verdict.status = Status::Flaky;
        }
        false
    }

    /// How the tries look if the file draws lots; `None` where native runs agree.
    fn lots(&self, tries: &[FileResult]) -> Option<Drawn> {
        let all = || std::iter::once(&*self).chain(tries);
        let natives: Vec<_> = all().map(|one| &one.native).collect();
        let mounts: Vec<_> = all().map(|one| &one.mount).collect();
        Some(Lots::of(&natives)?.judge(&mounts))
    }
}

/// How often a file is run again. One is enough, unless it draws lots: crash.test repeats a case until a lot falls, 108 to 114
/// times natively, so that two native runs may share a case which the mount did not come to in two runs.
pub(super) const MOST_TRIES: usize = 3;

/// A finished run.
#[derive(Debug)]
pub struct RunResult {
    pub results: Vec<FileResult>,
    /// Of the mounts as a whole, such as one that did not stop.
    pub findings: Vec<String>,
    /// What kept the runner from its work; the results are then not all there.
    pub errors: Vec<String>,
    pub wall: Duration,
    pub walls: Option<Walls>,
    /// Of a run whose daemons were to be replaced.
    pub reloads: Option<Reloaded>,
    pub interrupted: bool,
}

/// How often the daemons of a run were replaced while it went on.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Reloaded {
    pub every_seconds: u64,
    pub count: u32,
    pub longest_seconds: f64,
}

impl Reloaded {
    pub(super) fn of(reloads: &Reloads) -> Reloaded {
        let tally = reloads.tally();
        Reloaded {
            every_seconds: reloads.interval().as_secs(),
            count: tally.count,
            longest_seconds: tally.longest.as_secs_f64(),
        }
    }
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
    /// How the kernel edge worked, also where the daemon chose it; `control` is a mount that is not litefs.
    pub mode: String,
    /// What was tested: the daemon's version with its commit, or with its digest where it tells none.
    #[serde(default)]
    pub daemon: String,
    /// Where the native results come from.
    #[serde(default)]
    pub native: String,
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
    #[serde(default)]
    pub reloads: Option<Reloaded>,
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
    #[serde(default)]
    pub cases_differ: usize,
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
            cases_differ: result.verdict.cases,
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
        let errors = self.errors.iter().map(|error| format!("the runner: {error}"));
        files
            .chain(findings)
            .chain(errors)
            .chain(interrupted)
            .chain(self.shows_nothing())
            .collect()
    }

    /// A run that does not do what it is about. Files that only skip natively equal native and tell nothing about the mount, unless others beside them do.
    fn shows_nothing(&self) -> Option<String> {
        let cases = |result: &FileResult| u64::from(result.native.transcript.cases());
        let told = if self.results.is_empty() {
            "no file was run"
        } else if self.results.iter().map(cases).sum::<u64>() == 0 {
            "these files test nothing natively: nothing was compared"
        } else if self.reloads.is_some_and(|reloads| reloads.count == 0) {
            "no daemon was replaced: the run was over before"
        } else {
            return None;
        };
        Some(told.to_string())
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
                uncompared: sum.uncompared + file.databases.uncompared,
                different: sum.different + file.databases.different,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::Transcript;

    fn run(outcome: Outcome, passed: &[&str]) -> FileRun {
        let mut run = FileRun {
            outcome,
            transcript: Transcript::default(),
            seconds: 0.1,
            cpu_seconds: 0.1,
            findings: Vec::new(),
        };
        for name in passed {
            *run.transcript.passed.entry((*name).to_string()).or_default() += 1;
        }
        run
    }

    fn result(native: FileRun, mount: FileRun) -> FileResult {
        FileResult::new("a.test", native, mount)
    }

    fn objections(results: Vec<FileResult>) -> Vec<String> {
        objections_with(results, None)
    }

    fn objections_with(results: Vec<FileResult>, reloads: Option<Reloaded>) -> Vec<String> {
        let run = RunResult {
            results,
            findings: Vec::new(),
            errors: Vec::new(),
            wall: Duration::ZERO,
            walls: None,
            reloads,
            interrupted: false,
        };
        run.objections(&Expectations::default())
    }

    #[test]
    fn an_equal_second_try_does_not_take_back_the_first() {
        let good = || run(Outcome::Ok, &["a", "b"]);
        let mut file = result(good(), run(Outcome::Abort, &[]));
        assert!(!file.again(&[result(good(), good())]));
        assert_eq!(
            (file.verdict.status, file.flaky),
            (Status::Flaky, Some(Status::Abort))
        );
        assert!(!file.verdict.equal && file.verdict.alarm);
        assert_eq!(file.verdict.cases, 2);
        assert_eq!(file.mount.outcome, Outcome::Abort);
        let summary = FileSummary::of(&file, &Expectations::default());
        assert_eq!(summary.flaky, Some(Status::Abort));
        assert_eq!(objections(vec![file]).len(), 1);
    }

    #[test]
    fn a_native_run_that_fails_again_does_not_hide_the_first_try() {
        let good = || run(Outcome::Ok, &["a"]);
        let mut file = result(good(), run(Outcome::Fail, &[]));
        file.again(&[result(run(Outcome::Fail, &[]), run(Outcome::Fail, &[]))]);
        assert_eq!(file.verdict.status, Status::Fail);
        let mut file = result(run(Outcome::Fail, &[]), run(Outcome::Fail, &[]));
        assert!(!file.again(&[result(good(), good())]));
        assert_eq!(
            (file.verdict.status, file.flaky),
            (Status::Flaky, Some(Status::NativeFail))
        );
    }

    #[test]
    fn a_finding_of_the_second_try_is_a_finding_of_the_file() {
        let good = || run(Outcome::Ok, &["a"]);
        let mut file = result(good(), run(Outcome::Fail, &[]));
        let mut second = good();
        second.findings.push("test.db: page 2 differs".to_string());
        file.again(&[result(good(), second)]);
        assert!(file.verdict.found);
        assert!(
            file.verdict
                .differences
                .iter()
                .any(|told| told.contains("page 2"))
        );
    }

    #[test]
    fn a_file_that_draws_lots_is_equal_without_a_list() {
        let mut file = result(run(Outcome::Ok, &["a", "b"]), run(Outcome::Ok, &["a"]));
        let second = result(run(Outcome::Ok, &["a", "c"]), run(Outcome::Ok, &["a", "d"]));
        assert!(!file.again(&[second]));
        assert!(file.varying && file.verdict.equal);
        assert!(objections(vec![file]).is_empty());
    }

    #[test]
    fn lots_do_not_excuse_an_error_of_any_try() {
        let (good, bad) = (run(Outcome::Ok, &["a"]), run(Outcome::Fail, &["a"]));
        for (first, second) in [(&bad, &good), (&good, &bad)] {
            let mut file = result(run(Outcome::Ok, &["a", "b"]), first.clone());
            let again = result(run(Outcome::Ok, &["a", "c"]), second.clone());
            assert!(!file.again(&[again]));
            assert!(!file.varying && !file.verdict.equal, "{file:?}");
        }
    }

    #[test]
    fn a_case_that_native_runs_share_is_asked_for_until_one_lacks_it() {
        let mut file = result(run(Outcome::Ok, &["a", "b", "c"]), run(Outcome::Ok, &["a"]));
        let second = result(run(Outcome::Ok, &["a", "b"]), run(Outcome::Ok, &["a"]));
        assert!(file.again(std::slice::from_ref(&second)));
        let third = |names| result(run(Outcome::Ok, names), run(Outcome::Ok, &["a"]));
        let mut other = file.clone();
        assert!(!other.again(&[second.clone(), third(&["a"])]));
        assert!(other.varying && other.verdict.equal);
        let never = [second, third(&["a", "b"]), third(&["a", "b"])];
        assert!(file.again(&never[..2]) && !file.again(&never));
        assert!(!file.varying && !file.verdict.equal);
    }

    #[test]
    fn what_differs_from_a_kept_native_run_only_is_equal() {
        let now = || run(Outcome::Ok, &["a", "b"]);
        let mut file = result(run(Outcome::Ok, &["a"]), now());
        assert!(!file.verdict.equal);
        file.compare_with(now());
        assert!(file.verdict.equal && !file.varying && file.flaky.is_none());
    }

    #[test]
    fn a_try_that_is_as_listed_is_not_repeated() {
        let list = |line: &str| Expectations::parse(line, "veryquick").unwrap();
        let file = result(run(Outcome::Ok, &["a"]), run(Outcome::Fail, &["b"]));
        assert!(file.worth_another_try(&Expectations::default()));
        assert!(file.worth_another_try(&list("veryquick a.test flaky 2 x")));
        assert!(!file.worth_another_try(&list("veryquick a.test fail 2 x")));
        let slow = result(run(Outcome::TimeOut, &["a"]), run(Outcome::NotRun, &[]));
        assert!(!slow.worth_another_try(&Expectations::default()));
    }

    #[test]
    fn a_run_that_compares_no_case_is_no_success() {
        let skip = || result(run(Outcome::Skip, &[]), run(Outcome::Skip, &[]));
        let ok = result(run(Outcome::Ok, &["a"]), run(Outcome::Ok, &["a"]));
        assert!(objections(Vec::new())[0].contains("no file was run"));
        assert!(objections(vec![skip()])[0].contains("test nothing natively"));
        assert!(objections(vec![skip(), ok]).is_empty());
    }

    #[test]
    fn a_run_that_was_to_replace_daemons_and_replaced_none_is_no_success() {
        let ok = || vec![result(run(Outcome::Ok, &["a"]), run(Outcome::Ok, &["a"]))];
        let reloads = |count| {
            Some(Reloaded {
                every_seconds: 3,
                count,
                longest_seconds: 0.0,
            })
        };
        assert!(objections_with(ok(), reloads(0))[0].contains("no daemon was replaced"));
        assert!(objections_with(ok(), reloads(1)).is_empty());
    }
}
