//! A response's body, pumped from the network to a thread that blocks.
//!
//! The pump watches for silence by itself, so that a slow disk on this side is never taken for a silent primary.

use std::io::{self, Read};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;

/// Pieces that wait for the thread.
const PIECES: usize = 64;

/// Reading end; an error of the network is an error of the read.
pub(super) struct BodyReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
    failed: bool,
}

/// Sending end; `run` it beside the thread.
pub(super) struct Pump<S> {
    body: S,
    pieces: mpsc::Sender<io::Result<Bytes>>,
    silence: Duration,
}

/// Joins `body` to a reader. Silence for longer than `silence` is an error.
pub(super) fn pump<S>(body: S, silence: Duration) -> (Pump<S>, BodyReader) {
    let (sender, pieces) = mpsc::channel(PIECES);
    (
        Pump {
            body,
            pieces: sender,
            silence,
        },
        BodyReader {
            pieces,
            current: Bytes::new(),
            failed: false,
        },
    )
}

impl<S, E> Pump<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::error::Error,
{
    /// Pumps until the body ends or nobody reads any more.
    pub(super) async fn run(mut self) {
        loop {
            let piece = match tokio::time::timeout(self.silence, self.body.next()).await {
                Ok(None) => return,
                Ok(Some(Ok(piece))) => Ok(piece),
                Ok(Some(Err(error))) => Err(io::Error::other(innermost(&error))),
                Err(_) => {
                    let message = format!("the primary was silent for {:?}", self.silence);
                    Err(io::Error::new(io::ErrorKind::TimedOut, message))
                }
            };
            let last = piece.is_err();
            if self.pieces.send(piece).await.is_err() || last {
                return;
            }
        }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

impl Read for BodyReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.failed {
                return Err(io::Error::other("the stream has failed"));
            }
            match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(Ok(piece)) => self.current = piece,
                Some(Err(error)) => {
                    self.failed = true;
                    return Err(error);
                }
            }
        }
        let n = out.len().min(self.current.len());
        out[..n].copy_from_slice(&self.current.split_to(n));
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Piece = Result<Bytes, io::Error>;

    async fn read_all(body: impl Stream<Item = Piece> + Unpin + Send + 'static) -> io::Result<Vec<u8>> {
        let (pump, mut reader) = pump(body, Duration::from_millis(30));
        let reading = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        });
        pump.run().await;
        reading.await.unwrap()
    }

    #[tokio::test]
    async fn pieces_become_bytes() {
        let pieces: Vec<Piece> = vec![Ok(Bytes::from("ab")), Ok(Bytes::new()), Ok(Bytes::from("c"))];
        assert_eq!(
            read_all(futures_util::stream::iter(pieces)).await.unwrap(),
            b"abc"
        );
    }

    #[tokio::test]
    async fn silence_and_failure_are_errors_and_not_the_end() {
        let silent = futures_util::stream::pending::<Piece>();
        assert_eq!(
            read_all(silent).await.unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        let broken: Vec<Piece> = vec![Ok(Bytes::from("ab")), Err(io::Error::other("reset"))];
        assert_eq!(
            read_all(futures_util::stream::iter(broken))
                .await
                .unwrap_err()
                .to_string(),
            "reset"
        );
    }
}
