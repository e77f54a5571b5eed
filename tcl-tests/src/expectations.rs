//! Files that are known to differ from native, as a two-way ratchet.
//!
//! A list belongs to one SQLite build and one mode. A file that is not listed has to equal native; a listed file has to
//! differ in exactly the listed way and in the listed number of cases. A listed file that turned good fails the run until its
//! line is removed, so a list can only shrink by itself. The goal is that all lists are empty.
//!
//! No list excuses a mount that died, a file of which no case ran, or a finding beside the cases.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::verdict::{Status, Verdict};

/// One line: `PERMUTATION FILE STATUS CASES REASON...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    pub status: Status,
    /// How many cases differ.
    pub cases: usize,
    pub reason: String,
}

/// One list, for one permutation.
#[derive(Debug, Clone, Default)]
pub struct Expectations {
    exceptions: BTreeMap<String, Exception>,
    file: PathBuf,
}

impl Expectations {
    /// `DIRECTORY/3.40.1-plain.passthrough.txt`. A file that does not exist is an empty list.
    pub fn load(directory: &Path, fixture_id: &str, mode: &str, permutation: &str) -> Result<Expectations> {
        let file = directory.join(format!("{fixture_id}.{mode}.txt"));
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
        };
        let mut expectations =
            Expectations::parse(&text, permutation).with_context(|| format!("in {}", file.display()))?;
        expectations.file = file;
        Ok(expectations)
    }

    pub fn parse(text: &str, permutation: &str) -> Result<Expectations> {
        let mut exceptions = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let exception = exception(line).with_context(|| format!("line {}", number + 1))?;
            let (named, file, exception) = exception;
            if named == permutation {
                let before = exceptions.insert(file.clone(), exception);
                ensure!(before.is_none(), "line {}: {file} is listed twice", number + 1);
            }
        }
        Ok(Expectations {
            exceptions,
            file: PathBuf::new(),
        })
    }

    pub fn get(&self, file: &str) -> Option<&Exception> {
        self.exceptions.get(file)
    }

    /// Refuses a line for a file that the permutation does not have: nothing would ever ask for its removal.
    pub fn know_only(&self, files: &[String]) -> Result<()> {
        for file in self.exceptions.keys() {
            ensure!(
                files.contains(file),
                "{} lists {file}, which is not in this permutation",
                self.file.display()
            );
        }
        Ok(())
    }

    /// What the ratchet objects to; `None` when the file is as expected.
    pub fn objection(&self, file: &str, verdict: &Verdict) -> Option<String> {
        let listed = self.get(file);
        if verdict.equal {
            // A flaky file is good most of the time.
            let listed = listed.filter(|listed| listed.status != Status::Flaky)?;
            return Some(format!(
                "{file}: equals native now, but is listed as {}: remove its line from {}",
                listed.status,
                self.file.display()
            ));
        }
        if let Some(what) = never_excused(verdict) {
            return Some(format!("{file}: {} ({what})", verdict.status));
        }
        match listed {
            None => Some(format!("{file}: {} and not listed", verdict.status)),
            Some(listed) if listed.allows(verdict) => None,
            Some(listed) => Some(format!(
                "{file}: {} in {} cases instead of the listed {} in {}",
                verdict.status, verdict.cases, listed.status, listed.cases
            )),
        }
    }
}

impl Exception {
    /// How far a file comes before its limit, and what timing breaks, is not the same each time.
    fn allows(&self, verdict: &Verdict) -> bool {
        let same = match self.status {
            Status::Flaky | Status::TimeOut => verdict.cases <= self.cases,
            Status::Ok
            | Status::Skip
            | Status::Fail
            | Status::Abort
            | Status::MountDied
            | Status::FewerCases
            | Status::NativeFail => verdict.cases == self.cases,
        };
        self.status == verdict.status && same
    }
}

fn never_excused(verdict: &Verdict) -> Option<&'static str> {
    match verdict {
        Verdict { alarm: true, .. } => Some("no case ran"),
        Verdict { found: true, .. } => Some("something is wrong beside the cases"),
        Verdict {
            status: Status::MountDied,
            ..
        } => Some("no list excuses that"),
        _ => None,
    }
}

fn exception(line: &str) -> Result<(String, String, Exception)> {
    let mut words = line.split_whitespace();
    let mut word = |what: &str| {
        words
            .next()
            .map(str::to_string)
            .with_context(|| format!("no {what}"))
    };
    let (permutation, file) = (word("permutation")?, word("file")?);
    let status: Status = word("status")?.parse()?;
    let cases = word("number of cases")?;
    let cases = cases
        .parse()
        .with_context(|| format!("{file}: {cases} is not a number of cases"))?;
    ensure!(
        !matches!(status, Status::Ok | Status::Skip | Status::MountDied),
        "{file}: {status} cannot be listed"
    );
    let reason = words.collect::<Vec<_>>().join(" ");
    ensure!(!reason.is_empty(), "{file}: an exception needs a reason");
    Ok((
        permutation,
        file,
        Exception {
            status,
            cases,
            reason,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# comment\n\n\
        veryquick wal3.test fail 2 the kernel says so\n\
        veryquick busy.test flaky 3 waits for a clock\n\
        veryquick slow.test time-out 9 slow\n\
        veryquick bad.test native-fail 0 fails everywhere\n\
        full crash.test abort 1 slow\n";

    fn verdict(status: Status, cases: usize) -> Verdict {
        Verdict {
            status,
            equal: status == Status::Ok,
            alarm: false,
            found: false,
            cases,
            differences: Vec::new(),
        }
    }

    fn objection(file: &str, verdict: &Verdict) -> Option<String> {
        Expectations::parse(LIST, "veryquick")
            .unwrap()
            .objection(file, verdict)
    }

    #[test]
    fn only_the_lines_of_the_permutation_count() {
        let list = Expectations::parse(LIST, "veryquick").unwrap();
        assert!(list.get("crash.test").is_none());
        assert_eq!(list.get("wal3.test").unwrap().reason, "the kernel says so");
    }

    #[test]
    fn an_unlisted_file_has_to_equal_native() {
        assert_eq!(objection("select1.test", &verdict(Status::Ok, 0)), None);
        for status in [
            Status::FewerCases,
            Status::NativeFail,
            Status::Flaky,
            Status::TimeOut,
        ] {
            assert!(objection("select1.test", &verdict(status, 0)).is_some());
        }
    }

    #[test]
    fn a_listed_file_has_to_differ_as_listed() {
        assert_eq!(objection("wal3.test", &verdict(Status::Fail, 2)), None);
        assert_eq!(objection("bad.test", &verdict(Status::NativeFail, 0)), None);
        assert!(objection("wal3.test", &verdict(Status::Abort, 2)).is_some());
    }

    #[test]
    fn a_regression_below_a_listed_file_shows() {
        let objection_to_more = objection("wal3.test", &verdict(Status::Fail, 100)).unwrap();
        assert!(objection_to_more.contains("in 100 cases"), "{objection_to_more}");
        assert!(objection("wal3.test", &verdict(Status::Fail, 1)).is_some());
        assert!(objection("bad.test", &verdict(Status::NativeFail, 1)).is_some());
    }

    #[test]
    fn what_depends_on_timing_has_a_most_and_not_a_number() {
        for (file, status, most) in [("busy.test", Status::Flaky, 3), ("slow.test", Status::TimeOut, 9)] {
            assert_eq!(objection(file, &verdict(status, 1)), None);
            assert_eq!(objection(file, &verdict(status, most)), None);
            assert!(objection(file, &verdict(status, most + 1)).is_some());
        }
        assert_eq!(objection("busy.test", &verdict(Status::Ok, 0)), None);
        assert!(objection("busy.test", &verdict(Status::Fail, 1)).is_some());
    }

    #[test]
    fn an_alarm_a_finding_and_a_dead_mount_are_never_excused() {
        let mut alarm = verdict(Status::Fail, 2);
        alarm.alarm = true;
        let mut finding = verdict(Status::Fail, 2);
        finding.found = true;
        for bad in [alarm, finding, verdict(Status::MountDied, 2)] {
            assert!(objection("wal3.test", &bad).is_some(), "{bad:?}");
        }
        // A replica that differs leaves the status and takes the equality.
        let mut finding = verdict(Status::Ok, 0);
        (finding.equal, finding.found) = (false, true);
        assert!(objection("select1.test", &finding).is_some());
    }

    #[test]
    fn a_listed_file_that_turned_good_fails_the_run() {
        let objection = objection("wal3.test", &verdict(Status::Ok, 0)).unwrap();
        assert!(objection.contains("remove its line"), "{objection}");
    }

    #[test]
    fn a_line_that_says_too_little_or_twice_is_refused() {
        for line in [
            "fail 1",
            "fail a reason",
            "bad 1 reason",
            "mount-died 1 reason",
            "ok 0 reason",
            "skip 0 reason",
        ] {
            let text = format!("veryquick wal3.test {line}\n");
            assert!(Expectations::parse(&text, "veryquick").is_err(), "{line}");
        }
        let twice = "veryquick a.test fail 1 x\nveryquick a.test fail 1 y\n";
        assert!(Expectations::parse(twice, "veryquick").is_err());
    }

    #[test]
    fn a_line_for_a_file_that_does_not_exist_is_refused() {
        let list = Expectations::parse("veryquick gone.test fail 1 x\n", "veryquick").unwrap();
        assert!(list.know_only(&["gone.test".to_string()]).is_ok());
        assert!(list.know_only(&["other.test".to_string()]).is_err());
    }
}
