//! Where the runner keeps what is expensive to make again: tarballs, unpacked sources, test binaries,
//! native results and the results of full runs.
//!
//! Invariant: everything below the root can be deleted at any time; the next command makes it again.
//! Used by every sub-command.

use std::path::{Path, PathBuf};

/// The cache directory and its layout.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$XDG_CACHE_HOME/litefs-tcl`. Without that variable root gets a system directory, because the test
    /// processes of an unprivileged user have to reach the binaries and root's home is usually closed.
    pub fn from_environment() -> Cache {
        let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
            Some(directory) => PathBuf::from(directory),
            None if nix::unistd::geteuid().is_root() => PathBuf::from("/var/cache"),
            None => PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".cache"),
        };
        Cache {
            root: base.join("litefs-tcl"),
        }
    }

    pub fn at(root: impl Into<PathBuf>) -> Cache {
        Cache { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn tarballs(&self) -> PathBuf {
        self.root.join("tar")
    }

    pub fn source(&self, version: &str) -> PathBuf {
        self.root.join("src").join(version)
    }

    pub fn build(&self, fixture_id: &str) -> PathBuf {
        self.root.join("build").join(fixture_id)
    }

    /// Native results, one file per test file.
    pub fn baseline(&self, fixture_id: &str, permutation: &str) -> PathBuf {
        self.root.join("baseline").join(fixture_id).join(permutation)
    }

    /// Results of full runs, one directory per combination; `litefs-tcl report` reads all of them.
    pub fn results(&self) -> PathBuf {
        self.root.join("results")
    }
}
