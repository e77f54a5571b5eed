//! The API of a node as LiteFS's clients and ours use it. No mount: SQLite files come in over the API.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use engine::{Store, StoreOptions};
use futures_util::StreamExt;
use litefs::http::Server;
use litefs::lease::elector::ElectorOptions;
use litefs::lease::{Lease, StaticLease};
use litefs::services::{ServiceOptions, Services};
use litefs::stream::chunk::ChunkReader;
use litefs::stream::frame::Frame;
use litefs_api::{Client, Event, Role, Txid};
use reqwest::{Method, StatusCode};

const PATIENCE: Duration = Duration::from_secs(10);

struct Node {
    services: Services,
    store: Arc<Store>,
    client: Client,
    url: String,
    dir: tempfile::TempDir,
}

async fn start(lease: impl Lease + 'static, candidate: bool) -> Node {
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
async fn primary() -> Node {
    let mut node = start(StaticLease::primary(), true).await;
    within(
        node.services
            .leadership
            .wait_for(|leadership| leadership.is_primary),
    )
    .await
    .unwrap();
    node
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// The bytes of an SQLite database with so many rows.
fn database(rows: u32) -> Vec<u8> {
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

/// Sends a request with HTTP/1.1, as curl does.
async fn plain(method: Method, url: &str) -> (StatusCode, String) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = within(client.request(method, url).send()).await.unwrap();
    assert!(
        response.headers().contains_key("litefs-id"),
        "every answer tells who gave it"
    );
    (response.status(), response.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn info_and_status_tell_what_a_node_is() {
    let node = primary().await;
    within(node.client.import("d/a.db", database(3).into()))
        .await
        .unwrap();
    let (status, text) = plain(Method::GET, &format!("{}/info", node.url)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        text.starts_with("{\n  \"clusterID\": \"LFSC") && text.ends_with("}\n"),
        "{text}"
    );
    let info = within(node.client.info()).await.unwrap();
    assert!(info.is_primary && info.candidate);
    assert_eq!(info.primary.hostname, "one");
    assert_eq!(info.path, node.dir.path().display().to_string());
    assert_eq!(Some(info.cluster_id), node.store.cluster_id());

    let status = within(node.client.status()).await.unwrap();
    assert_eq!(
        (status.role, status.epoch, status.ready),
        (Role::Primary, 1, true)
    );
    let db = &status.databases[0];
    assert_eq!(
        (db.name.as_str(), db.txid, db.page_size, db.mode.as_str()),
        ("d/a.db", Txid(1), 4096, "rollback")
    );
    node.services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_comes_out_as_it_went_in() {
    let node = primary().await;
    within(node.client.import("a.db", database(500).into()))
        .await
        .unwrap();
    let mut body = within(node.client.export("a.db")).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(part) = within(body.next()).await {
        bytes.extend(part.unwrap());
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let db = rusqlite::Connection::open(file.path()).unwrap();
    assert_eq!(
        db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, u32>(0))
            .unwrap(),
        500
    );
    let history = within(node.client.history("a.db", Txid(1), 10)).await.unwrap();
    assert_eq!(history.entries.len(), 1);
    assert_eq!(history.entries[0].checksum, history.position.checksum);
    node.services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_and_missing_names_are_refused() {
    let node = primary().await;
    for name in ["../../x", "/etc/passwd", "a/../b", "a-wal", ".", "a%00b"] {
        for (method, path) in [
            (Method::POST, "import"),
            (Method::GET, "export"),
            (Method::GET, "history"),
        ] {
            let (status, text) = plain(method, &format!("{}/{path}?name={name}", node.url)).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {name}: {text}");
        }
    }
    for path in ["export", "history"] {
        let (status, text) = plain(Method::GET, &format!("{}/{path}", node.url)).await;
        assert_eq!(
            (status, text.as_str()),
            (StatusCode::BAD_REQUEST, "name required\n")
        );
        let (status, text) = plain(Method::GET, &format!("{}/{path}?name=no.db", node.url)).await;
        assert_eq!(
            (status, text.as_str()),
            (StatusCode::NOT_FOUND, "database not found\n")
        );
    }
    assert!(
        node.store.databases().is_empty(),
        "a refused name leaves nothing behind"
    );
    node.services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_database_is_not_imported() {
    let node = primary().await;
    let error = within(node.client.import("a.db", "this is no database".into()))
        .await
        .unwrap_err();
    assert!(error.status().is_some(), "{error}");
    let mut truncated = database(500);
    truncated.truncate(5000);
    assert!(
        within(node.client.import("a.db", truncated.into()))
            .await
            .is_err()
    );
    assert_eq!(
        within(node.client.export("a.db")).await.err().unwrap().status(),
        Some(StatusCode::NOT_FOUND)
    );
    node.services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_and_paths_are_answered_as_litefs_does() {
    let node = primary().await;
    let url = &node.url;
    for (method, path) in [
        (Method::POST, "info"),
        (Method::GET, "import"),
        (Method::GET, "stream"),
        (Method::DELETE, "promote"),
    ] {
        let (status, text) = plain(method, &format!("{url}/{path}")).await;
        assert_eq!(
            (status, text.as_str()),
            (StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"),
            "{path}"
        );
    }
    assert_eq!(
        plain(Method::GET, &format!("{url}/nothing")).await.0,
        StatusCode::NOT_FOUND
    );
    assert_eq!(plain(Method::GET, url).await.0, StatusCode::NOT_FOUND);
    assert_eq!(
        plain(Method::POST, &format!("{url}/halt?name=a&id=1")).await.0,
        StatusCode::NOT_IMPLEMENTED
    );
    let (status, text) = plain(Method::POST, &format!("{url}/stream")).await;
    assert_eq!(
        (status, text.as_str()),
        (StatusCode::UPGRADE_REQUIRED, "Upgrade to HTTP/2 required\n")
    );
    node.services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promote_and_handoff_explain_what_they_cannot_do() {
    let node = primary().await;
    let url = &node.url;
    assert_eq!(
        plain(Method::POST, &format!("{url}/promote")).await.0,
        StatusCode::OK,
        "it is primary already"
    );
    assert_eq!(
        plain(Method::POST, &format!("{url}/promote?force=maybe")).await.0,
        StatusCode::BAD_REQUEST
    );
    let (status, text) = plain(Method::POST, &format!("{url}/handoff?nodeID=xyz")).await;
    assert_eq!(
        (status, text.as_str()),
        (StatusCode::BAD_REQUEST, "invalid node id\n")
    );
    let (status, text) = plain(Method::POST, &format!("{url}/handoff?nodeID=AB")).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(text, "cannot handoff: static lease does not support handoff\n");

    let replica = start(StaticLease::replica("one".to_string(), url.clone()), false).await;
    let (status, text) = plain(Method::POST, &format!("{}/promote", replica.url)).await;
    assert_eq!(
        (status, text.as_str()),
        (StatusCode::CONFLICT, "not eligible to become primary\n")
    );
    let refused = within(replica.client.import("a.db", database(1).into()))
        .await
        .unwrap_err();
    assert_eq!(refused.status(), Some(StatusCode::SERVICE_UNAVAILABLE));
    replica.services.stop().await;
    node.services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_begin_with_the_state_and_go_on_with_transactions() {
    let node = primary().await;
    let mut events = within(node.client.events()).await.unwrap();
    let first = within(events.next()).await.unwrap().unwrap();
    assert!(matches!(first, Event::Init { data } if data.is_primary && data.hostname.is_none()));
    within(node.client.import("a.db", database(1).into()))
        .await
        .unwrap();
    let next = within(events.next()).await.unwrap().unwrap();
    let Event::Tx { db, data } = next else {
        panic!("{next:?}")
    };
    assert_eq!((db.as_str(), data.txid, data.page_size), ("a.db", Txid(1), 4096));
    let stopping = tokio::spawn(node.services.stop());
    within(async { while events.next().await.is_some_and(|event| event.is_ok()) {} }).await;
    within(stopping).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_the_names_of_litefs() {
    let node = primary().await;
    within(node.client.import("metered.db", database(1).into()))
        .await
        .unwrap();
    let text = within(node.client.metrics()).await.unwrap();
    for line in [
        "litefs_is_primary 1",
        "litefs_db_txid{db=\"metered.db\"} 1",
        "litefs_db_ltx_count{db=\"metered.db\"} 1",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}:\n{text}");
    }
    node.services.stop().await;
}

/// A request for a stream as LiteFS 0.5 makes it: an id, a position map, and the end of the body.
async fn litefs_stream(
    node: &Node,
    headers: &[(&'static str, &str)],
    map: &'static [u8],
) -> reqwest::Response {
    let mut request = node
        .client
        .request(Method::POST, "/stream")
        .body(Bytes::from_static(map));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    within(request.send()).await.unwrap()
}

const EMPTY_MAP: &[u8] = &[0, 0, 0, 0];

#[tokio::test(flavor = "multi_thread")]
async fn a_litefs_replica_gets_snapshot_ready_heartbeat_and_end() {
    let node = primary().await;
    within(node.client.import("a.db", database(100).into()))
        .await
        .unwrap();
    let response = litefs_stream(&node, &[("Litefs-Id", "AB")], EMPTY_MAP).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(
        response.headers()["litefs-cluster-id"].to_str().unwrap(),
        node.store.cluster_id().unwrap()
    );
    let mut body = response.bytes_stream();
    let mut received = BytesMut::new();
    let kinds = |received: &BytesMut| {
        let mut source = &received[..];
        let mut frames = Vec::new();
        while let Ok(Some(frame)) = Frame::read(&mut source) {
            if let Frame::Ltx { .. } = &frame {
                let mut chunks = ChunkReader::new(&mut source);
                let Ok(summary) = ltx::verify(&mut chunks) else {
                    break;
                };
                assert!(summary.header.is_snapshot());
                if chunks.drain().is_err() {
                    break;
                }
            }
            frames.push(frame);
        }
        frames
    };
    while !kinds(&received)
        .iter()
        .any(|frame| matches!(frame, Frame::Heartbeat { .. }))
    {
        received.extend_from_slice(&within(body.next()).await.unwrap().unwrap());
    }
    let frames = kinds(&received);
    assert!(
        matches!(&frames[..3], [Frame::Ltx { name }, Frame::Ready, Frame::Heartbeat { .. }] if name == "a.db"),
        "{frames:?}"
    );

    let stopping = tokio::spawn(node.services.stop());
    while let Some(part) = within(body.next()).await {
        received.extend_from_slice(&part.unwrap());
    }
    assert_eq!(
        kinds(&received).last(),
        Some(&Frame::End),
        "an orderly stop ends the stream cleanly"
    );
    within(stopping).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_to_itself_to_another_cluster_or_with_a_bad_map_are_refused() {
    let node = primary().await;
    let own = format!("{:016X}", node.store.node_id());
    let response = litefs_stream(&node, &[("Litefs-Id", &own)], EMPTY_MAP).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let headers = [("Litefs-Id", "AB"), ("Litefs-Cluster-Id", "LFSC0000000000000000")];
    let response = litefs_stream(&node, &headers, EMPTY_MAP).await;
    assert_eq!(response.status(), StatusCode::CONFLICT);
    assert!(response.text().await.unwrap().contains("LFSC0000000000000000"));
    for map in [&b"\0\0"[..], b"\0\0\0\x01\xff\xff\xff\xff", b"\xff\xff\xff\xff"] {
        let response = litefs_stream(&node, &[("Litefs-Id", "AB")], map).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{map:?}");
    }
    node.services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_a_static_lease_follows_and_adopts_cluster_and_epoch() {
    let node = primary().await;
    within(node.client.import("a.db", database(5).into()))
        .await
        .unwrap();
    let mut replica = start(StaticLease::replica("one".to_string(), node.url.clone()), false).await;
    within(
        replica
            .services
            .leadership
            .wait_for(|leadership| leadership.ready && leadership.epoch == 1),
    )
    .await
    .unwrap();
    assert_eq!(replica.store.cluster_id(), node.store.cluster_id());
    let info = within(replica.client.info()).await.unwrap();
    assert_eq!((info.is_primary, info.primary.hostname.as_str()), (false, "one"));
    let name = "a.db".parse().unwrap();
    let position = node.store.database(&name).unwrap().position();
    within(async {
        while replica
            .store
            .database(&name)
            .is_none_or(|db| db.position() != position)
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    replica.services.stop().await;
    node.services.stop().await;
}
