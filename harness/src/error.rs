//! What can go wrong in `litefs-dev`, kept apart by who can do something about it. Used by every module of the package.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

/// The package's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a cluster operation. Every message names the operation; `Refused` also says how to get further.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{operation} {}: {source}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error("{operation}: {source}")]
    System { operation: String, source: io::Error },

    #[error("{message}\nhint: {hint}")]
    Refused { message: String, hint: String },

    /// The supervisor understood the request and could not do it.
    #[error("{0}")]
    Supervisor(String),

    #[error("{node}: {message}")]
    Node { node: String, message: String },

    #[error("{node}: SQL: {message}")]
    Sql { node: String, message: String },

    #[error("gave up after {waited:?} waiting until {what}; last seen: {seen}")]
    Timeout {
        what: String,
        waited: Duration,
        seen: String,
    },

    /// Somebody pressed Ctrl-C, or the like.
    #[error("interrupted: what was started is ended again")]
    Interrupted,

    #[error("{0}")]
    Invalid(String),
}

impl Error {
    pub(crate) fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            operation,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn system(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::System { operation, source }
    }

    pub(crate) fn errno(operation: impl Into<String>) -> impl FnOnce(nix::Error) -> Self {
        let operation = operation.into();
        move |errno| Self::System {
            operation,
            source: errno.into(),
        }
    }

    pub(crate) fn refused(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused {
            message: message.into(),
            hint: hint.into(),
        }
    }
}
