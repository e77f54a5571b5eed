//! One test file in one directory: make the directory, run the file, remove the directory.
//!
//! Invariants: the file runs through `permutations.test` (a slave interpreter: run directly, 3.40.1 leaves a global variable
//! behind that breaks two files), with the build directory as working directory (3.40.1 looks for the command line tools there), as
//! the test account. Nothing here knows whether the directory is native or on a mount.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::child::{self, Account, Ended, Usage};
use crate::fixture::Fixture;
use crate::suite;
use crate::transcript::Transcript;

/// How a run of one file ended, by itself, before any comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Ok,
    /// Came to its end without testing anything.
    Skip,
    Fail,
    /// Ended without a summary.
    Abort,
    TimeOut,
    /// The process behind the mount ended, or the mount did not answer.
    MountDied,
    /// Natively it takes longer than the limit, so that the mount is not asked.
    NotRun,
}

/// The result of one file in one place.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FileRun {
    pub outcome: Outcome,
    pub transcript: Transcript,
    pub seconds: f64,
    pub cpu_seconds: f64,
    /// What went wrong beside the test cases: cleaning up, the mount's end, a replica that differs.
    pub findings: Vec<String>,
}

/// What all runs have in common.
#[derive(Debug, Clone)]
pub struct Bench {
    pub fixture: Fixture,
    pub permutation: String,
    pub account: Account,
}

/// Where a file runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// Made for the run and removed after it.
    pub directory: PathBuf,
    /// Temporary files of SQLite and of the tests that ask for a temporary directory: never on the mount.
    pub scratch: PathBuf,
    /// Standard output and standard error of the run.
    pub log: PathBuf,
}

/// For making and removing a directory and other small errands on a mount.
pub const ERRAND: Duration = Duration::from_secs(120);

impl Bench {
    /// Runs one file in a directory that exists.
    pub fn test(&self, place: &Place, file: &str, limit: Duration) -> Result<FileRun> {
        let log = File::create(&place.log).with_context(|| format!("create {}", place.log.display()))?;
        let errors = log
            .try_clone()
            .with_context(|| format!("share {}", place.log.display()))?;
        let mut command = Command::new(self.fixture.binary());
        command
            .arg(self.fixture.permutations())
            .arg(suite::driver_permutation(&self.permutation))
            .arg(file)
            .arg(format!("--testdir={}", place.directory.display()))
            .current_dir(&self.fixture.build)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", &place.scratch)
            .env("TMPDIR", &place.scratch)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        self.account.apply(&mut command);
        child::limit_open_files(&mut command);
        let usage = child::run(&mut command, limit)?;
        let output = std::fs::read(&place.log).with_context(|| format!("read {}", place.log.display()))?;
        let transcript = Transcript::parse(&output, &place.directory.to_string_lossy());
        Ok(FileRun {
            outcome: outcome(&usage, &transcript),
            transcript,
            seconds: usage.wall.as_secs_f64(),
            cpu_seconds: usage.cpu.as_secs_f64(),
            findings: Vec::new(),
        })
    }

    /// Makes the directory that a file runs in, owned by the test account. `Err` is a finding.
    pub fn prepare(&self, directory: &Path) -> Result<(), String> {
        let mut command = Command::new("install");
        command.arg("-d");
        if let Account::Other { uid, gid } = self.account {
            command
                .arg(format!("--owner={uid}"))
                .arg(format!("--group={gid}"));
        }
        errand(command.arg("--").arg(directory), "make the test directory")
    }

    /// Removes it with all that the test left there. `Err` is a finding.
    pub fn clean(&self, directory: &Path) -> Result<(), String> {
        errand(
            Command::new("rm").arg("-rf").arg("--").arg(directory),
            "remove the test directory",
        )
    }
}

/// Runs a small command with a limit. Its standard error becomes the finding.
pub fn errand(command: &mut Command, what: &str) -> Result<(), String> {
    let words = tempfile::tempfile().map_err(|error| format!("{what}: {error}"))?;
    let shared = words.try_clone().map_err(|error| format!("{what}: {error}"))?;
    let usage = child::run(
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(shared),
        ERRAND,
    )
    .map_err(|error| format!("{what}: {}", terminal::explain(&error)))?;
    if usage.ended.success() {
        return Ok(());
    }
    Err(format!("{what}: {}: {}", usage.ended, beginning(words)))
}

fn beginning(mut file: File) -> String {
    use std::io::{Read, Seek};
    let mut bytes = vec![0; 600];
    let read = file.rewind().and_then(|()| file.read(&mut bytes)).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).trim().replace('\n', "; ")
}

fn outcome(usage: &Usage, transcript: &Transcript) -> Outcome {
    match usage.ended {
        Ended::TimedOut | Ended::Stuck => Outcome::TimeOut,
        Ended::Exited(_) if transcript.summary.is_none() => Outcome::Abort,
        // The exit status also tells of files left open and of memory not freed.
        Ended::Exited(status) if transcript.errors() > 0 || !status.success() => Outcome::Fail,
        Ended::Exited(_) if transcript.cases() == 0 => Outcome::Skip,
        Ended::Exited(_) => Outcome::Ok,
    }
}
