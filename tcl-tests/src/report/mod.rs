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

/// Text without what Markdown or a table cell would take for markup.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
