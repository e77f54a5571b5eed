//! Native results that are kept, per fixture and permutation: how long each file takes, and, on request, the result itself
//! instead of running the file natively again.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::execution::{FileRun, Outcome};

/// A directory with one JSON file per test file.
#[derive(Debug, Clone)]
pub struct Baseline {
    directory: PathBuf,
}

impl Baseline {
    pub fn at(directory: PathBuf) -> Baseline {
        Baseline { directory }
    }

    /// A result that cannot be read is no result: the file is run again.
    pub fn load(&self, file: &str) -> Option<FileRun> {
        let text = std::fs::read(self.path(file)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Keeps a good result. A bad one says more about the moment than about the file.
    pub fn store(&self, file: &str, run: &FileRun) -> Result<()> {
        if !matches!(run.outcome, Outcome::Ok | Outcome::Skip) || !run.findings.is_empty() {
            return Ok(());
        }
        std::fs::create_dir_all(&self.directory)
            .with_context(|| format!("create {}", self.directory.display()))?;
        let path = self.path(file);
        let staging = path.with_extension(format!(
            "{}.{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(
            &staging,
            serde_json::to_vec(run).context("encode a native result")?,
        )
        .with_context(|| format!("write {}", staging.display()))?;
        std::fs::rename(&staging, &path).with_context(|| format!("rename to {}", path.display()))
    }

    /// Seconds that the file took natively when it last ran.
    pub fn seconds(&self, file: &str) -> Option<f64> {
        self.load(file).map(|run| run.seconds)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.join(format!("{file}.json"))
    }
}
