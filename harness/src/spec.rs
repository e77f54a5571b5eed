//! What a cluster is made of: written by `up`, read by everybody else; and the `litefs.yml` of each node that follows from it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::directory::ClusterDirectory;
use crate::station::Station;

/// Who grants the lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseKind {
    /// [`crate::lease`].
    #[default]
    Embedded,
    /// A real `consul agent -dev`.
    Consul,
}

/// `fuse.passthrough` of every node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Passthrough {
    #[default]
    Auto,
    On,
    Off,
}

/// `data.durability` of every node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    #[default]
    Follow,
    Commit,
    Replicated,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterSpec {
    pub nodes: usize,
    pub lease: LeaseKind,
    pub passthrough: Passthrough,
    pub durability: Durability,
    pub ttl: Duration,
    pub lock_delay: Duration,
    pub debug_log: bool,
    /// The `litefs` binary.
    pub binary: PathBuf,
    /// It was named, not found: bringing the cluster back takes the same one.
    pub binary_given: bool,
    /// The `consul` binary, if that is the lease.
    pub consul: Option<PathBuf>,
    /// All chance of the wires.
    pub seed: u64,
    /// Where each station's API is reachable from the host; kept, so that URLs stay valid over down and up.
    pub ports: BTreeMap<Station, u16>,
}

impl ClusterSpec {
    pub fn stations(&self) -> impl Iterator<Item = Station> {
        Station::all(self.nodes)
    }

    pub fn node_stations(&self) -> impl Iterator<Item = Station> {
        self.stations().filter(|station| station.is_node())
    }

    /// The configuration of a node.
    pub(crate) fn litefs_yml(&self, directory: &ClusterDirectory, node: Station, root: bool) -> String {
        let name = directory.name();
        // A JSON string is a YAML string.
        let quoted = |path: PathBuf| serde_json::Value::from(path.to_string_lossy()).to_string();
        let word = |value: serde_json::Result<String>| value.unwrap_or_default();
        format!(
            "# Written by litefs-dev up; edits last until the next one.\n\
             data:\n  dir: {data}\n  durability: {durability}\n\
             fuse:\n  dir: {mount}\n  allow-other: {root}\n  passthrough: {passthrough}\n\
             http:\n  addr: \":{port}\"\n\
             lease:\n  type: consul\n  hostname: {node}\n  advertise-url: \"http://{service}\"\n  candidate: true\n  \
             consul:\n    url: \"http://{lease}\"\n    key: \"litefs/{name}\"\n    ttl: {ttl}ms\n    lock-delay: {lock_delay}ms\n\
             log:\n  format: text\n  timestamp: true\n  debug: {debug}\n",
            data = quoted(directory.data(node)),
            mount = quoted(directory.mount(node)),
            durability = word(serde_json::to_string(&self.durability)),
            passthrough = word(serde_json::to_string(&self.passthrough)),
            port = node.service().port(),
            service = node.service(),
            lease = Station::LEASE.service(),
            ttl = self.ttl.as_millis(),
            lock_delay = self.lock_delay.as_millis(),
            debug = self.debug_log,
        )
    }
}
