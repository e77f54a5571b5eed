//! What a command prints and exits with when it fails.

use std::process::ExitCode;

use crate::config::ConfigError;

/// Exit code of a usage or configuration error of `mount`, and of every help text.
pub(crate) const USAGE: u8 = 2;
/// Exit code of any other error.
pub(crate) const FAILURE: u8 = 1;

/// Failure of a command: what happened, what to do about it, and the exit code.
#[derive(Debug)]
pub(crate) struct CommandError {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) code: u8,
}

pub(crate) type Result<T> = std::result::Result<T, CommandError>;

impl CommandError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        CommandError {
            message: message.into(),
            hint: None,
            code: FAILURE,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Prints the error on standard error and gives the process's exit code.
    pub(crate) fn report(self) -> ExitCode {
        complain!("ERROR: {}", self.message);
        if let Some(hint) = &self.hint {
            complain!("hint: {hint}");
        }
        ExitCode::from(self.code)
    }
}

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> Self {
        CommandError::new(error.to_string())
            .hint(error.hint())
            .code(USAGE)
    }
}

impl From<litefs_api::Error> for CommandError {
    fn from(error: litefs_api::Error) -> Self {
        let hint = match &error {
            litefs_api::Error::Url { .. } => "write a URL such as http://localhost:20202",
            litefs_api::Error::Transport { .. } => "is litefs running there? name another node with -url URL",
            litefs_api::Error::Answer { .. } => "is that a LiteFS node? name another one with -url URL",
            litefs_api::Error::Status { status, .. } => match status.as_u16() {
                404 => "the databases of the node are listed at URL/status",
                409 => "only a node with `lease.candidate: true` can become primary",
                503 => {
                    "a node that is busy does it later; where a lease expired, only the primary can: its name is in the file `.primary` of the mount"
                }
                _ => "the node's log says more",
            },
        };
        CommandError::new(error.to_string()).hint(hint)
    }
}
