//! Nodes without a mount, for tests of the API.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(unreachable_pub, reason = "a module of several programs")]

use std::sync::Arc;
use std::time::Duration;

use engine::{Store, StoreOptions};
use litefs::http::{Limits, Server};
use litefs::lease::elector::ElectorOptions;
use litefs::lease::{Lease, StaticLease};
use litefs::services::{ServiceOptions, Services};
use litefs_api::Client;

pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Node {
    pub services: Services,
    pub store: Arc<Store>,
    pub client: Client,
    pub url: String,
    pub dir: tempfile::TempDir,
}

pub async fn start(lease: impl Lease + 'static, candidate: bool) -> Node {
    start_with(lease, candidate, Limits::default()).await
}

pub async fn start_with(lease: impl Lease + 'static, candidate: bool, limits: Limits) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    store
        .start(Arc::new(engine::Direct::new(store.files_dir())))
        .unwrap();
    let server = Server::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", server.address());
    let elector = ElectorOptions {
        candidate,
        hostname: "one".to_string(),
        advertise_url: if candidate { url.clone() } else { String::new() },
        demote_delay: Duration::ZERO,
        reconnect_delay: Duration::from_millis(100),
    };
    let options = ServiceOptions {
        elector,
        data_dir: dir.path().to_path_buf(),
        snapshot_timeout: None,
        retention: None,
        retention_interval: None,
        limits,
    };
    let services = Services::start(options, store.clone(), Arc::new(lease), server);
    Node {
        services,
        store,
        client: Client::new(&url).unwrap(),
        url,
        dir,
    }
}

/// A node that is primary.
pub async fn primary() -> Node {
    primary_with(Limits::default()).await
}

pub async fn primary_with(limits: Limits) -> Node {
    let mut node = start_with(StaticLease::primary(), true, limits).await;
    within(
        node.services
            .leadership
            .wait_for(|leadership| leadership.is_primary),
    )
    .await
    .unwrap();
    node
}

pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// The bytes of an SQLite database with so many rows.
pub fn database(rows: u32) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let db = rusqlite::Connection::open(file.path()).unwrap();
    db.execute_batch("PRAGMA synchronous = OFF; CREATE TABLE t (x); BEGIN")
        .unwrap();
    for row in 0..rows {
        db.execute("INSERT INTO t VALUES (?)", [row]).unwrap();
    }
    db.execute_batch("COMMIT").unwrap();
    drop(db);
    std::fs::read(file.path()).unwrap()
}
