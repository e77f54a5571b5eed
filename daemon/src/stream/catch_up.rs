//! Brings a replica from what it has to what this node has, database by database.
//!
//! Blocking: reads the log and snapshots. Decides by position alone, so that it does not matter how the replica came to
//! be where it is.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Database, DbName, Owner, Record, Store};
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
/// What is sent of one database before it is the next one's turn, in records and in bytes.
const TURN: (u32, u64) = (1024, 1 << 20);

/// What one replica has, and the means to send it more.
pub(super) struct CatchUp {
    pub(super) store: Arc<Store>,
    pub(super) fence: Fence,
    pub(super) replica: Arc<Replica>,
    pub(super) sink: BlockingSink,
    pub(super) positions: PositionMap,
    /// Databases of which this stream has sent records.
    pub(super) begun: BTreeSet<DbName>,
    /// What the replica was told of owners, and up to which change of them.
    pub(super) owners: HashMap<DbName, Told>,
    /// Room for a small record.
    pub(super) record: Vec<u8>,
    pub(super) snapshot_timeout: Option<Duration>,
    pub(super) counter: Option<(DbName, &'static str, metrics::Counter)>,
}

/// To whom a database belongs, as the replica was told.
pub(super) struct Told {
    /// The count of changes when it was looked at.
    changes: u64,
    owners: Option<Vec<Owner>>,
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

/// What a run has left over.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Could not be read; worth another attempt after a while.
    pub(super) failed: BTreeSet<DbName>,
    /// Had their turn and have more to send.
    pub(super) unfinished: BTreeSet<DbName>,
}

impl Left {
    pub(super) fn is_empty(&self) -> bool {
        self.failed.is_empty() && self.unfinished.is_empty()
    }
}

/// How the turn of one database ended.
enum Turn {
    Finished,
    Unfinished,
    Failed(engine::Error),
}

impl CatchUp {
    /// Sends what the replica lacks of these databases, so much of each that none keeps the others waiting.
    pub(super) fn run(&mut self, names: BTreeSet<DbName>) -> Result<Left, StreamBroken> {
        let mut left = Left::default();
        for name in self.small_first(names) {
            match self.database(&name)? {
                Turn::Finished => {}
                Turn::Unfinished => drop(left.unfinished.insert(name)),
                Turn::Failed(error) => {
                    tracing::error!(db = %name, replica = %self.replica.hostname, %error, "cannot send the database");
                    left.failed.insert(name);
                }
            }
        }
        self.sink.flush()?;
        Ok(left)
    }

    /// Whoever lacks a transaction does not wait for the snapshot of another database, nor a small snapshot for a large one.
    fn small_first(&self, names: BTreeSet<DbName>) -> Vec<DbName> {
        let mut names: Vec<DbName> = names.into_iter().collect();
        names.sort_by_cached_key(|name| {
            let is_new = !self.positions.contains_key(name.as_str());
            let pages = self.store.database(name).filter(|_| is_new);
            pages.map_or(0, |db| db.status().pages)
        });
        names
    }

    /// One turn of one database; an error that spoils no frame is the database's alone.
    fn database(&mut self, name: &DbName) -> Result<Turn, StreamBroken> {
        let Some(db) = self.store.database(name) else {
            return self.unknown(name).map(|()| Turn::Finished);
        };
        self.tell_owners(name)?;
        let mut has = self.positions.get(name.as_str()).copied().unwrap_or(Pos::ZERO);
        let (mut records, mut bytes) = (0, 0);
        let turn = loop {
            let Some(from) = self.lacks(&db, has) else {
                break Turn::Finished;
            };
            if records >= TURN.0 || bytes >= TURN.1 {
                break Turn::Unfinished;
            }
            if !self.fence.holds() {
                return Err(StreamBroken::LeaseExpired);
            }
            match self.step(&db, from) {
                Ok(None) => break Turn::Finished,
                Ok(Some((now, sent))) => {
                    has = now;
                    bytes += sent;
                }
                Err(Failure::Database(error)) => break Turn::Failed(error),
                Err(Failure::Stream(error)) => return Err(error),
            }
            records += 1;
        };
        if records > 0 {
            self.replica.sent(name.as_str(), has);
            self.positions.insert(name.to_string(), has);
        }
        Ok(turn)
    }

    /// Before the records: what is private is so from its first byte on.
    fn tell_owners(&mut self, name: &DbName) -> Result<(), StreamBroken> {
        let changes = self.store.owner_changes();
        let told = self.owners.get(name);
        if !self.replica.takes_owners
            || told.is_some_and(|told| told.changes == changes && told.owners.is_some())
        {
            return Ok(());
        }
        let owners = self.store.owners(name);
        let is_news = owners.is_some() && told.is_none_or(|told| told.owners != owners);
        if let (true, Some(owners)) = (is_news, owners.clone()) {
            Frame::Owners {
                name: name.to_string(),
                owners,
            }
            .encode(self.sink.buffer());
            self.sink.spill()?;
        }
        self.owners.insert(name.clone(), Told { changes, owners });
        Ok(())
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
    fn lacks(&self, db: &Database, has: Pos) -> Option<Pos> {
        let own = db.position();
        let diverged = has.txid > own.txid || (has.txid == own.txid && has != own);
        if diverged && !own.is_zero() {
            tracing::warn!(db = %db.name(), replica = %self.replica.hostname, %has, %own, "the replica diverged, sending a snapshot");
            return Some(Pos::ZERO);
        }
        (has.txid < own.txid).then_some(has)
    }

    /// Sends the next record, or a snapshot where there is no record that follows; gives the position after it, and its length. A snapshot is
    /// as long as a turn.
    fn step(&mut self, db: &Database, has: Pos) -> Result<Option<(Pos, u64)>, Failure> {
        match self.record_after(db, has) {
            Ok(Some(record)) => {
                let position = record.info.pos();
                if record.info.len <= SMALL_RECORD {
                    self.small_body(db.name())?;
                } else {
                    self.body(db.name(), &mut record.reader(), None)?;
                }
                self.count(db.name(), "ltx");
                return Ok(Some((position, record.info.len)));
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(db = %db.name(), replica = %self.replica.hostname, %has, %error, "the log is damaged, sending a snapshot");
            }
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
        self.count(db.name(), "ltx:snapshot");
        Ok(Some((position, TURN.1)))
    }

    /// The record that follows; a small one has been read. The first one of a stream is verified: if the replica refused it before, it would
    /// do so again.
    fn record_after(&mut self, db: &Database, has: Pos) -> engine::Result<Option<Record>> {
        let next = has.txid.next().unwrap_or(Txid::MAX);
        // A replica at zero gets a snapshot even if the log goes back to the first transaction: LiteFS skips records that
        // carry its own node id.
        if has.is_zero() {
            return Ok(None);
        }
        let follows = |record: &Record| record.info.min == next && record.info.pre == has.post_apply;
        let Some(record) = db.record(next)?.filter(follows) else {
            return Ok(None);
        };
        if self.begun.insert(db.name().clone()) {
            ltx::verify(record.reader())?;
        }
        if record.info.len <= SMALL_RECORD {
            record.read_into(&mut self.record)?;
        }
        Ok(Some(record))
    }

    /// Counts a frame. The handle of the database that is being sent is kept: looking it up costs more than counting.
    fn count(&mut self, name: &DbName, kind: &'static str) {
        let counted = self
            .counter
            .as_ref()
            .is_some_and(|(known, of, _)| known == name && *of == kind);
        if !counted {
            let counter = metrics::counter!(HTTP_FRAME_SEND_COUNT, "db" => name.to_string(), "type" => kind);
            self.counter = Some((name.clone(), kind, counter));
        }
        if let Some((_, _, counter)) = &self.counter {
            counter.increment(1);
        }
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
