//! `GET /events`: what happens, one JSON object per line, without end.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use litefs_api::Event;
use tokio::sync::broadcast;
use warp::reply::{Reply, Response};

use super::Api;
use super::error::ApiError;
use super::routes::Query;

pub(super) async fn events(api: Api, _: Query) -> Result<Response, ApiError> {
    // The subscription is older than the first line, so that no change falls between the two.
    let subscription = api.events.subscribe();
    let first = Event::Init {
        data: api.events.primary_change(),
    };
    let state = (Some(first), subscription, api.shutdown.clone());
    let lines = stream::unfold(state, |(first, mut subscription, shutdown)| async move {
        let event = match first {
            Some(first) => first,
            None => tokio::select! {
                event = subscription.recv() => match event {
                    Ok(event) => event,
                    // A reader that is too slow is cut off rather than served with gaps.
                    Err(broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed) => return None,
                },
                () = shutdown.cancelled() => return None,
            },
        };
        let mut line = serde_json::to_vec(&event).expect("an event is plain data");
        line.push(b'\n');
        Some((
            Ok::<_, Infallible>(Bytes::from(line)),
            (None, subscription, shutdown),
        ))
    });
    let body = warp::reply::stream(lines);
    Ok(warp::reply::with_header(body, "content-type", "application/json").into_response())
}
