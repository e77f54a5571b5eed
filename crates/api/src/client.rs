//! Client of one node.
//!
//! Speaks HTTP/2 with prior knowledge over plain TCP, for `https` URLs too, as LiteFS does between nodes. Ignores proxy
//! variables of the environment: nodes are neighbours. Every call has a time-out; endless answers have one per read. A
//! connection lost between two calls is nobody's failure.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use url::Url;

use crate::{Error, Event, History, Info, NodeId, Status, Txid};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than a call: the answer to a promotion comes when the node is primary.
const PROMOTE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a body may stand still.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// More of an error's text than this is of no use to anybody.
const ERROR_TEXT_LIMIT: usize = 8 << 10;
/// A line of the event stream is a few hundred bytes.
const EVENT_LINE_LIMIT: usize = 1 << 20;

/// Bytes of a database, as they arrive.
pub type ExportStream = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;
/// Lines of the event stream, as they arrive.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<Event, Error>> + Send>>;

/// A node's API at one base URL. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
}

impl Client {
    /// A client of the node at `url`; path and query of the URL are of no meaning.
    pub fn new(url: &str) -> Result<Self, Error> {
        let base = base_url(url)?;
        let http = reqwest::Client::builder()
            .http2_prior_knowledge()
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(Duration::from_secs(1))
            .http2_keep_alive_timeout(Duration::from_secs(5))
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .no_proxy()
            .build()
            .map_err(|source| Error::Transport {
                operation: "set up client",
                url: base.to_string(),
                source,
            })?;
        Ok(Client { http, base })
    }

    /// The node's base URL, normalised.
    pub fn base(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// A request to `path`, for callers that need more than the calls below. Sets no time-out.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        url.set_path(path);
        self.http.request(method, url)
    }

    pub async fn info(&self) -> Result<Info, Error> {
        self.json("GET /info", self.get("/info")).await
    }

    pub async fn status(&self) -> Result<Status, Error> {
        self.json("GET /status", self.get("/status")).await
    }

    /// The metrics in Prometheus's text form.
    pub async fn metrics(&self) -> Result<String, Error> {
        let response = self.send("GET /metrics", self.get("/metrics")).await?;
        response
            .text()
            .await
            .map_err(|source| self.transport("GET /metrics", source))
    }

    /// Transactions of a database's log from `from` on, at most `limit`.
    pub async fn history(&self, name: &str, from: Txid, limit: usize) -> Result<History, Error> {
        let query = [
            ("name", name),
            ("from", &from.to_string()),
            ("limit", &limit.to_string()),
        ];
        self.json("GET /history", self.get("/history").query(&query))
            .await
    }

    /// Asks the node to become primary and waits until it is. `force` takes a free lease even though the node is behind.
    pub async fn promote(&self, force: bool) -> Result<(), Error> {
        let mut request = self.request(Method::POST, "/promote").timeout(PROMOTE_TIMEOUT);
        if force {
            request = request.query(&[("force", "true")]);
        }
        self.send("POST /promote", request).await.map(drop)
    }

    /// Asks a primary to hand its lease to `node`.
    pub async fn handoff(&self, node: NodeId) -> Result<(), Error> {
        let request = self.request(Method::POST, "/handoff").timeout(PROMOTE_TIMEOUT);
        self.send("POST /handoff", request.query(&[("nodeID", node.to_string())]))
            .await
            .map(drop)
    }

    /// The bytes of a database.
    pub async fn export(&self, name: &str) -> Result<ExportStream, Error> {
        let request = self.request(Method::GET, "/export").query(&[("name", name)]);
        // The node copies the whole database before it answers. That a node is gone is found by HTTP/2's keep-alive.
        let response = self.send("GET /export", request).await?;
        Ok(self.body("GET /export", response))
    }

    /// Replaces or creates a database with the bytes of an SQLite file.
    pub async fn import(&self, name: &str, body: reqwest::Body) -> Result<(), Error> {
        let request = self
            .request(Method::POST, "/import")
            .query(&[("name", name)])
            .body(body);
        self.send("POST /import", request).await.map(drop)
    }

    /// What happens at the node from now on.
    pub async fn events(&self) -> Result<EventStream, Error> {
        let response = self
            .send_endless("GET /events", self.request(Method::GET, "/events"))
            .await?;
        // Silence is normal here, and a dead peer is found by HTTP/2's keep-alive.
        let client = self.clone();
        let body = response
            .bytes_stream()
            .map(move |part| part.map_err(|source| client.transport("GET /events", source)));
        Ok(Box::pin(events(self.clone(), Box::pin(body))))
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path).timeout(CALL_TIMEOUT)
    }

    fn transport(&self, operation: &'static str, source: reqwest::Error) -> Error {
        Error::Transport {
            operation,
            url: self.base().to_string(),
            source: source.without_url(),
        }
    }

    fn answer(&self, operation: &'static str, reason: impl ToString) -> Error {
        Error::Answer {
            operation,
            url: self.base().to_string(),
            reason: reason.to_string(),
        }
    }

    /// Sends a request and turns an error status into an error with the node's text.
    pub async fn send(&self, operation: &'static str, request: RequestBuilder) -> Result<Response, Error> {
        let response = deliver(request)
            .await
            .map_err(|source| self.transport(operation, source))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let message = error_text(response, status).await;
        Err(Error::Status {
            operation,
            url: self.base().to_string(),
            status,
            message,
        })
    }

    /// As `send`, for answers without an end: only the wait for their beginning is limited.
    pub async fn send_endless(
        &self,
        operation: &'static str,
        request: RequestBuilder,
    ) -> Result<Response, Error> {
        match tokio::time::timeout(CALL_TIMEOUT, self.send(operation, request)).await {
            Ok(result) => result,
            Err(_) => Err(self.answer(operation, "no answer in time")),
        }
    }

    async fn json<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        request: RequestBuilder,
    ) -> Result<T, Error> {
        let body = self.send(operation, request).await?.bytes().await;
        let body = body.map_err(|source| self.transport(operation, source))?;
        serde_json::from_slice(&body).map_err(|error| self.answer(operation, error))
    }

    /// A body whose silence is an error.
    fn body(&self, operation: &'static str, response: Response) -> ExportStream {
        let client = self.clone();
        let parts = Box::pin(response.bytes_stream());
        Box::pin(futures_util::stream::unfold(Some(parts), move |parts| {
            let client = client.clone();
            async move {
                let mut parts = parts?;
                match tokio::time::timeout(READ_TIMEOUT, parts.next()).await {
                    Ok(None) => None,
                    Ok(Some(Ok(part))) => Some((Ok(part), Some(parts))),
                    Ok(Some(Err(source))) => Some((Err(client.transport(operation, source)), None)),
                    Err(_) => Some((Err(client.answer(operation, "the body stopped coming")), None)),
                }
            }
        }))
    }
}

/// Sends a request. One that changes nothing is sent once more, on a new connection, if the connection was lost: a node ends
/// a connection whose other end is silent, and a client that was stopped or suspended learns of it only by using it.
async fn deliver(request: RequestBuilder) -> Result<Response, reqwest::Error> {
    let (http, request) = request.build_split();
    let request = request?;
    let again = match *request.method() {
        Method::GET | Method::HEAD => request.try_clone(),
        _ => None,
    };
    match (http.execute(request).await, again) {
        (Err(error), Some(again)) if error.is_request() && !error.is_timeout() && !error.is_connect() => {
            http.execute(again).await
        }
        (result, _) => result,
    }
}

/// Scheme, host and port of a node. `https` is spoken without TLS, as LiteFS does, so it is the same as `http`.
fn base_url(url: &str) -> Result<Url, Error> {
    let invalid = |reason: &str| Error::Url {
        url: url.to_string(),
        reason: reason.to_string(),
    };
    let parsed = Url::parse(url).map_err(|error| invalid(&error.to_string()))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(invalid("invalid URL scheme"));
    }
    let host = parsed
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(|| invalid("URL host required"))?;
    let port = parsed.port_or_known_default().unwrap_or(80);
    Url::parse(&format!("http://{host}:{port}/")).map_err(|error| invalid(&error.to_string()))
}

/// The text of an error answer, without its line end.
async fn error_text(response: Response, status: StatusCode) -> String {
    let mut text = BytesMut::new();
    let mut parts = response.bytes_stream();
    while let Ok(Some(Ok(part))) = tokio::time::timeout(CALL_TIMEOUT, parts.next()).await {
        text.extend_from_slice(&part);
        if text.len() > ERROR_TEXT_LIMIT {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text).trim().to_string();
    if text.is_empty() {
        status.canonical_reason().unwrap_or("error").to_string()
    } else {
        text
    }
}

/// Cuts a body into lines and reads each as an event.
fn events(client: Client, body: ExportStream) -> impl Stream<Item = Result<Event, Error>> + Send {
    let state = Some((client, body, BytesMut::new()));
    futures_util::stream::unfold(state, |state| async move {
        let (client, mut body, mut buffer) = state?;
        loop {
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end);
                buffer.advance(1);
                let event =
                    serde_json::from_slice(&line).map_err(|error| client.answer("GET /events", error));
                return Some((event, Some((client, body, buffer))));
            }
            if buffer.len() > EVENT_LINE_LIMIT {
                return Some((Err(client.answer("GET /events", "a line without an end")), None));
            }
            match body.next().await? {
                Ok(part) => buffer.extend_from_slice(&part),
                Err(error) => return Some((Err(error), None)),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_needs_scheme_and_host_and_loses_the_rest() {
        assert_eq!(
            Client::new("http://h:20202/x?y").unwrap().base(),
            "http://h:20202"
        );
        assert_eq!(Client::new("https://h:1").unwrap().base(), "http://h:1");
        assert!(
            Client::new("ftp://h")
                .unwrap_err()
                .to_string()
                .contains("invalid URL scheme")
        );
        assert!(
            Client::new("localhost:20202")
                .unwrap_err()
                .to_string()
                .contains("invalid URL scheme")
        );
        assert!(Client::new("http://").is_err());
    }
}
