//! Tells the mount who is primary and how old the news are, for `.primary` and `.lag`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::fuse::{self, Mount, Presence};
use crate::lag::Lag;
use crate::leadership::Leadership;

/// How often the lag is passed on. Clients read it at any time, and it is a matter of seconds.
const LAG_INTERVAL: Duration = Duration::from_millis(250);

/// Passes changes on until the leadership ends.
pub(super) async fn tell(
    presence: Arc<Presence>,
    mount: Arc<Mount>,
    mut leadership: watch::Receiver<Leadership>,
    lag: Lag,
) {
    let mut ticks = tokio::time::interval(LAG_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        let now = leadership.borrow_and_update().clone();
        presence.set_lag(lag_of(&now, &lag));
        let primary = now.primary_hostname().map(str::to_string);
        if told.as_ref() != Some(&primary) {
            presence.set_primary(primary.clone());
            told = Some(primary);
            let mount = Arc::clone(&mount);
            // The kernel answers when it has forgotten what it knew, which can take a moment.
            let _ = tokio::task::spawn_blocking(move || mount.primary_changed()).await;
        }
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            _ = ticks.tick() => {}
        }
    }
}

fn lag_of(leadership: &Leadership, lag: &Lag) -> fuse::Lag {
    match (leadership.is_primary, lag.behind()) {
        (true, _) => fuse::Lag::Behind(Duration::ZERO),
        (false, Some(behind)) => fuse::Lag::Behind(behind),
        (false, None) => fuse::Lag::Unknown,
    }
}
