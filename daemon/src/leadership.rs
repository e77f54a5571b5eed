//! What this node knows of who leads: written by the elector, read by the mount, the API and the streams.

use std::time::{SystemTime, UNIX_EPOCH};

/// Role of this node and the primary it follows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leadership {
    pub is_primary: bool,
    /// Highest term that was seen.
    pub epoch: u64,
    /// The primary this node follows or tries to; none on the primary and while none is known.
    pub primary: Option<litefs_api::Primary>,
    /// Has been primary, or has caught up with one, since the start.
    pub ready: bool,
}

impl Leadership {
    /// The followed primary's host name.
    pub fn primary_hostname(&self) -> Option<&str> {
        self.primary.as_ref().map(|primary| primary.hostname.as_str())
    }
}

/// Milliseconds since the epoch by this machine's clock.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
