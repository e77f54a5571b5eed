//! Reads what `testfixture` prints.
//!
//! A test case prints `NAME...`, runs, and prints ` Ok`, ` Omitted`, or a failure on lines of its own that begin with `! NAME` or
//! `Error:`. Whatever the case itself prints stands in between. A run that came to its end prints
//! `E errors out of N tests on ...`; without that line it was aborted, whatever its exit status.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Names of cases with how often each occurred: some files use a name twice.
pub type Cases = BTreeMap<String, u32>;

/// What one run of one test file printed, without anything that depends on where it ran.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transcript {
    pub passed: Cases,
    /// Cases and whole topics that the file itself left out.
    pub omitted: Cases,
    pub failures: Vec<Failure>,
    /// From the summary line; `None`: the run never came to its end.
    pub summary: Option<Summary>,
    /// Complaints of the driver that are no test case: files left open, memory not freed.
    pub complaints: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub name: String,
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub errors: u32,
    pub tests: u32,
}

/// The driver adds these to every file, also to one that tests nothing.
const BOILERPLATE: &[&str] = &["-closeallfiles", "-sharedcachesetting"];

/// Longest piece of a failure that is kept: some print whole databases.
const DETAIL: usize = 2000;

impl Transcript {
    /// `directory` is where the file ran; it is replaced in names and details, so that runs in two places
    /// can be compared.
    pub fn parse(output: &[u8], directory: &str) -> Transcript {
        let text = String::from_utf8_lossy(output);
        let text = if directory.is_empty() {
            text
        } else {
            text.replace(directory, "TESTDIR").into()
        };
        let mut parser = Parser::default();
        for line in text.lines() {
            parser.line(line);
        }
        parser.transcript
    }

    /// Passed cases of the file itself.
    pub fn cases(&self) -> u32 {
        let own = self
            .passed
            .iter()
            .filter(|(name, _)| !BOILERPLATE.iter().any(|end| name.ends_with(end)));
        own.map(|(_, count)| count).sum()
    }

    pub fn errors(&self) -> u32 {
        self.summary
            .map_or(0, |summary| summary.errors)
            .max(u32::try_from(self.failures.len()).unwrap_or(u32::MAX))
    }
}

#[derive(Default)]
struct Parser {
    transcript: Transcript,
    /// The case that has begun and not ended.
    begun: Option<String>,
    /// The list of omitted topics stands at the end, after its headline.
    in_omitted: bool,
}

impl Parser {
    fn line(&mut self, line: &str) {
        if let Some(head) = line.strip_suffix(" Ok") {
            self.ended(head, |transcript| &mut transcript.passed);
        } else if let Some(head) = line.strip_suffix(" Omitted") {
            self.ended(head, |transcript| &mut transcript.omitted);
        } else if let Some(rest) = line.strip_prefix("! ") {
            self.failed(rest);
        } else if let Some(error) = line.strip_prefix("Error: ") {
            self.raised(error);
        } else if let Some(summary) = summary(line) {
            self.transcript.summary = Some(summary);
        } else if line == "Omitted test cases:" {
            self.in_omitted = true;
        } else if let Some(topic) = line.strip_prefix(".  ").filter(|_| self.in_omitted) {
            let topic = topic.split_whitespace().collect::<Vec<_>>().join(" ");
            *self.transcript.omitted.entry(topic).or_default() += 1;
        } else if is_complaint(line) {
            self.transcript.complaints.push(line.to_string());
        } else if let Some((name, _)) = line.split_once("...") {
            self.begun = Some(name.to_string());
        }
    }

    fn ended(&mut self, head: &str, set: impl Fn(&mut Transcript) -> &mut Cases) {
        let name = match (head.strip_suffix("..."), head.split_once("...")) {
            (Some(name), _) => name.to_string(),
            // The case printed something without a line end.
            (None, Some((name, _))) => name.to_string(),
            // The case printed something and ended the line.
            (None, None) => match self.begun.take() {
                Some(name) => name,
                None => return,
            },
        };
        self.begun = None;
        // Threads show their progress with dots, which stand before the next name.
        let name = name.trim_start_matches('.').to_string();
        *set(&mut self.transcript).entry(name).or_default() += 1;
    }

    /// `NAME expected: [...]`, then `! NAME got: [...]`.
    fn failed(&mut self, rest: &str) {
        if let Some((name, expected)) = rest.split_once(" expected: ") {
            let detail = shortened(format!("expected {expected}"));
            self.transcript.failures.push(Failure {
                name: name.to_string(),
                detail,
            });
            self.begun = None;
        } else if let Some((name, got)) = rest.split_once(" got: ")
            && let Some(failure) = self
                .transcript
                .failures
                .last_mut()
                .filter(|failure| failure.name == name)
        {
            failure.detail = shortened(format!("{}, got {}", failure.detail, got.trim()));
        }
    }

    /// A case that ended in a Tcl error prints its name again, a line end and the error.
    fn raised(&mut self, error: &str) {
        if let Some(name) = self.begun.take() {
            let detail = shortened(format!("error: {error}"));
            self.transcript.failures.push(Failure { name, detail });
        }
    }
}

fn summary(line: &str) -> Option<Summary> {
    let (errors, rest) = line.split_once(" errors out of ")?;
    let (tests, _) = rest.split_once(" tests")?;
    Some(Summary {
        errors: errors.parse().ok()?,
        tests: tests.parse().ok()?,
    })
}

fn is_complaint(line: &str) -> bool {
    line.ends_with(" files were left open")
        || line.starts_with("Unfreed memory: ")
        || line.starts_with("*** Giving up")
}

fn shortened(mut detail: String) -> String {
    if detail.len() > DETAIL {
        let mut end = DETAIL;
        while !detail.is_char_boundary(end) {
            end -= 1;
        }
        detail.truncate(end);
        detail.push_str(" [cut]");
    }
    detail
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: &str =
        "SQLite 2022-12-28 14:03:47 df5c253c\n0 errors out of 5 tests on vm Linux 64-bit little-endian\n";

    fn parse(output: &str) -> Transcript {
        Transcript::parse(output.as_bytes(), "/tmp/x/1")
    }

    fn names(cases: &Cases) -> Vec<&str> {
        cases.keys().map(String::as_str).collect()
    }

    #[test]
    fn passed_cases_are_collected_with_how_often_they_occur() {
        let transcript = parse(&format!(
            "a-1.1... Ok\na-1.2... Ok\na-1.2... Ok\nTime: a.test 3 ms\n{END}"
        ));
        assert_eq!(transcript.passed.get("a-1.1"), Some(&1));
        assert_eq!(transcript.passed.get("a-1.2"), Some(&2));
        assert_eq!(transcript.cases(), 3);
        assert_eq!(transcript.summary, Some(Summary { errors: 0, tests: 5 }));
        assert!(transcript.failures.is_empty());
    }

    #[test]
    fn the_cases_of_the_driver_do_not_make_an_empty_file_tested() {
        let transcript = parse(&format!(
            "a.test-closeallfiles... Ok\na.test-sharedcachesetting... Ok\n{END}"
        ));
        assert_eq!(transcript.cases(), 0);
        assert_eq!(transcript.passed.len(), 2);
    }

    #[test]
    fn a_case_that_prints_something_itself_is_still_recognised() {
        let transcript = parse("a-1...working Ok\na-2...first\nsecond\n Ok\na-3... Ok\n");
        assert_eq!(names(&transcript.passed), ["a-1", "a-2", "a-3"]);
    }

    #[test]
    fn dots_of_progress_are_no_part_of_a_name() {
        let transcript = parse("a-1... Ok\n.......\n.....a-2... Ok\n");
        assert_eq!(names(&transcript.passed), ["a-1", "a-2"]);
    }

    #[test]
    fn a_wrong_result_is_a_failure_with_what_was_expected_and_what_came() {
        let transcript = parse(
            "a-1...\n! a-1 expected: [1 2]\n! a-1 got:      [1]\na-2... Ok\n\
             1 errors out of 3 tests on vm Linux 64-bit little-endian\n!Failures on these tests: a-1\n",
        );
        assert_eq!(transcript.failures.len(), 1);
        assert_eq!(transcript.failures[0].name, "a-1");
        assert_eq!(transcript.failures[0].detail, "expected [1 2], got [1]");
        assert_eq!(names(&transcript.passed), ["a-2"]);
        assert_eq!(transcript.errors(), 1);
    }

    #[test]
    fn a_tcl_error_in_a_case_is_a_failure() {
        let transcript = parse("a-1...a-1...\nError: disk I/O error\na-2... Ok\n");
        assert_eq!(transcript.failures.len(), 1);
        assert_eq!(transcript.failures[0].name, "a-1");
        assert_eq!(transcript.failures[0].detail, "error: disk I/O error");
        assert_eq!(names(&transcript.passed), ["a-2"]);
    }

    #[test]
    fn a_run_without_summary_is_told_from_one_that_ended() {
        let transcript = parse("a-1... Ok\na-2...\ninvalid command name \"db\"\n    while executing\n");
        assert_eq!(transcript.summary, None);
        assert_eq!(transcript.cases(), 1);
    }

    #[test]
    fn omitted_cases_and_topics_are_collected() {
        let output = format!("a-1... Omitted\n{END}Omitted test cases:\n.  a-2          no   fts3\n");
        assert_eq!(names(&parse(&output).omitted), ["a-1", "a-2 no fts3"]);
    }

    #[test]
    fn complaints_of_the_driver_are_kept() {
        let transcript = parse("2 files were left open\nUnfreed memory: 8 bytes in 1 allocations\n");
        assert_eq!(transcript.complaints.len(), 2);
    }

    #[test]
    fn the_directory_does_not_make_names_differ() {
        let native = Transcript::parse(b"open /a/native/x/test.db... Ok\n", "/a/native/x");
        let mount = Transcript::parse(b"open /b/mnt/x/test.db... Ok\n", "/b/mnt/x");
        assert_eq!(native, mount);
    }

    #[test]
    fn bytes_that_are_no_text_do_not_stop_the_parser() {
        let transcript = Transcript::parse(b"a-1...\xff\xfe\n Ok\na-2... Ok\n", "");
        assert_eq!(names(&transcript.passed), ["a-1", "a-2"]);
    }
}
