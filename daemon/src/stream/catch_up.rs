//! Brings a replica from what it has to what this node has, database by database.
//!
//! Blocking: reads the log and snapshots. Decides by position alone, so that it does not matter how the replica came to
//! be where it is.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Database, DbName, Store};
use litefs_api::NodeId;
use ltx::{Pos, Txid};

use super::position_map::PositionMap;
use super::replicas::Replica;
use super::sink::{BlockingSink, Disconnected};
use super::{chunk, frame::Frame};
use crate::lease::Fence;
use crate::metrics::HTTP_FRAME_SEND_COUNT;

/// Records up to this size are read in one go into memory that is used again.
const SMALL_RECORD: u64 = 1 << 20;
const READ: usize = 64 << 10;

/// What one replica has, and the means to send it more.
pub(super) struct CatchUp {
    pub(super) store: Arc<Store>,
    pub(super) fence: Fence,
    pub(super) replica: Arc<Replica>,
    pub(super) sink: BlockingSink,
    pub(super) positions: PositionMap,
    /// Room for a small record.
    pub(super) record: Vec<u8>,
    pub(super) snapshot_timeout: Option<Duration>,
}

/// Why a stream cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamBroken {
    #[error(transparent)]
    Disconnected(#[from] Disconnected),
    /// A frame was begun and cannot be ended.
    #[error("{db}: {error}")]
    InFrame { db: DbName, error: String },
    #[error("lease expired")]
    LeaseExpired,
}

impl CatchUp {
    /// Sends all that the replica lacks of these databases; gives those that could not be read, to be tried again.
    pub(super) fn run(&mut self, names: BTreeSet<DbName>) -> Result<BTreeSet<DbName>, StreamBroken> {
        let mut failed = BTreeSet::new();
        for name in names {
            if let Some(error) = self.database(&name)? {
                tracing::error!(db = %name, replica = %self.replica.hostname, %error, "cannot send the database");
                failed.insert(name);
            }
        }
        self.sink.flush()?;
        Ok(failed)
    }

    /// Sends one database; an error that spoils no frame is given back for the database alone.
    fn database(&mut self, name: &DbName) -> Result<Option<engine::Error>, StreamBroken> {
        let Some(db) = self.store.database(name) else {
            return self.unknown(name).map(|()| None);
        };
        loop {
            let Some(has) = self.lacks(&db) else {
                return Ok(None);
            };
            if !self.fence.holds() {
                return Err(StreamBroken::LeaseExpired);
            }
            match self.step(&db, has) {
                Ok(None) => return Ok(None),
                Ok(Some(now)) => {
                    self.replica.sent(name.as_str(), now);
                    self.positions.insert(name.to_string(), now);
                }
                Err(Failure::Database(error)) => return Ok(Some(error)),
                Err(Failure::Stream(error)) => return Err(error),
            }
        }
    }

    /// LiteFS tells a replica so, and the replica does nothing about it.
    fn unknown(&mut self, name: &DbName) -> Result<(), StreamBroken> {
        Frame::DropDb {
            name: name.to_string(),
        }
        .encode(self.sink.buffer());
        Ok(self.sink.spill()?)
    }

    /// Where the replica is, if there is more for it.
    fn lacks(&self, db: &Database) -> Option<Pos> {
        let own = db.position();
        let has = self
            .positions
            .get(db.name().as_str())
            .copied()
            .unwrap_or(Pos::ZERO);
        let diverged = has.txid > own.txid || (has.txid == own.txid && has != own);
        if diverged && !own.is_zero() {
            tracing::warn!(db = %db.name(), replica = %self.replica.hostname, %has, %own, "the replica diverged, sending a snapshot");
            return Some(Pos::ZERO);
        }
        (has.txid < own.txid).then_some(has)
    }

    /// Sends the next record, or a snapshot where there is no record that follows; gives the position after it.
    fn step(&mut self, db: &Database, has: Pos) -> Result<Option<Pos>, Failure> {
        let next = has.txid.next().unwrap_or(Txid::MAX);
        // A replica at zero gets a snapshot even if the log goes back to the first transaction: LiteFS skips records that
        // carry its own node id.
        if !has.is_zero()
            && let Some(record) = db.record(next)?
            && record.info.min == next
            && record.info.pre == has.post_apply
        {
            let position = record.info.pos();
            if record.info.len <= SMALL_RECORD {
                record.read_into(&mut self.record).map_err(engine::Error::from)?;
                self.small_body(db.name())?;
            } else {
                self.body(db.name(), &mut record.reader(), None)?;
            }
            metrics::counter!(HTTP_FRAME_SEND_COUNT, "db" => db.name().to_string(), "type" => "ltx")
                .increment(1);
            return Ok(Some(position));
        }
        // What is collected goes first, and heartbeats have the floor while the snapshot is being made.
        self.sink.flush().map_err(StreamBroken::from)?;
        let snapshot = db.snapshot()?;
        let position = snapshot.pos;
        if position.is_zero() {
            return Ok(None);
        }
        tracing::info!(db = %db.name(), replica = %self.replica.hostname, %has, %position, "sending a snapshot");
        let mut body = snapshot.ltx(self.store.node_id())?;
        let deadline = self.snapshot_timeout.map(|limit| Instant::now() + limit);
        self.body(db.name(), &mut body, deadline)?;
        metrics::counter!(HTTP_FRAME_SEND_COUNT, "db" => db.name().to_string(), "type" => "ltx:snapshot")
            .increment(1);
        Ok(Some(position))
    }

    fn small_body(&mut self, name: &DbName) -> Result<(), Failure> {
        let buffer = self.sink.buffer();
        Frame::Ltx {
            name: name.to_string(),
        }
        .encode(buffer);
        chunk::encode(&self.record, buffer);
        chunk::encode_end(buffer);
        Ok(self.sink.spill().map_err(StreamBroken::from)?)
    }

    /// Sends a body of any length. Before its first byte is read nothing is sent, so that a body that cannot be begun
    /// spoils no stream.
    fn body(&mut self, name: &DbName, body: &mut dyn Read, deadline: Option<Instant>) -> Result<(), Failure> {
        let mut piece = vec![0; READ];
        let mut len =
            read_some(body, &mut piece).map_err(|error| Failure::Database(unreadable(name, &error)))?;
        Frame::Ltx {
            name: name.to_string(),
        }
        .encode(self.sink.buffer());
        while len > 0 {
            chunk::encode(&piece[..len], self.sink.buffer());
            self.sink.spill().map_err(StreamBroken::from)?;
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                let error =
                    std::io::Error::new(std::io::ErrorKind::TimedOut, "http.snapshot-timeout exceeded");
                return Err(in_frame(name, &error));
            }
            len = read_some(body, &mut piece).map_err(|error| in_frame(name, &error))?;
        }
        chunk::encode_end(self.sink.buffer());
        Ok(self.sink.spill().map_err(StreamBroken::from)?)
    }
}

enum Failure {
    Database(engine::Error),
    Stream(StreamBroken),
}

impl From<engine::Error> for Failure {
    fn from(error: engine::Error) -> Self {
        Failure::Database(error)
    }
}

impl From<StreamBroken> for Failure {
    fn from(error: StreamBroken) -> Self {
        Failure::Stream(error)
    }
}

fn in_frame(name: &DbName, error: &std::io::Error) -> Failure {
    Failure::Stream(StreamBroken::InFrame {
        db: name.clone(),
        error: error.to_string(),
    })
}

fn unreadable(name: &DbName, error: &std::io::Error) -> engine::Error {
    engine::Error::Invalid(format!("{name}: cannot read what is to be sent: {error}"))
}

fn read_some(body: &mut dyn Read, out: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match body.read(out) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The identity a replica presents, for logs.
pub(super) fn describe(node_id: NodeId, hostname: &str) -> String {
    if hostname.is_empty() {
        node_id.to_string()
    } else {
        format!("{hostname} ({node_id})")
    }
}
