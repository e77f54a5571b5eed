//! Starts the shipped `litefs` binary as a static primary. Knows only its command line, `litefs.yml` and the
//! HTTP API.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::processes::CONFIG;
use super::reload::Reloads;

/// How the kernel edge of the daemon works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// As the daemon chooses on this machine. The others are forced, so that a run tests what it says.
    Auto,
    /// The kernel serves `-wal` and `-shm` itself.
    Passthrough,
    /// The daemon sees every write.
    Intercepted,
}

impl Mode {
    /// The value of `fuse.passthrough`.
    fn setting(self) -> &'static str {
        match self {
            Mode::Auto => "auto",
            Mode::Passthrough => "on",
            Mode::Intercepted => "off",
        }
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Litefs {
    pub binary: PathBuf,
    pub mode: Mode,
    /// The primary's API, when this node is a replica.
    pub primary: Option<String>,
    /// Others than the daemon's user run the tests.
    pub allow_other: bool,
    /// Further lines of litefs.yml, verbatim.
    pub extra_config: String,
    /// How often its daemon is replaced; never without.
    pub reloads: Option<Reloads>,
}

/// What a node is in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Primary,
    Replica,
}

impl Litefs {
    pub(super) fn role(&self) -> Role {
        match &self.primary {
            Some(_) => Role::Replica,
            None => Role::Primary,
        }
    }

    /// The command, with its configuration written below `home`, and the URL of its API.
    pub(super) fn command(
        &self,
        home: &Path,
        data: &Path,
        mountpoint: &Path,
    ) -> Result<(Command, Option<String>)> {
        let address = free_address()?;
        let api = format!("http://{address}");
        let file = home.join(CONFIG);
        let text = self.config(data, mountpoint, &address.to_string(), &api);
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        let mut command = Command::new(&self.binary);
        command.arg("mount").arg("-config").arg(&file).current_dir(home);
        Ok((command, Some(api)))
    }

    fn config(&self, data: &Path, mountpoint: &Path, address: &str, api: &str) -> String {
        let (candidate, url) = match &self.primary {
            Some(primary) => (false, primary.as_str()),
            None => (true, api),
        };
        // A record that is gone before a replica has it would be the run's fault, so the log keeps everything.
        format!(
            "data:\n  dir: {data:?}\n  retention: 24h\n\
             fuse:\n  dir: {mountpoint:?}\n  allow-other: {allow_other}\n  passthrough: \"{passthrough}\"\n\
             http:\n  addr: {address:?}\n\
             lease:\n  type: static\n  hostname: primary\n  advertise-url: {url:?}\n  candidate: {candidate}\n{extra}",
            allow_other = self.allow_other,
            passthrough = self.mode.setting(),
            extra = self.extra_config,
        )
    }
}

/// A loopback port that nobody uses at the moment.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    listener.local_addr().context("find a free port")
}

/// Whether a primary takes writes, which it refuses at first, and whether a replica answers: what that must have is checked file by
/// file.
pub(super) fn is_ready(api: &str, role: Role) -> bool {
    get(api, "/info").is_ok_and(|info| match role {
        Role::Primary => is_true(&info, "isPrimary"),
        Role::Replica => info.contains("\"isPrimary\""),
    })
}

/// How the kernel edge of a node works.
pub(super) fn mode(api: &str) -> Result<String> {
    let status: serde_json::Value =
        serde_json::from_str(&get(api, "/status")?).context("decode the node's status")?;
    let mode = status.get("fuseMode").and_then(|mode| mode.as_str());
    mode.filter(|mode| !mode.is_empty())
        .map(str::to_string)
        .context("the node does not tell how its mount works")
}

fn is_true(info: &str, key: &str) -> bool {
    let parsed: Option<serde_json::Value> = serde_json::from_str(info).ok();
    parsed.is_some_and(|info| info.get(key) == Some(&serde_json::Value::Bool(true)))
}

fn get(api: &str, path: &str) -> Result<String> {
    let address = api.strip_prefix("http://").context("the URL of the API")?;
    let address: SocketAddr = address.parse().context("the address of the API")?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).context("connect")?;
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .context("set time-out")?;
    // HTTP/1.0: the answer ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").context("send")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("receive")?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_string()),
        _ => bail!("unexpected answer: {}", answer.lines().next().unwrap_or_default()),
    }
}
