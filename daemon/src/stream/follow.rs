//! The replica's end of a stream (seventh link of a transaction's life).
//!
//! Connects, tells the primary where this node is, and hands each record to the store, which has it in the log before it
//! applies it. One database that cannot take records holds up neither heartbeats nor other databases.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{DbName, Store};
use litefs_api::{Client, NodeId, header};
use ltx::{HEADER_SIZE, Header};
use reqwest::{Method, Response};
use tokio::sync::watch;

use super::acks::{self, Acks, Wanted};
use super::body::{self, BodyReader};
use super::chunk::ChunkReader;
use super::frame::{Frame, FrameError};
use super::position_map::PositionMap;
use super::{divergence, features};
use crate::lag::{Heartbeats, Lag};
use crate::lease::Holder;

/// A primary sends a heartbeat each second.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a database that failed is left alone before the stream is started again for its sake: at first, and at the most where that
/// changes nothing. The primary sends again what was not taken.
pub const FAILED_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));

/// What following needs to know of this node.
#[derive(Clone)]
pub struct Follower {
    pub store: Arc<Store>,
    pub hostname: String,
    pub lag: Lag,
    /// What the elector wants to know while the stream goes on.
    pub news: watch::Sender<News>,
    /// Highest epoch that was seen; an older primary is not followed.
    pub epoch: u64,
    /// Whether this node would take the lease over.
    pub candidate: bool,
    /// How long databases that fail are left alone.
    pub failed_pause: Duration,
}

/// What a stream brings besides records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct News {
    /// This node has all that the primary had when it connected.
    pub ready: bool,
    /// The primary's epoch, if it told one.
    pub epoch: u64,
}

/// How a stream ended without an error.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The primary ended it.
    Cleanly,
    /// The primary passed on its lease.
    HandedOver(String),
}

/// Why a stream could not be started or ended early.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    #[error(transparent)]
    Api(#[from] litefs_api::Error),
    #[error("the primary belongs to cluster {theirs}, this node to {ours}")]
    WrongCluster { ours: String, theirs: String },
    #[error("the primary sent no valid cluster id: \"{0}\"")]
    InvalidCluster(String),
    #[error("the primary's epoch {theirs} is older than {ours}, which this node has seen")]
    StalePrimary { ours: u64, theirs: u64 },
    #[error(transparent)]
    Store(#[from] engine::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{db}: {error}")]
    Body { db: String, error: io::Error },
    #[error("starting again for databases that failed: {0}")]
    Retry(String),
    #[error("a primary sent an acknowledgement")]
    Confused,
    #[error("the thread that receives ended unexpectedly")]
    Thread,
}

impl Follower {
    /// Follows `primary` until the stream ends. When the returned future is dropped, the stream ends too; `received`
    /// tells when its thread is done with the store.
    pub async fn follow(&self, primary: &Holder, done: Arc<Done>) -> Result<Ended, FollowError> {
        let client = Client::new(&primary.advertise_url)?;
        let store = Arc::clone(&self.store);
        let positions = tokio::task::spawn_blocking(move || received(&store)).await;
        let positions = positions.map_err(|_| FollowError::Thread)?;
        let acks = Arc::new(Acks::default());
        let (wanted, wants) = watch::channel(Wanted::Unknown);
        let body = acks::request_body(&positions, Arc::clone(&acks), wants);
        let response = self.connect(&client, reqwest::Body::wrap_stream(body)).await?;
        self.check_primary(&response)?;
        let wants_acks = features::has(text_header(&response, header::FEATURES), features::ACK);
        wanted.send_replace(if wants_acks { Wanted::Yes } else { Wanted::No });
        tracing::info!(primary = %primary.hostname, url = client.base(), "following the primary");

        let (pump, reader) = body::pump(response.bytes_stream(), SILENCE);
        let receiver = Receiver {
            follower: self.clone(),
            primary: client,
            acks,
            failed: BTreeSet::new(),
            failed_since: None,
            runtime: tokio::runtime::Handle::current(),
            ready: false,
            heartbeats: self.lag.begin(),
        };
        let guard = done.begin();
        let receiving = tokio::task::spawn_blocking(move || {
            let _guard = guard;
            receiver.run(reader)
        });
        tokio::pin!(receiving);
        let ended = tokio::select! {
            ended = &mut receiving => ended,
            () = pump.run() => receiving.await,
        };
        drop(wanted);
        ended.map_err(|_| FollowError::Thread)?
    }

    async fn connect(&self, client: &Client, body: reqwest::Body) -> Result<Response, FollowError> {
        let mut request = client
            .request(Method::POST, "/stream")
            .header(header::NODE_ID, NodeId(self.store.node_id()).to_string())
            .header(header::FEATURES, features::of_replica(self.candidate))
            .header(header::HOSTNAME, self.hostname.as_str())
            .body(body);
        if let Some(id) = self.store.cluster_id() {
            request = request.header(header::CLUSTER_ID, id);
        }
        Ok(client.send_endless("POST /stream", request).await?)
    }

    /// Adopts the primary's cluster id if this node has none, and refuses a primary of another cluster or of the past.
    fn check_primary(&self, response: &Response) -> Result<(), FollowError> {
        let theirs = text_header(response, header::CLUSTER_ID).unwrap_or_default();
        match self.store.cluster_id() {
            Some(ours) if ours != theirs => {
                return Err(FollowError::WrongCluster {
                    ours,
                    theirs: theirs.to_string(),
                });
            }
            Some(_) => {}
            None if crate::cluster_id::is_valid(theirs) => self.store.set_cluster_id(theirs)?,
            None => return Err(FollowError::InvalidCluster(theirs.to_string())),
        }
        // LiteFS sends no epoch, and such a primary cannot be told from a later one.
        let epoch = text_header(response, header::EPOCH).and_then(|epoch| epoch.parse::<u64>().ok());
        match epoch {
            Some(theirs) if theirs < self.epoch => Err(FollowError::StalePrimary {
                ours: self.epoch,
                theirs,
            }),
            Some(theirs) => {
                self.news.send_modify(|news| news.epoch = theirs);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn received(store: &Store) -> PositionMap {
    store
        .received()
        .into_iter()
        .map(|(name, position)| (name.to_string(), position))
        .collect()
}

fn text_header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// Tells when nobody writes to the store on behalf of a stream any more.
#[derive(Debug)]
pub struct Done {
    active: watch::Sender<usize>,
}

impl Default for Done {
    fn default() -> Self {
        Done {
            active: watch::Sender::new(0),
        }
    }
}

impl Done {
    fn begin(self: &Arc<Self>) -> Active {
        self.active.send_modify(|active| *active += 1);
        Active(Arc::clone(self))
    }

    /// Returns when the last thread has ended.
    pub async fn wait(&self) {
        // The sender is `self`, so that waiting cannot fail.
        let _ = self.active.subscribe().wait_for(|active| *active == 0).await;
    }
}

struct Active(Arc<Done>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.send_modify(|active| *active -= 1);
    }
}

/// The thread that reads frames and hands records to the store.
struct Receiver {
    follower: Follower,
    primary: Client,
    acks: Arc<Acks>,
    /// Databases that could not take a record; what follows would not fit either.
    failed: BTreeSet<String>,
    failed_since: Option<Instant>,
    runtime: tokio::runtime::Handle,
    /// This node has all that the primary had when it connected.
    ready: bool,
    heartbeats: Heartbeats,
}

impl Receiver {
    fn run(mut self, reader: BodyReader) -> Result<Ended, FollowError> {
        let mut reader = io::BufReader::with_capacity(64 << 10, reader);
        while let Some(frame) = Frame::read(&mut reader)? {
            match frame {
                Frame::Ltx { name } => self.record(&name, &mut reader)?,
                Frame::Ready => {
                    self.ready = true;
                    self.follower.news.send_modify(|news| news.ready = true);
                }
                Frame::End => return Ok(Ended::Cleanly),
                Frame::Handoff { lease_id } => return Ok(Ended::HandedOver(lease_id)),
                Frame::Heartbeat { timestamp_ms } => {
                    if self.ready {
                        self.heartbeats.heard(timestamp_ms);
                    }
                    self.retry_failed()?;
                }
                Frame::DropDb { name } => {
                    tracing::debug!(db = %name, "the primary does not know this database")
                }
                Frame::Owners { name, owners } => {
                    if let Ok(db) = name.parse::<DbName>() {
                        self.follower.store.take_owners(&db, &owners);
                    }
                }
                // There is no backup here that could make use of it.
                Frame::Hwm { .. } => {}
                Frame::Ack { .. } => return Err(FollowError::Confused),
            }
        }
        Ok(Ended::Cleanly)
    }

    /// Takes one record. Whatever becomes of it, the reader is behind it afterwards.
    fn record(&mut self, name: &str, reader: &mut impl Read) -> Result<(), FollowError> {
        let mut body = ChunkReader::new(reader);
        match name.parse::<DbName>() {
            Err(error) => tracing::warn!(db = ?name, %error, "a database of the primary cannot exist here"),
            Ok(_) if self.failed.contains(name) => {}
            Ok(db) => {
                if let Err(error) = self.receive(&db, &mut body) {
                    if let Some(unlogged) = self.follower.store.repeats().note("take", &db, &error) {
                        tracing::error!(%db, %error, unlogged, "cannot take a record from the primary");
                    }
                    self.failed.insert(name.to_string());
                    self.failed_since.get_or_insert_with(Instant::now);
                }
            }
        }
        body.drain().map(drop).map_err(|error| FollowError::Body {
            db: name.to_string(),
            error,
        })
    }

    fn receive(&mut self, db: &DbName, body: &mut dyn Read) -> Result<(), engine::Error> {
        let mut bytes = [0; HEADER_SIZE];
        body.read_exact(&mut bytes)
            .map_err(|error| engine::Error::Invalid(format!("{db}: {error}")))?;
        let header = Header::parse(&bytes).map_err(ltx::Error::from)?;
        if header.is_snapshot() {
            divergence::save_tail(&self.follower.store, db, &self.primary, &self.runtime)?;
        }
        let position = self.follower.store.receive(db, &mut bytes.chain(body))?;
        self.acks.add(db.as_str(), position);
        Ok(())
    }

    /// A database that failed gets another chance with a new stream, which begins at its true position.
    fn retry_failed(&self) -> Result<(), FollowError> {
        match self.failed_since {
            Some(since) if since.elapsed() > self.follower.failed_pause => {
                let names: Vec<&str> = self.failed.iter().map(String::as_str).collect();
                Err(FollowError::Retry(names.join(", ")))
            }
            Some(_) | None => Ok(()),
        }
    }
}
