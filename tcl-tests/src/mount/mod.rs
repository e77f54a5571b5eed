//! The mount under test: a process that serves a directory until it is told to end.
//!
//! Invariants: a [`Mount`] in hand was seen in the mount table; dropping it ends the process and
//! detaches the directory, whatever state it is in. The runner's threads never touch the mounted directory
//! themselves (see [`crate::child`]).

mod litefs;
mod table;

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use litefs::{Litefs, Mode};

use crate::child::die_with_parent;
use crate::execution::errand;

/// What is mounted.
#[derive(Debug, Clone)]
pub enum Spec {
    /// The product.
    Litefs(Litefs),
    /// Any program that serves `{mountpoint}` from the directory `{source}` and stays in the foreground: a control
    /// (a plain loopback file system has to pass everything) and a canary (a bad one has to fail).
    Command(String),
}

/// A running mount.
#[derive(Debug)]
pub struct Mount {
    child: Child,
    directory: PathBuf,
    log: PathBuf,
    /// The admin API of a litefs node.
    api: Option<String>,
    replica: bool,
    ended: Option<ExitStatus>,
}

/// What the process behind a mount prints, in the mount's directory.
pub const MOUNT_LOG: &str = "mount.log";

const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(60);

impl Mount {
    /// Starts the process below `home`, a directory of its own, and waits until the mount is there.
    pub fn start(spec: &Spec, home: &Path) -> Result<Mount> {
        let directory = home.join("mnt");
        let source = home.join("data");
        for path in [&directory, &source] {
            std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        }
        let (mut command, api) = match spec {
            Spec::Litefs(litefs) => litefs.command(home, &source, &directory)?,
            Spec::Command(words) => (from_words(words, &source, &directory)?, None),
        };
        let log = home.join(MOUNT_LOG);
        let out = File::options().create(true).append(true).open(&log);
        let out = out.with_context(|| format!("open {}", log.display()))?;
        let errors = out
            .try_clone()
            .with_context(|| format!("share {}", log.display()))?;
        let program = command.get_program().to_string_lossy().into_owned();
        // A group of its own: an interrupt from the terminal must not end the mount under a running test.
        command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(errors)
            .process_group(0);
        die_with_parent(&mut command, Signal::SIGTERM);
        let child = command.spawn();
        let child = child.with_context(|| format!("start {program}"))?;
        let replica = matches!(spec, Spec::Litefs(Litefs { primary: Some(_), .. }));
        let mut mount = Mount {
            child,
            directory,
            log,
            api,
            replica,
            ended: None,
        };
        mount.wait_until_there()?;
        Ok(mount)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Base URL of the node's admin API; `None` for a mount that is not litefs.
    pub fn api(&self) -> Option<&str> {
        self.api.as_deref()
    }

    /// How the kernel edge works: what `auto` came to. `None` for a mount that is not litefs.
    pub fn mode(&self) -> Result<Option<String>> {
        self.api().map(litefs::mode).transpose()
    }

    /// Whether the process lives and the mount answers. `Err` says what is wrong.
    pub fn check(&mut self) -> Result<(), String> {
        if let Some(status) = self.exited() {
            return Err(format!(
                "the process behind the mount ended: {status}{}",
                self.last_words()
            ));
        }
        // It detaches first and ends then.
        if !table::is_mounted(&self.directory) {
            return Err(format!("nothing is mounted any more{}", self.last_words()));
        }
        errand(
            Command::new("stat").arg("--").arg(&self.directory),
            "the mount does not answer: stat",
        )
    }

    /// Ends the process in an orderly way. `Err` is a finding.
    pub fn stop(mut self) -> Result<(), String> {
        if let Some(status) = self.exited() {
            return Err(format!(
                "the process behind the mount had ended: {status}{}",
                self.last_words()
            ));
        }
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + STOP;
        match self.wait_exit(deadline) {
            Some(status) if status.success() || self.api.is_none() => {}
            Some(status) => {
                return Err(format!(
                    "the mount ended with {status} when stopped{}",
                    self.last_words()
                ));
            }
            None => return Err(format!("the mount did not stop within {} s", STOP.as_secs())),
        }
        if table::is_mounted(&self.directory) {
            return Err("the process behind the mount ended and left the directory mounted".to_string());
        }
        Ok(())
    }

    fn wait_until_there(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        let mut changes = table::Changes::open()?;
        while !table::is_mounted(&self.directory) {
            if let Some(status) = self.exited() {
                bail!(
                    "the mount ended before it was there: {status}{}",
                    self.last_words()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "no mount at {} after {} s{}",
                    self.directory.display(),
                    START.as_secs(),
                    self.last_words()
                );
            }
            changes.wait(Duration::from_millis(100));
        }
        match self.api.clone() {
            Some(api) => litefs::wait_until_ready(self, &api, deadline),
            None => Ok(()),
        }
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    fn wait_exit(&mut self, deadline: Instant) -> Option<ExitStatus> {
        while Instant::now() < deadline {
            if let Some(status) = self.exited() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("the kernel's process ids fit"));
        // Only while the child is not reaped, so the id is its own; ESRCH cannot happen.
        let _ = kill(pid, signal);
    }

    fn last_words(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(1500)..])
            .trim()
            .to_string();
        if tail.is_empty() {
            String::new()
        } else {
            format!("; its last words: {tail}")
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.exited().is_none() {
            self.signal(Signal::SIGTERM);
            if self.wait_exit(Instant::now() + Duration::from_secs(5)).is_none() {
                self.signal(Signal::SIGKILL);
                // Ends requests that wait for the dead process; else it could not be reaped either.
                let _ = umount2(&self.directory, MntFlags::MNT_FORCE);
                let _ = self.wait_exit(Instant::now() + Duration::from_secs(10));
            }
        }
        if table::is_mounted(&self.directory) {
            detach(&self.directory);
        }
    }
}

/// Detaches all mounts below a directory that nobody uses any more.
pub fn detach_below(directory: &Path) {
    for point in table::mounted_below(directory).iter().rev() {
        detach(point);
    }
}

/// Ends the requests that wait for the process behind the mount, then takes it out of the name space.
fn detach(point: &Path) {
    let _ = umount2(point, MntFlags::MNT_FORCE);
    let _ = umount2(point, MntFlags::MNT_DETACH);
    let _ = Command::new("fusermount3")
        .arg("-uz")
        .arg(point)
        .stderr(Stdio::null())
        .status();
}

fn from_words(words: &str, source: &Path, directory: &Path) -> Result<Command> {
    let place = |word: String| {
        word.replace("{source}", &source.to_string_lossy())
            .replace("{mountpoint}", &directory.to_string_lossy())
    };
    let mut words = shell_words::split(words)
        .context("--mount-command")?
        .into_iter()
        .map(place);
    let program = words.next().context("--mount-command is empty")?;
    let mut command = Command::new(program);
    command.args(words);
    Ok(command)
}
