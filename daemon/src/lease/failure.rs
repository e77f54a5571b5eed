//! Why a lease service did not do what it was asked, and what to do about it.

/// Failure of a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Not reachable, too slow, or in trouble itself; worth another try.
    #[error("lease service {url}: {operation}: {failure}")]
    Unavailable {
        /// Without what is secret in it.
        url: String,
        operation: &'static str,
        failure: Failure,
    },
    /// The configuration, or this machine, does not allow to ask the service at all.
    #[error("{what}")]
    Setup { what: String, hint: &'static str },
    /// The lease, or the record, belongs to somebody else by now.
    #[error("lease expired")]
    Gone,
    /// The back-end cannot do this at all.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// Why a request has no usable answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("no answer in time")]
    Timeout,
    #[error("TLS: {0}")]
    Tls(TlsFailure),
    /// After it was made, and before the answer.
    #[error("connection lost: {0}")]
    Lost(String),
    /// With the first line of what the service says about it.
    #[error("status {status}{}{text}", if .text.is_empty() { "" } else { ": " })]
    Status { status: u16, text: String },
    #[error("answer not understood: {0}")]
    Answer(String),
    /// Guessing at it could put a node in charge that lacks transactions.
    #[error("{key} is damaged: {reason}")]
    Record { key: String, reason: String },
}

/// Why there is no secure connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsFailure {
    #[error("nobody who is trusted has signed the certificate")]
    Untrusted,
    #[error("the certificate is for another name ({0})")]
    OtherName(String),
    #[error("the certificate is not valid at this time ({0})")]
    OtherTime(String),
    #[error("the service speaks something else on this port")]
    NotTls,
    #[error("the service asks for a certificate of this node")]
    ClientCertificate,
    #[error("{0}")]
    Other(String),
}

impl LeaseError {
    /// What to do about it, if there is something to do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            LeaseError::Unavailable { failure, .. } => Some(failure.hint()),
            LeaseError::Setup { hint, .. } => Some(hint),
            LeaseError::Gone | LeaseError::Unsupported(_) => None,
        }
    }
}

impl Failure {
    fn hint(&self) -> &'static str {
        match self {
            Failure::Connect(_) => {
                "check that the service runs, and that `lease.consul.url` has its name and port"
            }
            Failure::Timeout => {
                "check the network between this node and the service, and the port in `lease.consul.url`"
            }
            Failure::Tls(failure) => failure.hint(),
            Failure::Lost(_) | Failure::Answer(_) => {
                "check that `lease.consul.url` names the HTTP API of Consul"
            }
            Failure::Status { text, .. } if text.contains("HTTPS") => "write https:// in `lease.consul.url`",
            Failure::Status {
                status: 401 | 403, ..
            } => {
                "check the token (the password in `lease.consul.url`, or CONSUL_HTTP_TOKEN) and that its policy allows to write keys and \
                 sessions, and nodes where the URL has a path"
            }
            Failure::Status {
                status: 300..=399, ..
            } => "write the URL that it redirects to into `lease.consul.url`",
            Failure::Status { status: 500.., .. } => "the service has a problem of its own: see its log",
            Failure::Status { .. } => {
                "check that `lease.consul.url` and `lease.consul.key` are what Consul takes"
            }
            Failure::Record { .. } => "delete the key to start over without it",
        }
    }
}

impl TlsFailure {
    fn hint(&self) -> &'static str {
        match self {
            TlsFailure::Untrusted => {
                "add the certificate of the issuer to those of the system, or name a file that has it in the environment variable \
                 SSL_CERT_FILE, and start again"
            }
            TlsFailure::OtherName(_) => "write a name that the certificate is for into `lease.consul.url`",
            TlsFailure::OtherTime(_) => "renew the certificate, or set the clock of this node",
            TlsFailure::NotTls => "write the port for HTTPS, or http://, into `lease.consul.url`",
            TlsFailure::ClientCertificate => {
                "certificates of nodes are not supported: turn off `verify_incoming` for HTTPS in Consul, or use an agent on this machine"
            }
            TlsFailure::Other(_) => "check the service's TLS settings: TLS 1.2 and 1.3 are supported",
        }
    }
}
