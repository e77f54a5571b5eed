//! Consul's HTTP API over [`LeaseState`]: the calls LiteFS makes, and enough around them to look in with `curl`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::Shared;
use super::state::{Behavior, Condition, Entry, LeaseState, Session};

/// Consul's default and largest wait of a blocking query.
const WAIT: Duration = Duration::from_secs(5 * 60);
const LONGEST_WAIT: Duration = Duration::from_secs(10 * 60);
const LOCK_DELAY: Duration = Duration::from_secs(15);
/// Consul refuses larger values too.
const LARGEST_VALUE: usize = 512 * 1024;

pub(crate) type Answer = Response<Full<Bytes>>;
type Parameters = HashMap<String, String>;

pub(crate) async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Answer {
    let method = request.method().clone();
    let path = percent_decode(request.uri().path());
    let query = request.uri().query().unwrap_or_default().as_bytes();
    let parameters: Parameters = url::form_urlencoded::parse(query).into_owned().collect();
    let body = match http_body_util::Limited::new(request.into_body(), LARGEST_VALUE)
        .collect()
        .await
    {
        Ok(body) => body.to_bytes(),
        Err(error) => return text(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
    };
    tracing::debug!(%method, path, ?parameters, "request");
    if let Some(key) = path.strip_prefix("/v1/kv/") {
        return match method {
            Method::GET => read(&shared, key, &parameters).await,
            Method::PUT => write(&shared, key, &parameters, &body),
            Method::DELETE => delete(&shared, key, &parameters),
            _ => not_allowed(),
        };
    }
    match (&method, path.as_str()) {
        (&Method::PUT, "/v1/session/create") => create_session(&shared, &body),
        (&Method::GET, "/v1/session/list") => shared.read(|state| json_answer(&sessions(state, None))),
        (&Method::PUT, "/v1/catalog/register") => json_answer(&json!(true)),
        (&Method::GET, "/v1/status/leader") => json_answer(&json!("127.0.0.1:8300")),
        _ => session_by_id(&shared, &method, &path),
    }
}

fn session_by_id(shared: &Shared, method: &Method, path: &str) -> Answer {
    let parts = path
        .strip_prefix("/v1/session/")
        .and_then(|rest| rest.split_once('/'));
    match (method, parts) {
        (&Method::PUT, Some(("renew", id))) => shared.write(|state, now| {
            let known = state.renew_session(id, now).is_some();
            if known {
                json_answer(&sessions(state, Some(id)))
            } else {
                no_session(id)
            }
        }),
        (&Method::PUT, Some(("destroy", id))) => shared.write(|state, now| {
            state.destroy_session(id, now);
            json_answer(&json!(true))
        }),
        (&Method::GET, Some(("info", id))) => shared.read(|state| json_answer(&sessions(state, Some(id)))),
        _ => text(StatusCode::NOT_FOUND, format!("no such call: {method} {path}")),
    }
}

fn create_session(shared: &Shared, body: &[u8]) -> Answer {
    let request: Value = match body {
        [] => json!({}),
        body => match serde_json::from_slice(body) {
            Ok(request) => request,
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("Request decode failed: {error}")),
        },
    };
    let session = match session_of(&request) {
        Ok(session) => session,
        // Consul's servers find these, not its HTTP layer.
        Err(message) => return text(StatusCode::INTERNAL_SERVER_ERROR, message),
    };
    let id = session_id();
    tracing::info!(session = id, ttl = ?session.ttl, lock_delay = ?session.lock_delay, "session created");
    shared.write(|state, now| {
        state.create_session(id.clone(), session, now);
        json_answer(&json!({ "ID": id }))
    })
}

fn session_of(request: &Value) -> Result<Session, String> {
    let word = |field: &str| request[field].as_str().unwrap_or_default().to_owned();
    let duration = |field: &str| match &request[field] {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(text) => parse_duration(text)
            .map(Some)
            .ok_or_else(|| format!("invalid {field} {text:?}: not a duration")),
        // Consul takes small numbers for seconds, others for nanoseconds.
        number => match number.as_u64() {
            Some(seconds) if seconds < 1000 => Ok(Some(Duration::from_secs(seconds))),
            Some(nanoseconds) => Ok(Some(Duration::from_nanos(nanoseconds))),
            None => Err(format!("invalid {field}")),
        },
    };
    let behavior = match word("Behavior").as_str() {
        "" | "release" => Behavior::Release,
        "delete" => Behavior::Delete,
        other => return Err(format!("Invalid Behavior setting: {other}")),
    };
    let ttl = duration("TTL")?.filter(|ttl| !ttl.is_zero());
    let lock_delay = duration("LockDelay")?.unwrap_or(LOCK_DELAY);
    Ok(Session::new(
        word("Name"),
        word("Node"),
        behavior,
        ttl,
        lock_delay,
    ))
}

async fn read(shared: &Shared, key: &str, parameters: &Parameters) -> Answer {
    let recurse = parameters.contains_key("recurse") || parameters.contains_key("keys");
    if let Some(index) = parameters
        .get("index")
        .and_then(|index| index.parse::<u64>().ok())
        .filter(|&index| index > 0)
    {
        let wait = parameters
            .get("wait")
            .and_then(|wait| parse_duration(wait))
            .unwrap_or(WAIT)
            .min(LONGEST_WAIT);
        shared
            .changed(wait, |state| state.index_of(key, recurse) > index)
            .await;
    }
    shared.read(|state| {
        let found: Vec<_> = if recurse {
            state.with_prefix(key).collect()
        } else {
            state.entries_at(key).collect()
        };
        let mut answer = match found.as_slice() {
            [] => empty(StatusCode::NOT_FOUND),
            [(_, entry), ..] if parameters.contains_key("raw") => raw(entry),
            _ if parameters.contains_key("keys") => {
                json_answer(&found.iter().map(|(key, _)| json!(key)).collect())
            }
            _ => json_answer(&found.iter().map(|(key, entry)| entry_json(key, entry)).collect()),
        };
        let headers = answer.headers_mut();
        headers.insert("X-Consul-Index", state.index_of(key, recurse).into());
        headers.insert("X-Consul-LastContact", 0.into());
        headers.insert(
            "X-Consul-KnownLeader",
            hyper::header::HeaderValue::from_static("true"),
        );
        answer
    })
}

fn write(shared: &Shared, key: &str, parameters: &Parameters, body: &[u8]) -> Answer {
    let number = |name: &str| parameters.get(name).map(|value| value.parse::<u64>());
    let flags = match number("flags").unwrap_or(Ok(0)) {
        Ok(flags) => flags,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("invalid flags: {error}")),
    };
    let condition = match (
        parameters.get("acquire"),
        parameters.get("release"),
        number("cas"),
    ) {
        (None, None, None) => Condition::Always,
        (Some(id), None, None) => Condition::Acquire(id.clone()),
        (None, Some(id), None) => Condition::Release(id.clone()),
        (None, None, Some(Ok(index))) => Condition::Unchanged(index),
        (None, None, Some(Err(error))) => {
            return text(StatusCode::BAD_REQUEST, format!("invalid cas: {error}"));
        }
        _ => {
            return text(
                StatusCode::BAD_REQUEST,
                "conflicting flags: acquire, release and cas exclude each other",
            );
        }
    };
    let result = shared.write(|state, now| state.put(key, body.to_vec(), flags, &condition, now));
    if !matches!(condition, Condition::Always) {
        tracing::info!(key, ?condition, ?result, "conditional write");
    }
    match result {
        Ok(done) => json_answer(&json!(done)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn delete(shared: &Shared, key: &str, parameters: &Parameters) -> Answer {
    let recurse = parameters.contains_key("recurse");
    let unchanged = parameters.get("cas").and_then(|index| index.parse().ok());
    json_answer(&json!(
        shared.write(|state, _| state.delete(key, recurse, unchanged))
    ))
}

fn entry_json(key: &str, entry: &Entry) -> Value {
    let mut object = json!({
        "LockIndex": entry.lock_index,
        "Key": key,
        "Flags": entry.flags,
        "Value": (!entry.value.is_empty()).then(|| BASE64.encode(&entry.value)),
        "CreateIndex": entry.create_index,
        "ModifyIndex": entry.modify_index,
    });
    if let Some(session) = &entry.session {
        object["Session"] = json!(session);
    }
    object
}

fn sessions(state: &LeaseState, only: Option<&str>) -> Value {
    let wanted = state
        .sessions()
        .filter(|(id, _)| only.is_none_or(|only| only == *id));
    let describe = |(id, session): (&String, &Session)| {
        json!({
            "ID": id,
            "Name": session.name,
            "Node": session.node,
            "Behavior": session.behavior,
            "TTL": session.ttl.map_or(String::new(), |ttl| format!("{}ms", ttl.as_millis())),
            "LockDelay": u64::try_from(session.lock_delay.as_nanos()).unwrap_or(u64::MAX),
            "CreateIndex": session.create_index,
            "ModifyIndex": session.create_index,
        })
    };
    wanted.map(describe).collect()
}

fn json_answer(value: &Value) -> Answer {
    let mut answer = Response::new(Full::from(value.to_string()));
    let json = hyper::header::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    answer
}

fn raw(entry: &Entry) -> Answer {
    Response::new(Full::from(entry.value.clone()))
}

fn text(status: StatusCode, message: impl Into<String>) -> Answer {
    let mut answer = Response::new(Full::from(message.into()));
    *answer.status_mut() = status;
    answer
}

fn empty(status: StatusCode) -> Answer {
    text(status, "")
}

fn no_session(id: &str) -> Answer {
    text(StatusCode::NOT_FOUND, format!("Session id '{id}' not found"))
}

fn not_allowed() -> Answer {
    text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
}

/// A random version 4 UUID, as Consul's ids look.
fn session_id() -> String {
    let random: u128 = rand::random();
    let id = random & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{id:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn percent_decode(path: &str) -> String {
    // These mean themselves in a path, unlike in a form.
    let path = path.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    url::form_urlencoded::parse(path.as_bytes())
        .next()
        .map(|(key, _)| key.into_owned())
        .unwrap_or_default()
}

/// Go's notation: a sequence of decimal numbers with units, such as `1m30s`, `1000ms`, `2.5s`.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let length = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(length);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

impl LeaseState {
    fn entries_at<'a>(&'a self, key: &'a str) -> impl Iterator<Item = (&'a String, &'a Entry)> {
        self.with_prefix(key)
            .take_while(move |(found, _)| found.as_str() == key)
    }
}

impl Shared {
    /// Waits until `condition` holds, at most `wait`.
    async fn changed(&self, wait: Duration, condition: impl Fn(&LeaseState) -> bool) {
        let deadline = tokio::time::Instant::from_std(Instant::now() + wait);
        let mut changes = self.changes.subscribe();
        while !self.read(&condition) {
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let ms = Duration::from_millis;
        for (text, expected) in [
            ("10s", Some(ms(10_000))),
            ("1000ms", Some(ms(1000))),
            ("1m30s", Some(ms(90_000))),
            ("2.5s", Some(ms(2500))),
            ("0s", Some(ms(0))),
            ("", None),
            ("10", None),
            ("s", None),
            ("10x", None),
        ] {
            assert_eq!(parse_duration(text), expected, "{text:?}");
        }
    }
}
