//! What a cluster is asked to be, and what that comes to with what it was before.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::Duration;

use crate::binary::{self, Wanted};
use crate::directory::ClusterDirectory;
use crate::error::{Error, Result};
use crate::spec::{ClusterSpec, Durability, LeaseKind, Passthrough};
use crate::station::Station;

/// Whether a cluster outlives the value that made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Once it was of use. Before that it ends with the process that makes it, and leaves its files.
    Yes,
    #[default]
    No,
}

#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// A made-up name if empty.
    pub name: String,
    pub nodes: usize,
    pub keep: Keep,
    pub litefs: Wanted,
    pub lease: LeaseKind,
    pub passthrough: Passthrough,
    pub durability: Durability,
    pub ttl: Duration,
    pub lock_delay: Duration,
    pub debug_log: bool,
    pub seed: u64,
    /// [`directory::root`] if not given.
    pub root: Option<PathBuf>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            name: String::new(),
            nodes: 3,
            keep: Keep::No,
            litefs: Wanted::default(),
            lease: LeaseKind::Embedded,
            passthrough: Passthrough::Auto,
            durability: Durability::Follow,
            ttl: Duration::from_secs(10),
            lock_delay: Duration::from_secs(1),
            debug_log: false,
            seed: 1,
            root: None,
        }
    }
}

impl From<&ClusterSpec> for ClusterOptions {
    /// What a cluster was asked to be.
    fn from(spec: &ClusterSpec) -> Self {
        Self {
            nodes: spec.nodes,
            lease: spec.lease,
            passthrough: spec.passthrough,
            durability: spec.durability,
            ttl: spec.ttl,
            lock_delay: spec.lock_delay,
            debug_log: spec.debug_log,
            seed: spec.seed,
            ..Self::default()
        }
    }
}

/// What a cluster is made of: the options, on top of what it was made of before.
pub(crate) fn spec(options: &ClusterOptions, directory: &ClusterDirectory) -> Result<ClusterSpec> {
    let before = if directory.exists() {
        Some(directory.spec()?)
    } else {
        None
    };
    if let Some(before) = &before
        && options.nodes < before.nodes
    {
        let (name, had) = (directory.name(), before.nodes);
        let dev = binary::typed();
        let hint = format!("{dev} up {had} --name {name}, or {dev} destroy --name {name} first");
        return Err(Error::refused(
            format!(
                "cluster {name} has {had} nodes, which is more than {}",
                options.nodes
            ),
            hint,
        ));
    }
    Station::node(options.nodes)?;
    let given_before = before
        .as_ref()
        .filter(|before| before.binary_given && !options.litefs.release);
    let mut litefs = options.litefs.clone();
    litefs.binary = litefs
        .binary
        .or_else(|| given_before.map(|before| before.binary.clone()));
    if options.ttl < Duration::from_secs(10) && options.lease == LeaseKind::Consul {
        return Err(Error::refused(
            "Consul grants no lease shorter than 10s",
            "leave out --consul or give --ttl 10s",
        ));
    }
    Ok(ClusterSpec {
        nodes: options.nodes,
        lease: options.lease,
        passthrough: options.passthrough,
        durability: options.durability,
        ttl: options.ttl,
        lock_delay: options.lock_delay,
        debug_log: options.debug_log,
        consul: match options.lease {
            LeaseKind::Consul => Some(binary::consul()?),
            LeaseKind::Embedded => None,
        },
        binary: litefs.find()?,
        binary_given: litefs.binary.is_some(),
        seed: options.seed,
        ports: before.map_or_else(BTreeMap::new, |before| before.ports),
    })
}

pub(crate) fn check_fuse_device() -> Result<()> {
    let path = std::path::Path::new("/dev/fuse");
    let Err(error) = OpenOptions::new().read(true).write(true).open(path) else {
        return Ok(());
    };
    let hint = match error.kind() {
        std::io::ErrorKind::NotFound => {
            "load the kernel's fuse module (modprobe fuse); in a container: --device /dev/fuse"
        }
        std::io::ErrorKind::PermissionDenied => {
            "run as root, or let everybody open it (chmod 0666 /dev/fuse, as distributions do)"
        }
        _ => "in a container: --device /dev/fuse --cap-add SYS_ADMIN",
    };
    Err(Error::refused(format!("opening /dev/fuse: {error}"), hint))
}
