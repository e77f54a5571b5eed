//! What happens at this node, for those who watch it over HTTP.
//!
//! The engine tells single transactions only while somebody listens, as that costs every commit a little. So the hub
//! listens while it has watchers: the first one starts a thread that passes the engine's events on, which ends after the
//! last one. Leadership changes are added by a task.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::Duration;

use engine::{Event as EngineEvent, Store};
use litefs_api::{Archived, Checksum, Event, Position, PrimaryChange, Quarantined, TxEvent, Txid};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use crate::leadership::Leadership;

/// Events a watcher may be behind before it is cut off.
const BACKLOG: usize = 1024;
/// How often the thread looks whether it is still needed.
const LOOK: Duration = Duration::from_millis(500);

/// Distributes events.
pub struct EventHub {
    sender: broadcast::Sender<Event>,
    leadership: watch::Receiver<Leadership>,
    store: Weak<Store>,
    /// Whether the thread runs. Held while that is decided, so that no watcher is left without it.
    relaying: Mutex<bool>,
}

impl EventHub {
    /// Begins to watch the leadership. Call within the runtime.
    pub fn start(store: &Arc<Store>, leadership: watch::Receiver<Leadership>) -> Arc<Self> {
        let hub = Arc::new(EventHub {
            sender: broadcast::Sender::new(BACKLOG),
            leadership,
            store: Arc::downgrade(store),
            relaying: Mutex::new(false),
        });
        tokio::spawn(watch_leadership(Arc::downgrade(&hub), hub.leadership.clone()));
        hub
    }

    /// Everything that happens from now on.
    pub fn subscribe(self: &Arc<Self>) -> broadcast::Receiver<Event> {
        let subscription = self.sender.subscribe();
        let mut relaying = self.relaying.lock();
        if !*relaying && let Some(store) = self.store.upgrade() {
            let (weak, watched, events) = (Arc::downgrade(self), self.store.clone(), store.subscribe());
            let thread = std::thread::Builder::new().name("litefs-events".to_string());
            match thread.spawn(move || relay(&weak, &watched, events)) {
                Ok(_) => *relaying = true,
                Err(error) => tracing::error!(%error, "cannot watch the engine's events"),
            }
        }
        subscription
    }

    pub fn subscribers(&self) -> usize {
        self.sender.receiver_count()
    }

    /// The role as events tell it.
    pub fn primary_change(&self) -> PrimaryChange {
        primary_change(&self.leadership.borrow())
    }

    fn send(&self, event: Event) {
        // Nobody listens: nobody misses it.
        let _ = self.sender.send(event);
    }

    /// Ends the thread's work if nobody listens any more.
    fn relay_is_over(&self) -> bool {
        let mut relaying = self.relaying.lock();
        *relaying = self.subscribers() > 0;
        !*relaying
    }
}

fn primary_change(leadership: &Leadership) -> PrimaryChange {
    let hostname = leadership
        .primary_hostname()
        .filter(|name| !name.is_empty())
        .map(str::to_string);
    PrimaryChange {
        is_primary: leadership.is_primary,
        hostname,
    }
}

async fn watch_leadership(hub: Weak<EventHub>, mut leadership: watch::Receiver<Leadership>) {
    let mut known = primary_change(&leadership.borrow_and_update());
    while leadership.changed().await.is_ok() {
        let now = primary_change(&leadership.borrow_and_update());
        let Some(hub) = hub.upgrade() else { return };
        if now != known {
            known = now.clone();
            hub.send(Event::PrimaryChange { data: now });
        }
    }
}

/// Passes on what the engine tells. The engine closes a subscription that is too far behind; a new one goes on with a gap,
/// as events are hints.
fn relay(hub: &Weak<EventHub>, store: &Weak<Store>, mut events: Receiver<EngineEvent>) {
    loop {
        let event = events.recv_timeout(LOOK);
        let Some(hub) = hub.upgrade() else { return };
        match event {
            Ok(event) => {
                if let Some(event) = translate(&event, store) {
                    hub.send(event);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => match store.upgrade() {
                Some(store) => events = store.subscribe(),
                None => return,
            },
        }
        if hub.subscribers() == 0 && hub.relay_is_over() {
            return;
        }
    }
}

fn translate(event: &EngineEvent, store: &Weak<Store>) -> Option<Event> {
    let db = event.db().to_string();
    match event {
        EngineEvent::Transaction {
            txid,
            post_apply,
            page_size,
            commit,
            timestamp_ms,
            ..
        } => {
            let data = TxEvent {
                txid: Txid(txid.0),
                post_apply_checksum: Checksum(post_apply.0),
                page_size: *page_size,
                commit: *commit,
                timestamp: rfc3339(*timestamp_ms),
            };
            Some(Event::Tx { db, data })
        }
        EngineEvent::Diverged {
            first, last, archive, ..
        } => {
            let local = store
                .upgrade()
                .and_then(|store| store.database(event.db()))
                .map(|db| db.received());
            let local = local.map_or_else(Position::default, |pos| Position {
                txid: Txid(pos.txid.0),
                checksum: Checksum(pos.post_apply.0),
            });
            let local = Position {
                txid: Txid(last.0),
                ..local
            };
            let common = Txid(first.0.saturating_sub(1));
            Some(Event::Archived {
                db,
                data: Archived {
                    common,
                    local,
                    path: archive.display().to_string(),
                },
            })
        }
        EngineEvent::Quarantined { reason, .. } => Some(Event::Quarantined {
            db,
            data: Quarantined {
                reason: reason.clone(),
            },
        }),
        EngineEvent::Resumed { .. } => Some(Event::Resumed { db }),
        EngineEvent::Received { .. } => None,
    }
}

fn rfc3339(timestamp_ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(timestamp_ms).unwrap_or(0));
    humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stamps_are_utc_with_milliseconds() {
        assert_eq!(rfc3339(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(rfc3339(-5), "1970-01-01T00:00:00.000Z");
    }
}
