//! Consul over TLS, and what is told of a Consul that cannot be used.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::lease::conformance::conforms;
use crate::lease::imitation::Imitation;
use crate::lease::{Failure, TlsFailure};

const TTL: Duration = Duration::from_millis(1500);
const LOCALHOST: &str = "127.0.0.1";

/// Somebody who signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        Self::by_name("authority")
    }

    fn by_name(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Authority {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    fn server(&self, params: CertificateParams) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap()
    }

    /// A Consul whose certificate is for `name`.
    async fn consul(&self, name: &str) -> Imitation {
        Imitation::start_secure(self.server(params(name))).await
    }

    /// A lease of somebody who trusts this authority and nobody else.
    fn lease(&self, url: &str) -> ConsulLease {
        let options = options(url);
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let address = Address::new(&options.url, None).unwrap();
        ConsulLease::with(options, address, roots)
    }
}

fn params(name: &str) -> CertificateParams {
    CertificateParams::new([name.to_string()]).unwrap()
}

fn options(url: &str) -> ConsulOptions {
    ConsulOptions {
        url: url.parse().unwrap(),
        key: "litefs/primary".to_string(),
        ttl: TTL,
        lock_delay: Duration::from_millis(200),
    }
}

fn secure(consul: &Imitation) -> String {
    format!("https://:t0ken@{LOCALHOST}:{}/app", consul.port())
}

/// Asks for the holder, which must fail; the failure. What every error says is checked here.
async fn failure(lease: &ConsulLease, port: u16) -> Failure {
    let error = lease.holder().await.unwrap_err();
    let message = error.to_string();
    assert!(message.contains(&format!("://{LOCALHOST}:{port}")), "{message}");
    assert!(!message.contains("t0ken"), "{message}");
    assert!(error.hint().is_some(), "{message}");
    match error {
        LeaseError::Unavailable { failure, .. } => failure,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn consul_over_tls_conforms() {
    let authority = Authority::new();
    let consul = authority.consul(LOCALHOST).await;
    consul.require_token("t0ken");
    let url = secure(&consul);
    authority.lease(&url).open().await.unwrap();
    conforms(&authority.lease(&url), &authority.lease(&url)).await;
}

#[tokio::test]
async fn a_certificate_that_nobody_who_is_trusted_has_signed_is_refused() {
    let consul = Authority::new().consul(LOCALHOST).await;
    let lease = Authority::new().lease(&secure(&consul));
    let untrusted = Failure::Tls(TlsFailure::Untrusted);
    assert_eq!(failure(&lease, consul.port()).await, untrusted);
    let stranger = Authority::by_name("stranger").lease(&secure(&consul));
    assert_eq!(failure(&stranger, consul.port()).await, untrusted);
    let message = lease.open().await.unwrap_err().to_string();
    assert_eq!(
        message,
        format!(
            "lease service https://{LOCALHOST}:{}/app: register catalog node: TLS: nobody who is trusted has signed the certificate",
            consul.port()
        )
    );
}

#[tokio::test]
async fn a_certificate_for_another_name_or_another_time_is_refused() {
    let authority = Authority::new();
    let consul = authority.consul("consul.example").await;
    let refused = failure(&authority.lease(&secure(&consul)), consul.port()).await;
    assert!(
        matches!(&refused, Failure::Tls(TlsFailure::OtherName(names)) if names.contains("consul.example")),
        "{refused}"
    );
    let mut expired = params(LOCALHOST);
    (expired.not_before, expired.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    let consul = Imitation::start_secure(authority.server(expired)).await;
    let refused = failure(&authority.lease(&secure(&consul)), consul.port()).await;
    assert!(
        matches!(refused, Failure::Tls(TlsFailure::OtherTime(_))),
        "{refused}"
    );
}

#[tokio::test]
async fn https_where_nobody_speaks_tls_is_told_apart() {
    let consul = Imitation::start().await;
    let refused = failure(&Authority::new().lease(&secure(&consul)), consul.port()).await;
    assert_eq!(refused, Failure::Tls(TlsFailure::NotTls));
}

#[tokio::test]
async fn nobody_there_and_nobody_who_answers_are_told_apart() {
    let consul = Imitation::start().await;
    let lease = ConsulLease::new(options(consul.url().as_str())).unwrap();
    consul.silence(true);
    assert_eq!(failure(&lease, consul.port()).await, Failure::Timeout);

    let port = {
        let listener = std::net::TcpListener::bind((LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let lease = ConsulLease::new(options(&format!("http://:t0ken@{LOCALHOST}:{port}"))).unwrap();
    let refused = failure(&lease, port).await;
    assert!(
        matches!(&refused, Failure::Connect(reason) if reason.contains("refused")),
        "{refused}"
    );
}

#[tokio::test]
async fn a_status_is_told_with_the_first_line_of_its_reason() {
    let consul = Imitation::start().await;
    consul.require_token("another");
    let url = format!("http://:t0ken@{LOCALHOST}:{}", consul.port());
    let lease = ConsulLease::new(options(&url)).unwrap();
    let refused = failure(&lease, consul.port()).await;
    let text = "Permission denied".to_string();
    assert_eq!(refused, Failure::Status { status: 403, text });
    let hint = lease.holder().await.unwrap_err().hint().unwrap();
    assert!(hint.contains("CONSUL_HTTP_TOKEN"), "{hint}");
}

#[tokio::test]
async fn a_damaged_record_names_the_key_to_delete() {
    let consul = Imitation::start().await;
    consul.put("litefs/primary/state", b"{");
    let lease = ConsulLease::new(options(consul.url().as_str())).unwrap();
    let error = lease.state().await.unwrap_err();
    assert!(
        error.to_string().contains("litefs/primary/state is damaged"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("delete the key"));
}
