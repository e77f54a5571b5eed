//! `GET /events`: what happens, one JSON object per line, without end.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use litefs_api::{Event, PrimaryChange};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use warp::reply::{Reply, Response};

use super::Api;
use super::error::ApiError;
use super::routes::Query;

pub(super) async fn events(api: Api, _: Query) -> Result<Response, ApiError> {
    // The subscription is older than the first line, so that no change falls between the two.
    let subscription = api.events.subscribe();
    let told = api.events.primary_change();
    let watcher = Watcher {
        subscription,
        told: told.clone(),
        shutdown: api.shutdown.clone(),
    };
    let state = (Some(Event::Init { data: told }), watcher);
    let lines = stream::unfold(state, |(first, mut watcher)| async move {
        let event = match first {
            Some(first) => first,
            None => watcher.next().await?,
        };
        let mut line = serde_json::to_vec(&event).expect("an event is plain data");
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), (None, watcher)))
    });
    let body = warp::reply::stream(lines);
    Ok(warp::reply::with_header(body, "content-type", "application/json").into_response())
}

/// One reader of events.
struct Watcher {
    subscription: broadcast::Receiver<Event>,
    /// The role as this reader knows it.
    told: PrimaryChange,
    shutdown: CancellationToken,
}

impl Watcher {
    /// The next event. A reader that is too slow is cut off rather than served with gaps.
    async fn next(&mut self) -> Option<Event> {
        loop {
            let event = tokio::select! {
                event = self.subscription.recv() => event.ok()?,
                () = self.shutdown.cancelled() => return None,
            };
            match &event {
                // A change that is older than the first line.
                Event::PrimaryChange { data } if *data == self.told => {}
                Event::PrimaryChange { data } => {
                    self.told = data.clone();
                    return Some(event);
                }
                _ => return Some(event),
            }
        }
    }
}
