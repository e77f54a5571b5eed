//! A Consul of a few hundred lines, for tests: sessions that end exactly at their time-to-live, keys with locks, lock
//! delay, check-and-set and blocking queries.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use crate::config::GoDuration;

/// A running imitation; ends when it is dropped.
pub(crate) struct Imitation {
    address: SocketAddr,
    consul: Arc<Consul>,
    accept: AbortHandle,
}

#[derive(Default)]
struct Consul {
    state: Mutex<State>,
    changed: Notify,
    /// While true, no request is answered: a partition that drops packets.
    silent: watch::Sender<bool>,
    /// What requests must have in their header to be allowed; anything if there is none.
    token: Mutex<Option<String>>,
}

#[derive(Default)]
struct State {
    index: u64,
    next_session: u64,
    sessions: HashMap<String, Session>,
    keys: HashMap<String, Key>,
    delayed: HashMap<String, Instant>,
}

struct Session {
    ttl: Duration,
    lock_delay: Duration,
    expires: Instant,
}

struct Key {
    value: Vec<u8>,
    session: Option<String>,
    modify_index: u64,
}

type Answer = Response<Full<Bytes>>;

impl Imitation {
    pub(crate) async fn start() -> Self {
        Self::serve(None).await
    }

    /// One that speaks TLS.
    pub(crate) async fn start_secure(tls: ServerConfig) -> Self {
        Self::serve(Some(TlsAcceptor::from(Arc::new(tls)))).await
    }

    async fn serve(tls: Option<TlsAcceptor>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let consul = Arc::new(Consul::default());
        let served = Arc::clone(&consul);
        let accept = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (consul, tls) = (Arc::clone(&served), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => converse(consul, stream).await,
                        // A client that does not trust the certificate is gone.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                converse(consul, stream).await;
                            }
                        }
                    }
                });
            }
        });
        Imitation {
            address,
            consul,
            accept: accept.abort_handle(),
        }
    }

    pub(crate) fn url(&self) -> url::Url {
        format!("http://{}", self.address).parse().unwrap()
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Refuses requests without this token from now on.
    pub(crate) fn require_token(&self, token: &str) {
        *self.consul.token.lock() = Some(token.to_string());
    }

    /// Answers nothing from now on, or answers again.
    pub(crate) fn silence(&self, silent: bool) {
        self.consul.silent.send_replace(silent);
    }

    /// Ends all sessions now, as an operator may.
    pub(crate) fn end_sessions(&self) {
        let mut state = self.consul.state.lock();
        let ids: Vec<String> = state.sessions.keys().cloned().collect();
        for id in ids {
            state.end_session(&id);
        }
        drop(state);
        self.consul.changed.notify_waiters();
    }

    /// Writes a key without any condition.
    pub(crate) fn put(&self, key: &str, value: &[u8]) {
        self.consul.state.lock().set(key, value.to_vec(), None);
        self.consul.changed.notify_waiters();
    }

    /// The session that has a key's lock.
    pub(crate) fn session(&self, key: &str) -> Option<String> {
        self.consul.state.lock().keys.get(key)?.session.clone()
    }

    pub(crate) fn value(&self, key: &str) -> Option<String> {
        let state = self.consul.state.lock();
        state
            .keys
            .get(key)
            .map(|key| String::from_utf8(key.value.clone()).unwrap())
    }
}

impl Drop for Imitation {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

impl State {
    fn set(&mut self, key: &str, value: Vec<u8>, session: Option<String>) {
        self.index += 1;
        self.keys.insert(
            key.to_string(),
            Key {
                value,
                session,
                modify_index: self.index,
            },
        );
    }

    fn end_session(&mut self, id: &str) {
        let Some(session) = self.sessions.remove(id) else {
            return;
        };
        let held: Vec<String> = self
            .keys
            .iter()
            .filter(|(_, key)| key.session.as_deref() == Some(id))
            .map(|(name, _)| name.clone())
            .collect();
        for name in held {
            self.keys.remove(&name);
            self.index += 1;
            self.delayed.insert(name, Instant::now() + session.lock_delay);
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let ended: Vec<String> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.expires <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in ended {
            self.end_session(&id);
        }
    }

    fn acquire(&mut self, key: &str, session: &str, value: Vec<u8>) -> bool {
        let delayed = self.delayed.get(key).is_some_and(|until| *until > Instant::now());
        let held = self
            .keys
            .get(key)
            .and_then(|key| key.session.as_deref())
            .is_some_and(|holder| holder != session);
        if delayed || held {
            return false;
        }
        self.set(key, value, Some(session.to_string()));
        true
    }

    fn check_and_set(&mut self, key: &str, version: u64, value: Vec<u8>) -> bool {
        if self.keys.get(key).map_or(0, |key| key.modify_index) != version {
            return false;
        }
        self.set(key, value, None);
        true
    }

    fn release(&mut self, key: &str, session: &str, value: Vec<u8>) -> bool {
        let held = self
            .keys
            .get(key)
            .is_some_and(|key| key.session.as_deref() == Some(session));
        if held {
            self.set(key, value, None);
        }
        held
    }
}

async fn converse(consul: Arc<Consul>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = hyper::service::service_fn(move |request| answer(Arc::clone(&consul), request));
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(consul: Arc<Consul>, request: Request<Incoming>) -> Result<Answer, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut silent = consul.silent.subscribe();
    // The sender lives as long as the imitation, so that waiting fails only at its end.
    let _ = silent.wait_for(|silent| !silent).await;
    let token = parts.headers.get("x-consul-token");
    if consul
        .token
        .lock()
        .as_ref()
        .is_some_and(|required| token.is_none_or(|token| token != required))
    {
        return Ok(status(StatusCode::FORBIDDEN, "Permission denied\nand more lines"));
    }
    let query: HashMap<String, String> =
        url::form_urlencoded::parse(parts.uri.query().unwrap_or("").as_bytes())
            .into_owned()
            .collect();
    let path = parts.uri.path().trim_start_matches("/v1/").to_string();
    let answer = match path.split_once('/') {
        Some(("kv", key)) if parts.method == Method::GET => read(&consul, key, &query).await,
        Some(("kv", key)) => write(&consul, key, &query, body.to_vec()),
        Some(("session", rest)) => session(&consul, rest, &body),
        Some(("catalog", "register")) => json_answer(json!(true)),
        _ => status(StatusCode::NOT_FOUND, "no such call"),
    };
    consul.changed.notify_waiters();
    Ok(answer)
}

fn json_answer(value: Value) -> Answer {
    Response::new(Full::from(value.to_string()))
}

fn status(status: StatusCode, text: &'static str) -> Answer {
    Response::builder().status(status).body(Full::from(text)).unwrap()
}

fn session(consul: &Consul, rest: &str, body: &[u8]) -> Answer {
    let mut state = consul.state.lock();
    state.expire();
    match rest.split_once('/') {
        None if rest == "create" => {
            let request: Value = serde_json::from_slice(body).unwrap();
            assert_eq!(request["Behavior"], "delete");
            let duration = |name: &str| {
                GoDuration::parse(request[name].as_str().unwrap())
                    .unwrap()
                    .or_zero()
            };
            let (ttl, lock_delay) = (duration("TTL"), duration("LockDelay"));
            state.next_session += 1;
            let id = format!("session-{}", state.next_session);
            state.sessions.insert(
                id.clone(),
                Session {
                    ttl,
                    lock_delay,
                    expires: Instant::now() + ttl,
                },
            );
            json_answer(json!({ "ID": id }))
        }
        Some(("renew", id)) => match state.sessions.get_mut(id) {
            Some(session) => {
                session.expires = Instant::now() + session.ttl;
                let ttl = GoDuration::from_duration(session.ttl).to_string();
                json_answer(json!([{ "ID": id, "TTL": ttl }]))
            }
            None => status(StatusCode::NOT_FOUND, "Session id not found"),
        },
        Some(("destroy", id)) => {
            state.end_session(id);
            json_answer(json!(true))
        }
        _ => status(StatusCode::NOT_FOUND, "no such call"),
    }
}

fn write(consul: &Consul, key: &str, query: &HashMap<String, String>, value: Vec<u8>) -> Answer {
    let mut state = consul.state.lock();
    state.expire();
    if let Some(session) = query.get("acquire") {
        if !state.sessions.contains_key(session) {
            return status(StatusCode::INTERNAL_SERVER_ERROR, "invalid session \"x\"");
        }
        return json_answer(json!(state.acquire(key, session, value)));
    }
    if let Some(session) = query.get("release") {
        return json_answer(json!(state.release(key, session, value)));
    }
    let version = query.get("cas").unwrap().parse().unwrap();
    json_answer(json!(state.check_and_set(key, version, value)))
}

async fn read(consul: &Consul, key: &str, query: &HashMap<String, String>) -> Answer {
    let seen: u64 = query.get("index").map_or(0, |index| index.parse().unwrap());
    let wait = query
        .get("wait")
        .map_or(Duration::ZERO, |wait| GoDuration::parse(wait).unwrap().or_zero());
    let until = Instant::now() + wait;
    loop {
        let changed = consul.changed.notified();
        {
            let mut state = consul.state.lock();
            state.expire();
            // One index for all keys: a reader may be woken for another key, as with Consul.
            if state.index > seen || Instant::now() >= until {
                return found(&state, key);
            }
        }
        let _ = tokio::time::timeout(Duration::from_millis(10), changed).await;
    }
}

fn found(state: &State, key: &str) -> Answer {
    let answer = match state.keys.get(key) {
        None => status(StatusCode::NOT_FOUND, ""),
        Some(entry) => {
            let value = base64::engine::general_purpose::STANDARD.encode(&entry.value);
            let value = if value.is_empty() {
                Value::Null
            } else {
                Value::String(value)
            };
            let mut item = json!({ "Key": key, "Value": value, "ModifyIndex": entry.modify_index });
            if let Some(session) = &entry.session {
                item["Session"] = json!(session);
            }
            json_answer(json!([item]))
        }
    };
    let (mut parts, body) = answer.into_parts();
    parts
        .headers
        .insert("x-consul-index", state.index.max(1).to_string().parse().unwrap());
    Response::from_parts(parts, body)
}
