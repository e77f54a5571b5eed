//! What `.primary` and `.lag` say: who the primary is and how far this node is behind it.
//!
//! The leadership side of the daemon writes it, the kernel edge reads it when a client reads one of the two files.

use std::time::Duration;

use parking_lot::RwLock;

/// How far this node is behind the primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lag {
    /// Nothing was heard from a primary since the start.
    #[default]
    Unknown,
    /// What clients do not see yet is so old; nothing on the primary.
    Behind(Duration),
}

/// Shared between the elector, which knows, and the mount, which tells.
#[derive(Debug, Default)]
pub struct Presence {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    primary: Option<String>,
    lag: Lag,
}

impl Presence {
    /// Another node is the primary (`Some(hostname)`), or none is known, or this node is it (`None`).
    pub fn set_primary(&self, hostname: Option<String>) {
        self.state.write().primary = hostname;
    }

    pub fn set_lag(&self, lag: Lag) {
        self.state.write().lag = lag;
    }

    /// Host name of the primary, if that is another node and known.
    pub(crate) fn primary(&self) -> Option<String> {
        self.state.read().primary.clone()
    }

    /// Content of `.primary`; `None`: the file does not exist now.
    pub(crate) fn primary_text(&self) -> Option<String> {
        self.state
            .read()
            .primary
            .as_ref()
            .map(|hostname| format!("{hostname}\n"))
    }

    /// Content of `.lag`: a sign and at least nine digits of milliseconds.
    pub(crate) fn lag_text(&self) -> String {
        let milliseconds = match self.state.read().lag {
            Lag::Unknown => i64::from(i32::MAX),
            Lag::Behind(behind) => i64::try_from(behind.as_millis()).unwrap_or(i64::MAX),
        };
        format!("{milliseconds:+010}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_signed_and_padded_as_litefs_writes_it() {
        let presence = Presence::default();
        assert_eq!(presence.lag_text(), "+2147483647\n");
        presence.set_lag(Lag::Behind(Duration::ZERO));
        assert_eq!(presence.lag_text(), "+000000000\n");
        presence.set_lag(Lag::Behind(Duration::from_millis(1500)));
        assert_eq!(presence.lag_text(), "+000001500\n");
    }

    #[test]
    fn primary_exists_only_while_another_node_is_it() {
        let presence = Presence::default();
        assert_eq!(presence.primary_text(), None);
        presence.set_primary(Some("node-1".into()));
        assert_eq!(presence.primary_text().as_deref(), Some("node-1\n"));
    }
}
