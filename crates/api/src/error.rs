//! What can go wrong between two nodes.

use reqwest::StatusCode;

/// Failure of a request to a node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("invalid node URL \"{url}\": {reason}")]
    Url { url: String, reason: String },
    /// No answer: not reachable, timed out, connection lost.
    #[error("{operation} at {url}: {}", innermost(.source))]
    Transport {
        operation: &'static str,
        url: String,
        source: reqwest::Error,
    },
    /// The node answered, with an error; `message` is its text.
    #[error("{operation} at {url}: {message} (status {})", .status.as_u16())]
    Status {
        operation: &'static str,
        url: String,
        status: StatusCode,
        message: String,
    },
    #[error("{operation} at {url}: answer not understood: {reason}")]
    Answer {
        operation: &'static str,
        url: String,
        reason: String,
    },
}

impl Error {
    /// The status the node answered with, if it did.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Error::Status { status, .. } => Some(*status),
            Error::Url { .. } | Error::Transport { .. } | Error::Answer { .. } => None,
        }
    }
}

/// The cause at the bottom: "connection refused" says more than "error sending request".
fn innermost(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_string();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
