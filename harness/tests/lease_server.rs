//! The embedded lease server against the behaviour of Consul that LiteFS relies on; where a `consul` binary is in the `PATH`, the same
//! expectations are held against the real one.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Not;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use litefs_dev::lease::LeaseServer;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

/// Consul takes nothing for a session that does not look like one.
const UNKNOWN: &str = "01234567-89ab-4def-8123-456789abcdef";

struct Consul {
    address: SocketAddr,
    client: Client,
    server: Server,
}

enum Server {
    Embedded(#[expect(dead_code, reason = "it serves for as long as it lives")] LeaseServer),
    Real(Child),
}

impl Drop for Consul {
    fn drop(&mut self) {
        if let Server::Real(agent) = &mut self.server {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }
}

impl Consul {
    async fn start(file: Option<PathBuf>) -> Self {
        let server = LeaseServer::start((Ipv4Addr::LOCALHOST, 0).into(), file)
            .await
            .unwrap();
        Self {
            address: server.address(),
            client: client(),
            server: Server::Embedded(server),
        }
    }

    /// The embedded server, and a real one if there is one.
    async fn all() -> Vec<Self> {
        let mut all = vec![Self::start(None).await];
        match litefs_dev::binary::consul() {
            Ok(binary) => all.push(Self::start_real(&binary).await),
            Err(_) => eprintln!("no consul binary: only the embedded server is tested"),
        }
        all
    }

    async fn start_real(binary: &std::path::Path) -> Self {
        let ports: Vec<u16> = {
            let listeners: Vec<_> = (0..4)
                .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
                .collect();
            listeners
                .iter()
                .map(|listener| listener.local_addr().unwrap().port())
                .collect()
        };
        let mut command = Command::new(binary);
        command.args([
            "agent",
            "-dev",
            "-bind=127.0.0.1",
            "-dns-port=-1",
            "-grpc-port=-1",
        ]);
        for (option, port) in ["http", "server", "serf-lan", "serf-wan"].iter().zip(&ports) {
            command.arg(format!("-{option}-port={port}"));
        }
        let agent = command.stdout(Stdio::null()).spawn().unwrap();
        let address = (Ipv4Addr::LOCALHOST, ports[0]).into();
        let consul = Self {
            address,
            client: client(),
            server: Server::Real(agent),
        };
        let start = Instant::now();
        // Until it has elected itself, it refuses sessions.
        while consul
            .client
            .put(consul.url("session/create"))
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success())
            .not()
        {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "the consul agent does not start"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        consul
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v1/{path}", self.address)
    }

    async fn put(&self, path: &str, body: impl Into<reqwest::Body>) -> (StatusCode, String) {
        let answer = self.client.put(self.url(path)).body(body).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    /// The body of a call that succeeds.
    async fn ok(&self, path: &str, body: impl Into<reqwest::Body>) -> String {
        let (status, text) = self.put(path, body).await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        // An agent in development mode pretty-prints, with a line end.
        text.trim_end().to_owned()
    }

    async fn session(&self, ttl: &str, behavior: &str, lock_delay: &str) -> String {
        let request = json!({"Name": "litefs", "TTL": ttl, "Behavior": behavior, "LockDelay": lock_delay, "Checks": []});
        let answer: Value =
            serde_json::from_str(&self.ok("session/create", request.to_string()).await).unwrap();
        answer["ID"].as_str().unwrap().to_owned()
    }

    /// The key's entry with the index of the answer.
    async fn get(&self, path: &str) -> (Option<Value>, u64) {
        let answer = self.client.get(self.url(path)).send().await.unwrap();
        let index = answer.headers()["X-Consul-Index"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        match answer.status() {
            StatusCode::NOT_FOUND => {
                assert_eq!(answer.text().await.unwrap(), "");
                (None, index)
            }
            status => {
                assert_eq!(status, StatusCode::OK);
                let entries: Value = answer.json().await.unwrap();
                (Some(entries[0].clone()), index)
            }
        }
    }
}

fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

#[tokio::test]
async fn a_lease_goes_through_its_life_as_with_consul() {
    for consul in Consul::all().await {
        assert_eq!(consul.get("kv/litefs/c").await.0, None);
        let (a, b) = (
            consul.session("10s", "delete", "1000ms").await,
            consul.session("10s", "delete", "1000ms").await,
        );
        assert_eq!(
            consul.ok(&format!("kv/litefs/c?acquire={a}"), "value a").await,
            "true"
        );
        assert_eq!(
            consul.ok(&format!("kv/litefs/c?acquire={b}"), "value b").await,
            "false"
        );
        let (entry, index) = consul.get("kv/litefs/c").await;
        let entry = entry.unwrap();
        assert_eq!(entry["Value"], "dmFsdWUgYQ==");
        assert_eq!(entry["Session"], json!(a));
        assert_eq!(entry["ModifyIndex"], json!(index));
        assert_eq!(entry["LockIndex"], 1);

        assert_eq!(consul.ok(&format!("kv/litefs/c?release={a}"), "").await, "true");
        assert_eq!(consul.ok(&format!("session/destroy/{a}"), "").await, "true");
        let entry = consul.get("kv/litefs/c").await.0.unwrap();
        assert_eq!(
            (&entry["Value"], entry.get("Session")),
            (&Value::Null, None),
            "the key stays, empty and unheld"
        );
        assert_eq!(
            consul.ok(&format!("kv/litefs/c?acquire={b}"), "value b").await,
            "true",
            "no lock delay after a release"
        );
        assert_eq!(consul.get("kv/litefs/c").await.0.unwrap()["LockIndex"], 2);
    }
}

#[tokio::test]
async fn unknown_sessions_are_told_apart_by_status() {
    for consul in Consul::all().await {
        assert_eq!(
            consul.put(&format!("session/renew/{UNKNOWN}"), "").await.0,
            StatusCode::NOT_FOUND
        );
        assert_eq!(consul.ok(&format!("session/destroy/{UNKNOWN}"), "").await, "true");
        let (status, message) = consul.put(&format!("kv/k?acquire={UNKNOWN}"), "").await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(message.contains("invalid session"), "{message}");
        assert_eq!(
            consul.put("session/create", r#"{"TTL":"soon"}"#).await.0,
            StatusCode::INTERNAL_SERVER_ERROR
        );
    }
}

#[tokio::test]
async fn a_session_lives_as_long_as_it_is_renewed_and_ends_at_its_time_to_live() {
    let consul = Consul::start(None).await;
    let (a, b) = (
        consul.session("600ms", "delete", "500ms").await,
        consul.session("10s", "delete", "0s").await,
    );
    consul.ok(&format!("kv/k?acquire={a}"), "v").await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let renewed: Value =
            serde_json::from_str(&consul.ok(&format!("session/renew/{a}"), "").await).unwrap();
        assert_eq!(renewed[0]["ID"], json!(a));
    }
    let renewed = Instant::now();
    let (entry, index) = consul.get("kv/k").await;
    assert!(entry.is_some());
    let (entry, _) = consul.get(&format!("kv/k?index={index}&wait=10s")).await;
    let lived = renewed.elapsed();
    assert_eq!(entry, None, "the key is deleted with its session");
    assert!(
        lived >= Duration::from_millis(500) && lived < Duration::from_secs(3),
        "{lived:?}"
    );

    assert_eq!(
        consul.ok(&format!("kv/k?acquire={b}"), "v").await,
        "false",
        "the lock delay holds"
    );
    let expired = Instant::now();
    while consul.ok(&format!("kv/k?acquire={b}"), "v").await != "true" {
        assert!(expired.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn behaviour_release_keeps_the_key() {
    for consul in Consul::all().await {
        let a = consul.session("10s", "release", "0s").await;
        consul.ok(&format!("kv/k?acquire={a}"), "v").await;
        consul.ok(&format!("session/destroy/{a}"), "").await;
        let entry = consul.get("kv/k").await.0.unwrap();
        assert_eq!((&entry["Value"], entry.get("Session")), (&json!("dg=="), None));
    }
}

#[tokio::test]
async fn a_blocking_query_returns_on_change_or_after_its_wait() {
    for consul in Consul::all().await {
        consul.ok("kv/k", "1").await;
        let (_, index) = consul.get("kv/k").await;
        let start = Instant::now();
        assert_eq!(
            consul.get(&format!("kv/k?index={index}&wait=200ms")).await.1,
            index
        );
        assert!(start.elapsed() >= Duration::from_millis(200));

        let path = format!("kv/k?index={index}&wait=60s");
        let waiting = consul.get(&path);
        let writing = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            consul.ok("kv/k", "2").await
        };
        let ((entry, later), _) = tokio::join!(waiting, writing);
        assert_eq!(entry.unwrap()["Value"], "Mg==");
        assert!(later > index);
    }
}

#[tokio::test]
async fn check_and_set_decides_a_race() {
    for consul in Consul::all().await {
        assert_eq!(consul.ok("kv/litefs/c/clusterid?cas=0", "LFSC0").await, "true");
        assert_eq!(consul.ok("kv/litefs/c/clusterid?cas=0", "LFSC1").await, "false");
        let raw = consul
            .client
            .get(consul.url("kv/litefs/c/clusterid?raw"))
            .send()
            .await
            .unwrap();
        assert_eq!(raw.text().await.unwrap(), "LFSC0");
        consul
            .client
            .delete(consul.url("kv/litefs/c/clusterid"))
            .send()
            .await
            .unwrap();
        assert_eq!(consul.ok("kv/litefs/c/clusterid?cas=0", "LFSC1").await, "true");
        assert_eq!(
            consul
                .ok("catalog/register", r#"{"Node":"litefs","Address":"localhost"}"#)
                .await,
            "true"
        );
    }
}

#[tokio::test]
async fn keys_and_sessions_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lease.json");
    let consul = Consul::start(Some(file.clone())).await;
    let a = consul.session("10s", "delete", "0s").await;
    consul.ok(&format!("kv/k?acquire={a}"), "v").await;
    let before = consul.get("kv/k").await;
    drop(consul);
    let consul = Consul::start(Some(file)).await;
    assert_eq!(consul.get("kv/k").await, before);
    consul.ok(&format!("session/renew/{a}"), "").await;
}
