//! JUnit's XML: one test suite per file, one test case per case name.

use std::fmt::Write;

use crate::execution::{FileRun, Outcome};
use crate::run::{FileResult, RunResult, Summary};
use crate::verdict::Status;

pub(super) fn text(summary: &Summary, result: &RunResult) -> String {
    let name = format!(
        "SQLite {} {} {} {}",
        summary.sqlite, summary.options, summary.permutation, summary.mode
    );
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        text,
        "<testsuites name=\"{}\" time=\"{:.3}\">",
        escaped(&name),
        summary.wall_seconds
    );
    for file in &result.results {
        suite(&mut text, file);
    }
    whole(&mut text, result);
    text.push_str("</testsuites>\n");
    text
}

/// What belongs to no file, such as an error of the runner.
fn whole(text: &mut String, result: &RunResult) {
    let faults: Vec<&String> = result.findings.iter().chain(&result.errors).collect();
    if faults.is_empty() {
        return;
    }
    let count = faults.len();
    let _ = writeln!(
        text,
        "  <testsuite name=\"the whole run\" tests=\"{count}\" failures=\"{count}\">"
    );
    for (number, fault) in faults.into_iter().enumerate() {
        let _ = writeln!(
            text,
            "    <testcase classname=\"the whole run\" name=\"finding {number}\"><failure>{}</failure></testcase>",
            escaped(fault)
        );
    }
    text.push_str("  </testsuite>\n");
}

fn suite(text: &mut String, file: &FileResult) {
    let mut cases = String::new();
    let (mut tests, mut failed, mut skipped) = (0, 0, 0);
    let class = escaped(&file.file);
    for (name, times) in &file.mount.transcript.passed {
        for _ in 0..*times {
            tests += 1;
            let _ = writeln!(
                cases,
                "    <testcase classname=\"{class}\" name=\"{}\"/>",
                escaped(name)
            );
        }
    }
    for failure in &file.mount.transcript.failures {
        tests += 1;
        failed += 1;
        let _ = writeln!(
            cases,
            "    <testcase classname=\"{class}\" name=\"{}\"><failure>{}</failure></testcase>",
            escaped(&failure.name),
            escaped(&failure.detail)
        );
    }
    for name in not_run(&file.native, &file.mount) {
        tests += 1;
        failed += 1;
        let _ = writeln!(
            cases,
            "    <testcase classname=\"{class}\" name=\"{}\"><failure>passes natively, not on the mount</failure></testcase>",
            escaped(name)
        );
    }
    for name in file.mount.transcript.omitted.keys() {
        tests += 1;
        skipped += 1;
        let _ = writeln!(
            cases,
            "    <testcase classname=\"{class}\" name=\"{}\"><skipped/></testcase>",
            escaped(name)
        );
    }
    if !file.verdict.equal {
        // The file as a whole: what no single case tells, such as an abort or a replica that differs.
        tests += 1;
        failed += 1;
        let _ = writeln!(
            cases,
            "    <testcase classname=\"{class}\" name=\"equals native\"><failure message=\"{}\">{}</failure></testcase>",
            status(file),
            escaped(&file.verdict.differences.join("\n"))
        );
    } else if file.verdict.status == Status::Skip && tests == 0 {
        tests += 1;
        skipped += 1;
        let _ = writeln!(
            cases,
            "    <testcase classname=\"{class}\" name=\"skipped\"><skipped/></testcase>"
        );
    }
    let _ = writeln!(
        text,
        "  <testsuite name=\"{class}\" tests=\"{tests}\" failures=\"{failed}\" skipped=\"{skipped}\" time=\"{:.3}\">",
        file.mount.seconds
    );
    text.push_str(&cases);
    text.push_str("  </testsuite>\n");
}

fn status(file: &FileResult) -> String {
    match file.flaky {
        Some(first) => format!("{}: {first} at first", file.verdict.status),
        None => file.verdict.status.to_string(),
    }
}

/// Cases that an ended-early run on the mount neither passed nor failed.
fn not_run<'a>(native: &'a FileRun, mount: &FileRun) -> Vec<&'a str> {
    if !matches!(native.outcome, Outcome::Ok) {
        return Vec::new();
    }
    let seen = |name: &String| {
        mount.transcript.passed.contains_key(name)
            || mount
                .transcript
                .failures
                .iter()
                .any(|failure| failure.name == *name)
    };
    native
        .transcript
        .passed
        .keys()
        .filter(|name| !seen(name))
        .map(String::as_str)
        .collect()
}

/// XML 1.0 forbids most control characters even when escaped.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push(c),
            c if (c as u32) < 0x20 || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn markup_and_forbidden_characters_are_made_harmless() {
        assert_eq!(escaped("a<b>&\"\u{1}"), "a&lt;b&gt;&amp;&quot;\u{fffd}");
    }
}
