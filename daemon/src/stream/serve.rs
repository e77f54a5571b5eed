//! The primary's end of a stream (sixth link of a transaction's life).
//!
//! Waits for changes, sends what the replica lacks, and a heartbeat each second. Answers orders of the elector: a role
//! that ends is not noticed by accident. Errors end the stream; they are never written into it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use engine::{DbName, Store};
use futures_util::{Stream, StreamExt};
use litefs_api::NodeId;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::catch_up::{CatchUp, Left, StreamBroken, describe};
use super::dirty::Dirty;
use super::frame::Frame;
use super::position_map::{self, PositionMap};
use super::replicas::{Abilities, Connected, Order, Replicas};
use super::sink::{Body, Disconnected, Sink};
use crate::leadership::now_ms;
use crate::lease::Fence;

const HEARTBEAT: Duration = Duration::from_secs(1);
/// Longest request body before the end of the position map.
const MAX_MAP_BYTES: usize = 256 << 20;
/// How long a replica may take to send its map.
const MAP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the end of a stream may take to reach the replica.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// What streams are served from.
#[derive(Clone)]
pub struct Source {
    pub store: Arc<Store>,
    pub replicas: Arc<Replicas>,
    pub fence: Fence,
    /// How long a snapshot may take to be sent, if that is limited.
    pub snapshot_timeout: Option<Duration>,
    /// Among the streams that this node serves.
    pub place: Arc<OwnedSemaphorePermit>,
}

/// Who asks for a stream.
#[derive(Debug)]
pub struct Request {
    pub node_id: NodeId,
    pub hostname: String,
    pub abilities: Abilities,
    /// Only these databases, if any are named.
    pub filter: BTreeSet<String>,
}

/// Why a request is no good.
#[derive(Debug, thiserror::Error)]
pub enum BadRequest {
    #[error("position map: {0}")]
    Map(#[from] super::frame::FrameError),
    #[error("position map of more than {MAX_MAP_BYTES} bytes")]
    TooLong,
    #[error("request ends inside the position map")]
    Truncated,
    #[error("position map did not arrive in time")]
    TooSlow,
    #[error("read request: {0}")]
    Body(String),
}

/// Reads the replica's positions and begins to serve; gives the body of the answer.
pub async fn serve<S, B, E>(source: Source, request: Request, mut body: S) -> Result<Body, BadRequest>
where
    S: Stream<Item = Result<B, E>> + Send + Unpin + 'static,
    B: Buf + Send,
    E: std::fmt::Display + Send,
{
    let dirty = Dirty::watch(&source.store);
    let mut rest = BytesMut::new();
    let positions = tokio::time::timeout(MAP_TIMEOUT, read_map(&mut body, &mut rest)).await;
    let positions = positions.map_err(|_| BadRequest::TooSlow)??;
    let connected = source.replicas.connect(
        request.node_id,
        request.hostname.clone(),
        request.abilities,
        &positions,
    );
    let (sink, answer) = Sink::new();
    if request.abilities.acknowledges {
        let replica = Arc::clone(&connected.replica);
        tokio::spawn(async move { read_acks(&replica, body, rest).await });
    }
    let session = Session {
        source,
        request,
        connected,
        dirty,
        sink,
        sent: Sent::default(),
    };
    tokio::spawn(session.run(positions));
    Ok(answer)
}

async fn read_map<S, B, E>(body: &mut S, buffer: &mut BytesMut) -> Result<PositionMap, BadRequest>
where
    S: Stream<Item = Result<B, E>> + Unpin,
    B: Buf,
    E: std::fmt::Display,
{
    loop {
        if let Some(map) = position_map::take(buffer)? {
            return Ok(map);
        }
        if buffer.len() > MAX_MAP_BYTES {
            return Err(BadRequest::TooLong);
        }
        match body.next().await {
            Some(Ok(part)) => append(buffer, part),
            Some(Err(error)) => return Err(BadRequest::Body(error.to_string())),
            None => return Err(BadRequest::Truncated),
        }
    }
}

fn append(buffer: &mut BytesMut, mut part: impl Buf) {
    while part.has_remaining() {
        let piece = part.chunk();
        let len = piece.len();
        buffer.extend_from_slice(piece);
        part.advance(len);
    }
}

/// Notes what the replica confirms, until its body ends.
async fn read_acks<S, B, E>(replica: &super::replicas::Replica, mut body: S, mut buffer: BytesMut)
where
    S: Stream<Item = Result<B, E>> + Unpin,
    B: Buf,
    E: std::fmt::Display,
{
    loop {
        loop {
            match Frame::take(&mut buffer) {
                Ok(Some(Frame::Ack { name, position })) => replica.acked(name, position),
                Ok(Some(other)) => tracing::warn!(?other, "a replica sent a frame that only a primary sends"),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(replica = %replica.hostname, %error, "cannot read acknowledgements");
                    return;
                }
            }
        }
        match body.next().await {
            Some(Ok(part)) => append(&mut buffer, part),
            Some(Err(_)) | None => return,
        }
    }
}

/// One stream.
struct Session {
    source: Source,
    request: Request,
    connected: Connected,
    dirty: Dirty,
    sink: Sink,
    sent: Sent,
}

/// How a stream ended.
enum Ended {
    Ordered(Order),
    Disconnected,
    Broken(StreamBroken),
}

impl Session {
    async fn run(self, positions: PositionMap) {
        let who = describe(self.request.node_id, &self.request.hostname);
        tracing::info!(replica = %who, databases = positions.len(), "replica connected");
        let ended = self.serve(positions).await;
        match &ended {
            // A replica that does not read must not hold up the end.
            Ended::Ordered(Order::End | Order::HandOver(_)) => {
                let _ = tokio::time::timeout(END_TIMEOUT, self.sink.send(&Frame::End)).await;
            }
            Ended::Ordered(_) | Ended::Broken(_) => self.sink.cut(),
            Ended::Disconnected => {}
        }
        match ended {
            Ended::Broken(error) => tracing::warn!(replica = %who, %error, "stream ended"),
            Ended::Ordered(order) => tracing::info!(replica = %who, ?order, "stream ended"),
            Ended::Disconnected => tracing::info!(replica = %who, "replica disconnected"),
        }
    }

    async fn serve(&self, positions: PositionMap) -> Ended {
        let pulse = tokio::spawn(pulse(self.sink.clone(), self.sent.clone()));
        let ended = tokio::select! {
            ended = self.follow_orders(positions) => ended,
            () = self.sink.closed() => Ended::Disconnected,
        };
        pulse.abort();
        ended
    }

    async fn follow_orders(&self, positions: PositionMap) -> Ended {
        let mut orders = self.connected.replica.orders();
        self.dirty
            .insert(positions.keys().filter_map(|name| name.parse::<DbName>().ok()));
        self.mark_all();
        let mut catch_up = CatchUp {
            store: Arc::clone(&self.source.store),
            fence: self.source.fence.clone(),
            replica: Arc::clone(&self.connected.replica),
            sink: self.sink.blocking(),
            positions,
            begun: BTreeSet::new(),
            owners: HashMap::new(),
            record: Vec::new(),
            snapshot_timeout: self.source.snapshot_timeout,
            counter: None,
        };
        let mut ready = false;
        let mut known = Order::Serve;
        loop {
            let begun_ms = self.sent.begin();
            let order = orders.borrow_and_update().clone();
            match order {
                Order::End | Order::Abort => return Ended::Ordered(order),
                // Once per order: what was looked at stays so, as nobody writes any more.
                Order::Flush | Order::HandOver(_) if order != known => self.mark_all(),
                Order::Serve | Order::Flush | Order::HandOver(_) => {}
            }
            known = order.clone();
            let left;
            (catch_up, left) = match self.send_dirty(catch_up, &mut orders).await {
                Ok(sent) => sent,
                Err(ended) => return ended,
            };
            if left.unfinished.is_empty() {
                self.sent.all_until(begun_ms);
            }
            if !ready && left.unfinished.is_empty() {
                if self.greet().await.is_err() {
                    return Ended::Disconnected;
                }
                ready = true;
            }
            match order {
                Order::Flush if left.is_empty() => self.connected.replica.flushed(),
                Order::HandOver(lease_id) => {
                    return match self
                        .sink
                        .send(&Frame::Handoff {
                            lease_id: lease_id.clone(),
                        })
                        .await
                    {
                        Ok(()) => Ended::Ordered(Order::HandOver(lease_id)),
                        Err(_) => Ended::Disconnected,
                    };
                }
                _ => {}
            }
            self.wait(&mut orders, left).await;
        }
    }

    /// Sends what has changed. Runs on a thread that may block; an `Abort` does not wait for it.
    async fn send_dirty(
        &self,
        mut catch_up: CatchUp,
        orders: &mut watch::Receiver<Order>,
    ) -> Result<(CatchUp, Left), Ended> {
        let mut names = self.dirty.take();
        if !self.request.filter.is_empty() {
            names.retain(|name| self.request.filter.contains(name.as_str()));
        }
        if names.is_empty() {
            return Ok((catch_up, Left::default()));
        }
        let place = self.source.place.clone();
        let sending = tokio::task::spawn_blocking(move || {
            // The thread may outlast the stream.
            let _place = place;
            let result = catch_up.run(names);
            (catch_up, result)
        });
        let mut aborted = orders.clone();
        tokio::select! {
            sent = sending => match sent {
                Ok((catch_up, Ok(left))) => Ok((catch_up, left)),
                Ok((_, Err(StreamBroken::Disconnected(_)))) => Err(Ended::Disconnected),
                Ok((_, Err(error))) => Err(Ended::Broken(error)),
                Err(_) => Err(Ended::Ordered(Order::Abort)),
            },
            _ = aborted.wait_for(|order| *order == Order::Abort) => Err(Ended::Ordered(Order::Abort)),
        }
    }

    /// Waits for a change or an order. What is unfinished goes on at once, what failed after a while.
    async fn wait(&self, orders: &mut watch::Receiver<Order>, left: Left) {
        let retry = !left.failed.is_empty();
        match left.unfinished.is_empty() {
            true => self.sent.all(),
            false => self.dirty.insert(left.unfinished),
        }
        tokio::select! {
            () = self.dirty.changed() => {}
            _ = orders.changed() => {}
            () = tokio::time::sleep(HEARTBEAT), if retry => {}
        }
        if retry {
            self.dirty.insert(left.failed);
        }
    }

    /// The replica has all that there was when it connected.
    async fn greet(&self) -> Result<(), Disconnected> {
        self.sink.send(&Frame::Ready).await?;
        self.sink.send(&self.sent.heartbeat()).await
    }

    fn mark_all(&self) {
        self.dirty.insert(
            self.source
                .store
                .databases()
                .into_iter()
                .map(|db| db.name().clone()),
        );
    }
}

/// Until when the replica was sent everything, in milliseconds since the epoch. What its heartbeats say: a replica that is being sent a backlog
/// is behind, however soon a heartbeat comes.
#[derive(Debug, Clone, Default)]
struct Sent(Arc<AtomicI64>);

/// There is nothing to send.
const ALL: i64 = i64::MAX;

impl Sent {
    /// Something may be to be sent from now on; returns when that is.
    fn begin(&self) -> i64 {
        let now = now_ms();
        let _ = self
            .0
            .compare_exchange(ALL, now, Ordering::Relaxed, Ordering::Relaxed);
        now
    }

    fn all_until(&self, timestamp_ms: i64) {
        self.0.store(timestamp_ms, Ordering::Relaxed);
    }

    fn all(&self) {
        self.0.store(ALL, Ordering::Relaxed);
    }

    fn heartbeat(&self) -> Frame {
        let timestamp_ms = match self.0.load(Ordering::Relaxed) {
            ALL => now_ms(),
            until => until,
        };
        Frame::Heartbeat { timestamp_ms }
    }
}

/// A heartbeat each second, between frames.
async fn pulse(sink: Sink, sent: Sent) {
    let mut beat = tokio::time::interval(HEARTBEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first tick is due at once, and comes before the replica has caught up.
    beat.tick().await;
    loop {
        beat.tick().await;
        if sink.send_made(|| sent.heartbeat()).await.is_err() {
            return;
        }
    }
}
