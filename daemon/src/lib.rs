//! LiteFS.

pub mod config;
