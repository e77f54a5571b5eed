//! Requests to a Consul agent, each limited in time, over TLS where the URL says so.
//!
//! Not over reqwest: with TLS compiled in, each of its clients loads the system's certificates, also those for plain HTTP
//! between nodes, and none can be made where there are no certificates. Proxy variables of the environment do not apply.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderName};
use hyper::{Method, Request, Response, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

use super::address::Address;
use crate::lease::{Failure, LeaseError, Result, TlsFailure};

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");
/// Consul's own limit of a value is half a mebibyte, before it is encoded.
const LONGEST_BODY: usize = 4 << 20;
/// What is told of an answer that says why it is none.
const LONGEST_TEXT: usize = 200;

/// Connections to one agent.
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    address: Address,
}

/// One request.
pub(super) struct Call<'a> {
    /// For people.
    pub(super) operation: &'static str,
    pub(super) method: Method,
    /// Below `/v1`.
    pub(super) path: &'a str,
    pub(super) query: &'a [(&'a str, String)],
    pub(super) body: Body,
    /// How long it may take altogether.
    pub(super) limit: Duration,
}

pub(super) enum Body {
    None,
    Value(Vec<u8>),
    Json(serde_json::Value),
}

/// The whole answer, whatever its status.
pub(super) struct Answer {
    pub(super) operation: &'static str,
    pub(super) status: StatusCode,
    /// What a blocking query goes on from.
    pub(super) index: u64,
    pub(super) body: Bytes,
}

impl Http {
    /// `roots`: whose certificates are trusted. Of no meaning for an address without TLS.
    pub(super) fn new(address: Address, roots: RootCertStore, connect_timeout: Duration) -> Self {
        let provider = rustls::crypto::ring::default_provider();
        let tls = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .expect("the provider has what the default versions of TLS need")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(connect_timeout));
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        Http { client, address }
    }

    pub(super) async fn call(&self, call: Call<'_>) -> Result<Answer> {
        let operation = call.operation;
        let answered = tokio::time::timeout(call.limit, self.exchange(call));
        let failure = match answered.await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Timeout,
        };
        Err(self.unavailable(operation, failure))
    }

    pub(super) fn unavailable(&self, operation: &'static str, failure: Failure) -> LeaseError {
        LeaseError::Unavailable {
            url: self.address.shown().to_string(),
            operation,
            failure,
        }
    }

    /// The error of an answer whose status is of no use to the caller.
    pub(super) fn refused(&self, answer: &Answer) -> LeaseError {
        let text = String::from_utf8_lossy(&answer.body);
        let line = text.trim().lines().next().unwrap_or_default();
        let failure = Failure::Status {
            status: answer.status.as_u16(),
            text: line.trim_end().chars().take(LONGEST_TEXT).collect(),
        };
        self.unavailable(answer.operation, failure)
    }

    async fn exchange(&self, call: Call<'_>) -> std::result::Result<Answer, Failure> {
        let operation = call.operation;
        let response = self.client.request(self.request(call)?).await.map_err(failure)?;
        let (head, body) = Response::into_parts(response);
        let body = Limited::new(body, LONGEST_BODY).collect().await;
        let body = body.map_err(|error| match find::<io::Error>(&*error) {
            Some(_) => failure_of(&*error),
            None => Failure::Answer(innermost(&*error)),
        })?;
        let index = head.headers.get("x-consul-index");
        let index = index.and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Answer {
            operation,
            status: head.status,
            index: index.unwrap_or(0),
            body: body.to_bytes(),
        })
    }

    fn request(&self, call: Call<'_>) -> std::result::Result<Request<Full<Bytes>>, Failure> {
        let url = self.address.call(call.path, call.query);
        let mut request = Request::builder().method(call.method).uri(url.as_str());
        if let Some(token) = self.address.token() {
            request = request.header(TOKEN, token);
        }
        let body = match call.body {
            Body::None => Bytes::new(),
            Body::Value(value) => value.into(),
            Body::Json(value) => {
                request = request.header(CONTENT_TYPE, "application/json");
                value.to_string().into()
            }
        };
        // Fails for a URL that is too long for anybody.
        request
            .body(Full::new(body))
            .map_err(|error| Failure::Connect(error.to_string()))
    }
}

/// The certificates that the system trusts, or those that the environment names instead (SSL_CERT_FILE, SSL_CERT_DIR).
pub(super) fn system_roots(address: &Address) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if !address.is_secure() {
        return Ok(roots);
    }
    let loaded = rustls_native_certs::load_native_certs();
    let (_, unusable) = roots.add_parsable_certificates(loaded.certs);
    if roots.is_empty() {
        let reasons: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
        let reasons = match (reasons.as_slice(), unusable) {
            ([], 0) => "none found".to_string(),
            ([], unusable) => format!("{unusable} found and none usable"),
            (reasons, _) => reasons.join("; "),
        };
        return Err(LeaseError::Setup {
            what: format!("no certificates to trust for {}: {reasons}", address.shown()),
            hint: "install the system's certificates (Debian, Alpine: the package ca-certificates), or name a file with those to \
                   trust in the environment variable SSL_CERT_FILE",
        });
    }
    for error in loaded.errors {
        tracing::warn!(%error, "cannot read some of the certificates to trust");
    }
    Ok(roots)
}

fn failure(error: hyper_util::client::legacy::Error) -> Failure {
    match failure_of(&error) {
        Failure::Lost(reason) if error.is_connect() => Failure::Connect(reason),
        failure => failure,
    }
}

fn failure_of(error: &(dyn Error + 'static)) -> Failure {
    if let Some(error) = find::<rustls::Error>(error) {
        return Failure::Tls(tls_failure(error));
    }
    match find::<io::Error>(error) {
        Some(error) if error.kind() == io::ErrorKind::TimedOut => Failure::Timeout,
        Some(_) | None => Failure::Lost(innermost(error)),
    }
}

fn tls_failure(error: &rustls::Error) -> TlsFailure {
    use CertificateError as Certificate;
    match error {
        rustls::Error::InvalidCertificate(error) => match error {
            // The second is that of an issuer by the name of one who is trusted: a certificate authority that was made anew.
            Certificate::UnknownIssuer | Certificate::BadSignature => TlsFailure::Untrusted,
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                TlsFailure::OtherName(error.to_string())
            }
            Certificate::Expired
            | Certificate::ExpiredContext { .. }
            | Certificate::NotValidYet
            | Certificate::NotValidYetContext { .. } => TlsFailure::OtherTime(error.to_string()),
            // Others than these are many, and more may come.
            error => TlsFailure::Other(error.to_string()),
        },
        rustls::Error::InvalidMessage(_) => TlsFailure::NotTls,
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => TlsFailure::ClientCertificate,
        error => TlsFailure::Other(error.to_string()),
    }
}

/// The first error of type `E` among `error` and its causes.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = cause(error);
    }
    None
}

/// The cause at the bottom: "connection refused" says more than "client error".
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(next) = cause(innermost) {
        innermost = next;
    }
    innermost.to_string()
}

/// An I/O error that wraps another one gives the causes of that, and not itself.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}
