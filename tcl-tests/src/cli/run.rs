//! `litefs-tcl run` and `litefs-tcl list`.

use std::num::{NonZeroU64, NonZeroUsize};
use std::os::unix::fs::MetadataExt;
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
use crate::mount::{Litefs, Mode, Reloads, Spec};
use crate::report::LOGS;
use crate::run::{self, FileSummary, Layout, Native, Plan, RunResult, Summary};
use crate::suite::JournalMode;
use crate::work::Work;
use crate::{report, source, suite};

/// Mode of a mount that is not litefs.
const CONTROL: &str = "control";

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
    #[arg(long, default_value = "2")]
    jobs: NonZeroUsize,
    /// Whether the kernel serves -wal and -shm itself or the daemon sees every write.
    #[arg(long, value_enum, default_value = "auto")]
    mode: Mode,
    /// After each file compare every database with a replica and with what the log reconstructs.
    #[arg(long)]
    replica: bool,
    /// While files run, replace every daemon, also the replica's, each so many seconds (as `litefs reload` does).
    #[arg(long, value_name = "SECONDS", conflicts_with = "mount_command")]
    reload_every: Option<NonZeroU64>,
    /// Seconds that a file may take on the mount (longer where it is slow natively).
    #[arg(long, default_value = "300")]
    timeout: NonZeroU64,
    /// Run each file natively beside the mount, take native results from the cache, or run all files natively before the
    /// first one runs on the mount.
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
    /// Keep the work directory with the data of all mounts.
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
        let all = suite::files(&fixture, &permutation, account)?;
        let bench = Bench {
            fixture,
            permutation,
            account,
        };
        let work = Work::claim(&self.work)?;
        let tested = self.test(bench, &all, &work);
        // Before the report, which a full disk would not take.
        let kept = if self.keep {
            work.keep()
        } else {
            work.remove();
            Ok(())
        };
        let (plan, outcome) = tested?;
        let status = self.report(&plan, &outcome)?;
        kept?;
        Ok(status)
    }

    /// Runs the files. What is wrong before the first one is an error.
    fn test(&self, bench: Bench, all: &[String], work: &Work) -> Result<(Plan, RunResult)> {
        enterable(work.directory(), bench.account)?;
        let files = selected(all, &self.files)?;
        let spec = self.spec(bench.account)?;
        let mode = run::try_mount(&spec.steady(), work.directory())?.unwrap_or_else(|| CONTROL.to_string());
        let expectations = match &self.expectations {
            Some(directory) => Expectations::load(directory, &bench.fixture.id(), &mode, &bench.permutation)?,
            None => Expectations::default(),
        };
        expectations.know_only(all)?;
        let results = self.results_directory(&bench, &mode);
        let plan = Plan {
            baseline: self.baseline(&bench, work.directory())?,
            bench,
            daemon: identity(&spec),
            spec,
            mode,
            files,
            jobs: self.jobs,
            layout: self.layout,
            native: self.native(),
            replica: self.replica,
            limit: Duration::from_secs(self.timeout.get()),
            work: work.directory().to_path_buf(),
            keep: self.keep,
            logs: results.join(LOGS),
            expectations,
        };
        let outcome = plan.run()?;
        Ok((plan, outcome))
    }

    fn report(&self, plan: &Plan, outcome: &RunResult) -> Result<ExitCode> {
        let summary = self.summary(plan, outcome);
        let results = if outcome.interrupted && self.results.is_none() {
            // The results of the last complete run stay.
            self.source.cache().root().join("last-interrupted")
        } else {
            self.results_directory(&plan.bench, &plan.mode)
        };
        report::write(&results, &summary, outcome)?;
        tell(&format!(
            "{}results in {}\n",
            report::table(&summary),
            results.display()
        ));
        Ok(if !outcome.errors.is_empty() {
            ExitCode::from(2)
        } else if !summary.objections.is_empty() {
            ExitCode::from(1)
        } else {
            ExitCode::SUCCESS
        })
    }

    fn native(&self) -> Native {
        if self.wall { Native::Before } else { self.native }
    }

    /// Kept native results, apart for everything that decides which cases a file has and passes.
    fn baseline(&self, bench: &Bench, work: &Path) -> Result<Baseline> {
        let binary = bench.fixture.binary();
        let built = std::fs::metadata(&binary).with_context(|| format!("look at {}", binary.display()))?;
        let system = nix::sys::statfs::statfs(work).with_context(|| format!("look at {}", work.display()))?;
        let kept = self
            .source
            .cache()
            .baseline(&bench.fixture.id(), &bench.permutation);
        Ok(Baseline::at(kept.join(format!(
            "{}-{}-{}-{}-{:x}-{}",
            self.layout.name(),
            // The suite has cases whose names depend on the length of the path they run in.
            work.as_os_str().len(),
            bench.account.uid(),
            said_by("uname", &["-r"]),
            system.filesystem_type().0,
            built.mtime(),
        ))))
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
            reloads: self
                .reload_every
                .map(|seconds| Reloads::every(Duration::from_secs(seconds.get()))),
        }))
    }

    fn results_directory(&self, bench: &Bench, mode: &str) -> PathBuf {
        if let Some(directory) = &self.results {
            return directory.clone();
        }
        let cache = self.source.cache();
        if !self.files.is_empty() {
            // Not a result that the report may show.
            return cache.root().join("last-selection");
        }
        let mut name = format!("{}-{}-{mode}", bench.fixture.id(), bench.permutation);
        if self.replica {
            name.push_str("-replica");
        }
        if let Some(seconds) = self.reload_every {
            name = format!("{name}-reload{seconds}");
        }
        if self.layout != Layout::Directory {
            name = format!("{name}-{}", self.layout.name());
        }
        if self.native() != Native::Beside {
            name = format!("{name}-{}", self.native().name());
        }
        cache.results().join(name)
    }

    fn summary(&self, plan: &Plan, outcome: &RunResult) -> Summary {
        let expectations = &plan.expectations;
        Summary {
            sqlite: plan.bench.fixture.version.clone(),
            options: plan.bench.fixture.options.name().to_string(),
            permutation: plan.bench.permutation.clone(),
            mode: plan.mode.clone(),
            daemon: plan.daemon.clone(),
            native: plan.native.name().to_string(),
            layout: self.layout.name().to_string(),
            replica: self.replica,
            reloads: outcome.reloads,
            jobs: self.jobs.get(),
            full: self.files.is_empty(),
            date: said_by("date", &["-u", "+%Y-%m-%d"]),
            machine: kernel(),
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
    ensure!(
        can_pass(binary, account)?,
        "the test user cannot run {}: choose a cache that others can reach (XDG_CACHE_HOME or --cache)",
        binary.display()
    );
    Ok(())
}

/// The test account has to be able to enter the directories of the run: where it cannot, no test begins on either side.
fn enterable(directory: &Path, account: Account) -> Result<()> {
    ensure!(
        can_pass(directory, account)?,
        "the test user cannot enter {}: choose a directory that others can reach (--work or LITEFS_TCL_WORK)",
        directory.display()
    );
    Ok(())
}

/// Whether the account may execute a file, or pass through a directory.
fn can_pass(path: &Path, account: Account) -> Result<bool> {
    let mut command = Command::new("test");
    command.arg("-x").arg(path).current_dir("/").stdin(Stdio::null());
    account.apply(&mut command);
    Ok(command.status().context("run test")?.success())
}

/// What is tested. A build that does not tell its commit is known by its bytes.
fn identity(spec: &Spec) -> String {
    let litefs = match spec {
        Spec::Litefs(litefs) => litefs,
        Spec::Command(words) => return words.clone(),
    };
    let version = said_by(&litefs.binary.to_string_lossy(), &["version"]);
    if version.contains("commit=") {
        return version;
    }
    let digest = source::sha256(&litefs.binary)
        .unwrap_or_else(|error| format!("unknown: {}", terminal::explain(&error)));
    format!("{version}, sha256 {digest}")
}

fn daemon() -> PathBuf {
    let name = "litefs";
    let beside = std::env::current_exe().ok().map(|exe| exe.with_file_name(name));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path).map(|directory| directory.join(name)))
        .find(|file| file.exists())
        .unwrap_or_else(|| PathBuf::from(name))
}

/// Name and version of the kernel, without what a distribution or a machine adds.
fn kernel() -> String {
    let release = said_by("uname", &["-r"]);
    let version = release.split('-').next().unwrap_or_default();
    format!("Linux {version} {}", std::env::consts::ARCH)
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
    use clap::Parser;

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
    fn no_time_and_no_job_are_refused() {
        for option in ["--timeout", "--jobs", "--reload-every"] {
            let words = |value| ["litefs-tcl", "run", option, value];
            assert!(crate::cli::Command::try_parse_from(words("0")).is_err());
            assert!(crate::cli::Command::try_parse_from(words("1")).is_ok());
        }
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
