//! `litefs.yml`: where it is found, how it is read, and what it may say.
//!
//! The file is LiteFS 0.5's, with a few keys of our own. Nothing in it is ignored: an unknown key is an error with its
//! line, and a key whose feature this version lacks is refused when it is set to a value that would need it.
//! Only the command line reads configuration; everything below is handed typed values.

mod duration;
mod exec;
mod expand;
mod section;
mod support;
mod types;
mod validate;
mod words;

use std::path::{Path, PathBuf};

pub use duration::{DurationError, GoDuration};
pub use exec::{Command, Exec};
pub use support::check_supported;
pub use types::{Backup, Config, Consul, Data, Fuse, Http, Lease, Log, Proxy, Tracing};
pub use validate::validate;
pub use words::{Durability, LogFormat, Passthrough};

/// Name of the file in the places that are searched.
pub const FILE_NAME: &str = "litefs.yml";

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("config file not found (looked for {})", display_paths(.searched))]
    NotFound { searched: Vec<PathBuf> },
    #[error("cannot read config file {}: {source}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("config file {} is empty", .path.display())]
    Empty { path: PathBuf },
    #[error("config file {}: {message}", .path.display())]
    Syntax { path: PathBuf, message: String },
    #[error("{reason}")]
    Invalid { key: &'static str, reason: String },
    #[error("`{key}` is set to {value}, which this version cannot do yet")]
    Unsupported {
        key: &'static str,
        value: String,
        remedy: &'static str,
    },
}

impl ConfigError {
    /// What to do about it, for the last line of the command's error.
    pub fn hint(&self) -> String {
        match self {
            ConfigError::NotFound { .. } => {
                "write a litefs.yml there, or name one with -config PATH".to_string()
            }
            ConfigError::Read { .. } => "check the path and its permissions".to_string(),
            ConfigError::Empty { .. } => "set at least `lease.type`".to_string(),
            ConfigError::Syntax { .. } => {
                "keys and values are described in docs/configuration.md".to_string()
            }
            ConfigError::Invalid { key, .. } => format!("set `{key}` in litefs.yml"),
            ConfigError::Unsupported { remedy, .. } => (*remedy).to_string(),
        }
    }
}

fn display_paths(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// The places where the file is looked for when none is named, first match wins.
pub fn search_path() -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::from(FILE_NAME)];
    if let Some(home) = home_dir() {
        paths.push(home.join(FILE_NAME));
    }
    paths.push(Path::new("/etc").join(FILE_NAME));
    paths
}

fn home_dir() -> Option<PathBuf> {
    let from_passwd = || {
        nix::unistd::User::from_uid(nix::unistd::getuid())
            .ok()
            .flatten()
            .map(|user| user.dir)
    };
    std::env::var_os("HOME")
        .filter(|home| !home.is_empty())
        .map(PathBuf::from)
        .or_else(from_passwd)
}

/// Finds the file to read: `named` alone if given, else the first of `searched` that exists.
pub fn find(named: Option<&Path>, searched: Vec<PathBuf>) -> Result<PathBuf, ConfigError> {
    match named {
        Some(path) => Ok(path.to_path_buf()),
        None => match searched.iter().find(|path| path.exists()) {
            Some(path) => Ok(path.clone()),
            None => Err(ConfigError::NotFound { searched }),
        },
    }
}

/// Reads one file. `expand_env` replaces `$NAME` and `${…}` in its text first.
pub fn read(path: &Path, expand_env: bool) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    let text = if expand_env {
        expand::expand(&text, &environment)
    } else {
        text
    };
    parse(path, &text)
}

/// Reads the text of a file that was found at `path`.
pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    match serde_saphyr::from_str::<Option<Config>>(text) {
        Ok(Some(config)) => Ok(config),
        Ok(None) => Err(ConfigError::Empty {
            path: path.to_path_buf(),
        }),
        Err(error) => Err(ConfigError::Syntax {
            path: path.to_path_buf(),
            message: error.to_string(),
        }),
    }
}

/// The environment as the configuration sees it: `HOSTNAME` is always there.
fn environment(name: &str) -> Option<String> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    match name {
        "HOSTNAME" => value.or_else(os_hostname),
        _ => value,
    }
}

/// The operating system's name for this machine.
pub fn os_hostname() -> Option<String> {
    hostname::get()
        .ok()
        .and_then(|name| name.into_string().ok())
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests;
