//! `GET /metrics`: counts as they stand, and states as they are found.

use std::time::Duration;

use metrics::gauge;
use warp::reply::{Reply, Response};

use super::Api;
use super::error::ApiError;
use super::routes::Query;
use crate::metrics as names;

pub(super) async fn metrics(api: Api, _: Query) -> Result<Response, ApiError> {
    node(&api);
    let shown = api.clone();
    let text = tokio::task::spawn_blocking(move || {
        databases(&shown);
        replicas(&shown);
        shown.metrics.render()
    });
    let text = text.await.map_err(ApiError::internal)?;
    Ok(
        warp::reply::with_header(text, "content-type", "text/plain; version=0.0.4; charset=utf-8")
            .into_response(),
    )
}

fn node(api: &Api) {
    let leadership = api.leadership.borrow().clone();
    let streams = api.replicas.count();
    gauge!(names::IS_PRIMARY).set(f64::from(u8::from(leadership.is_primary)));
    gauge!(names::EPOCH).set(leadership.epoch as f64);
    gauge!(names::LAG_SECONDS).set(seconds(api.lag.behind()));
    gauge!(names::HTTP_STREAM_COUNT).set(streams as f64);
    gauge!(names::SUBSCRIBER_COUNT).set((streams + api.events.subscribers()) as f64);
}

/// What nobody knows is shown as nothing.
fn seconds(lag: Option<Duration>) -> f64 {
    lag.unwrap_or_default().as_secs_f64()
}

fn databases(api: &Api) {
    let databases = api.store.databases();
    gauge!(names::DB_COUNT).set(databases.len() as f64);
    for db in databases {
        let status = db.status();
        let name = db.name().to_string();
        let held = status
            .first_txid
            .map_or(0, |first| status.received.txid.0.saturating_sub(first.0) + 1);
        gauge!(names::DB_CLOSED, "db" => name.clone()).set(f64::from(u8::from(db.is_closed())));
        gauge!(names::DB_LAG_SECONDS, "db" => name.clone()).set(seconds(api.lag.behind_of(&db)));
        gauge!(names::DB_TXID, "db" => name.clone()).set(status.position.txid.0 as f64);
        gauge!(names::DB_LTX_COUNT, "db" => name.clone()).set(held as f64);
        gauge!(names::DB_LTX_BYTES, "db" => name).set(status.log_bytes as f64);
    }
}

/// Transactions that each replica is behind, by its own word. Of one that has left nothing is known, and soon nothing is shown.
fn replicas(api: &Api) {
    let own: Vec<(String, u64)> = api
        .store
        .databases()
        .iter()
        .map(|db| (db.name().to_string(), db.position().txid.0))
        .collect();
    for replica in api.replicas.all() {
        let known = replica.known();
        let behind = own
            .iter()
            .map(|(name, txid)| txid.saturating_sub(known.get(name).map_or(0, |pos| pos.txid.0)));
        gauge!(names::REPLICA_LAG_TXIDS, "node" => replica.hostname.clone()).set(behind.sum::<u64>() as f64);
    }
}
