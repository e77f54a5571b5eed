//! One daemon with a static lease, without a cluster: for benchmarks and for tests of a single mount.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::processes::{self, Companion};
use crate::{Error, Result};

/// How long a daemon may take to come up, or to go away.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(2);
/// How long the API may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What a daemon is started with.
#[derive(Debug, Clone)]
pub struct SoloOptions {
    /// The `litefs` binary.
    pub binary: PathBuf,
    /// Holds data directory, mount point, configuration and log.
    pub dir: PathBuf,
    /// `fuse.passthrough`: `auto`, `on` or `off`.
    pub passthrough: &'static str,
    /// `data.durability`.
    pub durability: &'static str,
}

/// A running daemon. Killed with its companions and unmounted when dropped.
#[derive(Debug)]
pub struct Solo {
    options: SoloOptions,
    child: Option<Child>,
    port: u16,
}

impl Solo {
    /// Starts a daemon and waits until it is the primary and its mount can be used.
    pub fn start(mut options: SoloOptions) -> Result<Solo> {
        // Processes are found by paths that the kernel tells, which are free of symbolic links.
        let given = options.dir;
        std::fs::create_dir_all(&given).map_err(Error::file("mkdir", &given))?;
        options.dir = given.canonicalize().map_err(Error::file("resolving", &given))?;
        for part in ["data", "mnt"] {
            let path = options.dir.join(part);
            std::fs::create_dir_all(&path).map_err(Error::file("mkdir", &path))?;
        }
        let mut solo = Solo {
            options,
            child: None,
            port: 0,
        };
        solo.restart()?;
        Ok(solo)
    }

    /// Starts the daemon again on the same data. Returns how long it took until the mount could be used.
    pub fn restart(&mut self) -> Result<Duration> {
        let dir = &self.options.dir;
        self.port = free_port()?;
        let config = dir.join("litefs.yml");
        std::fs::write(&config, self.config()).map_err(Error::file("write", &config))?;
        let log_path = dir.join("log");
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(Error::file("open", &log_path))?;
        let errors = log.try_clone().map_err(Error::file("open", &log_path))?;
        let started = Instant::now();
        let child = Command::new(&self.options.binary)
            .args(["mount", "-config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(Error::file("start", &self.options.binary))?;
        self.child = Some(child);
        self.await_primary()?;
        Ok(started.elapsed())
    }

    /// Waits until the daemon is the primary and its mount can be used.
    pub fn await_primary(&mut self) -> Result<()> {
        self.wait_until("primary", |solo| {
            solo.get("/info").is_ok_and(|body| {
                serde_json::from_str::<Value>(&body).is_ok_and(|info| info["isPrimary"] == Value::Bool(true))
            })
        })
    }

    /// Waits until another daemon than `before` serves.
    pub fn await_another(&mut self, before: Option<u32>) -> Result<()> {
        self.wait_until("another process than before", |solo| solo.daemon_pid() != before)?;
        self.await_primary()
    }

    fn config(&self) -> String {
        let dir = self.options.dir.display();
        let SoloOptions {
            passthrough,
            durability,
            ..
        } = &self.options;
        let port = self.port;
        format!(
            "fuse:\n  dir: {dir}/mnt\n  allow-other: true\n  passthrough: \"{passthrough}\"\ndata:\n  dir: {dir}/data\n  \
             durability: {durability}\nhttp:\n  addr: 127.0.0.1:{port}\nlease:\n  type: static\n  candidate: true\n  \
             hostname: solo\n  advertise-url: http://127.0.0.1:{port}\n"
        )
    }

    /// Where the databases are.
    pub fn mount(&self) -> PathBuf {
        self.options.dir.join("mnt")
    }

    /// Where the daemon keeps what it stores.
    pub fn data(&self) -> PathBuf {
        self.options.dir.join("data")
    }

    /// Process ID of the process that was started.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Process ID of the daemon: that process, or its child.
    pub fn daemon_pid(&self) -> Option<u32> {
        let launcher = self.pid()?;
        let below = processes::daemons_of(launcher.cast_signed());
        Some(below.first().map_or(launcher, |pid| pid.cast_unsigned()))
    }

    /// Base URL of the API.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A GET request to the API.
    pub fn get(&self, path: &str) -> Result<String> {
        get(&format!("{}{path}", self.url()))
    }

    /// SIGTERM, and wait.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// SIGKILL, and wait.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)
    }

    /// SIGKILL of the daemon below the process that was started, which starts another. False where there is none below it.
    pub fn kill_daemon(&self) -> Result<bool> {
        let below = self
            .pid()
            .map_or_else(Vec::new, |pid| processes::daemons_of(pid.cast_signed()));
        self.must_have_ended(&processes::end(&below))?;
        Ok(!below.is_empty())
    }

    /// SIGKILL of the companions of that kind; how many there were.
    pub fn kill_companions(&self, kind: Companion) -> Result<usize> {
        let found = processes::companions(&self.data(), kind);
        self.must_have_ended(&processes::end(&found))?;
        Ok(found.len())
    }

    /// SIGKILL of everything at once, as the end of a container does.
    pub fn kill_all(&mut self) -> Result<()> {
        let mut victims = processes::left_behind(&self.data());
        if let Some(pid) = self.pid() {
            victims.extend(processes::descendants(pid.cast_signed()));
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        let left = processes::end(&victims);
        self.kill()?;
        processes::end_left_behind(&self.data());
        self.must_have_ended(&left)
    }

    /// SIGHUP: a fresh daemon takes over.
    pub fn reload(&self) -> Result<()> {
        let Some(pid) = self.pid() else {
            return Err(Error::Invalid("the daemon does not run".into()));
        };
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGHUP).map_err(Error::errno("sending SIGHUP"))
    }

    fn must_have_ended(&self, left: &[i32]) -> Result<()> {
        match left {
            [] => Ok(()),
            left => Err(Error::Invalid(format!(
                "processes {left:?} of {} were killed but do not end",
                self.options.dir.display()
            ))),
        }
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        // The child is not reaped yet, so its process ID cannot belong to anybody else.
        let _ = kill(Pid::from_raw(child.id() as i32), signal);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if child
                .try_wait()
                .map_err(Error::file("wait for", &self.options.binary))?
                .is_some()
            {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        let _ = child.kill();
        let _ = child.wait();
        Err(Error::Timeout {
            what: format!("the daemon ends after {signal}"),
            waited: PATIENCE,
            seen: format!("it runs; its log is {}", self.log().display()),
        })
    }

    /// The daemon's output.
    pub fn log(&self) -> PathBuf {
        self.options.dir.join("log")
    }

    fn wait_until(&mut self, what: &str, condition: impl Fn(&Solo) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            let ended = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                return Err(Error::Timeout {
                    what: format!("the daemon is {what}"),
                    waited: PATIENCE,
                    seen: tail.join(" | "),
                });
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Solo {
    fn drop(&mut self) {
        let _ = self.kill();
        // They would hold the mount, and files of a directory that is about to be removed.
        processes::end_left_behind(&self.data());
        let _ = nix::mount::umount2(&self.mount(), nix::mount::MntFlags::MNT_DETACH);
    }
}

fn get(url: &str) -> Result<String> {
    let failed = |error: reqwest::Error| Error::Invalid(format!("GET {url}: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::system("start a runtime"))?;
    runtime.block_on(async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(ANSWER)
            .build()
            .map_err(failed)?;
        let response = client
            .get(url)
            .send()
            .await
            .and_then(reqwest::Response::error_for_status);
        response.map_err(failed)?.text().await.map_err(failed)
    })
}

fn free_port() -> Result<u16> {
    let path = Path::new("127.0.0.1");
    let listener = TcpListener::bind("127.0.0.1:0").map_err(Error::file("bind", path))?;
    Ok(listener.local_addr().map_err(Error::file("bind", path))?.port())
}
