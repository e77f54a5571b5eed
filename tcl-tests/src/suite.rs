//! The permutations of SQLite's suite: which exist and which test files each of them runs.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::child::Account;
use crate::fixture::Fixture;

/// Journal modes and other permutations that change what a mount sees, under the names users know them by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum JournalMode {
    Wal,
    Persist,
    Truncate,
    Memory,
    Off,
    Exclusive,
    Mmap,
}

impl JournalMode {
    pub fn permutation(self) -> &'static str {
        match self {
            JournalMode::Wal => "wal",
            JournalMode::Persist => "persistent_journal",
            JournalMode::Truncate => "truncate_journal",
            JournalMode::Memory => "inmemory_journal",
            JournalMode::Off => "no_journal",
            JournalMode::Exclusive => "exclusive",
            JournalMode::Mmap => "mmap",
        }
    }
}

/// `full` without what `veryquick` runs already: the slow rest, for nights.
pub const FULL_ONLY: &str = "full-only";

/// Sourcing permutations.test under another name of the main script defines the suites and runs none.
const LIST: &str = r#"
set source [lindex $argv 0]
set suite [lindex $argv 1]
set argv [lrange $argv 2 end]
set argv0 $source/test/list.test
source $source/test/permutations.test
if {![info exists ::testspec($suite)]} {
  puts "NONE [lsort [array names ::testspec]]"
  exit 0
}
array set spec $::testspec($suite)
foreach file [lsort -unique $spec(-files)] { puts "FILE [file tail $file]" }
exit 0
"#;

/// The permutation that the driver is given: our own names map to upstream's.
pub fn driver_permutation(permutation: &str) -> &str {
    if permutation == FULL_ONLY {
        "full"
    } else {
        permutation
    }
}

/// The file names (`select1.test`) of a permutation, sorted.
pub fn files(fixture: &Fixture, permutation: &str, account: Account) -> Result<Vec<String>> {
    if permutation == FULL_ONLY {
        let quick = files(fixture, "veryquick", account)?;
        let mut rest = files(fixture, "full", account)?;
        rest.retain(|file| quick.binary_search(file).is_err());
        return Ok(rest);
    }
    // A directory of the test user: tester.tcl creates its working directory as soon as it is sourced.
    let directory = tempfile::tempdir().context("create a directory for the listing")?;
    account.give(directory.path())?;
    let script = directory.path().join("list.tcl");
    std::fs::write(&script, LIST).with_context(|| format!("write {}", script.display()))?;
    let mut command = Command::new(fixture.binary());
    command.arg(&script).arg(&fixture.source).arg(permutation);
    command.arg(format!("--testdir={}", directory.path().join("list").display()));
    command.current_dir(&fixture.build);
    account.apply(&mut command);
    let output = command
        .output()
        .with_context(|| format!("run {}", fixture.binary().display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(known) = text.lines().find_map(|line| line.strip_prefix("NONE ")) {
        bail!(
            "SQLite {} has no permutation {permutation}; it has: {known}",
            fixture.version
        );
    }
    let mut found: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("FILE "))
        .map(str::to_string)
        .collect();
    ensure!(
        output.status.success() && !found.is_empty(),
        "cannot list permutation {permutation}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    found.sort();
    found.dedup();
    Ok(found)
}
