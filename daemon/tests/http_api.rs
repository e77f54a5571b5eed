//! The API of a node as LiteFS's clients and ours use it. No mount: SQLite files come in over the API.

mod http_support;

use std::io::Read;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http_support::{Node, database, primary, start, within};
use litefs::lease::StaticLease;
use litefs::stream::chunk::{self, ChunkReader};
use litefs::stream::frame::Frame;
use litefs_api::{Event, Role, Txid};
use reqwest::{Method, StatusCode};

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
    let long = ["x".repeat(300), format!("{}/x.db", "d/".repeat(600))];
    let hostile = [
        "../../x",
        "..%2f..%2fx",
        "/etc/passwd",
        "a/../b",
        "a/",
        "a//b",
        "a-wal",
        "a.db-journal",
        ".",
        "a%00b",
        "",
    ];
    for name in hostile.into_iter().chain(long.iter().map(String::as_str)) {
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
async fn damaged_databases_are_not_imported_and_do_not_touch_what_is_there() {
    let node = primary().await;
    within(node.client.import("a.db", database(100).into()))
        .await
        .unwrap();
    let position = || node.store.database(&"a.db".parse().unwrap()).unwrap().position();
    let before = position();
    let good = database(500);
    let ltx = {
        let db = node.store.database(&"a.db".parse().unwrap()).unwrap();
        let mut bytes = Vec::new();
        db.snapshot()
            .unwrap()
            .ltx(7)
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        bytes
    };
    let with = |at: usize, bytes: &[u8]| {
        let mut damaged = good.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        damaged
    };
    let bodies = [
        ("nothing", Vec::new()),
        ("magic only", good[..16].to_vec()),
        ("half a header", good[..60].to_vec()),
        ("cut inside a page", good[..good.len() - 100].to_vec()),
        ("page size 0", with(16, &[0, 0])),
        ("page size 3", with(16, &[0, 3])),
        ("page size 32768 of 4096", with(16, &[0x80, 0])),
        ("no pages but those that it claims", with(28, &[0xff; 4])),
        ("an LTX file", ltx),
    ];
    for (what, body) in bodies {
        let error = within(node.client.import("a.db", body.clone().into())).await;
        assert!(
            error.is_err_and(|error| error.status().is_some()),
            "{what} over a database"
        );
        let error = within(node.client.import("new.db", body.into())).await;
        assert!(
            error.is_err_and(|error| error.status().is_some()),
            "{what} as a new one"
        );
        assert_eq!(position(), before, "{what}");
    }
    let status = within(node.client.status()).await.unwrap();
    let known: Vec<&str> = status.databases.iter().map(|db| db.name.as_str()).collect();
    assert_eq!(known, ["a.db"]);
    within(node.client.import("a.db", good.into())).await.unwrap();
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

/// A database of that many bytes which do not compress.
fn incompressible(bytes: u32) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let db = rusqlite::Connection::open(file.path()).unwrap();
    db.execute_batch(&format!(
        "CREATE TABLE t (x); INSERT INTO t VALUES (randomblob({bytes}))"
    ))
    .unwrap();
    drop(db);
    std::fs::read(file.path()).unwrap()
}

/// A database does not wait for all that another one has to send, be it records or a snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn databases_take_turns_on_a_stream() {
    let node = primary().await;
    let import = |name, image: Vec<u8>| within(node.client.import(name, image.into()));
    let mut map = vec![0, 0, 0, 2];
    for name in ["big.db", "small.db"] {
        import(name, database(1)).await.unwrap();
        let position = node.store.database(&name.parse().unwrap()).unwrap().position();
        map.extend_from_slice(&(name.len() as u32).to_be_bytes());
        map.extend_from_slice(name.as_bytes());
        map.extend_from_slice(&position.txid.0.to_be_bytes());
        map.extend_from_slice(&position.post_apply.0.to_be_bytes());
    }
    for _ in 0..12 {
        import("big.db", incompressible(600_000)).await.unwrap();
    }
    import("a-new.db", incompressible(3_000_000)).await.unwrap();
    import("small.db", database(2)).await.unwrap();

    let response = litefs_stream(&node, &[("Litefs-Id", "AB")], map.leak()).await;
    let mut body = response.bytes_stream();
    let mut received = BytesMut::new();
    let mut names: Vec<String> = Vec::new();
    while names.len() < 14 {
        received.extend_from_slice(&within(body.next()).await.unwrap().unwrap());
        let mut source = &received[..];
        names.clear();
        while let Ok(Some(frame)) = Frame::read(&mut source) {
            let Frame::Ltx { name } = frame else { continue };
            if ChunkReader::new(&mut source).drain().is_err() {
                break;
            }
            names.push(name);
        }
    }
    let first = |wanted: &str| names.iter().position(|name| name == wanted).unwrap();
    assert!(first("small.db") <= 3, "{names:?}");
    assert!(
        first("small.db") < first("a-new.db") && first("a-new.db") <= 6,
        "{names:?}"
    );
    assert_eq!(names.iter().filter(|name| *name == "big.db").count(), 12);
    node.services.stop().await;
}

/// What is damaged on the primary's disk cannot be sent as it is: its replicas would refuse it for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_needs_a_damaged_record_gets_a_snapshot() {
    let node = primary().await;
    for rows in [10, 20, 30] {
        within(node.client.import("a.db", database(rows).into()))
            .await
            .unwrap();
    }
    let db = node.store.database(&"a.db".parse().unwrap()).unwrap();
    let first = db.record(ltx::Txid(1)).unwrap().unwrap().info.pos();
    let log = std::fs::read_dir(node.dir.path().join("databases"))
        .unwrap()
        .flat_map(|home| std::fs::read_dir(home.unwrap().path().join("log")).unwrap())
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = std::fs::read(&log).unwrap();
    let records: Vec<usize> = (0..bytes.len())
        .filter(|at| bytes[*at..].starts_with(b"LTX1"))
        .collect();
    bytes[records[1] + 150] ^= 0x10;
    std::fs::write(&log, bytes).unwrap();
    let mut map = vec![0, 0, 0, 1, 0, 0, 0, 4];
    map.extend_from_slice(b"a.db");
    map.extend_from_slice(&first.txid.0.to_be_bytes());
    map.extend_from_slice(&first.post_apply.0.to_be_bytes());
    let response = litefs_stream(&node, &[("Litefs-Id", "AB")], map.leak()).await;
    let mut body = response.bytes_stream();
    let mut received = BytesMut::new();
    let header = loop {
        received.extend_from_slice(&within(body.next()).await.unwrap().unwrap());
        let mut source = &received[..];
        if let Ok(Some(Frame::Ltx { .. })) = Frame::read(&mut source)
            && let Ok(summary) = ltx::verify(&mut ChunkReader::new(&mut source))
        {
            break summary.header;
        }
    };
    assert!(header.is_snapshot());
    assert_eq!(header.max_txid, ltx::Txid(3));
    node.services.stop().await;
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
    // Acknowledged a moment after it is there.
    let caught_up = "litefs_replica_lag_txids{node=\"one\"} 0";
    within(async {
        while !node.client.metrics().await.unwrap().contains(caught_up) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    replica.services.stop().await;
    let shown = "litefs_replica_lag_txids{node=\"one\"}";
    within(async {
        while node.client.metrics().await.unwrap().contains(shown) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    node.services.stop().await;
}

/// A primary that sends these frames and then stays silent, but for the connection. Returns its URL.
async fn false_primary(frames: Vec<u8>) -> String {
    use warp::Filter;
    let stream = warp::path("stream")
        .and(warp::post())
        .and(warp::body::stream())
        .map(move |_| {
            let sent = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from(frames.clone()))]);
            let body = warp::reply::stream(sent.chain(futures_util::stream::pending()));
            warp::reply::with_header(body, "litefs-cluster-id", "LFSC0123456789ABCDEF")
        });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(warp::serve(stream).incoming(listener).run());
    url
}

fn ltx_frame(name: &str, record: &[u8], out: &mut BytesMut) {
    let name = name.to_string();
    Frame::Ltx { name }.encode(out);
    chunk::encode(record, out);
    chunk::encode_end(out);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_records_of_a_primary_are_refused_and_others_are_taken() {
    let node = primary().await;
    within(node.client.import("good.db", database(300).into()))
        .await
        .unwrap();
    let good = node.store.database(&"good.db".parse().unwrap()).unwrap();
    let mut record = Vec::new();
    good.snapshot()
        .unwrap()
        .ltx(7)
        .unwrap()
        .read_to_end(&mut record)
        .unwrap();

    let mut frames = BytesMut::new();
    let mut damaged = 0;
    let mut send = |record: &[u8], frames: &mut BytesMut| {
        damaged += 1;
        ltx_frame(&format!("bad{damaged}.db"), record, frames);
    };
    for len in [
        0,
        1,
        50,
        99,
        100,
        150,
        record.len() / 2,
        record.len() - 16,
        record.len() - 1,
    ] {
        send(&record[..len], &mut frames);
    }
    // Flipped bits: the magic, header fields (sizes, TXIDs), pages, the end of the pages, the trailer.
    for at in [
        0,
        5,
        8,
        12,
        20,
        28,
        104,
        130,
        record.len() / 2,
        record.len() - 20,
        record.len() - 10,
        record.len() - 1,
    ] {
        let mut flipped = record.clone();
        flipped[at] ^= 0x10;
        send(&flipped, &mut frames);
    }
    // The header claims four billion pages, or pages of no size.
    for (at, bytes) in [(12, [0xff; 4]), (8, [0; 4])] {
        let mut wrong = record.clone();
        wrong[at..at + 4].copy_from_slice(&bytes);
        send(&wrong, &mut frames);
    }
    for name in ["../../x", "", "a-wal", &"x".repeat(300)] {
        ltx_frame(name, &record, &mut frames);
    }
    ltx_frame("good.db", &record, &mut frames);
    Frame::Ready.encode(&mut frames);

    let url = false_primary(frames.to_vec()).await;
    let mut replica = start(StaticLease::replica("false".to_string(), url), false).await;
    within(
        replica
            .services
            .leadership
            .wait_for(|leadership| leadership.ready),
    )
    .await
    .unwrap();
    let status = within(replica.client.status()).await.unwrap();
    let having: Vec<&str> = status
        .databases
        .iter()
        .filter(|db| db.txid.0 > 0 || db.received.0 > 0)
        .map(|db| db.name.as_str())
        .collect();
    assert_eq!(having, ["good.db"]);
    let mut found: Vec<String> = std::fs::read_dir(replica.store.files_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with("-shm"))
        .collect();
    found.sort();
    assert_eq!(found, ["good.db"]);
    let taken = replica.store.database(&"good.db".parse().unwrap()).unwrap();
    assert_eq!(taken.position(), good.position());
    replica.services.stop().await;
    node.services.stop().await;
}
