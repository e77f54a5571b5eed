//! What happened to databases, told to whoever subscribed: streams to replicas, the HTTP API, metrics.
//!
//! An event is a hint that something changed, never the carrier of data: a subscriber that missed some compares
//! positions instead. Hence a full subscription is marked lagged rather than slowing a commit down.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use ltx::{Checksum, Txid};
use parking_lot::Mutex;

use crate::name::DbName;

/// Events a subscriber may be behind before it is dropped.
const BACKLOG: usize = 1024;

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A transaction was captured here or applied from the primary.
    Transaction {
        /// The database.
        db: DbName,
        /// Its new transaction ID.
        txid: Txid,
        /// Rolling checksum after it.
        post_apply: Checksum,
        /// Page size in bytes.
        page_size: u32,
        /// Database size in pages afterwards; 0 = dropped.
        commit: u32,
        /// Time of the transaction in milliseconds since the epoch.
        timestamp_ms: i64,
    },
    /// A received record is durable in the log, before it is applied.
    Received {
        /// The database.
        db: DbName,
        /// Last received transaction ID.
        txid: Txid,
    },
    /// Transactions that no other node has were set aside.
    Diverged {
        /// The database.
        db: DbName,
        /// First archived transaction.
        first: Txid,
        /// Last archived transaction.
        last: Txid,
        /// Directory with the archived LTX files.
        archive: PathBuf,
    },
    /// Replication of a database is suspended.
    Quarantined {
        /// The database.
        db: DbName,
        /// Why.
        reason: String,
    },
    /// Replication of a suspended database goes on.
    Resumed {
        /// The database.
        db: DbName,
    },
}

impl Event {
    /// The database that the event is about.
    pub fn db(&self) -> &DbName {
        match self {
            Event::Transaction { db, .. }
            | Event::Received { db, .. }
            | Event::Diverged { db, .. }
            | Event::Quarantined { db, .. }
            | Event::Resumed { db } => db,
        }
    }
}

/// Where events are published.
#[derive(Debug, Default)]
#[allow(dead_code)]
pub(crate) struct Events {
    subscribers: Mutex<Vec<SyncSender<Event>>>,
}

impl Events {
    pub(crate) fn subscribe(&self) -> Receiver<Event> {
        let (sender, receiver) = sync_channel(BACKLOG);
        self.subscribers.lock().push(sender);
        receiver
    }

    /// Whether anybody listens.
    pub(crate) fn is_observed(&self) -> bool {
        !self.subscribers.lock().is_empty()
    }

    /// Never blocks: a subscriber that is too far behind is dropped and sees its channel end.
    pub(crate) fn publish(&self, event: &Event) {
        self.subscribers
            .lock()
            .retain(|subscriber| match subscriber.try_send(event.clone()) {
                Ok(()) => true,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
            });
    }
}
