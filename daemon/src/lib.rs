//! LiteFS.

pub mod cli;
mod cluster_id;
pub mod companion;
pub mod config;
pub mod events;
pub mod fuse;
pub mod http;
pub mod leadership;
pub mod lease;
pub mod logging;
pub mod metrics;
pub mod node;
pub mod services;
pub mod stream;
