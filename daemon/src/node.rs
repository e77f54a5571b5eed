//! The life of a node.

use std::process::ExitCode;

use crate::config::Config;

/// What a node is started with.
#[derive(Debug)]
pub struct Options {
    pub config: Config,
    /// Leave alone what a former process left behind at the mount point.
    pub skip_unmount: bool,
}

/// Why a node did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("not available")]
    Unavailable,
}

impl NodeError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        String::new()
    }
}

/// Runs a node until it is told to stop.
pub fn run(options: Options) -> Result<ExitCode, NodeError> {
    drop(options);
    Err(NodeError::Unavailable)
}
