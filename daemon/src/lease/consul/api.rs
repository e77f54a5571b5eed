//! The few calls of Consul's HTTP API that a lease takes.

use std::time::Duration;

use base64::Engine;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::http::{Answer, Body, Call, Http};
use crate::config::GoDuration;
use crate::lease::{Failure, LeaseError, Result};

/// Consul adds up to a sixteenth of the wait to a blocking query.
const WAIT_MARGIN: u32 = 16;

/// One Consul agent.
pub(super) struct Api {
    http: Http,
    timeout: Duration,
}

/// How a value is written.
pub(super) enum Write<'a> {
    /// Only if this session has or gets the key's lock.
    Acquire(&'a str),
    /// And gives up the lock of this session.
    Release(&'a str),
    /// Only if the key's version is this one; 0 stands for a key that does not exist.
    CheckAndSet(u64),
}

/// Answer to a read.
pub(super) struct Found {
    pub(super) entry: Option<Entry>,
    pub(super) index: u64,
}

/// A key's content.
pub(super) struct Entry {
    pub(super) value: Vec<u8>,
    pub(super) session: Option<String>,
    pub(super) modify_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawEntry {
    value: Option<String>,
    session: Option<String>,
    modify_index: u64,
}

#[derive(Deserialize)]
struct SessionId {
    #[serde(rename = "ID")]
    id: String,
}

#[derive(Deserialize)]
struct RenewedSession {
    #[serde(rename = "TTL")]
    ttl: String,
}

impl Found {
    /// The value as text; none for a key that is missing or empty.
    pub(super) fn text(&self) -> Option<String> {
        let entry = self.entry.as_ref()?;
        let text = String::from_utf8(entry.value.clone()).ok()?;
        (!text.is_empty()).then_some(text)
    }
}

impl Api {
    /// `timeout` is that of a call that waits for nothing.
    pub(super) fn new(http: Http, timeout: Duration) -> Self {
        Api { http, timeout }
    }

    pub(super) async fn create_session(
        &self,
        node: Option<&str>,
        ttl: Duration,
        lock_delay: Duration,
    ) -> Result<String> {
        let mut session = json!({
            "Name": "litefs",
            "Behavior": "delete",
            "TTL": GoDuration::from_duration(ttl).to_string(),
            "LockDelay": GoDuration::from_duration(lock_delay).to_string(),
            // No health checks: both names are known to one or another version of Consul, and unknown ones are ignored.
            "Checks": [],
            "NodeChecks": [],
        });
        if let Some(node) = node {
            session["Node"] = json!(node);
        }
        let answer = self.put_to("create session", "session/create", Body::Json(session));
        let session: SessionId = self.read_json(&self.successful(answer.await?)?)?;
        Ok(session.id)
    }

    /// Gives the session's own time to live, if the answer tells it. `LeaseError::Gone` for a session that has ended.
    pub(super) async fn renew_session(&self, id: &str) -> Result<Option<Duration>> {
        let path = format!("session/renew/{id}");
        let answer = self.put_to("renew session", &path, Body::None).await?;
        match answer.status {
            StatusCode::NOT_FOUND => Err(LeaseError::Gone),
            // The session is renewed, whatever this answer looks like.
            status if status.is_success() => Ok(ttl(&answer.body)),
            _ => Err(self.http.refused(&answer)),
        }
    }

    pub(super) async fn destroy_session(&self, id: &str) -> Result<()> {
        let path = format!("session/destroy/{id}");
        let answer = self.put_to("destroy session", &path, Body::None).await?;
        self.successful(answer).map(drop)
    }

    pub(super) async fn register_node(&self, node: &str) -> Result<()> {
        let body = json!({ "Node": node, "Address": "localhost" });
        let answer = self.put_to("register catalog node", "catalog/register", Body::Json(body));
        self.successful(answer.await?).map(drop)
    }

    /// Writes a key; false if the condition does not hold.
    pub(super) async fn put(&self, key: &str, write: Write<'_>, value: Vec<u8>) -> Result<bool> {
        let (name, condition) = match write {
            Write::Acquire(session) => ("acquire", session.to_string()),
            Write::Release(session) => ("release", session.to_string()),
            Write::CheckAndSet(version) => ("cas", version.to_string()),
        };
        let call = Call {
            operation: "write key",
            method: Method::PUT,
            path: &format!("kv/{key}"),
            query: &[(name, condition)],
            body: Body::Value(value),
            limit: self.timeout,
        };
        let answer = self.http.call(call).await?;
        // Consul answers 500 "invalid session" where the session has ended.
        if answer.status.is_server_error()
            && String::from_utf8_lossy(&answer.body).contains("invalid session")
        {
            return Err(LeaseError::Gone);
        }
        self.read_json(&self.successful(answer)?)
    }

    pub(super) async fn get(&self, key: &str) -> Result<Found> {
        self.read(key, &[], self.timeout).await
    }

    /// Reads a key as soon as it is newer than `index`, or after `limit`.
    pub(super) async fn wait(&self, key: &str, index: u64, limit: Duration) -> Result<Found> {
        let wait = format!("{}ms", limit.as_millis());
        let query = [("index", index.to_string()), ("wait", wait)];
        self.read(key, &query, limit + limit / WAIT_MARGIN + self.timeout)
            .await
    }

    /// The error of a value that was read and that nobody can have written.
    pub(super) fn damaged(
        &self,
        operation: &'static str,
        key: String,
        reason: impl std::fmt::Display,
    ) -> LeaseError {
        let reason = reason.to_string();
        self.http.unavailable(operation, Failure::Record { key, reason })
    }

    async fn read(&self, key: &str, query: &[(&str, String)], limit: Duration) -> Result<Found> {
        let call = Call {
            operation: "read key",
            method: Method::GET,
            path: &format!("kv/{key}"),
            query,
            body: Body::None,
            limit,
        };
        let answer = self.http.call(call).await?;
        let index = answer.index;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(Found { entry: None, index });
        }
        let answer = self.successful(answer)?;
        let entries: Vec<RawEntry> = self.read_json(&answer)?;
        let entry = entries.into_iter().next().map(decode).transpose();
        let entry = entry.map_err(|error| self.unreadable(&answer, error))?;
        Ok(Found { entry, index })
    }

    async fn put_to(&self, operation: &'static str, path: &str, body: Body) -> Result<Answer> {
        let call = Call {
            operation,
            method: Method::PUT,
            path,
            query: &[],
            body,
            limit: self.timeout,
        };
        self.http.call(call).await
    }

    /// Refuses any status but success.
    fn successful(&self, answer: Answer) -> Result<Answer> {
        match answer.status.is_success() {
            true => Ok(answer),
            false => Err(self.http.refused(&answer)),
        }
    }

    fn read_json<T: serde::de::DeserializeOwned>(&self, answer: &Answer) -> Result<T> {
        serde_json::from_slice(&answer.body).map_err(|error| self.unreadable(answer, error))
    }

    fn unreadable(&self, answer: &Answer, error: impl std::fmt::Display) -> LeaseError {
        self.http
            .unavailable(answer.operation, Failure::Answer(error.to_string()))
    }
}

fn decode(raw: RawEntry) -> std::result::Result<Entry, base64::DecodeError> {
    let value = base64::engine::general_purpose::STANDARD.decode(raw.value.unwrap_or_default())?;
    let session = raw.session.filter(|session| !session.is_empty());
    Ok(Entry {
        value,
        session,
        modify_index: raw.modify_index,
    })
}

fn ttl(renewed: &[u8]) -> Option<Duration> {
    let sessions: Vec<RenewedSession> = serde_json::from_slice(renewed).ok()?;
    GoDuration::parse(&sessions.first()?.ttl).ok()?.positive()
}
