//! `litefs-tcl run` and `litefs-tcl list`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{OptionArgs, SourceArgs, tell};
use crate::baseline::Baseline;
use crate::child::Account;
use crate::execution::Bench;
use crate::expectations::Expectations;
use crate::fixture::Fixture;
use crate::mount::{Litefs, Mode, Spec};
use crate::run::{FileSummary, Layout, Native, Plan, RunResult, Summary};
use crate::suite::JournalMode;
use crate::work::Work;
use crate::{report, suite};

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Test files such as select1.test; `*` stands for any characters. All of the permutation without them.
    files: Vec<String>,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    options: OptionArgs,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    account: AccountArgs,
    /// Files that run at the same time, each slot with a mount of its own.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Whether the kernel serves -wal and -shm itself or the daemon sees every write.
    #[arg(long, value_enum, default_value = "auto")]
    mode: Mode,
    /// After each file compare every database with a replica and with what the log reconstructs.
    #[arg(long)]
    replica: bool,
    /// Seconds that a file may take on the mount (longer where it is slow natively).
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// Run each file natively beside the mount, take native results from the cache, or run all natively before.
    #[arg(long, value_enum, default_value = "beside")]
    native: Native,
    /// Measure the wall time of the whole run, natively and then on the mount: the same as --native before.
    #[arg(long, conflicts_with_all = ["native", "replica"])]
    wall: bool,
    /// Give each file its own directory on the mount, or a fresh mount to itself.
    #[arg(long, value_enum, default_value = "directory")]
    layout: Layout,
    /// The daemon (default: litefs next to this program, then in $PATH).
    #[arg(long)]
    litefs: Option<PathBuf>,
    /// Lists of known differences; the run succeeds when it differs exactly as they say.
    #[arg(long)]
    expectations: Option<PathBuf>,
    /// Where results go (default: in the cache).
    #[arg(long)]
    results: Option<PathBuf>,
    /// Where mounts, data and native directories go; needs a few GB.
    #[arg(long, default_value_os_t = std::env::temp_dir(), env = "LITEFS_TCL_WORK")]
    work: PathBuf,
    /// Keep the work directory.
    #[arg(long)]
    keep: bool,
    /// Another program instead of litefs that serves {mountpoint} from {source} in the foreground.
    #[arg(long, hide = true)]
    mount_command: Option<String>,
    /// Further lines of litefs.yml; `\n` separates lines.
    #[arg(long, hide = true, default_value = "")]
    litefs_config: String,
}

#[derive(Debug, Args)]
struct SelectionArgs {
    /// Permutation of SQLite's suite, or full-only for what veryquick leaves out.
    #[arg(long, default_value = "veryquick")]
    perm: String,
    /// The permutation that tests a journal mode.
    #[arg(long, value_enum, conflicts_with = "perm")]
    journal_mode: Option<JournalMode>,
}

impl SelectionArgs {
    fn permutation(&self) -> &str {
        self.journal_mode.map_or(&self.perm, |mode| mode.permutation())
    }
}

#[derive(Debug, Args)]
struct AccountArgs {
    /// User that runs the tests when started as root; the suite fails as root.
    #[arg(long, default_value_t = 65534)]
    uid: u32,
    #[arg(long, default_value_t = 65534)]
    gid: u32,
}

impl AccountArgs {
    fn account(&self) -> Result<Account> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(Account::Own);
        }
        ensure!(
            self.uid != 0,
            "the suite does not work when run as root: choose another --uid"
        );
        Ok(Account::Other {
            uid: self.uid,
            gid: self.gid,
        })
    }
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    options: OptionArgs,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    account: AccountArgs,
}

impl ListArgs {
    pub(super) fn run(self) -> Result<ExitCode> {
        let fixture = self.source.fixture(self.options.options())?;
        let files = suite::files(&fixture, self.selection.permutation(), self.account.account()?)?;
        tell(&(files.join("\n") + "\n"));
        Ok(ExitCode::SUCCESS)
    }
}

impl RunArgs {
    pub(super) fn run(self) -> Result<ExitCode> {
        let account = self.account.account()?;
        let fixture = self.source.fixture(self.options.options())?;
        reachable(&fixture.binary(), account)?;
        let permutation = self.selection.permutation().to_string();
        let files = selected(&suite::files(&fixture, &permutation, account)?, &self.files)?;
        let expectations = match &self.expectations {
            Some(directory) => Expectations::load(directory, &fixture.id(), self.mode.name(), &permutation)?,
            None => Expectations::default(),
        };
        let mut results = self.results_directory(&fixture, &permutation);
        let spec = self.spec(account)?;
        let work = Work::claim(&self.work)?;
        let baseline = self.source.cache().baseline(&fixture.id(), &permutation);
        let plan = Plan {
            // The suite has cases whose names depend on the length of the path they run in.
            baseline: Baseline::at(baseline.join(format!(
                "{:?}-{}",
                self.layout,
                work.directory().as_os_str().len()
            ))),
            bench: Bench {
                fixture,
                permutation,
                account,
            },
            spec,
            files,
            jobs: self.jobs,
            layout: self.layout,
            native: if self.wall { Native::Before } else { self.native },
            replica: self.replica,
            limit: Duration::from_secs(self.timeout),
            work: work.directory().to_path_buf(),
            logs: results.join("logs"),
            expectations,
        };
        let outcome = plan.run();
        match self.keep {
            true => work.keep()?,
            false => work.remove(),
        }
        let outcome = outcome?;
        let summary = self.summary(&plan, &outcome);
        if outcome.interrupted && self.results.is_none() {
            // The results of the last complete run stay.
            results = self.source.cache().root().join("last-interrupted");
        }
        report::write(&results, &summary, &outcome)?;
        tell(&format!(
            "{}results in {}\n",
            report::table(&summary),
            results.display()
        ));
        Ok(if summary.objections.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(1)
        })
    }

    fn spec(&self, account: Account) -> Result<Spec> {
        if let Some(command) = &self.mount_command {
            ensure!(!self.replica, "--replica needs litefs");
            return Ok(Spec::Command(command.clone()));
        }
        let binary = self.litefs.clone().unwrap_or_else(daemon);
        let binary = std::path::absolute(&binary).unwrap_or(binary);
        Ok(Spec::Litefs(Litefs {
            binary,
            mode: self.mode,
            primary: None,
            allow_other: account != Account::Own,
            extra_config: self.litefs_config.replace("\\n", "\n"),
        }))
    }

    fn mode_name(&self) -> &str {
        if self.mount_command.is_some() {
            "control"
        } else {
            self.mode.name()
        }
    }

    fn results_directory(&self, fixture: &Fixture, permutation: &str) -> PathBuf {
        if let Some(directory) = &self.results {
            return directory.clone();
        }
        let results = self.source.cache().results();
        if !self.files.is_empty() {
            // Not a result that the report may show.
            return self.source.cache().root().join("last-selection");
        }
        let replica = if self.replica { "-replica" } else { "" };
        results.join(format!(
            "{}-{permutation}-{}{replica}",
            fixture.id(),
            self.mode_name()
        ))
    }

    fn summary(&self, plan: &Plan, outcome: &RunResult) -> Summary {
        let expectations = &plan.expectations;
        Summary {
            sqlite: plan.bench.fixture.version.clone(),
            options: plan.bench.fixture.options.name().to_string(),
            permutation: plan.bench.permutation.clone(),
            mode: self.mode_name().to_string(),
            layout: format!("{:?}", self.layout).to_lowercase(),
            replica: self.replica,
            jobs: self.jobs,
            full: self.files.is_empty(),
            date: said_by("date", &["-u", "+%Y-%m-%d"]),
            machine: said_by("uname", &["-srm"]),
            wall_seconds: outcome.wall.as_secs_f64(),
            walls: outcome.walls,
            interrupted: outcome.interrupted,
            findings: outcome.findings.clone(),
            objections: outcome.objections(expectations),
            files: outcome
                .results
                .iter()
                .map(|result| FileSummary::of(result, expectations))
                .collect(),
        }
    }
}

/// The files of the permutation that match one of the patterns, each of which has to match something.
fn selected(all: &[String], patterns: &[String]) -> Result<Vec<String>> {
    if patterns.is_empty() {
        return Ok(all.to_vec());
    }
    let mut found = Vec::new();
    for pattern in patterns {
        let before = found.len();
        found.extend(all.iter().filter(|file| matches(pattern, file)).cloned());
        ensure!(found.len() > before, "no test file {pattern} in this permutation");
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// `*` stands for any characters; `.test` may be left out.
fn matches(pattern: &str, file: &str) -> bool {
    let pattern = pattern.strip_suffix(".test").unwrap_or(pattern);
    let file = file.strip_suffix(".test").unwrap_or(file);
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == file;
    };
    let Some(mut left) = file.strip_prefix(head) else {
        return false;
    };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        match left.find(piece) {
            Some(at) => left = &left[at + piece.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

/// The test account has to be able to run what root built.
fn reachable(binary: &Path, account: Account) -> Result<()> {
    let mut command = Command::new("test");
    command
        .arg("-x")
        .arg(binary)
        .current_dir("/")
        .stdin(Stdio::null());
    account.apply(&mut command);
    let status = command.status().context("run test")?;
    ensure!(
        status.success(),
        "the test user cannot run {}: choose a cache that others can reach (XDG_CACHE_HOME or --cache)",
        binary.display()
    );
    Ok(())
}

fn daemon() -> PathBuf {
    let beside = std::env::current_exe()
        .ok()
        .map(|exe| exe.with_file_name("litefs"));
    beside
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("litefs"))
}

fn said_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names_with_or_without_the_ending() {
        assert!(matches("select1.test", "select1.test"));
        assert!(matches("select1", "select1.test"));
        assert!(!matches("select", "select1.test"));
        assert!(matches("select*", "select1.test"));
        assert!(matches("*1*.test", "e_select1x.test"));
        assert!(!matches("*2", "select21.test"));
    }

    #[test]
    fn a_name_that_matches_nothing_is_an_error_and_not_an_empty_run() {
        let all = vec!["a.test".to_string()];
        assert!(selected(&all, &["b.test".to_string()]).is_err());
        assert_eq!(
            selected(&all, &["a".to_string(), "a.test".to_string()]).unwrap(),
            all
        );
    }
}
