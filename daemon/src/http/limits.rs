//! How many requests that take long run at a time, and how long a peer may keep one waiting.
//!
//! An import, an export and a stream have a thread each for as long as the peer takes, out of the [`THREADS`] that the node has for all
//! work that blocks. Each kind has a share of its own, so that none keeps the others out, and what is left over belongs to work that ends
//! by itself: `/status`, `/metrics`, the records of a primary, housekeeping.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use warp::http::StatusCode;

use super::error::ApiError;

/// Threads of the node for work that blocks.
pub const THREADS: usize = 512;
const IMPORTS: usize = 16;
const EXPORTS: usize = 16;
const STREAMS: usize = 256;
/// How long a peer may stand still.
const STALL: Duration = Duration::from_secs(30);
const _: () = assert!(
    IMPORTS + EXPORTS + STREAMS <= THREADS * 2 / 3,
    "a third is for everything else"
);
/// A peer whose bytes are fewer within the time limit makes no progress: one byte now and then is as good as none.
const LEAST: usize = 64 << 10;
/// When it is worth to try again what was refused.
const RETRY_AFTER_SECONDS: u64 = 5;

/// How many at a time, and how long a peer may stand still.
#[derive(Debug, Clone)]
pub struct Limits {
    pub imports: usize,
    pub exports: usize,
    pub streams: usize,
    /// An import or an export that does not get on for so long ends.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            imports: IMPORTS,
            exports: EXPORTS,
            streams: STREAMS,
            stall: STALL,
        }
    }
}

/// What a request takes a share of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Import,
    Export,
    Stream,
}

/// A place among the requests of its kind; given back when the last clone is dropped.
pub(super) type Place = Arc<OwnedSemaphorePermit>;

/// The shares of a node.
#[derive(Debug)]
pub struct Shares {
    limits: Limits,
    imports: Arc<Semaphore>,
    exports: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Shares {
    pub fn new(limits: Limits) -> Shares {
        Shares {
            imports: Arc::new(Semaphore::new(limits.imports)),
            exports: Arc::new(Semaphore::new(limits.exports)),
            streams: Arc::new(Semaphore::new(limits.streams)),
            limits,
        }
    }

    /// A place for one more, or the answer that there is none.
    pub(super) fn take(&self, work: Work) -> Result<Place, ApiError> {
        let (places, limit, what) = match work {
            Work::Import => (&self.imports, self.limits.imports, "imports"),
            Work::Export => (&self.exports, self.limits.exports, "exports"),
            Work::Stream => (&self.streams, self.limits.streams, "streams of replicas"),
        };
        match places.clone().try_acquire_owned() {
            Ok(place) => Ok(Arc::new(place)),
            Err(_) => {
                let message =
                    format!("{limit} {what} are under way, and no more run at a time: try again later");
                let refusal = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message);
                Err(refusal.retry_after(RETRY_AFTER_SECONDS))
            }
        }
    }

    pub(super) fn stall(&self) -> Duration {
        self.limits.stall
    }
}

/// The bytes of an upload, which ends with an error when its sender makes no progress for `stall`. Time counts only while the sender is
/// waited for: a disk that is slow here is not its fault.
pub(super) fn paced<B, S>(body: S, stall: Duration) -> impl Stream<Item = std::io::Result<Bytes>>
where
    B: Buf,
    S: Stream<Item = Result<B, warp::Error>>,
{
    let state = Some((Box::pin(body), Pace::within(stall)));
    stream::unfold(state, |state| async {
        let (mut body, mut pace) = state?;
        let asked = Instant::now();
        let part = match timeout(pace.left(), body.next()).await {
            Ok(Some(Ok(mut part))) => Ok(part.copy_to_bytes(part.remaining())),
            Ok(Some(Err(error))) => Err(std::io::Error::other(error)),
            Ok(None) => return None,
            Err(_) => Err(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("less than {LEAST} bytes arrived in {stall:?}", stall = pace.stall),
            )),
        };
        match part {
            Ok(part) => {
                pace.arrived(part.len(), asked.elapsed());
                Some((Ok(part), Some((body, pace))))
            }
            Err(error) => Some((Err(error), None)),
        }
    })
}

struct Pace {
    stall: Duration,
    /// For bytes since the last progress.
    waited: Duration,
    bytes: usize,
}

impl Pace {
    fn within(stall: Duration) -> Pace {
        Pace {
            stall,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    fn left(&self) -> Duration {
        self.stall.saturating_sub(self.waited)
    }

    fn arrived(&mut self, bytes: usize, waited: Duration) {
        self.bytes += bytes;
        self.waited += waited;
        if self.bytes >= LEAST {
            self.bytes = 0;
            self.waited = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Whether a sender gets on that sends so much each `pause`, so often.
    fn gets_on(bytes: usize, pause: Duration, count: usize) -> bool {
        let mut pace = Pace::within(30 * SECOND);
        (0..count).all(|_| {
            let in_time = pause < pace.left();
            pace.arrived(bytes, pause);
            in_time
        })
    }

    #[test]
    fn an_upload_may_be_slow_but_must_get_on() {
        assert!(gets_on(LEAST, 29 * SECOND, 100));
        assert!(gets_on(LEAST / 20, SECOND, 100));
        assert!(!gets_on(LEAST, 31 * SECOND, 1));
        assert!(gets_on(1, SECOND, 20), "a small one is over in time");
        assert!(!gets_on(1, SECOND, 100), "a trickle");
    }

    #[tokio::test]
    async fn silence_ends_an_upload_and_is_not_its_end() {
        let parts = [Ok::<_, warp::Error>(Bytes::from("begun"))];
        let body = stream::iter(parts).chain(stream::pending());
        let parts: Vec<std::io::Result<Bytes>> = paced(body, SECOND / 50).collect().await;
        assert_eq!(parts[0].as_ref().unwrap(), "begun");
        assert_eq!(
            parts[1].as_ref().unwrap_err().kind(),
            std::io::ErrorKind::TimedOut
        );
        assert_eq!(parts.len(), 2);
    }

    /// A disk that is slow here is not the sender's fault.
    #[tokio::test]
    async fn time_counts_while_the_sender_is_waited_for() {
        let stall = SECOND / 10;
        let parts = (0..3).map(|_| Ok::<_, warp::Error>(Bytes::from("part")));
        let body = paced(stream::iter(parts), stall);
        tokio::pin!(body);
        while let Some(part) = body.next().await {
            part.unwrap();
            std::thread::sleep(stall);
        }
    }

    #[test]
    fn each_kind_has_a_share_of_its_own_and_a_place_comes_back() {
        let shares = Shares::new(Limits {
            imports: 1,
            exports: 1,
            ..Limits::default()
        });
        let import = shares.take(Work::Import).unwrap();
        assert!(shares.take(Work::Import).is_err());
        let _export = shares.take(Work::Export).unwrap();
        drop(import.clone());
        assert!(shares.take(Work::Import).is_err(), "a clone is not the place");
        drop(import);
        assert!(shares.take(Work::Import).is_ok());
    }
}
