//! `litefs mount` and its Consul: one that is not there, and one over TLS. Needs root and /dev/fuse.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

const PATIENCE: Duration = Duration::from_secs(20);
const TOKEN: &str = "t0ken";

/// A node, and what it logs.
struct Node {
    child: Child,
    lines: Receiver<String>,
    dir: tempfile::TempDir,
}

impl Node {
    /// `trusted`: a file of certificates instead of those of the system.
    fn start(url: &str, trusted: Option<&Path>) -> Node {
        let dir = tempfile::tempdir().unwrap();
        configure(dir.path(), url);
        let mut command = Command::new(env!("CARGO_BIN_EXE_litefs"));
        command
            .args(["mount", "-config"])
            .arg(dir.path().join("litefs.yml"));
        if let Some(trusted) = trusted {
            command.env("SSL_CERT_FILE", trusted).env_remove("SSL_CERT_DIR");
        }
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = hear(child.stderr.take().unwrap());
        Node { child, lines, dir }
    }

    fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let path = self.mount();
        mounts
            .lines()
            .any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == path))
    }

    /// The next line of the log that has these words.
    #[track_caller]
    fn line(&self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|error| panic!("no line with \"{words}\": {error}"));
            assert!(!line.contains(TOKEN), "{line}");
            if line.contains(words) {
                return line;
            }
        }
    }

    /// Waits for the end; exit code and the rest of the log.
    fn end(mut self) -> (Option<i32>, String) {
        let rest: Vec<String> = self.lines.iter().collect();
        let code = self.child.wait().unwrap().code();
        assert!(!self.is_mounted());
        (code, rest.join("\n"))
    }

    /// Has the node go on with this URL.
    fn reload(&self, url: &str) {
        configure(self.dir.path(), url);
        self.signal(Signal::SIGHUP);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    fn stop(self) {
        self.signal(Signal::SIGTERM);
        let (code, log) = self.end();
        assert_eq!(code, Some(0), "{log}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = nix::mount::umount2(&self.mount(), nix::mount::MntFlags::MNT_DETACH);
    }
}

fn configure(dir: &Path, url: &str) {
    let root = dir.display();
    let text = format!(
        "data: {{dir: {root}/data}}\nfuse: {{dir: {root}/mnt}}\nhttp: {{addr: '127.0.0.1:0'}}\n\
         lease: {{type: consul, candidate: false, hostname: one, reconnect-delay: 50ms, consul: {{url: '{url}', key: primary}}}}\n"
    );
    std::fs::write(dir.join("litefs.yml"), text).unwrap();
}

fn hear(stderr: ChildStderr) -> Receiver<String> {
    let (told, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if told.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Where nobody listens, or not any more: free a moment ago, and nobody else is given it so soon.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A Consul without a single key that takes every write, for as long as the test runs.
fn serve(listener: TcpListener, tls: Option<ServerConfig>) {
    let tls = tls.map(Arc::new);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let tls = tls.clone();
            std::thread::spawn(move || match tls {
                None => answer(stream),
                Some(tls) => answer(StreamOwned::new(ServerConnection::new(tls).unwrap(), stream)),
            });
        }
    });
}

fn answer(stream: impl Read + Write) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut head, mut body) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(length) = line.strip_prefix("content-length: ") {
                body = length.trim().parse().ok()?;
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line);
        }
        stream.read_exact(&mut vec![0; body]).ok()?;
        let (status, text) = match head.starts_with("PUT ") {
            true => ("200 OK", "true"),
            false => ("404 Not Found", ""),
        };
        let length = text.len();
        let answer =
            format!("HTTP/1.1 {status}\r\nX-Consul-Index: 1\r\nContent-Length: {length}\r\n\r\n{text}");
        stream.get_mut().write_all(answer.as_bytes()).ok()?;
        stream.get_mut().flush().ok()?;
    }
}

/// A certificate for this machine, and the file of the authority that has signed it.
fn certify(dir: &Path, name: &str) -> (ServerConfig, PathBuf) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let file = dir.join(name);
    std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
    let authority = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["127.0.0.1".to_string()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap().der().clone();
    let provider = rustls::crypto::ring::default_provider();
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        );
    (config.unwrap(), file)
}

#[test]
fn a_shared_consul_that_cannot_be_reached_ends_the_start() {
    let address = free_address();
    let (code, log) = Node::start(&format!("http://:{TOKEN}@{address}/app"), None).end();
    assert_eq!(code, Some(1), "{log}");
    let error = format!(
        "ERROR: cannot set up the lease: lease service http://{address}/app: register catalog node: cannot connect: Connection refused"
    );
    assert!(log.contains(&error), "{log}");
    assert!(log.contains("hint: check that the service runs"), "{log}");
    assert!(!log.contains(TOKEN), "{log}");
}

#[test]
fn a_consul_that_cannot_be_reached_is_asked_again_without_a_line_each_time() {
    let address = free_address();
    let node = Node::start(&format!("http://:{TOKEN}@{address}"), None);
    let first = node.line("cannot take part in the cluster");
    assert!(
        first.contains(&format!("lease service http://{address}")),
        "{first}"
    );
    assert!(
        first.contains("Connection refused") && first.contains("hint="),
        "{first}"
    );
    // Nothing about it in between: the first line that there is has what was left out.
    let second = node.line("cannot take part in the cluster");
    let unlogged = second.split_once("unlogged=").map(|(_, count)| count.trim());
    assert!(
        unlogged.is_some_and(|count| count.parse::<u32>().unwrap() > 5),
        "{second}"
    );
    serve(TcpListener::bind(address).unwrap(), None);
    let over = node.line("taking part in the cluster again");
    assert!(over.contains("attempts="), "{over}");
    node.stop();
}

#[test]
fn the_environment_names_the_certificates_to_trust() {
    let dir = tempfile::tempdir().unwrap();
    let (server, trusted) = certify(dir.path(), "trusted.pem");
    let (_, other) = certify(dir.path(), "other.pem");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://:{TOKEN}@{}/app", listener.local_addr().unwrap());
    serve(listener, Some(server));

    let node = Node::start(&url, Some(&trusted));
    node.line("waiting to connect to cluster");
    assert!(node.is_mounted());
    node.stop();

    let (code, log) = Node::start(&url, Some(&other)).end();
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains("/app: register catalog node: TLS: nobody who is trusted has signed the certificate"),
        "{log}"
    );
    assert!(
        log.contains("hint: add the certificate of the issuer") && log.contains("SSL_CERT_FILE"),
        "{log}"
    );

    let (code, log) = Node::start(&url, Some(&dir.path().join("missing.pem"))).end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("no certificates to trust for https://"), "{log}");
}

#[test]
fn a_reload_does_not_end_the_mount_because_of_consul() {
    let missing = Path::new("/nowhere/missing.pem");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    serve(listener, None);
    let node = Node::start(&format!("http://{address}/app"), Some(missing));
    node.line("waiting to connect to cluster");
    let open = std::fs::File::open(node.mount()).unwrap();

    // One that can never take part changes nothing.
    node.reload(&format!("https://{address}/app"));
    let error = node.line("ERROR: ");
    assert!(error.contains("no certificates to trust for https://"), "{error}");
    node.line("the running one goes on");
    open.metadata().unwrap();

    // One whose Consul is not there at the moment takes over all the same.
    let nobody = free_address();
    node.reload(&format!("http://{nobody}/app"));
    let trouble = node.line("cannot take part in the cluster");
    assert!(trouble.contains(&format!("http://{nobody}/app")), "{trouble}");
    open.metadata().unwrap();
    assert!(node.is_mounted());
    drop(open);
    node.stop();
}
