//! `testfixture`: SQLite with its Tcl test interfaces, and the command line tools, built from the fetched source.
//!
//! Invariant: a build directory with its final stamp file is complete and belongs to exactly one source and one
//! set of options. Second step of the path fetch -> build -> run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::Cache;
use crate::source::Source;

/// Compile-time options that make more of the suite run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// `./configure --enable-all`: FTS, RTREE, SESSION, GEOPOLY and others.
    pub enable_all: bool,
    /// What `--enable-all` leaves out and the suite has tests for.
    pub extra: bool,
}

/// The test files named by the capability they need: rbu*, *8_3_names, snapshot*, analyze*, walsetlk*, ...
const EXTRA: &[&str] = &[
    "-DSQLITE_ENABLE_8_3_NAMES=1",
    "-DSQLITE_ENABLE_RBU",
    "-DSQLITE_ENABLE_SNAPSHOT",
    "-DSQLITE_ENABLE_STAT4",
    "-DSQLITE_ENABLE_SETLK_TIMEOUT",
];

/// The test binary, and the tools without which their tests skip themselves.
const TARGETS: [&str; 3] = ["testfixture", "sqlite3", "sqldiff"];

const STAMP: &str = "litefs-tcl.complete";

impl Options {
    /// Part of directory names, of result names and of the expectations' file names.
    pub fn name(&self) -> &'static str {
        match (self.enable_all, self.extra) {
            (false, false) => "plain",
            (true, false) => "all",
            (false, true) => "extra",
            (true, true) => "all-extra",
        }
    }
}

/// A test binary together with the tree it was built from.
#[derive(Debug, Clone)]
pub struct Fixture {
    pub version: String,
    pub options: Options,
    pub source: PathBuf,
    /// Holds [`TARGETS`].
    pub build: PathBuf,
}

impl Fixture {
    pub fn id(&self) -> String {
        id(&self.version, self.options)
    }

    pub fn binary(&self) -> PathBuf {
        self.build.join("testfixture")
    }

    pub fn permutations(&self) -> PathBuf {
        self.source.join("test/permutations.test")
    }

    /// The fixture if it is complete in the cache; nothing is built.
    pub fn find(cache: &Cache, version: &str, options: Options) -> Option<Fixture> {
        let fixture = Fixture {
            version: version.to_string(),
            options,
            source: cache.source(version),
            build: cache.build(&id(version, options)),
        };
        fixture.is_complete().then_some(fixture)
    }

    fn is_complete(&self) -> bool {
        self.build.join(STAMP).exists() && TARGETS.iter().all(|target| self.build.join(target).exists())
    }

    /// Builds what is missing.
    pub fn build(cache: &Cache, source: &Source, options: Options, jobs: usize) -> Result<Fixture> {
        let build = cache.build(&id(&source.version, options));
        let fixture = Fixture {
            version: source.version.clone(),
            options,
            source: source.directory.clone(),
            build,
        };
        if fixture.is_complete() {
            return Ok(fixture);
        }
        std::fs::create_dir_all(&fixture.build)
            .with_context(|| format!("create {}", fixture.build.display()))?;
        if !fixture.build.join("Makefile").exists() {
            let mut configure = Command::new(fixture.source.join("configure"));
            if options.enable_all {
                configure.arg("--enable-all");
            }
            logged(&mut configure, &fixture.build, "configure.log")?;
        }
        let mut make = Command::new("make");
        make.arg(format!("-j{jobs}"));
        if options.extra {
            // OPTS reaches every compilation in both build systems (autoconf and autosetup).
            make.arg(format!("OPTS={}", EXTRA.join(" ")));
        }
        make.args(TARGETS);
        logged(&mut make, &fixture.build, "make.log")?;
        let stamp = fixture.build.join(STAMP);
        File::create(&stamp).with_context(|| format!("create {}", stamp.display()))?;
        Ok(fixture)
    }
}

fn id(version: &str, options: Options) -> String {
    format!("{version}-{}", options.name())
}

fn logged(command: &mut Command, directory: &Path, log: &str) -> Result<()> {
    let log = directory.join(log);
    let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let errors = file
        .try_clone()
        .with_context(|| format!("share {}", log.display()))?;
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .current_dir(directory)
        .stdin(std::process::Stdio::null())
        .stdout(file)
        .stderr(errors)
        .status()
        .with_context(|| format!("run {program}"))?;
    ensure!(
        status.success(),
        "{program}: {status}; see {} (needed: gcc make libc6-dev tcl tcl-dev zlib1g-dev)",
        log.display()
    );
    Ok(())
}
