//! What happens at this node, for those who watch it over HTTP.
//!
//! The engine's events come over a thread of their own; leadership changes are added by a task. Both end with the hub.

use std::sync::{Arc, Weak};
use std::time::Duration;

use engine::{Event as EngineEvent, Store};
use litefs_api::{Archived, Checksum, Event, Position, PrimaryChange, Quarantined, TxEvent, Txid};
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
}

impl EventHub {
    /// Begins to watch. Call within the runtime.
    pub fn start(store: &Arc<Store>, leadership: watch::Receiver<Leadership>) -> std::io::Result<Arc<Self>> {
        let hub = Arc::new(EventHub {
            sender: broadcast::Sender::new(BACKLOG),
            leadership,
        });
        let (weak, watched) = (Arc::downgrade(&hub), Arc::downgrade(store));
        std::thread::Builder::new()
            .name("litefs-events".to_string())
            .spawn(move || relay(&weak, &watched))?;
        tokio::spawn(watch_leadership(Arc::downgrade(&hub), hub.leadership.clone()));
        Ok(hub)
    }

    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
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
fn relay(hub: &Weak<EventHub>, store: &Weak<Store>) {
    use std::sync::mpsc::RecvTimeoutError;
    let subscribe = || store.upgrade().map(|store| store.subscribe());
    let mut subscription = subscribe();
    while let Some(events) = &subscription {
        match events.recv_timeout(LOOK) {
            Ok(event) => {
                let Some(hub) = hub.upgrade() else { return };
                if let Some(event) = translate(&event, store) {
                    hub.send(event);
                }
            }
            Err(RecvTimeoutError::Timeout) if hub.strong_count() == 0 => return,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => subscription = subscribe(),
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
