//! Commands and flags. Each command is a thin layer over the library.
//!
//! Exit status: 0 the mount was shown to equal native (or, with `--expectations`, to differ exactly as listed), 1 it was not,
//! 2 the runner could not do its work, or not to the end.

mod run;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser};
use terminal::interrupt;

use crate::cache::Cache;
use crate::fixture::{Fixture, Options};
use crate::source::{self, Request};
use crate::{replica, report};

/// SQLite's own TCL test suite on a litefs mount, compared with a plain directory.
#[derive(Debug, Parser)]
#[command(name = "litefs-tcl", version)]
pub enum Command {
    /// Obtain SQLite's source with its tests.
    Fetch(SourceArgs),
    /// Build the test binary.
    Build(BuildArgs),
    /// Run test files natively and on the mount, and compare.
    Run(Box<run::RunArgs>),
    /// List the test files of a permutation.
    List(run::ListArgs),
    /// Find the databases below a directory of a mount and settle copies of them.
    #[command(hide = true)]
    Inspect {
        directory: PathBuf,
        copies: PathBuf,
        list: PathBuf,
    },
    /// Write the conformance page from the results of the last full runs.
    Report(ReportArgs),
}

#[derive(Debug, Args)]
pub struct SourceArgs {
    /// Version of SQLite: 3.40.1 (default) or newest.
    #[arg(long, env = "LITEFS_TCL_SQLITE")]
    sqlite: Option<String>,
    /// SQLite's full source tree as a tar file, instead of Debian's source package.
    #[arg(long)]
    tarball: Option<PathBuf>,
    /// Where Debian's source packages are downloaded from (default: where this system's packages come from).
    #[arg(long, env = "LITEFS_TCL_DEBIAN")]
    debian: Option<String>,
    /// Cache directory (default: $XDG_CACHE_HOME/litefs-tcl).
    #[arg(long)]
    cache: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct BuildArgs {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    options: OptionArgs,
    #[arg(long, default_value = "2")]
    jobs: NonZeroUsize,
}

#[derive(Debug, Args)]
pub struct OptionArgs {
    /// Configure SQLite with --enable-all (FTS, RTREE, SESSION, ...).
    #[arg(long)]
    enable_all: bool,
    /// Also the options that --enable-all leaves out (8.3 names, RBU, SNAPSHOT, STAT4, SETLK_TIMEOUT).
    #[arg(long)]
    extra_options: bool,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Directory of results (default: the cache's).
    #[arg(long)]
    results: Option<PathBuf>,
    /// The page to write; standard output without it.
    #[arg(long)]
    output: Option<PathBuf>,
    #[arg(long)]
    cache: Option<PathBuf>,
}

/// The version that is tested where none is named.
const OLDEST: &str = "3.40.1";

impl Command {
    pub fn run(self) -> Result<ExitCode> {
        interrupt::watch()?;
        match self {
            Command::Fetch(args) => {
                let source = args.fetch()?;
                tell(&format!(
                    "SQLite {} in {}\n",
                    source.version,
                    source.directory.display()
                ));
                Ok(ExitCode::SUCCESS)
            }
            Command::Build(args) => {
                let source = args.source.fetch()?;
                let cache = args.source.cache();
                let fixture = Fixture::build(&cache, &source, args.options.options(), args.jobs.get())?;
                tell(&format!("{}\n", fixture.binary().display()));
                Ok(ExitCode::SUCCESS)
            }
            Command::Run(args) => args.run(),
            Command::List(args) => args.run(),
            Command::Inspect {
                directory,
                copies,
                list,
            } => {
                replica::inspect::inspect(&directory, &copies, &list)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Report(args) => args.run(),
        }
    }
}

impl SourceArgs {
    fn cache(&self) -> Cache {
        cache(self.cache.as_ref())
    }

    fn request(&self) -> Request {
        match &self.tarball {
            Some(file) => Request::Tarball {
                file: file.clone(),
                version: self.sqlite.clone(),
            },
            None => Request::Pinned(self.sqlite.clone().unwrap_or_else(|| OLDEST.to_string())),
        }
    }

    fn fetch(&self) -> Result<source::Source> {
        source::fetch(&self.cache(), &self.request(), self.debian.as_deref())
    }

    /// The fixture from the cache, built first where it is missing.
    fn fixture(&self, options: Options) -> Result<Fixture> {
        // A cache that holds the fixture needs no network any more.
        let version = source::resolve(&self.request())?;
        if let Some(fixture) = Fixture::find(&self.cache(), &version, options) {
            return Ok(fixture);
        }
        crate::work::tell(&format!(
            "building testfixture for SQLite {version} ({})",
            options.name()
        ));
        Fixture::build(&self.cache(), &self.fetch()?, options, 2)
    }
}

impl OptionArgs {
    fn options(&self) -> Options {
        Options {
            enable_all: self.enable_all,
            extra: self.extra_options,
        }
    }
}

impl ReportArgs {
    fn run(self) -> Result<ExitCode> {
        let results = self
            .results
            .unwrap_or_else(|| cache(self.cache.as_ref()).results());
        let page = report::page(&report::load_all(&results)?);
        match self.output {
            Some(path) => std::fs::write(&path, page).with_context(|| format!("write {}", path.display()))?,
            None => tell(&page),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn cache(directory: Option<&PathBuf>) -> Cache {
    directory.map_or_else(Cache::from_environment, Cache::at)
}

/// A reader that went away, such as `head`, is no error and must not end the process with mounts in place.
fn tell(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
