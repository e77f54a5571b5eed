//! A LiteFS cluster on one machine, with faults on demand.
//!
//! ```no_run
//! # fn main() -> litefs_dev::Result<()> {
//! use litefs_dev::{Cluster, ClusterOptions, Condition};
//! use std::time::Duration;
//!
//! let cluster = Cluster::up(ClusterOptions { nodes: 3, ..ClusterOptions::default() })?;
//! cluster.wait_until_ready(Duration::from_secs(10))?;
//! cluster.primary()?.sql("app.db", "CREATE TABLE t (a); INSERT INTO t VALUES (1)")?;
//! cluster.primary()?.kill()?;
//! cluster.wait(&Condition::Settled, Duration::from_secs(15))?;
//! assert!(cluster.verify(Duration::from_secs(5))?.is_clean());
//! # Ok(()) // the cluster is destroyed here
//! # }
//! ```
//!
//! It drives the shipped `litefs` binary and knows of it only `litefs.yml` and the HTTP API. Read in this order: [`station`] (who takes
//! part), [`wire`] and [`net`] (the network between them), [`lease`] (who elects the primary), `supervisor` (the process that owns it
//! all), [`Cluster`] (the face), [`torture`] (what is done to it for hours). `main.rs` and `cli` turn commands into calls of [`Cluster`].

pub mod bench;
pub mod binary;
mod cluster;
pub mod content;
mod control;
pub mod directory;
mod enter;
mod error;
pub mod inside;
pub mod lease;
pub mod net;
mod node;
mod options;
pub mod processes;
mod remove;
pub mod solo;
mod spec;
pub mod sql;
pub mod station;
mod status;
mod supervisor;
pub mod torture;
mod verify;
mod wait;
pub mod wire;

pub use cluster::Cluster;
pub use control::{LinkState, ProcessState, StationState, Victims};
pub use error::{Error, Result};
pub use node::Node;
pub use options::{ClusterOptions, Keep};
pub use spec::{ClusterSpec, Durability, LeaseKind, Passthrough};
pub use station::Station;
pub use status::{ClusterStatus, LeaseStatus, NodeRole, NodeStatus};
/// The supervisor's main function, for the `litefs-dev` binary alone.
pub use supervisor::{Owner, run as supervise};
pub use verify::{Verification, VerifiedDatabase};
pub use wait::Condition;
