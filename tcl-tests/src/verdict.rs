//! Compares a file's run on the mount with its native run.
//!
//! The criterion is the same set of passed case names. "No errors" alone would accept a file that
//! stopped early or tested nothing. Only a file that is good natively can be shown to be equal.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::execution::{FileRun, Outcome};
use crate::transcript::{Cases, Transcript};

/// What a file counts as. Each is counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    Ok,
    /// Runs nothing natively either.
    Skip,
    Fail,
    Abort,
    TimeOut,
    MountDied,
    /// No errors, but not the case names that pass natively.
    FewerCases,
    /// Not good natively: nothing can be shown, so it is never equal.
    NativeFail,
    /// Differed, and equalled native when it ran once more alone.
    Flaky,
}

impl Status {
    pub const ALL: [Status; 9] = [
        Status::Ok,
        Status::Skip,
        Status::Fail,
        Status::Abort,
        Status::TimeOut,
        Status::MountDied,
        Status::FewerCases,
        Status::NativeFail,
        Status::Flaky,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Skip => "skip",
            Status::Fail => "fail",
            Status::Abort => "abort",
            Status::TimeOut => "time-out",
            Status::MountDied => "mount-died",
            Status::FewerCases => "fewer-cases",
            Status::NativeFail => "native-fail",
            Status::Flaky => "flaky",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Status {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Status, Self::Err> {
        let known = Status::ALL.into_iter().find(|status| status.name() == text);
        known.ok_or_else(|| anyhow::anyhow!("unknown status {text:?}"))
    }
}

/// The comparison of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub status: Status,
    /// The mount did what native did. With findings it is never true.
    pub equal: bool,
    /// Natively there are cases and on the mount there is not one.
    pub alarm: bool,
    /// Something is wrong beside the cases: cleaning up, the mount's end, a replica that differs.
    pub found: bool,
    /// Names of cases that did not end alike on both sides.
    pub cases: usize,
    pub differences: Vec<String>,
}

/// How many differing names are told.
const NAMES: usize = 10;

pub fn judge(native: &FileRun, mount: &FileRun) -> Verdict {
    let found = !native.findings.is_empty() || !mount.findings.is_empty();
    let (cases, mut differences) = match mount.outcome {
        Outcome::NotRun => (
            0,
            vec![format!(
                "killed natively after {:.0} s, so not run on the mount",
                native.seconds
            )],
        ),
        Outcome::Ok
        | Outcome::Skip
        | Outcome::Fail
        | Outcome::Abort
        | Outcome::TimeOut
        | Outcome::MountDied => differences(&native.transcript, &mount.transcript),
    };
    let status = status(native.outcome, mount.outcome, differences.is_empty());
    differences.extend(
        native
            .findings
            .iter()
            .map(|finding| format!("finding: natively: {finding}")),
    );
    differences.extend(mount.findings.iter().map(|finding| format!("finding: {finding}")));
    Verdict {
        status,
        equal: matches!(status, Status::Ok | Status::Skip) && !found,
        alarm: mount.outcome != Outcome::NotRun
            && native.transcript.cases() > 0
            && mount.transcript.cases() == 0,
        found,
        cases,
        differences,
    }
}

fn status(native: Outcome, mount: Outcome, same: bool) -> Status {
    let native_good = matches!(native, Outcome::Ok | Outcome::Skip);
    match mount {
        Outcome::MountDied => Status::MountDied,
        Outcome::NotRun => Status::NativeFail,
        Outcome::Ok | Outcome::Skip | Outcome::Fail | Outcome::Abort | Outcome::TimeOut if !native_good => {
            Status::NativeFail
        }
        Outcome::Fail => Status::Fail,
        Outcome::Abort => Status::Abort,
        Outcome::TimeOut => Status::TimeOut,
        Outcome::Ok | Outcome::Skip if !same => Status::FewerCases,
        Outcome::Ok => Status::Ok,
        Outcome::Skip => Status::Skip,
    }
}

/// How many names of cases differ, and in what.
fn differences(native: &Transcript, mount: &Transcript) -> (usize, Vec<String>) {
    let failed = (failed(native), failed(mount));
    let sets = [
        ("passes natively only", missing(&native.passed, &mount.passed)),
        ("passes on the mount only", missing(&mount.passed, &native.passed)),
        ("omitted natively only", missing(&native.omitted, &mount.omitted)),
        (
            "omitted on the mount only",
            missing(&mount.omitted, &native.omitted),
        ),
        ("fails natively only", missing(&failed.0, &failed.1)),
        ("fails on the mount only", missing(&failed.1, &failed.0)),
    ];
    let mut told = Vec::new();
    for (what, names) in &sets {
        tell(&mut told, what, names);
    }
    if native.errors() != mount.errors() {
        told.push(format!(
            "errors: {} natively, {} on the mount",
            native.errors(),
            mount.errors()
        ));
    }
    if native.complaints != mount.complaints {
        told.push(format!(
            "complaints: {:?} natively, {:?} on the mount",
            native.complaints, mount.complaints
        ));
    }
    let names: BTreeSet<&str> = sets.iter().flat_map(|(_, names)| names).copied().collect();
    (names.len(), told)
}

fn failed(transcript: &Transcript) -> Cases {
    let mut cases = Cases::new();
    for failure in &transcript.failures {
        *cases.entry(failure.name.clone()).or_default() += 1;
    }
    cases
}

/// Names that occur more often in `all` than in `some`.
fn missing<'a>(all: &'a Cases, some: &Cases) -> Vec<&'a str> {
    let more = all
        .iter()
        .filter(|(name, count)| some.get(*name).is_none_or(|other| other < count));
    more.map(|(name, _)| name.as_str()).collect()
}

fn tell(found: &mut Vec<String>, what: &str, names: &[&str]) {
    if !names.is_empty() {
        let more = if names.len() > NAMES { ", ..." } else { "" };
        let shown = names[..names.len().min(NAMES)].join(", ");
        found.push(format!("{what} ({}): {shown}{more}", names.len()));
    }
}

/// A file that draws lots: native runs without errors do not pass the same cases, so the mount cannot be asked for the
/// cases of one of them.
#[derive(Debug)]
pub struct Lots {
    /// Passed by all native runs.
    always: Cases,
    /// Passed by one of them.
    ever: Cases,
}

/// What runs on the mount are in the light of [`Lots`].
#[derive(Debug)]
pub enum Drawn {
    /// No error in any of them, and what always passes natively passes.
    Equal(Verdict),
    /// No error, but a case is missing that all native runs passed: more runs tell whether it is always there.
    Unsettled,
    /// An error or a finding in one of them, which no lot excuses.
    Bad,
}

impl Lots {
    /// All runs have to be of now: a kept one may differ because the machine does.
    pub fn of(natives: &[&FileRun]) -> Option<Lots> {
        if natives.iter().any(|run| run.outcome != Outcome::Ok) {
            return None;
        }
        let (first, others) = natives.split_first()?;
        let mut lots = Lots {
            always: first.transcript.passed.clone(),
            ever: first.transcript.passed.clone(),
        };
        for other in others {
            let other = &other.transcript.passed;
            lots.always.retain(|name, _| other.contains_key(name));
            for (name, count) in other {
                if let Some(least) = lots.always.get_mut(name) {
                    *least = (*least).min(*count);
                }
            }
            unite(&mut lots.ever, other);
        }
        (lots.always != lots.ever).then_some(lots)
    }

    pub fn judge(&self, mounts: &[&FileRun]) -> Drawn {
        if mounts
            .iter()
            .any(|run| run.outcome != Outcome::Ok || !run.findings.is_empty())
        {
            return Drawn::Bad;
        }
        let mut passed = Cases::new();
        for run in mounts {
            unite(&mut passed, &run.transcript.passed);
        }
        if !missing(&self.always, &passed).is_empty() {
            return Drawn::Unsettled;
        }
        let further = missing(&passed, &self.ever);
        let mut differences = Vec::new();
        tell(&mut differences, "passes in no native run", &further);
        Drawn::Equal(Verdict {
            status: Status::Ok,
            equal: true,
            alarm: false,
            found: false,
            cases: further.len(),
            differences,
        })
    }
}

fn unite(all: &mut Cases, more: &Cases) {
    for (name, count) in more {
        let most = all.entry(name.clone()).or_default();
        *most = (*most).max(*count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::{Failure, Summary, Transcript};

    fn run(outcome: Outcome, passed: &[&str]) -> FileRun {
        let mut transcript = Transcript {
            summary: Some(Summary { errors: 0, tests: 3 }),
            ..Transcript::default()
        };
        for name in passed {
            *transcript.passed.entry((*name).to_string()).or_default() += 1;
        }
        FileRun {
            outcome,
            transcript,
            seconds: 0.1,
            cpu_seconds: 0.1,
            findings: Vec::new(),
        }
    }

    fn check(native: &FileRun, mount: &FileRun, status: Status, equal: bool) -> Verdict {
        let verdict = judge(native, mount);
        assert_eq!((verdict.status, verdict.equal), (status, equal), "{verdict:?}");
        verdict
    }

    fn failing(names: &[&str]) -> FileRun {
        let mut run = run(Outcome::Fail, &["passes"]);
        run.transcript.failures = names
            .iter()
            .map(|name| Failure {
                name: (*name).to_string(),
                detail: "x".to_string(),
            })
            .collect();
        run
    }

    #[test]
    fn the_same_names_are_equal() {
        check(
            &run(Outcome::Ok, &["a", "b"]),
            &run(Outcome::Ok, &["a", "b"]),
            Status::Ok,
            true,
        );
        check(
            &run(Outcome::Skip, &[]),
            &run(Outcome::Skip, &[]),
            Status::Skip,
            true,
        );
    }

    #[test]
    fn one_name_less_without_any_error_is_fewer_cases() {
        let verdict = check(
            &run(Outcome::Ok, &["a", "b"]),
            &run(Outcome::Ok, &["a"]),
            Status::FewerCases,
            false,
        );
        assert_eq!(verdict.differences, ["passes natively only (1): b"]);
        assert!(!verdict.alarm);
    }

    #[test]
    fn the_same_number_of_other_names_is_not_equal() {
        check(
            &run(Outcome::Ok, &["a", "b"]),
            &run(Outcome::Ok, &["a", "c"]),
            Status::FewerCases,
            false,
        );
    }

    #[test]
    fn a_name_that_passes_once_instead_of_twice_is_noticed() {
        check(
            &run(Outcome::Ok, &["a", "a"]),
            &run(Outcome::Ok, &["a"]),
            Status::FewerCases,
            false,
        );
    }

    #[test]
    fn no_case_where_native_has_some_is_an_alarm() {
        let verdict = check(
            &run(Outcome::Ok, &["a"]),
            &run(Outcome::Skip, &[]),
            Status::FewerCases,
            false,
        );
        assert!(verdict.alarm);
        let verdict = check(
            &run(Outcome::Ok, &["a"]),
            &run(Outcome::Abort, &[]),
            Status::Abort,
            false,
        );
        assert!(verdict.alarm);
    }

    #[test]
    fn how_the_mount_s_run_ended_decides_the_status() {
        let native = run(Outcome::Ok, &["a"]);
        let mut failed = run(Outcome::Fail, &[]);
        failed.transcript.failures.push(Failure {
            name: "a".into(),
            detail: "x".into(),
        });
        check(&native, &failed, Status::Fail, false);
        check(&native, &run(Outcome::TimeOut, &["a"]), Status::TimeOut, false);
        check(
            &native,
            &run(Outcome::MountDied, &["a"]),
            Status::MountDied,
            false,
        );
    }

    #[test]
    fn omitting_what_native_runs_is_not_equal() {
        let mut mount = run(Outcome::Ok, &["a"]);
        mount.transcript.omitted.insert("b".into(), 1);
        check(&run(Outcome::Ok, &["a"]), &mount, Status::FewerCases, false);
    }

    #[test]
    fn what_is_not_good_natively_is_never_equal() {
        // Both sides without a case: a directory that the test account cannot enter.
        let verdict = check(
            &run(Outcome::Abort, &[]),
            &run(Outcome::Abort, &[]),
            Status::NativeFail,
            false,
        );
        assert_eq!(verdict.cases, 0);
        let native = failing(&["a"]);
        assert_eq!(
            check(&native, &failing(&["a"]), Status::NativeFail, false).cases,
            0
        );
        assert_eq!(
            check(&native, &failing(&["a", "b"]), Status::NativeFail, false).cases,
            1
        );
        // A mount that dies is never excused.
        check(
            &run(Outcome::Fail, &["a"]),
            &run(Outcome::MountDied, &["a"]),
            Status::MountDied,
            false,
        );
    }

    #[test]
    fn a_finding_takes_the_equality_and_not_the_status() {
        let mut mount = run(Outcome::Ok, &["a"]);
        mount
            .findings
            .push("remove the test directory: rm: Directory not empty".into());
        check(&run(Outcome::Ok, &["a"]), &mount, Status::Ok, false);
    }

    #[test]
    fn a_finding_of_the_native_side_takes_the_equality_too() {
        let mut native = run(Outcome::Ok, &["a"]);
        native.findings.push("remove the test directory: killed".into());
        assert!(check(&native, &run(Outcome::Ok, &["a"]), Status::Ok, false).found);
    }

    #[test]
    fn a_case_that_fails_instead_of_passing_counts_once() {
        let mut mount = failing(&["a"]);
        mount.transcript.passed.remove("passes");
        let verdict = check(&run(Outcome::Ok, &["a"]), &mount, Status::Fail, false);
        assert_eq!(verdict.cases, 1, "{verdict:?}");
    }

    #[test]
    fn what_timed_out_natively_is_not_run_and_no_alarm() {
        let verdict = check(
            &run(Outcome::TimeOut, &["a"]),
            &run(Outcome::NotRun, &[]),
            Status::NativeFail,
            false,
        );
        assert!(!verdict.alarm);
        assert!(verdict.differences[0].contains("not run"), "{verdict:?}");
    }

    #[test]
    fn lots_excuse_only_cases_that_native_runs_do_not_share() {
        let (one, other) = (
            run(Outcome::Ok, &["a", "b", "b"]),
            run(Outcome::Ok, &["a", "b", "c"]),
        );
        let lots = Lots::of(&[&one, &other]).unwrap();
        let equal = |names: &[&str]| match lots.judge(&[&run(Outcome::Ok, names)]) {
            Drawn::Equal(verdict) => Some(verdict.differences),
            Drawn::Unsettled => None,
            Drawn::Bad => panic!("no error"),
        };
        assert_eq!(equal(&["a", "b"]), Some(Vec::new()));
        let told = vec!["passes in no native run (1): d".to_string()];
        assert_eq!(equal(&["a", "b", "d"]), Some(told));
        assert_eq!(equal(&["b", "b", "c"]), None);
    }

    #[test]
    fn lots_excuse_no_error_in_any_try() {
        let (one, other) = (run(Outcome::Ok, &["a", "b"]), run(Outcome::Ok, &["a", "c"]));
        let lots = Lots::of(&[&one, &other]).unwrap();
        let mut finding = run(Outcome::Ok, &["a", "b"]);
        finding.findings.push("test.db: page 2 differs".into());
        let mut bad = vec![finding];
        bad.extend(
            [
                Outcome::Fail,
                Outcome::Abort,
                Outcome::TimeOut,
                Outcome::MountDied,
            ]
            .map(|outcome| run(outcome, &["a", "b"])),
        );
        for mount in &bad {
            assert!(matches!(lots.judge(&[&one, mount]), Drawn::Bad), "{mount:?}");
            assert!(matches!(lots.judge(&[mount, &one]), Drawn::Bad), "{mount:?}");
        }
    }

    #[test]
    fn equal_native_runs_and_failing_ones_draw_no_lots() {
        let good = run(Outcome::Ok, &["a", "b"]);
        assert!(Lots::of(&[&good, &good]).is_none());
        assert!(Lots::of(&[&good, &run(Outcome::Fail, &["a"])]).is_none());
    }
}
