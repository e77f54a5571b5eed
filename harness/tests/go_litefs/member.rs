//! One daemon of a mixed cluster, whichever LiteFS it is: both read the same `litefs.yml` and answer the same requests.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Method, StatusCode};
use rusqlite::Connection;
use serde_json::Value;

use crate::support::{PATIENCE, eventually};

pub(crate) struct Member {
    pub(crate) name: &'static str,
    binary: PathBuf,
    directory: PathBuf,
    address: SocketAddr,
    child: Option<Child>,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl Member {
    pub(crate) fn start(name: &'static str, binary: PathBuf, directory: &Path, lease: SocketAddr) -> Member {
        let directory = directory.join(name);
        for part in ["mnt", "data"] {
            std::fs::create_dir_all(directory.join(part)).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE);
        let mut member = Member {
            name,
            binary,
            directory,
            address: TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
            child: None,
            client: client.build().unwrap(),
            runtime: runtime.unwrap(),
        };
        let (dir, address) = (member.directory.display(), member.address);
        let config = format!(
            "fuse: {{ dir: \"{dir}/mnt\", allow-other: true }}\ndata: {{ dir: \"{dir}/data\" }}\nhttp: {{ addr: \"{address}\" }}\n\
             lease:\n  type: consul\n  hostname: {name}\n  advertise-url: \"http://{address}\"\n  candidate: true\n  \
             consul: {{ url: \"http://{lease}\", key: litefs/mixed, ttl: 10s, lock-delay: 100ms }}\n"
        );
        std::fs::write(member.directory.join("litefs.yml"), config).unwrap();
        member.restart();
        member
    }

    /// Starts the daemon on the data it has, and waits until it is in the cluster.
    pub(crate) fn restart(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .unwrap();
        let child = Command::new(&self.binary)
            .args(["mount", "-config"])
            .arg(self.directory.join("litefs.yml"))
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log)
            .spawn();
        self.child = Some(child.unwrap());
        eventually("the daemon knows a primary", || self.primary().is_some());
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // The child is not reaped yet, so its process ID cannot belong to anybody else.
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{} does not end", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.join("mnt").join(file)
    }

    /// Where this LiteFS sets aside what only it has; the original forgets it.
    pub(crate) fn archive(&self, database: &str) -> PathBuf {
        self.directory.join("data/archive").join(database)
    }

    /// A connection as any client has one.
    pub(crate) fn open(&self, database: &str) -> Connection {
        let connection = Connection::open(self.path(database)).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        connection
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn request(
        &self,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, Vec<u8>), reqwest::Error> {
        let request = self.client.request(method, format!("{}{path}", self.url()));
        self.runtime.block_on(async {
            let answer = request.send().await?;
            Ok((answer.status(), answer.bytes().await?.to_vec()))
        })
    }

    /// What a GET request gives that succeeds.
    pub(crate) fn get(&self, path: &str) -> Vec<u8> {
        let (status, body) = self.request(Method::GET, path).unwrap();
        let text = String::from_utf8_lossy(&body);
        assert!(status.is_success(), "{}: GET {path}: {status} {text}", self.name);
        body
    }

    pub(crate) fn info(&self) -> Option<Value> {
        let (_, body) = self.request(Method::GET, "/info").ok()?;
        serde_json::from_slice(&body).ok()
    }

    /// Whom this member takes for the primary.
    pub(crate) fn primary(&self) -> Option<String> {
        let info = self.info()?;
        info["primary"]["hostname"]
            .as_str()
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
    }

    pub(crate) fn is_primary(&self) -> bool {
        self.info()
            .is_some_and(|info| info["isPrimary"] == Value::Bool(true))
    }

    /// `TXID/checksum`, if the database is known.
    pub(crate) fn position(&self, database: &str) -> Option<String> {
        let position = std::fs::read_to_string(self.path(&format!("{database}-pos"))).ok()?;
        Some(position.trim().to_owned())
    }

    /// Lines that the member sends about what happens, in the time that `meanwhile` takes and until `last` is among them.
    pub(crate) fn events(&self, meanwhile: impl FnOnce(), last: impl Fn(&Value) -> bool) -> Vec<Value> {
        let request = self.client.get(format!("{}/events", self.url()));
        self.runtime.block_on(async {
            let mut answer = request.send().await.unwrap();
            let (mut text, mut meanwhile) = (Vec::new(), Some(meanwhile));
            loop {
                let part = answer.chunk().await.unwrap().expect("the member goes on sending");
                text.extend_from_slice(&part);
                let lines = text.split_inclusive(|byte| *byte == b'\n');
                let lines = lines.filter(|line| line.ends_with(b"\n"));
                let lines: Vec<Value> = lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
                if lines.iter().any(&last) {
                    return lines;
                }
                // Now there is the first line, so what follows is not missed.
                if let Some(meanwhile) = meanwhile.take() {
                    meanwhile();
                }
            }
        })
    }

    /// Runs this LiteFS's command line.
    pub(crate) fn run(&self, arguments: &[&str]) {
        let Output { status, stderr, .. } = Command::new(&self.binary).args(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&stderr);
        assert!(status.success(), "{} {arguments:?}: {errors}", self.name);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = nix::mount::umount2(&self.directory.join("mnt"), nix::mount::MntFlags::MNT_DETACH);
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            eprintln!("---- log of {}\n{log}", self.name);
        }
    }
}
