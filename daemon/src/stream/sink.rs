//! Where a stream's frames go: into the body of the response, in pieces of a good size.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::frame::Frame;

/// Pieces smaller than this wait for more to come.
const PIECE: usize = 64 << 10;
/// Pieces that wait for the network. Bounds what a slow replica costs in memory.
const PIECES: usize = 16;

/// A piece of the body, or the reason why it ends in the middle.
type Piece = Result<Bytes, std::io::Error>;

/// The body of a stream's response.
pub struct Body {
    pieces: mpsc::Receiver<Piece>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
}

impl Stream for Body {
    type Item = Piece;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Piece>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.cut.as_mut().poll(context).is_ready() {
            self.ended = true;
            // A sender that waits for room is to end as well.
            self.pieces.close();
            return Poll::Ready(Some(Err(std::io::Error::other("the stream was cut off"))));
        }
        self.pieces.poll_recv(context)
    }
}

/// The replica is gone.
#[derive(Debug, thiserror::Error)]
#[error("the replica disconnected")]
pub(super) struct Disconnected;

/// Sending end of a response body. Frames of two senders are never mixed: one at a time has the floor.
#[derive(Clone)]
pub(super) struct Sink {
    pieces: mpsc::Sender<Piece>,
    floor: Arc<Mutex<()>>,
    cut: CancellationToken,
}

impl Sink {
    pub(super) fn new() -> (Sink, Body) {
        let (sender, pieces) = mpsc::channel(PIECES);
        let cut = CancellationToken::new();
        let body = Body {
            pieces,
            cut: Box::pin(cut.clone().cancelled_owned()),
            ended: false,
        };
        (
            Sink {
                pieces: sender,
                floor: Arc::default(),
                cut,
            },
            body,
        )
    }

    /// Returns when nobody reads the body any more.
    pub(super) async fn closed(&self) {
        self.pieces.closed().await;
    }

    /// Sends one frame.
    pub(super) async fn send(&self, frame: &Frame) -> Result<(), Disconnected> {
        self.send_made(|| frame.clone()).await
    }

    /// Sends one frame that is made when its turn comes.
    pub(super) async fn send_made(&self, make: impl FnOnce() -> Frame) -> Result<(), Disconnected> {
        let _floor = self.floor.lock().await;
        let mut bytes = BytesMut::new();
        make().encode(&mut bytes);
        self.pieces
            .send(Ok(bytes.freeze()))
            .await
            .map_err(|_| Disconnected)
    }

    /// Breaks the body off, whoever is sending, so that the replica does not take it for whole.
    pub(super) fn cut(&self) {
        self.cut.cancel();
    }

    /// A writer of many frames, for a thread that may block.
    pub(super) fn blocking(&self) -> BlockingSink {
        BlockingSink {
            sink: self.clone(),
            buffer: BytesMut::new(),
            floor: None,
        }
    }
}

/// Collects frames and sends them in pieces. Has the floor from the first byte until `flush`.
pub(super) struct BlockingSink {
    sink: Sink,
    buffer: BytesMut,
    floor: Option<OwnedMutexGuard<()>>,
}

impl BlockingSink {
    /// The buffer to append to; call `spill` after each addition.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        if self.floor.is_none() {
            self.floor = Some(Arc::clone(&self.sink.floor).blocking_lock_owned());
        }
        &mut self.buffer
    }

    /// Sends what has collected, if it is worth a piece.
    pub(super) fn spill(&mut self) -> Result<(), Disconnected> {
        if self.buffer.len() < PIECE {
            Ok(())
        } else {
            self.send()
        }
    }

    /// Sends all that has collected. Only between frames.
    pub(super) fn flush(&mut self) -> Result<(), Disconnected> {
        let sent = if self.buffer.is_empty() {
            Ok(())
        } else {
            self.send()
        };
        self.floor = None;
        sent
    }

    fn send(&mut self) -> Result<(), Disconnected> {
        let piece = self.buffer.split().freeze();
        let (pieces, cut) = (&self.sink.pieces, &self.sink.cut);
        match pieces.try_send(Ok(piece)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(Disconnected),
            // A body that nobody reads does not notice that it is cut.
            Err(TrySendError::Full(piece)) => Handle::current().block_on(async {
                tokio::select! {
                    sent = pieces.send(piece) => sent.map_err(|_| Disconnected),
                    () = cut.cancelled() => Err(Disconnected),
                }
            }),
        }
    }
}
