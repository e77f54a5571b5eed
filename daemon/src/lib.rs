//! LiteFS.

pub mod cli;
pub mod companion;
pub mod config;
pub mod fuse;
pub mod lease;
pub mod logging;
pub mod node;
pub mod stream;
