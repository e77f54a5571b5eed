//! Stands in for `litefs mount -config FILE` in tests of the cluster's life cycle: it competes for the lease, serves `/status`, follows
//! the primary over the wires, and mounts nothing. So those tests need no /dev/fuse and blame the harness alone.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use litefs_api::{NodeId, Primary, ReplicaStatus, Role, Status};
use parking_lot::Mutex;
use serde_json::{Value, json};

const ROUND: Duration = Duration::from_millis(50);
/// A follower that was not heard of for so long is gone.
const SILENCE: Duration = Duration::from_secs(1);

struct Node {
    id: NodeId,
    hostname: String,
    url: String,
    key: String,
    lease: String,
    ttl: Duration,
    client: reqwest::Client,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_primary: bool,
    primary: Option<Primary>,
    followers: BTreeMap<NodeId, (String, Instant)>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [command, flag, file] = arguments.as_slice() else {
        bail!("usage: stand_in mount -config FILE")
    };
    if command != "mount" || flag != "-config" {
        bail!("usage: stand_in mount -config FILE");
    }
    let node = Arc::new(Node::read(&std::fs::read_to_string(file)?)?);
    let listener = tokio::net::TcpListener::bind("0.0.0.0:20202").await?;
    tokio::spawn(serve(Arc::clone(&node), listener));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut session = None;
    loop {
        let round = node.round(&mut session);
        tokio::select! {
            result = round => if let Err(error) = result {
                eprintln!("{error:#}");
                session = None;
                node.state.lock().is_primary = false;
            },
            _ = terminate.recv() => break,
        }
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            _ = terminate.recv() => break,
        }
    }
    if let Some((id, _)) = session {
        node.put(&format!("kv/{}?release={id}", node.key), "").await?;
        node.put(&format!("session/destroy/{id}"), "").await?;
    }
    Ok(())
}

impl Node {
    fn read(config: &str) -> Result<Self> {
        let value = |key: &str| {
            let line = config
                .lines()
                .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
            line.map(|value| value.trim_matches('"').to_owned())
                .with_context(|| format!("{key} is missing"))
        };
        let ttl = value("ttl")?.trim_end_matches("ms").parse()?;
        Ok(Self {
            id: NodeId(rand::random()),
            url: value("advertise-url")?,
            key: value("key")?,
            lease: value("url")?,
            hostname: value("hostname")?,
            ttl: Duration::from_millis(ttl),
            client: reqwest::Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(1))
                .build()?,
            state: Mutex::default(),
        })
    }

    async fn put(&self, path: &str, body: impl Into<reqwest::Body>) -> Result<Value> {
        let answer = self
            .client
            .put(format!("{}/v1/{path}", self.lease))
            .body(body)
            .send()
            .await?;
        Ok(answer.error_for_status()?.json().await?)
    }

    async fn round(&self, session: &mut Option<(String, Instant)>) -> Result<()> {
        if session.is_none() {
            let request = json!({"Name": "litefs", "Behavior": "delete", "LockDelay": "100ms", "TTL": format!("{}ms", self.ttl.as_millis())});
            let answer = self.put("session/create", request.to_string()).await?;
            *session = Some((answer["ID"].as_str().context("no id")?.to_owned(), Instant::now()));
        }
        let Some((id, renewed)) = session else {
            return Ok(());
        };
        if renewed.elapsed() > self.ttl / 2 {
            self.put(&format!("session/renew/{id}"), "").await?;
            *renewed = Instant::now();
        }
        let me = Primary {
            hostname: self.hostname.clone(),
            advertise_url: self.url.clone(),
        };
        let acquired = self
            .put(&format!("kv/{}?acquire={id}", self.key), serde_json::to_vec(&me)?)
            .await?;
        self.state.lock().is_primary = acquired == json!(true);
        if acquired == json!(true) {
            return Ok(());
        }
        let url = format!("{}/v1/kv/{}?raw", self.lease, self.key);
        let primary: Option<Primary> =
            serde_json::from_slice(&self.client.get(url).send().await?.bytes().await?).ok();
        self.state.lock().primary = None;
        if let Some(primary) = primary {
            let url = format!("{}/follow/{}/{}", primary.advertise_url, self.id, self.hostname);
            self.client.get(url).send().await?.error_for_status()?;
            self.state.lock().primary = Some(primary);
        }
        Ok(())
    }

    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        let mut state = self.state.lock();
        if let Some((id, name)) = path
            .strip_prefix("/follow/")
            .and_then(|rest| rest.split_once('/'))
            && let Ok(id) = id.parse()
        {
            state.followers.insert(id, (name.to_owned(), Instant::now()));
            return Response::new(Full::default());
        }
        state.followers.retain(|_, (_, heard)| heard.elapsed() < SILENCE);
        let replica = |(id, (hostname, _)): (&NodeId, &(String, Instant))| ReplicaStatus {
            node_id: *id,
            hostname: hostname.clone(),
            sent: BTreeMap::new(),
            acked: BTreeMap::new(),
        };
        let status = Status {
            node_id: self.id,
            cluster_id: None,
            hostname: self.hostname.clone(),
            version: "stand-in".into(),
            role: if state.is_primary {
                Role::Primary
            } else {
                Role::Replica
            },
            candidate: true,
            ready: true,
            epoch: 1,
            primary: state.primary.clone().filter(|_| !state.is_primary),
            fuse_mode: String::new(),
            lag_seconds: None,
            databases: Vec::new(),
            replicas: state.followers.iter().map(replica).collect(),
        };
        Response::new(Full::from(serde_json::to_vec(&status).unwrap_or_default()))
    }
}

async fn serve(node: Arc<Node>, listener: tokio::net::TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let answer = node.answer(request.uri().path());
                async move { Ok::<_, Infallible>(answer) }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
