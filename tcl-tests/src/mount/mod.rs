//! The mount under test: a process that serves a directory until it is told to end.
//!
//! Invariants: a [`Mount`] in hand was seen in the mount table; dropping it ends the process, what that has
//! started for itself ([`processes`]), and detaches the directory, whatever state it is in. The runner's threads never touch the mounted
//! directory themselves (see [`crate::child`]).

mod litefs;
mod processes;
mod reload;
mod service;
mod table;

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

pub use litefs::{Litefs, Mode};
pub use reload::Reloads;

use crate::child::die_with_parent;
use crate::execution::errand;
use processes::{DATA, Whose};
use reload::Reloader;
use service::{Node, Service, Shared};

/// What is mounted.
#[derive(Debug, Clone)]
pub enum Spec {
    /// The product.
    Litefs(Litefs),
    /// Any program that serves `{mountpoint}` from the directory `{source}` and stays in the foreground: a control
    /// (a plain loopback file system has to pass everything) and a canary (a bad one has to fail).
    Command(String),
}

impl Spec {
    /// The same, with a daemon that is never replaced.
    pub fn steady(&self) -> Spec {
        match self {
            Spec::Litefs(litefs) => Spec::Litefs(Litefs {
                reloads: None,
                ..litefs.clone()
            }),
            other @ Spec::Command(_) => other.clone(),
        }
    }

    /// How often daemons are replaced, if they are.
    pub fn reloads(&self) -> Option<&Reloads> {
        match self {
            Spec::Litefs(litefs) => litefs.reloads.as_ref(),
            Spec::Command(_) => None,
        }
    }
}

/// A running mount.
#[derive(Debug)]
pub struct Mount {
    service: Shared,
    /// Replaces the daemon while the mount is in use.
    reloader: Option<Reloader>,
    home: PathBuf,
    directory: PathBuf,
    /// The admin API of a litefs node.
    api: Option<String>,
}

/// As long as it lives, no daemon is replaced.
pub struct Hold<'a>(#[expect(dead_code, reason = "held for its end")] MutexGuard<'a, Service>);

/// What the process behind a mount prints, in the mount's directory.
pub const MOUNT_LOG: &str = "mount.log";

const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(60);
/// How long what holds the mount may outlive the launcher, where no client has files open.
const COMPANIONS: Duration = Duration::from_secs(10);
/// How long a killed process may take to disappear.
const DEATH: Duration = Duration::from_secs(10);

impl Mount {
    /// Starts the process below `home`, a directory of its own, and waits until the mount is there.
    pub fn start(spec: &Spec, home: &Path) -> Result<Mount> {
        let directory = home.join("mnt");
        let source = home.join(DATA);
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
        let mut mount = Mount {
            service: Shared::new(child, log),
            reloader: None,
            home: home.to_path_buf(),
            directory,
            api,
        };
        let deadline = Instant::now() + START;
        mount.wait_until_there(deadline)?;
        if let Spec::Litefs(litefs) = spec {
            mount.wait_until_ready(litefs, &source, deadline)?;
        }
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

    /// Keeps the daemon from being replaced, for what is no client of the mount. Waits for a replacement under way.
    pub fn hold(&self) -> Hold<'_> {
        Hold(self.service.lock())
    }

    /// Whether the process lives and the mount answers. `Err` says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        self.service.lock().check()?;
        // It detaches first and ends then.
        if !table::is_mounted(&self.directory) {
            let words = self.service.lock().last_words();
            return Err(format!("nothing is mounted any more{words}"));
        }
        errand(
            Command::new("stat").arg("--").arg(&self.directory),
            "the mount does not answer: stat",
        )
    }

    /// Ends the process in an orderly way. `Err` is a finding.
    pub fn stop(mut self) -> Result<(), String> {
        self.reloader = None;
        let mut service = self.service.lock();
        if let Some(status) = service.exited() {
            return Err(format!(
                "the process behind the mount had ended: {status}{}",
                service.last_words()
            ));
        }
        service.signal(Signal::SIGTERM);
        match service.wait_exit(STOP) {
            Some(status) if status.success() || self.api.is_none() => {}
            Some(status) => {
                return Err(format!(
                    "the mount ended with {status} when stopped{}",
                    service.last_words()
                ));
            }
            None => return Err(format!("the mount did not stop within {} s", STOP.as_secs())),
        }
        let left = processes::wait_until_none(Whose::Node(&self.home), COMPANIONS);
        if !left.is_empty() {
            let left: Vec<String> = left.iter().map(ToString::to_string).collect();
            return Err(format!(
                "{} s after the mount was stopped there are still: {}{}",
                COMPANIONS.as_secs(),
                left.join("; "),
                service.last_words()
            ));
        }
        if table::is_mounted(&self.directory) {
            return Err("the process behind the mount ended and left the directory mounted".to_string());
        }
        match service.deaths() {
            deaths if deaths.is_empty() || self.api.is_none() => Ok(()),
            deaths => Err(format!("the daemon did not live on: {}", deaths.join("; "))),
        }
    }

    fn wait_until_there(&self, deadline: Instant) -> Result<()> {
        let mut service = self.service.lock();
        let mut changes = table::Changes::open()?;
        while !table::is_mounted(&self.directory) {
            if let Some(status) = service.exited() {
                bail!(
                    "the mount ended before it was there: {status}{}",
                    service.last_words()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "no mount at {} after {} s{}",
                    self.directory.display(),
                    START.as_secs(),
                    service.last_words()
                );
            }
            changes.wait(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Waits until the node can be used, and has its daemon replaced from then on if that is wanted.
    fn wait_until_ready(&mut self, litefs: &Litefs, data: &Path, deadline: Instant) -> Result<()> {
        let (api, role) = (self.api.clone().context("the URL of the API")?, litefs.role());
        let mut service = self.service.lock();
        while !litefs::is_ready(&api, role) {
            if let Some(status) = service.exited() {
                bail!("the node ended while starting: {status}{}", service.last_words());
            }
            if Instant::now() > deadline {
                bail!("the node was not ready in time{}", service.last_words());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        service.node = Some(Node {
            data: data.to_path_buf(),
            daemon: processes::serving(data).context("the data directory does not tell who serves it")?,
            fault: None,
        });
        drop(service);
        let reloads = litefs.reloads.clone();
        self.reloader = reloads.map(|reloads| Reloader::start(reloads, self.service.clone(), api, role));
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.reloader = None;
        let mut service = self.service.lock();
        if service.exited().is_none() {
            service.signal(Signal::SIGTERM);
            if service.wait_exit(Duration::from_secs(5)).is_none() {
                service.signal(Signal::SIGKILL);
                // Ends requests that wait for the dead process; else it could not be reaped either.
                let _ = umount2(&self.directory, MntFlags::MNT_FORCE);
                let _ = service.wait_exit(DEATH);
            }
        }
        // What outlives a launcher: a daemon whose clients have files open, and what waits for the next daemon.
        processes::kill_all(Whose::Node(&self.home), DEATH);
        if table::is_mounted(&self.directory) {
            detach(&self.directory);
        }
    }
}

/// Ends what serves mounts below a directory that nobody uses any more, and detaches them.
pub fn end_below(directory: &Path) {
    processes::kill_all(Whose::Below(directory), DEATH);
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
