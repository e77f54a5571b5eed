//! What a configuration must say before anything is started with it.

use std::path::{Path, PathBuf};

use super::{Config, ConfigError};

/// Checks the values that the file's syntax cannot.
pub fn validate(config: &Config) -> Result<(), ConfigError> {
    directories(config)?;
    proxy(config)?;
    lease(config)?;
    backup(config)
}

fn invalid(key: &'static str, reason: impl Into<String>) -> Result<(), ConfigError> {
    Err(ConfigError::Invalid {
        key,
        reason: reason.into(),
    })
}

fn directories(config: &Config) -> Result<(), ConfigError> {
    if config.fuse.dir.as_os_str().is_empty() {
        return invalid("fuse.dir", "fuse directory required");
    }
    if config.data.dir.as_os_str().is_empty() {
        return invalid("data.dir", "data directory required");
    }
    if config.fuse.dir == config.data.dir {
        return invalid(
            "data.dir",
            "fuse directory and data directory cannot be the same path",
        );
    }
    let (fuse, data) = (real(&config.fuse.dir), real(&config.data.dir));
    if data.starts_with(&fuse) {
        return invalid(
            "data.dir",
            "the data directory cannot be below the fuse directory: the daemon would wait for itself",
        );
    }
    let ours = ["files", "databases", "archive"];
    if ours.iter().any(|ours| fuse.starts_with(data.join(ours))) {
        return invalid(
            "fuse.dir",
            "the fuse directory cannot be among what the data directory holds",
        );
    }
    Ok(())
}

/// The path without links above its last component, as far as it exists. Asks nothing of a mount that may be there already.
fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut rest = PathBuf::new();
    let mut above = absolute.as_path();
    while let (Some(parent), Some(name)) = (above.parent(), above.file_name()) {
        rest = match rest.as_os_str().is_empty() {
            true => PathBuf::from(name),
            false => Path::new(name).join(rest),
        };
        if let Ok(parent) = parent.canonicalize() {
            return parent.join(rest);
        }
        above = parent;
    }
    absolute
}

fn proxy(config: &Config) -> Result<(), ConfigError> {
    if config.proxy.target.is_empty() {
        return Ok(());
    }
    if config.proxy.addr.is_empty() {
        return invalid("proxy.addr", "proxy bind address required");
    }
    if config.proxy.db.is_empty() {
        return invalid("proxy.db", "proxy database name required");
    }
    Ok(())
}

fn lease(config: &Config) -> Result<(), ConfigError> {
    let lease = &config.lease;
    match lease.r#type.as_str() {
        "consul" => consul(config)?,
        "static" => {}
        "" => {
            return invalid(
                "lease.type",
                "lease type must be set to either 'consul' or 'static'",
            );
        }
        other => {
            let reason = format!("invalid lease type, must be either 'consul' or 'static', got: '{other}'");
            return invalid("lease.type", reason);
        }
    }
    if !lease.advertise_url.is_empty() {
        node_url(&lease.advertise_url)?;
    }
    if lease.candidate && !lease.databases.is_empty() {
        return invalid(
            "lease.databases",
            "cannot specify a database replication filter on candidate nodes",
        );
    }
    Ok(())
}

/// Replicas connect to this URL, so that one which cannot be dialled is better found here than on another node.
fn node_url(url: &str) -> Result<(), ConfigError> {
    let parsed = match url::Url::parse(url) {
        Ok(parsed) => parsed,
        Err(error) => {
            return invalid(
                "lease.advertise-url",
                format!("invalid advertise URL \"{url}\": {error}"),
            );
        }
    };
    if !matches!(parsed.scheme(), "http" | "https") {
        return invalid(
            "lease.advertise-url",
            format!("invalid advertise URL \"{url}\": invalid URL scheme"),
        );
    }
    if parsed.host_str().is_none_or(str::is_empty) {
        return invalid(
            "lease.advertise-url",
            format!("invalid advertise URL \"{url}\": URL host required"),
        );
    }
    Ok(())
}

fn consul(config: &Config) -> Result<(), ConfigError> {
    let consul = &config.lease.consul;
    if consul.url.is_empty() {
        return invalid("lease.consul.url", "consul URL required");
    }
    // The URL is not repeated: it may have a token.
    match url::Url::parse(&consul.url) {
        Err(error) => return invalid("lease.consul.url", format!("invalid consul URL: {error}")),
        Ok(url) if !matches!(url.scheme(), "http" | "https") => {
            let reason = "invalid consul URL: its scheme must be http or https, as in http://localhost:8500";
            return invalid("lease.consul.url", reason);
        }
        Ok(_) => {}
    }
    if consul.key.is_empty() {
        return invalid("lease.consul.key", "consul key required");
    }
    Ok(())
}

fn backup(config: &Config) -> Result<(), ConfigError> {
    match config.backup.r#type.as_str() {
        "" | "litefs-cloud" => Ok(()),
        "file" if config.backup.path.is_empty() => invalid("backup.path", "backup path required"),
        "file" => Ok(()),
        other => invalid("backup.type", format!("invalid backup type: '{other}'")),
    }
}
