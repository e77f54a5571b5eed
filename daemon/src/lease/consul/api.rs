//! The few calls of Consul's HTTP API that a lease takes, each with a time-out.

use std::time::Duration;

use base64::Engine;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde_json::json;
use url::Url;

use crate::config::GoDuration;
use crate::lease::{LeaseError, Result};

/// Consul adds up to a sixteenth of the wait to a blocking query.
const WAIT_MARGIN: u32 = 16;

/// One Consul agent.
pub(super) struct Api {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
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
    /// `url` may carry a token as its password; its path is the caller's.
    pub(super) fn new(url: &Url, timeout: Duration) -> Result<Self> {
        let unavailable = |reason: String| LeaseError::Unavailable {
            operation: "set up",
            reason,
        };
        let http = reqwest::Client::builder()
            .connect_timeout(timeout)
            .no_proxy()
            .build();
        let mut base = url.clone();
        base.set_path("");
        let token = url
            .password()
            .map(str::to_string)
            .or_else(|| std::env::var("CONSUL_HTTP_TOKEN").ok());
        // The token travels in a header of its own. Neither call fails for a URL with a host.
        let _ = base.set_username("");
        let _ = base.set_password(None);
        Ok(Api {
            http: http.map_err(|error| unavailable(error.to_string()))?,
            base,
            token: token.filter(|token| !token.is_empty()),
            timeout,
        })
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
        let operation = "create session";
        let response = self
            .send(
                operation,
                self.put_request("session/create").json(&session),
                self.timeout,
            )
            .await?;
        let session: SessionId = read_json(operation, response).await?;
        Ok(session.id)
    }

    /// Gives the session's own time to live, if the answer tells it. `LeaseError::Gone` for a session that has ended.
    pub(super) async fn renew_session(&self, id: &str) -> Result<Option<Duration>> {
        let request = self.put_request(&format!("session/renew/{id}"));
        let response = self.request("renew session", request, self.timeout).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Err(LeaseError::Gone),
            status if status.is_success() => Ok(read_ttl(response).await),
            _ => Err(refused("renew session", response).await),
        }
    }

    pub(super) async fn destroy_session(&self, id: &str) -> Result<()> {
        let request = self.put_request(&format!("session/destroy/{id}"));
        self.send("destroy session", request, self.timeout)
            .await
            .map(drop)
    }

    pub(super) async fn register_node(&self, node: &str) -> Result<()> {
        let body = json!({ "Node": node, "Address": "localhost" });
        let request = self.put_request("catalog/register").json(&body);
        self.send("register catalog node", request, self.timeout)
            .await
            .map(drop)
    }

    /// Writes a key; false if the condition does not hold.
    pub(super) async fn put(&self, key: &str, write: Write<'_>, value: Vec<u8>) -> Result<bool> {
        let (name, condition) = match write {
            Write::Acquire(session) => ("acquire", session.to_string()),
            Write::Release(session) => ("release", session.to_string()),
            Write::CheckAndSet(version) => ("cas", version.to_string()),
        };
        let request = self
            .put_request(&format!("kv/{key}"))
            .query(&[(name, condition)])
            .body(value);
        let response = self.request("write key", request, self.timeout).await?;
        if !response.status().is_success() {
            let status = response.status();
            let error = refused("write key", response).await;
            // Consul answers 500 "invalid session" where the session has ended.
            let ended = matches!(&error, LeaseError::Unavailable { reason, .. } if reason.contains("invalid session"));
            return Err(if status.is_server_error() && ended {
                LeaseError::Gone
            } else {
                error
            });
        }
        read_json("write key", response).await
    }

    pub(super) async fn get(&self, key: &str) -> Result<Found> {
        self.read(self.get_request(key), self.timeout).await
    }

    /// Reads a key as soon as it is newer than `index`, or after `limit`.
    pub(super) async fn wait(&self, key: &str, index: u64, limit: Duration) -> Result<Found> {
        let wait = format!("{}ms", limit.as_millis());
        let request = self
            .get_request(key)
            .query(&[("index", index.to_string()), ("wait", wait)]);
        self.read(request, limit + limit / WAIT_MARGIN + self.timeout)
            .await
    }

    async fn read(&self, request: RequestBuilder, timeout: Duration) -> Result<Found> {
        let operation = "read key";
        let response = self.request(operation, request, timeout).await?;
        let index = response
            .headers()
            .get("x-consul-index")
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let index = index.unwrap_or(0);
        match response.status() {
            StatusCode::NOT_FOUND => Ok(Found { entry: None, index }),
            status if status.is_success() => {
                let entries: Vec<RawEntry> = read_json(operation, response).await?;
                let entry = entries.into_iter().next().map(decode).transpose()?;
                Ok(Found { entry, index })
            }
            _ => Err(refused(operation, response).await),
        }
    }

    fn put_request(&self, path: &str) -> RequestBuilder {
        self.to(Method::PUT, path)
    }

    fn get_request(&self, key: &str) -> RequestBuilder {
        self.to(Method::GET, &format!("kv/{key}"))
    }

    fn to(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        url.set_path(&format!("/v1/{path}"));
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.header("X-Consul-Token", token),
            None => request,
        }
    }

    /// Sends a request and refuses any status but success.
    async fn send(
        &self,
        operation: &'static str,
        request: RequestBuilder,
        timeout: Duration,
    ) -> Result<Response> {
        let response = self.request(operation, request, timeout).await?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(refused(operation, response).await)
        }
    }

    async fn request(
        &self,
        operation: &'static str,
        request: RequestBuilder,
        timeout: Duration,
    ) -> Result<Response> {
        request
            .timeout(timeout)
            .send()
            .await
            .map_err(|error| unavailable(operation, error))
    }
}

fn decode(raw: RawEntry) -> Result<Entry> {
    let value = base64::engine::general_purpose::STANDARD.decode(raw.value.unwrap_or_default());
    let value = value.map_err(|error| LeaseError::Unavailable {
        operation: "read key",
        reason: error.to_string(),
    })?;
    let session = raw.session.filter(|session| !session.is_empty());
    Ok(Entry {
        value,
        session,
        modify_index: raw.modify_index,
    })
}

/// The session is renewed, whatever this answer looks like.
async fn read_ttl(response: Response) -> Option<Duration> {
    let sessions: Vec<RenewedSession> = read_json("renew session", response).await.ok()?;
    GoDuration::parse(&sessions.first()?.ttl).ok()?.positive()
}

async fn read_json<T: serde::de::DeserializeOwned>(operation: &'static str, response: Response) -> Result<T> {
    response
        .json()
        .await
        .map_err(|error| unavailable(operation, error))
}

async fn refused(operation: &'static str, response: Response) -> LeaseError {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap_or_default();
    let text: String = text.trim().chars().take(500).collect();
    LeaseError::Unavailable {
        operation,
        reason: format!("status {status}: {text}"),
    }
}

fn unavailable(operation: &'static str, error: reqwest::Error) -> LeaseError {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let reason = if error.is_timeout() {
        "no answer in time".to_string()
    } else {
        cause.to_string()
    };
    LeaseError::Unavailable { operation, reason }
}
