//! `POST /promote` and `POST /handoff`: who is to be primary.

use std::time::Duration;

use litefs_api::NodeId;
use warp::http::StatusCode;
use warp::reply::{Reply, Response};

use super::Api;
use super::error::ApiError;
use super::routes::Query;
use crate::lease::elector::Refusal;

/// How long it may take until this node is primary after that was agreed.
const PROMOTION_LIMIT: Duration = Duration::from_secs(15);

/// Answers when this node is primary.
pub(super) async fn promote(api: Api, query: Query) -> Result<Response, ApiError> {
    let force = match query.get("force").map(String::as_str) {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "force must be true or false, not \"{other}\""
            )));
        }
    };
    api.elector.promote(force).await?;
    let mut leadership = api.leadership.clone();
    let is_primary = leadership.wait_for(|leadership| leadership.is_primary);
    match tokio::time::timeout(PROMOTION_LIMIT, is_primary).await {
        Ok(Ok(_)) => Ok(warp::reply().into_response()),
        Ok(Err(_)) => Err(Refusal::Stopping.into()),
        Err(_) => Err(ApiError::internal(
            "this node did not become primary in time; its log says why",
        )),
    }
}

/// Answers when the lease is handed over.
pub(super) async fn handoff(api: Api, query: Query) -> Result<Response, ApiError> {
    let node_id = query.get("nodeID").and_then(|id| id.parse::<NodeId>().ok());
    let node_id = node_id.ok_or_else(|| ApiError::bad_request("invalid node id"))?;
    api.elector.hand_off(node_id).await?;
    Ok(warp::reply().into_response())
}

/// `POST /halt`, `DELETE /halt` and `POST /tx`: a replica of LiteFS wants to write here.
pub(super) async fn halt(_: Api, _: Query) -> Result<Response, ApiError> {
    let message = "write forwarding (HALT) is not available in this version: write on the primary";
    Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, message))
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = match &refusal {
            Refusal::NotCandidate | Refusal::DiskFailed(_) => StatusCode::CONFLICT,
            Refusal::NoPrimary(_) | Refusal::NotPrimary | Refusal::Handoff(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Refusal::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        };
        ApiError::new(status, refusal)
    }
}
