//! `POST /stream`: a replica begins to follow this node.

use std::collections::BTreeSet;

use bytes::Buf;
use futures_util::Stream;
use litefs_api::{NodeId, header};
use warp::http::{HeaderMap, StatusCode, Version};
use warp::reply::{Reply, Response};

use super::Api;
use super::error::ApiError;
use super::limits::Work;
use super::routes::Query;
use crate::stream::serve::{self, Request, Source};
use crate::stream::{Abilities, features};

/// Longest host name that is believed.
const MAX_HOSTNAME: usize = 255;

pub(super) async fn stream<B, S>(
    api: Api,
    query: Query,
    headers: HeaderMap,
    version: Version,
    body: S,
) -> Result<Response, ApiError>
where
    B: Buf + Send + 'static,
    S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
{
    if version < Version::HTTP_2 {
        return Err(ApiError::new(
            StatusCode::UPGRADE_REQUIRED,
            "Upgrade to HTTP/2 required",
        ));
    }
    let request = request(&query, &headers);
    if request.node_id == api.node_id() {
        return Err(ApiError::bad_request(
            "cannot connect to self: the advertised URL leads back to this node",
        ));
    }
    same_cluster(&api, text(&headers, header::CLUSTER_ID))?;
    api.require_primary()?;
    let place = api.shares.take(Work::Stream)?;
    let source = Source {
        store: api.store.clone(),
        replicas: api.replicas.clone(),
        fence: api.fence.clone(),
        snapshot_timeout: api.node.snapshot_timeout,
        place,
    };
    let epoch = api.leadership.borrow().epoch;
    let frames = serve::serve(source, request, Box::pin(body))
        .await
        .map_err(ApiError::bad_request)?;
    let reply = warp::reply::stream(frames);
    let reply = warp::reply::with_header(reply, header::FEATURES, features::ALL);
    let reply = warp::reply::with_header(reply, header::EPOCH, epoch);
    Ok(warp::reply::with_header(reply, "content-type", "application/octet-stream").into_response())
}

fn request(query: &Query, headers: &HeaderMap) -> Request {
    let hostname = text(headers, header::HOSTNAME).unwrap_or_default();
    let filter = query.get("filter").map(String::as_str).unwrap_or_default();
    Request {
        // LiteFS takes a missing or strange id for zero.
        node_id: text(headers, header::NODE_ID)
            .and_then(|id| id.parse().ok())
            .unwrap_or(NodeId(0)),
        hostname: hostname.chars().take(MAX_HOSTNAME).collect(),
        abilities: Abilities {
            acknowledges: features::has(text(headers, header::FEATURES), features::ACK),
            candidate: features::has(text(headers, header::FEATURES), features::CANDIDATE),
            takes_owners: features::has(text(headers, header::FEATURES), features::OWNERS),
        },
        filter: filter
            .split(',')
            .filter(|name| !name.is_empty())
            .map(str::to_string)
            .collect::<BTreeSet<_>>(),
    }
}

/// A replica of another cluster would have its databases replaced by ours.
fn same_cluster(api: &Api, theirs: Option<&str>) -> Result<(), ApiError> {
    match (api.store.cluster_id(), theirs) {
        (Some(ours), Some(theirs)) if !theirs.is_empty() && ours != theirs => {
            let message =
                format!("this node belongs to cluster {ours}, the request comes from cluster {theirs}");
            Err(ApiError::new(StatusCode::CONFLICT, message))
        }
        _ => Ok(()),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
