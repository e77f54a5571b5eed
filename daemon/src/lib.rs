//! LiteFS.

pub mod cli;
pub mod config;
pub mod lease;
pub mod logging;
pub mod node;
pub mod stream;
