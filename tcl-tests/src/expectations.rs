//! Files that are known to differ from native, as a two-way ratchet.
//!
//! A list belongs to one SQLite build and one mode. A file that is not listed has to equal native; a listed file has to
//! differ in exactly the listed way. A listed file that turned good fails the run until its line is removed, so a list can only
//! shrink by itself. The goal is that all lists are empty.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::verdict::{Status, Verdict};

/// One line: `PERMUTATION FILE STATUS REASON...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    pub status: Status,
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

    pub fn len(&self) -> usize {
        self.exceptions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.exceptions.is_empty()
    }

    /// What the ratchet objects to; `None` when the file is as expected.
    pub fn objection(&self, file: &str, verdict: &Verdict) -> Option<String> {
        match (self.get(file), verdict.equal) {
            (None, true) => None,
            (None, false) => Some(format!("{file}: {} and not listed", verdict.status)),
            (Some(listed), true) => Some(format!(
                "{file}: equals native now, but is listed as {}: remove its line from {}",
                listed.status,
                self.file.display()
            )),
            (Some(listed), false) if listed.status == verdict.status => None,
            (Some(listed), false) => Some(format!(
                "{file}: {} instead of the listed {}",
                verdict.status, listed.status
            )),
        }
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
    let (permutation, file, status) = (word("permutation")?, word("file")?, word("status")?);
    let reason = words.collect::<Vec<_>>().join(" ");
    ensure!(!reason.is_empty(), "{file}: an exception needs a reason");
    Ok((
        permutation,
        file,
        Exception {
            status: status.parse()?,
            reason,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str =
        "# comment\n\nveryquick wal3.test fail the kernel says so\nfull crash.test time-out slow\n";

    fn verdict(status: Status, equal: bool) -> Verdict {
        Verdict {
            status,
            equal,
            alarm: false,
            differences: Vec::new(),
        }
    }

    #[test]
    fn only_the_lines_of_the_permutation_count() {
        let list = Expectations::parse(LIST, "veryquick").unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!(list.get("wal3.test").unwrap().reason, "the kernel says so");
    }

    #[test]
    fn an_unlisted_file_has_to_equal_native() {
        let list = Expectations::parse(LIST, "veryquick").unwrap();
        assert_eq!(list.objection("select1.test", &verdict(Status::Ok, true)), None);
        assert!(
            list.objection("select1.test", &verdict(Status::FewerCases, false))
                .is_some()
        );
        // A finding, such as a replica that differs, leaves the status and takes the equality.
        assert!(
            list.objection("select1.test", &verdict(Status::Ok, false))
                .is_some()
        );
    }

    #[test]
    fn a_listed_file_has_to_differ_as_listed() {
        let list = Expectations::parse(LIST, "veryquick").unwrap();
        assert_eq!(list.objection("wal3.test", &verdict(Status::Fail, false)), None);
        assert!(
            list.objection("wal3.test", &verdict(Status::Abort, false))
                .is_some()
        );
    }

    #[test]
    fn a_listed_file_that_turned_good_fails_the_run() {
        let list = Expectations::parse(LIST, "veryquick").unwrap();
        let objection = list.objection("wal3.test", &verdict(Status::Ok, true)).unwrap();
        assert!(objection.contains("remove its line"), "{objection}");
    }

    #[test]
    fn an_exception_without_a_reason_or_listed_twice_is_refused() {
        assert!(Expectations::parse("veryquick wal3.test fail\n", "veryquick").is_err());
        assert!(Expectations::parse("veryquick wal3.test bad reason\n", "veryquick").is_err());
        let twice = "veryquick a.test fail x\nveryquick a.test fail y\n";
        assert!(Expectations::parse(twice, "veryquick").is_err());
    }
}
