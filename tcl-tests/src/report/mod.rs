//! Results for people and for machines: a table on the terminal, CSV, JUnit, and the page `docs/conformance.md`.
//!
//! Last step of the path: nothing here decides anything.

mod conformance;
mod csv;
mod junit;
mod table;

use std::path::Path;

use anyhow::{Context, Result};

pub use conformance::page;
pub use table::table;

use crate::run::{RunResult, Summary};

/// Names of the files in a results directory.
pub const SUMMARY: &str = "summary.json";
pub const CSV: &str = "results.csv";
pub const JUNIT: &str = "junit.xml";
/// Directory of the logs of files that differ.
pub const LOGS: &str = "logs";

/// Writes everything that is kept of a run.
pub fn write(directory: &Path, summary: &Summary, result: &RunResult) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let save = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    save(
        SUMMARY,
        serde_json::to_string_pretty(summary).context("encode the summary")?,
    )?;
    save(CSV, csv::text(summary))?;
    save(JUNIT, junit::text(summary, result))
}

/// All summaries below a directory of results, in a stable order.
pub fn load_all(results: &Path) -> Result<Vec<Summary>> {
    let entries = std::fs::read_dir(results).with_context(|| format!("list {}", results.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("list {}", results.display()))?
            .path()
            .join(SUMMARY);
        if path.exists() {
            let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let summary: Summary =
                serde_json::from_slice(&text).with_context(|| format!("decode {}", path.display()))?;
            found.push(summary);
        }
    }
    found.sort_by_key(|s: &Summary| {
        (
            version(&s.sqlite),
            s.options.clone(),
            s.permutation.clone(),
            s.mode.clone(),
        )
    });
    Ok(found)
}

fn version(text: &str) -> Vec<u32> {
    text.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A summary with the fields that all versions of the runner write.
    const EARLIER: &str = r#"{
        "sqlite": "3.40.1", "options": "plain", "permutation": "veryquick", "mode": "passthrough",
        "layout": "directory", "replica": false, "jobs": 2, "full": true, "date": "2026-11-20",
        "machine": "Linux", "wall_seconds": 1.0, "interrupted": false, "findings": [], "objections": [],
        "files": [{
            "file": "select1.test", "status": "ok", "equal": true, "alarm": false, "flaky": "fail",
            "varying": false, "exception": null,
            "native": {"outcome": "ok", "cases": 5, "errors": 0, "seconds": 0.1, "cpu_seconds": 0.1},
            "mount": {"outcome": "ok", "cases": 5, "errors": 0, "seconds": 0.1, "cpu_seconds": 0.1},
            "databases": {"compared": 1, "local": 0, "different": 0}, "differences": [], "failures": []
        }]
    }"#;

    #[test]
    fn results_of_earlier_versions_are_still_reported() {
        let results = tempfile::tempdir().unwrap();
        let directory = results.path().join("one");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join(SUMMARY), EARLIER).unwrap();
        let page = page(&load_all(results.path()).unwrap());
        assert!(
            page.contains("| 3.40.1 | plain | veryquick | passthrough |"),
            "{page}"
        );
        assert!(page.contains("fail at first"), "{page}");
    }
}
