//! From the configuration's words to what the parts of a node are started with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use engine::{OwnerDefaults, Role, StoreOptions};

use super::NodeError;
use crate::config::{self, Config, Durability};
use crate::fuse::{MountOptions, Passthrough};
use crate::http::Limits;
use crate::lease::elector::ElectorOptions;
use crate::lease::{ConsulLease, ConsulOptions, Lease, LeaseError, StaticLease};
use crate::ledger::Ledger;
use crate::services::ServiceOptions;

const DEFAULT_TTL: Duration = Duration::from_secs(10);

pub(super) fn store(config: &Config, ledger: &Arc<Ledger>) -> StoreOptions {
    let noted = ledger.clone();
    let defaults = StoreOptions::default();
    if ledger.node_id() == 0 {
        ledger.set_node_id(defaults.node_id);
    }
    StoreOptions {
        // To its cluster a node is the same when its daemon was replaced.
        node_id: ledger.node_id(),
        on_role: Some(Arc::new(move |role| match role {
            Role::Primary { epoch } => noted.set_epoch(epoch),
            Role::Replica => noted.set_epoch(0),
        })),
        durability: match config.data.durability {
            Durability::Commit => engine::Durability::Commit,
            // `replicated` is refused before anything is started.
            Durability::Follow | Durability::Replicated => engine::Durability::Follow,
        },
        compress: config.data.compress,
        owners: owners(&config.fuse),
        seal: true,
        ..defaults
    }
}

fn owners(fuse: &config::Fuse) -> OwnerDefaults {
    OwnerDefaults {
        uid: fuse.uid,
        gid: fuse.gid,
        umask: fuse.umask.map(|umask| umask.0),
    }
}

pub(super) fn mount(config: &Config, skip_unmount: bool) -> MountOptions {
    let fuse = &config.fuse;
    MountOptions {
        allow_other: fuse.allow_other,
        owners: owners(fuse),
        take_over: !skip_unmount,
        passthrough: match fuse.passthrough {
            config::Passthrough::Auto => Passthrough::Auto,
            config::Passthrough::On => Passthrough::On,
            config::Passthrough::Off => Passthrough::Off,
        },
        ..MountOptions::new(&fuse.dir)
    }
}

pub(super) fn services(config: &Config, address: SocketAddr) -> ServiceOptions {
    let retention = config.data.retention.positive();
    ServiceOptions {
        elector: elector(config, address),
        data_dir: config.data.dir.clone(),
        snapshot_timeout: config.http.snapshot_timeout.positive().or(retention),
        retention,
        retention_interval: config.data.retention_monitor_interval.positive(),
        limits: Limits::default(),
    }
}

/// How this node takes part. On a replica with a static lease the configured name and URL are the primary's.
fn elector(config: &Config, address: SocketAddr) -> ElectorOptions {
    let lease = &config.lease;
    let os_hostname = || config::os_hostname().unwrap_or_else(|| "localhost".to_string());
    let is_static = lease.r#type == "static";
    let describes_primary = is_static && !lease.candidate;
    let hostname = match lease.hostname.as_str() {
        "" => os_hostname(),
        _ if describes_primary => os_hostname(),
        hostname => hostname.to_string(),
    };
    let advertise_url = match lease.advertise_url.as_str() {
        "" if !is_static => format!("http://{hostname}:{}", address.port()),
        _ if describes_primary => String::new(),
        url => url.to_string(),
    };
    ElectorOptions {
        candidate: lease.candidate,
        hostname,
        advertise_url,
        reconnect_delay: lease.reconnect_delay.or_zero(),
        demote_delay: lease.demote_delay.or_zero(),
    }
}

pub(super) fn lease(config: &Config) -> Result<Arc<dyn Lease>, NodeError> {
    let lease = &config.lease;
    match lease.r#type.as_str() {
        "consul" => Ok(Arc::new(ConsulLease::new(consul(config)?)?)),
        _ if lease.candidate => Ok(Arc::new(StaticLease::primary())),
        _ => Ok(Arc::new(StaticLease::replica(
            lease.hostname.clone(),
            lease.advertise_url.clone(),
        ))),
    }
}

fn consul(config: &Config) -> Result<ConsulOptions, LeaseError> {
    let consul = &config.lease.consul;
    let url = consul
        .url
        .parse()
        .map_err(|error: url::ParseError| LeaseError::Setup {
            what: format!("invalid `lease.consul.url`: {error}"),
            hint: "write a URL such as http://localhost:8500",
        })?;
    Ok(ConsulOptions {
        url,
        key: consul.key.clone(),
        ttl: consul.ttl.positive().unwrap_or(DEFAULT_TTL),
        lock_delay: consul.lock_delay.or_zero(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Config {
        config::parse(Path::new("litefs.yml"), text).unwrap()
    }

    fn address() -> SocketAddr {
        "127.0.0.1:1234".parse().unwrap()
    }

    #[test]
    fn a_consul_node_advertises_its_host_name_and_port_unless_it_is_told_otherwise() {
        let options = elector(&config("lease: {type: consul, hostname: h}"), address());
        assert_eq!(
            (options.hostname.as_str(), options.advertise_url.as_str()),
            ("h", "http://h:1234")
        );
        let options = elector(
            &config("lease: {type: consul, advertise-url: 'http://x:1'}"),
            address(),
        );
        assert_eq!(options.advertise_url, "http://x:1");
        assert!(!options.hostname.is_empty());
    }

    #[test]
    fn a_static_replica_does_not_take_itself_for_the_primary() {
        let text = "lease: {type: static, candidate: false, hostname: p, advertise-url: 'http://p:20202'}";
        let options = elector(&config(text), address());
        assert_ne!(options.hostname, "p");
        assert_eq!(options.advertise_url, "");
    }

    #[test]
    fn snapshots_have_the_retention_for_a_time_limit_and_none_without_retention() {
        let limit = |text| services(&config(text), address()).snapshot_timeout;
        assert_eq!(limit("data: {retention: 1m}"), Some(Duration::from_secs(60)));
        assert_eq!(limit("data: {retention: 0s}"), None);
        assert_eq!(
            limit("http: {snapshot-timeout: 5s}"),
            Some(Duration::from_secs(5))
        );
    }
}
