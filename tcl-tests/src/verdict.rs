//! Compares a file's run on the mount with its native run.
//!
//! The criterion is the same set of passed case names. "No errors" alone would accept a file that
//! stopped early or tested nothing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::execution::{FileRun, Outcome};
use crate::transcript::Cases;

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
    /// Not good natively: nothing can be demanded from the mount.
    NativeFail,
}

impl Status {
    pub const ALL: [Status; 8] = [
        Status::Ok,
        Status::Skip,
        Status::Fail,
        Status::Abort,
        Status::TimeOut,
        Status::MountDied,
        Status::FewerCases,
        Status::NativeFail,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub status: Status,
    /// The mount did what native did. With findings it is never true.
    pub equal: bool,
    /// Natively there are cases and on the mount there is not one.
    pub alarm: bool,
    pub differences: Vec<String>,
}

/// How many differing names are told.
const NAMES: usize = 10;

pub fn judge(native: &FileRun, mount: &FileRun) -> Verdict {
    let mut differences = differences(native, mount);
    let same = differences.is_empty();
    let status = status(native.outcome, mount.outcome, same);
    let equal = match status {
        Status::Ok | Status::Skip => same,
        Status::NativeFail => same && native.outcome == mount.outcome,
        Status::Fail | Status::Abort | Status::TimeOut | Status::MountDied | Status::FewerCases => false,
    };
    differences.extend(mount.findings.iter().map(|finding| format!("finding: {finding}")));
    Verdict {
        status,
        equal: equal && mount.findings.is_empty(),
        alarm: native.transcript.cases() > 0 && mount.transcript.cases() == 0,
        differences,
    }
}

fn status(native: Outcome, mount: Outcome, same: bool) -> Status {
    let native_good = matches!(native, Outcome::Ok | Outcome::Skip);
    match mount {
        Outcome::MountDied => Status::MountDied,
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

fn differences(native: &FileRun, mount: &FileRun) -> Vec<String> {
    let (native, mount) = (&native.transcript, &mount.transcript);
    let mut found = Vec::new();
    tell(
        &mut found,
        "passes natively only",
        &missing(&native.passed, &mount.passed),
    );
    tell(
        &mut found,
        "passes on the mount only",
        &missing(&mount.passed, &native.passed),
    );
    tell(
        &mut found,
        "omitted natively only",
        &missing(&native.omitted, &mount.omitted),
    );
    tell(
        &mut found,
        "omitted on the mount only",
        &missing(&mount.omitted, &native.omitted),
    );
    found
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
    fn what_fails_natively_is_listed_and_has_to_fail_alike() {
        check(
            &run(Outcome::Fail, &["a"]),
            &run(Outcome::Fail, &["a"]),
            Status::NativeFail,
            true,
        );
        check(
            &run(Outcome::Fail, &["a"]),
            &run(Outcome::Fail, &[]),
            Status::NativeFail,
            false,
        );
        check(
            &run(Outcome::Fail, &["a"]),
            &run(Outcome::Abort, &["a"]),
            Status::NativeFail,
            false,
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
}
