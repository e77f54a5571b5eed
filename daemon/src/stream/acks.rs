//! What a replica tells its primary while it follows: the newest position of each database, once per burst.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use ltx::Pos;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::frame::Frame;
use super::position_map::{self, PositionMap};

/// Positions that wait to be told. Newer ones take the place of older ones, so that memory is bounded by the number of
/// databases however slow the network is.
#[derive(Debug, Default)]
pub(super) struct Acks {
    waiting: Mutex<PositionMap>,
    more: Notify,
}

/// Whether the primary wants to be told, which is known when it has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Unknown,
    Yes,
    No,
}

impl Acks {
    pub(super) fn add(&self, name: &str, position: Pos) {
        let mut waiting = self.waiting.lock();
        match waiting.get_mut(name) {
            Some(known) => *known = position,
            None => drop(waiting.insert(name.to_string(), position)),
        }
        drop(waiting);
        self.more.notify_one();
    }

    async fn next(&self) -> Bytes {
        loop {
            let waiting = std::mem::take(&mut *self.waiting.lock());
            if !waiting.is_empty() {
                let mut bytes = BytesMut::new();
                for (name, position) in waiting {
                    Frame::Ack { name, position }.encode(&mut bytes);
                }
                return bytes.freeze();
            }
            self.more.notified().await;
        }
    }
}

/// The body of a stream request: the position map, then acknowledgements for as long as they are wanted.
pub(super) fn request_body(
    positions: &PositionMap,
    acks: Arc<Acks>,
    wanted: watch::Receiver<Wanted>,
) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static {
    let mut map = BytesMut::new();
    position_map::encode(positions, &mut map);
    let state = (Some(map.freeze()), acks, wanted);
    stream::unfold(state, |(map, acks, mut wanted)| async move {
        if let Some(map) = map {
            return Some((Ok(map), (None, acks, wanted)));
        }
        // The stream's end drops the sender, which ends the body as well.
        let decided = wanted
            .wait_for(|wanted| *wanted != Wanted::Unknown)
            .await
            .is_ok_and(|wanted| *wanted == Wanted::Yes);
        if !decided {
            return None;
        }
        let piece = tokio::select! {
            piece = acks.next() => piece,
            _ = wanted.wait_for(|wanted| *wanted == Wanted::No) => return None,
        };
        Some((Ok(piece), (None, acks, wanted)))
    })
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use ltx::{Checksum, Txid};

    use super::*;

    #[tokio::test]
    async fn a_primary_that_wants_no_acknowledgements_gets_the_map_alone() {
        let (sender, wanted) = watch::channel(Wanted::Unknown);
        let mut body = Box::pin(request_body(&PositionMap::new(), Arc::default(), wanted));
        assert_eq!(
            body.next().await.unwrap().unwrap(),
            Bytes::from_static(&[0, 0, 0, 0])
        );
        sender.send_replace(Wanted::No);
        assert!(body.next().await.is_none());
    }

    #[tokio::test]
    async fn positions_of_one_database_are_told_once() {
        let (_sender, wanted) = watch::channel(Wanted::Yes);
        let acks = Arc::new(Acks::default());
        let mut body = Box::pin(request_body(&PositionMap::new(), Arc::clone(&acks), wanted));
        body.next().await;
        for txid in 1..=3 {
            acks.add("a", Pos::new(Txid(txid), Checksum(1 << 63)));
        }
        let mut told = BytesMut::from(&body.next().await.unwrap().unwrap()[..]);
        let position = Pos::new(Txid(3), Checksum(1 << 63));
        assert_eq!(
            Frame::take(&mut told).unwrap(),
            Some(Frame::Ack {
                name: "a".to_string(),
                position
            })
        );
        assert!(told.is_empty());
    }
}
