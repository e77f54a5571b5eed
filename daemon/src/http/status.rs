//! `GET /info` and `GET /status`: what a node is and has.

use litefs_api::{Checksum, DatabaseStatus, Info, LogStatus, PrimaryName, Role, Status, Txid};
use serde::Serialize;
use warp::reply::{Reply, Response};

use super::Api;
use super::error::ApiError;
use super::routes::Query;

pub(super) async fn info(api: Api, _: Query) -> Result<Response, ApiError> {
    let leadership = api.leadership.borrow().clone();
    let hostname = match leadership.is_primary {
        true => api.node.hostname.clone(),
        false => leadership.primary_hostname().unwrap_or_default().to_string(),
    };
    json(&Info {
        cluster_id: api.store.cluster_id().unwrap_or_default(),
        is_primary: leadership.is_primary,
        candidate: api.node.candidate,
        path: api.node.data_dir.display().to_string(),
        primary: PrimaryName { hostname },
    })
}

pub(super) async fn status(api: Api, _: Query) -> Result<Response, ApiError> {
    let leadership = api.leadership.borrow().clone();
    let store = api.store.clone();
    let databases = tokio::task::spawn_blocking(move || databases(&store)).await;
    json(&Status {
        node_id: api.node_id(),
        cluster_id: api.store.cluster_id(),
        hostname: api.node.hostname.clone(),
        version: env!("CARGO_PKG_VERSION").to_string(),
        role: if leadership.is_primary {
            Role::Primary
        } else {
            Role::Replica
        },
        candidate: api.node.candidate,
        ready: leadership.ready,
        epoch: leadership.epoch,
        primary: leadership.primary,
        fuse_mode: api.node.fuse_mode.get().cloned().unwrap_or_default(),
        lag_seconds: api.lag.behind().map(|behind| behind.as_secs_f64()),
        databases: databases.map_err(ApiError::internal)?,
        replicas: api.replicas.status(),
    })
}

/// Every database with a position that covers all commits that have returned.
fn databases(store: &engine::Store) -> Vec<DatabaseStatus> {
    let mut databases: Vec<DatabaseStatus> = store.databases().iter().map(|db| database(db)).collect();
    databases.extend(store.damaged().into_iter().map(damaged));
    databases.sort_by(|a, b| a.name.cmp(&b.name));
    databases
}

/// A database whose log cannot be opened: nothing is known but its name.
fn damaged((name, reason): (engine::DbName, String)) -> DatabaseStatus {
    DatabaseStatus {
        name: name.to_string(),
        txid: Txid(0),
        checksum: Checksum(0),
        received: Txid(0),
        page_size: 0,
        pages: 0,
        mode: String::new(),
        log: LogStatus::default(),
        quarantine: Some(reason),
    }
}

fn database(db: &engine::Database) -> DatabaseStatus {
    let drained = db.drain();
    let status = db.status();
    let position = drained.as_ref().copied().unwrap_or(status.position);
    DatabaseStatus {
        name: db.name().to_string(),
        txid: Txid(position.txid.0),
        checksum: Checksum(position.post_apply.0),
        received: Txid(status.received.txid.0),
        page_size: status.page_size,
        pages: status.pages,
        mode: journal_mode(&status),
        log: LogStatus {
            first_txid: Txid(status.first_txid.map_or(0, |txid| txid.0)),
            last_txid: Txid(status.received.txid.0),
            bytes: status.log_bytes,
        },
        quarantine: status
            .quarantine
            .or_else(|| drained.err().map(|error| error.to_string())),
    }
}

fn journal_mode(status: &engine::DatabaseStatus) -> String {
    use sqlite_format::header::JournalMode;
    match status.journal_mode {
        Some(JournalMode::Wal) => "wal".to_string(),
        Some(JournalMode::Rollback) => "rollback".to_string(),
        None => String::new(),
    }
}

/// JSON as LiteFS writes it: indented by two, with a line end.
pub(super) fn json(value: &impl Serialize) -> Result<Response, ApiError> {
    let mut text = serde_json::to_string_pretty(value).map_err(ApiError::internal)?;
    text.push('\n');
    Ok(warp::reply::with_header(text, "content-type", "application/json").into_response())
}
