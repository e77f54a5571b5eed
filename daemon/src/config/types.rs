//! The keys of `litefs.yml`, their types and their defaults.
//!
//! Names, meanings and defaults are those of LiteFS 0.5; a key of ours says so.

use std::path::PathBuf;
use std::time::Duration;

use super::duration::GoDuration;
use super::exec::Exec;
use super::section::section;
use super::words::{Durability, LogFormat, Passthrough, Umask};

const MINUTE: Duration = Duration::from_secs(60);

const fn seconds(n: u64) -> GoDuration {
    GoDuration::from_duration(Duration::from_secs(n))
}

section! {
    /// The whole file.
    pub struct Config {
        /// Ends the process when the start fails.
        pub exit_on_error: bool = true,
        /// Does not wait until the node is in touch with its cluster.
        pub skip_sync: bool = false,
        /// Recomputes the whole checksum after each commit.
        pub strict_verify: bool = false,
        /// Commands to run under supervision.
        pub exec: Exec = Exec::default(),
        pub data: Data = Data::default(),
        pub fuse: Fuse = Fuse::default(),
        pub http: Http = Http::default(),
        pub proxy: Proxy = Proxy::default(),
        pub lease: Lease = Lease::default(),
        pub backup: Backup = Backup::default(),
        pub log: Log = Log::default(),
        pub tracing: Tracing = Tracing::default(),
    }
}

section! {
    /// Where and how databases and their logs are kept.
    pub struct Data {
        pub dir: PathBuf = PathBuf::from("/var/lib/litefs"),
        /// LZ4 in LTX records.
        pub compress: bool = true,
        /// How long records stay in the log.
        pub retention: GoDuration = GoDuration::from_duration(MINUTE.saturating_mul(10)),
        /// How often that is enforced; zero or less disables it.
        pub retention_monitor_interval: GoDuration = GoDuration::from_duration(MINUTE),
        /// Ours: what COMMIT waits for.
        pub durability: Durability = Durability::Follow,
    }
}

section! {
    /// The mount.
    pub struct Fuse {
        pub dir: PathBuf = PathBuf::from("/litefs"),
        pub allow_other: bool = false,
        pub debug: bool = false,
        /// Ours: user and group of the mount's root, and of what nobody else gives an owner.
        pub uid: Option<u32> = None,
        pub gid: Option<u32> = None,
        /// Ours: permissions that these do not get.
        pub umask: Option<Umask> = None,
        /// Ours: whether the kernel serves `-wal` and `-shm` without asking the daemon.
        pub passthrough: Passthrough = Passthrough::Auto,
        /// Ours: how long clients wait for the next daemon when one dies, before they get errors for good.
        pub takeover_timeout: GoDuration = seconds(30),
    }
}

section! {
    /// The API and replication port.
    pub struct Http {
        pub addr: String = ":20202".to_string(),
        /// Time limit of one snapshot; zero stands for the retention.
        pub snapshot_timeout: GoDuration = seconds(0),
    }
}

section! {
    /// The HTTP proxy in front of the application.
    pub struct Proxy {
        pub addr: String = String::new(),
        pub target: String = String::new(),
        pub db: String = String::new(),
        pub max_lag: GoDuration = seconds(10),
        pub debug: bool = false,
        pub passthrough: Vec<String> = Vec::new(),
        pub always_forward: Vec<String> = Vec::new(),
        pub primary_redirect_timeout: GoDuration = seconds(5),
        pub read_timeout: GoDuration = seconds(0),
        pub read_header_timeout: GoDuration = seconds(10),
        pub write_timeout: GoDuration = seconds(0),
        pub idle_timeout: GoDuration = seconds(30),
    }
}

section! {
    /// Who is primary.
    pub struct Lease {
        /// The key `type`: `consul` or `static`.
        pub r#type: String = String::new(),
        pub hostname: String = String::new(),
        pub advertise_url: String = String::new(),
        pub candidate: bool = true,
        pub promote: bool = false,
        pub reconnect_delay: GoDuration = seconds(1),
        pub demote_delay: GoDuration = seconds(10),
        /// Replicate only these databases.
        pub databases: Vec<String> = Vec::new(),
        pub consul: Consul = Consul::default(),
    }
}

section! {
    /// The lease in Consul.
    pub struct Consul {
        pub url: String = String::new(),
        pub key: String = String::new(),
        pub ttl: GoDuration = seconds(10),
        pub lock_delay: GoDuration = seconds(1),
    }
}

section! {
    /// The backup service.
    pub struct Backup {
        pub r#type: String = String::new(),
        pub path: String = String::new(),
        pub url: String = "https://litefs.fly.io".to_string(),
        pub cluster: String = String::new(),
        pub auth_token: String = String::new(),
    }
}

section! {
    /// The daemon's own log, on standard error.
    pub struct Log {
        pub format: LogFormat = LogFormat::Text,
        pub timestamp: bool = false,
        pub debug: bool = false,
    }
}

section! {
    /// The rolling file with a line per operation.
    pub struct Tracing {
        pub enabled: bool = true,
        pub path: String = String::new(),
        /// Megabytes per file.
        pub max_size: u64 = 64,
        pub max_count: u64 = 8,
        pub compress: bool = true,
    }
}
