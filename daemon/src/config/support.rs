//! Refuses configuration whose feature this version does not have.
//!
//! A cluster that was told to back up, to proxy or to supervise and silently does not is worse than one that does not
//! start, so each such key is an error at mount that names the key and the way out.

use super::{Config, ConfigError, Durability};

/// Refuses the first key that is set to a value this version cannot honour.
pub fn check_supported(config: &Config) -> Result<(), ConfigError> {
    let refusals = [
        exec(config),
        proxy(config),
        backup(config),
        cloud_token(std::env::var("LITEFS_CLOUD_TOKEN").ok()),
        databases(config),
        tracing(config),
        durability(config),
        strict_verify(config),
    ];
    match refusals.into_iter().flatten().next() {
        Some(refusal) => Err(refusal),
        None => Ok(()),
    }
}

fn refuse(key: &'static str, value: impl Into<String>, remedy: &'static str) -> Option<ConfigError> {
    Some(ConfigError::Unsupported {
        key,
        value: value.into(),
        remedy,
    })
}

fn exec(config: &Config) -> Option<ConfigError> {
    let first = config.exec.commands.first()?;
    refuse(
        "exec",
        format!("\"{}\"", first.cmd),
        "remove `exec` (and anything after `--`) and start the application beside litefs, when GET /info answers",
    )
}

fn proxy(config: &Config) -> Option<ConfigError> {
    let target = &config.proxy.target;
    if target.is_empty() {
        return None;
    }
    refuse(
        "proxy.target",
        format!("\"{target}\""),
        "remove `proxy.target` and let clients reach the application directly; the primary's name is in the file `.primary`",
    )
}

fn backup(config: &Config) -> Option<ConfigError> {
    let kind = &config.backup.r#type;
    if kind.is_empty() {
        return None;
    }
    refuse(
        "backup.type",
        format!("\"{kind}\""),
        "remove `backup` and run `litefs export` on a schedule instead",
    )
}

fn cloud_token(token: Option<String>) -> Option<ConfigError> {
    let token = token?;
    if token.trim().is_empty() {
        return None;
    }
    refuse(
        "LITEFS_CLOUD_TOKEN",
        "a token",
        "unset the variable; it would turn on backups to LiteFS Cloud",
    )
}

fn databases(config: &Config) -> Option<ConfigError> {
    let names = &config.lease.databases;
    if names.is_empty() {
        return None;
    }
    refuse(
        "lease.databases",
        format!("{names:?}"),
        "remove `lease.databases`; every database is replicated",
    )
}

fn tracing(config: &Config) -> Option<ConfigError> {
    let tracing = &config.tracing;
    if !tracing.enabled || tracing.path.is_empty() {
        return None;
    }
    refuse(
        "tracing.path",
        format!("\"{}\"", tracing.path),
        "remove `tracing.path`; `log.debug: true` logs more to standard error",
    )
}

fn durability(config: &Config) -> Option<ConfigError> {
    match config.data.durability {
        Durability::Follow | Durability::Commit => None,
        Durability::Replicated => refuse(
            "data.durability",
            "`replicated`",
            "write `commit` (durable on this node when COMMIT returns) or `follow`",
        ),
    }
}

fn strict_verify(config: &Config) -> Option<ConfigError> {
    if !config.strict_verify {
        return None;
    }
    refuse(
        "strict-verify",
        "`true`",
        "remove `strict-verify`; every record is verified when it is applied",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cloud_token_in_the_environment_is_refused_and_a_blank_one_is_not() {
        assert!(cloud_token(Some("t".to_string())).is_some());
        assert!(cloud_token(Some(" \n".to_string())).is_none());
        assert!(cloud_token(None).is_none());
    }
}
