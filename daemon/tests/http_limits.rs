//! Requests whose peers stand still, more of them than a node has threads: everything else goes on.

mod http_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

use engine::DbName;
use futures_util::StreamExt;
use http_support::{Node, PATIENCE, database, primary_with, start, within};
use litefs::http::{Limits, THREADS};
use litefs::lease::StaticLease;
use litefs_api::Client;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use reqwest::{Method, Response, StatusCode};
use tokio::task::JoinSet;

/// Connections of HTTP/2 have up to 200 streams.
const PER_CONNECTION: usize = 150;

/// So many uploads of which only the first bytes arrive.
fn idle_uploads(node: &Node, count: usize) -> JoinSet<Response> {
    let mut uploads = JoinSet::new();
    let mut client = Client::new(&node.url).unwrap();
    for upload in 0..count {
        if upload % PER_CONNECTION == 0 {
            client = Client::new(&node.url).unwrap();
        }
        let begun = futures_util::stream::iter([Ok::<_, std::io::Error>("SQLite format 3")]);
        let body = reqwest::Body::wrap_stream(begun.chain(futures_util::stream::pending()));
        let request = client
            .request(Method::POST, "/import")
            .query(&[("name", "idle.db")])
            .body(body);
        uploads.spawn(async move { request.send().await.unwrap() });
    }
    uploads
}

/// An export whose client does not read. The head of the answer, which is read.
fn unread_export(node: &Node) -> (TcpStream, String) {
    let address = node.url.strip_prefix("http://").unwrap();
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET /export?name=large.db HTTP/1.1\r\nhost: {address}\r\n\r\n");
    connection.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(connection.read(&mut byte).unwrap(), 1, "the answer has a head");
        head.push(byte[0]);
    }
    (connection, String::from_utf8(head).unwrap().to_lowercase())
}

/// Waits without reading.
fn await_reset(connection: &TcpStream) {
    let mut fds = [PollFd::new(connection.as_fd(), PollFlags::POLLERR)];
    let ready = poll(&mut fds, PollTimeout::from(PATIENCE.as_millis() as u16)).unwrap();
    assert_eq!(ready, 1, "the export is cut off, and its client knows");
}

/// A database that no buffer on the way to a client takes whole.
fn large_database() -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let db = rusqlite::Connection::open(file.path()).unwrap();
    let fill = "CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(33554432))";
    db.execute_batch(fill).unwrap();
    drop(db);
    std::fs::read(file.path()).unwrap()
}

fn position(node: &Node, name: &DbName) -> Option<ltx::Pos> {
    node.store.database(name).map(|db| db.position())
}

/// What the data directory holds, but for the databases.
fn strays(node: &Node) -> Vec<String> {
    let entries = std::fs::read_dir(node.dir.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let known = ["files", "databases", "clusterid", "id", "archive"];
    names.filter(|name| !known.contains(&name.as_str())).collect()
}

/// `/status`, `/metrics` and a replica, which takes what is committed meanwhile.
async fn goes_on(node: &Node, replica: &Node, written: &str, when: &str) {
    within(node.client.status()).await.expect(when);
    within(node.client.metrics()).await.expect(when);
    let name: DbName = written.parse().unwrap();
    let (store, importing) = (node.store.clone(), name.clone());
    let mut body = std::io::Cursor::new(database(10));
    std::thread::spawn(move || store.import(&importing, &mut body).unwrap())
        .join()
        .unwrap();
    within(async {
        while position(replica, &name) != position(node, &name) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_stand_still_keep_nobody_else_waiting_and_end() {
    let limits = Limits {
        imports: 5,
        exports: 4,
        stall: Duration::from_secs(6),
        ..Limits::default()
    };
    let node = primary_with(limits.clone()).await;
    within(node.client.import("large.db", large_database().into()))
        .await
        .unwrap();
    let strays_before = strays(&node);
    let mut replica = start(StaticLease::replica("one".to_string(), node.url.clone()), false).await;
    within(replica.services.leadership.wait_for(|known| known.ready))
        .await
        .unwrap();

    // More than the threads of a node: what has a place waits, the others are told at once.
    let mut uploads = idle_uploads(&node, THREADS + 20);
    for _ in limits.imports..THREADS + 20 {
        let refused = within(uploads.join_next()).await.unwrap().unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.headers()["retry-after"], "5");
        let text = refused.text().await.unwrap();
        assert!(
            text.starts_with("5 imports are under way") && text.ends_with("try again later\n"),
            "{text}"
        );
    }
    let mut exports = Vec::new();
    for _ in 0..limits.exports {
        let (connection, head) = unread_export(&node);
        assert!(head.starts_with("http/1.1 200"), "{head}");
        exports.push(connection);
    }
    let (_, head) = unread_export(&node);
    assert!(
        head.starts_with("http/1.1 503") && head.contains("retry-after: 5"),
        "{head}"
    );
    assert_eq!(uploads.len(), limits.imports, "the others wait");
    goes_on(&node, &replica, "meanwhile.db", "while peers stand still").await;

    // Who stands still does not do so for ever, and has changed nothing.
    while let Some(ended) = within(uploads.join_next()).await {
        let ended = ended.unwrap();
        assert_eq!(ended.status(), StatusCode::REQUEST_TIMEOUT);
        let text = ended.text().await.unwrap();
        assert!(text.contains("nothing was changed"), "{text}");
    }
    assert!(node.store.database(&"idle.db".parse().unwrap()).is_none());
    assert_eq!(strays(&node), strays_before, "what had arrived is removed");
    for connection in exports {
        await_reset(&connection);
    }
    let mut body = within(node.client.export("large.db")).await.unwrap();
    while let Some(part) = within(body.next()).await {
        part.expect("there is a place again");
    }
    within(node.client.import("idle.db", database(10).into()))
        .await
        .expect("there is a place again");
    goes_on(&node, &replica, "afterwards.db", "afterwards").await;
    replica.services.stop().await;
    node.services.stop().await;
}

/// A stream that nobody reads has a thread as well.
#[tokio::test(flavor = "multi_thread")]
async fn streams_have_a_limit_of_their_own() {
    let limits = Limits {
        imports: 1,
        streams: 2,
        ..Limits::default()
    };
    let node = primary_with(limits).await;
    let _idle = idle_uploads(&node, 1);
    let stream = |id: &'static str| {
        let request = node.client.request(Method::POST, "/stream");
        within(request.header("Litefs-Id", id).body(vec![0, 0, 0, 0]).send())
    };
    let first = stream("A1").await.unwrap();
    assert_eq!(first.status(), StatusCode::OK);
    let second = stream("A2").await.unwrap();
    assert_eq!(second.status(), StatusCode::OK);
    let refused = stream("A3").await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let text = refused.text().await.unwrap();
    assert!(text.starts_with("2 streams of replicas are under way"), "{text}");
    drop(first);
    within(async {
        while stream("A3").await.unwrap().status() != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    node.services.stop().await;
}
