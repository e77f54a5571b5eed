//! `litefs mount` as the user starts it: starts the daemon, and starts it again at once when it dies.
//!
//! The launcher is a small process with one thread and nothing to lose; the daemon is its child and dies with it. Because the mount outlives
//! the daemon ([`crate::companion`]), a panic or an out-of-memory kill is a pause for clients and not an error. On SIGHUP the launcher has
//! another daemon prepare itself, from the program and the configuration as they are on disk by then, and lets it take the mount over from
//! the running one; one that cannot start changes nothing.
//!
//! [`Link`] is the daemon's end of the conversation.

mod link;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

pub use link::Link;
use link::{ToDaemon, ToLauncher};

use crate::companion::pair;

/// Name of the hidden subcommand that is the daemon.
pub const SUBCOMMAND: &str = "daemon";
/// A daemon that served so long did not die of something at its start.
const STEADY: Duration = Duration::from_secs(10);
/// First and longest pause before a daemon that keeps dying is started again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How long a daemon that makes room for another one may take.
const YIELD_PATIENCE: Duration = Duration::from_secs(5);
/// Exit code of a Rust program whose main thread panics.
const PANICKED: i32 = 101;

/// Runs until the daemon has ended. `args`: what follows `mount` on the command line.
pub fn run(args: Vec<OsString>) -> io::Result<ExitCode> {
    let program = std::env::current_exe()?;
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let mut launcher = Launcher {
        signals: SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
        program,
        args,
        current: None,
        next: None,
        restart_at: None,
        deaths: 0,
        has_served: false,
        stopping: false,
        reload_wanted: false,
    };
    launcher.current = Some(launcher.spawn()?);
    loop {
        if let Some(code) = launcher.turn()? {
            return Ok(code);
        }
    }
}

struct Launcher {
    signals: SignalFd,
    program: PathBuf,
    args: Vec<OsString>,
    /// The daemon whose turn it is; none while one that died is not started again yet.
    current: Option<Daemon>,
    /// The one that is to take over from it.
    next: Option<Daemon>,
    restart_at: Option<Instant>,
    /// In a row.
    deaths: u32,
    has_served: bool,
    stopping: bool,
    /// Asked for, and not begun yet.
    reload_wanted: bool,
}

struct Daemon {
    child: Child,
    link: OwnedFd,
    stage: Stage,
}

/// How far a daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Reads its configuration.
    Preparing,
    /// Waits for its turn.
    Ready,
    /// Has its turn, and takes the mount over or makes one.
    Starting,
    Serving {
        since: Instant,
    },
    /// Was told to make room for the next one.
    Yielding {
        since: Instant,
    },
}

impl Launcher {
    /// Waits for something and does what follows. The exit code, at the end.
    fn turn(&mut self) -> io::Result<Option<ExitCode>> {
        self.listen()?;
        if let Some(code) = self.obey_signals()? {
            return Ok(Some(code));
        }
        if let Some(code) = self.hear_daemons() {
            return Ok(Some(code));
        }
        if let Some(code) = self.collect()? {
            return Ok(Some(code));
        }
        self.begin_replacement();
        self.hurry();
        if self.restart_at.is_some_and(|at| Instant::now() >= at) {
            self.restart();
        }
        Ok(None)
    }

    fn listen(&self) -> io::Result<()> {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        for daemon in self.current.iter().chain(&self.next) {
            fds.push(PollFd::new(daemon.link.as_fd(), PollFlags::POLLIN));
        }
        let yielding = self.current.as_ref().and_then(|daemon| match daemon.stage {
            Stage::Yielding { since } => Some(since + YIELD_PATIENCE),
            Stage::Preparing | Stage::Ready | Stage::Starting | Stage::Serving { .. } => None,
        });
        let next = self.restart_at.into_iter().chain(yielding).min();
        let timeout = next.map_or(PollTimeout::NONE, |at| {
            let pause = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn obey_signals(&mut self) -> io::Result<Option<ExitCode>> {
        while let Some(info) = self.signals.read_signal()? {
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGTERM | Signal::SIGINT) => {
                    self.stopping = true;
                    self.restart_at = None;
                    if let Some(next) = self.next.take() {
                        next.end();
                    }
                    match &self.current {
                        Some(daemon) => daemon.signal(Signal::SIGTERM),
                        None => return Ok(Some(ExitCode::SUCCESS)),
                    }
                }
                Ok(Signal::SIGHUP) => self.reload_wanted = true,
                Ok(_) | Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Begins a reload that was asked for, unless the daemon is starting or being replaced already: then as soon as it serves. A stop is
    /// not put off for it.
    fn begin_replacement(&mut self) {
        let serving = self
            .current
            .as_ref()
            .is_some_and(|daemon| matches!(daemon.stage, Stage::Serving { .. }));
        if serving && self.next.is_none() && !self.stopping && std::mem::take(&mut self.reload_wanted) {
            match self.spawn() {
                Ok(next) => self.next = Some(next),
                Err(error) => {
                    complain!("litefs: cannot start another daemon ({error}); the running one goes on")
                }
            }
        }
    }

    /// In place of one that died. The mount waits for it, so that a machine that is short of something is asked again.
    fn restart(&mut self) {
        self.restart_at = match self.spawn() {
            Ok(daemon) => {
                self.current = Some(daemon);
                None
            }
            Err(error) => {
                complain!(
                    "litefs: cannot start a daemon, trying again in {:?}: {error}",
                    PAUSE.1
                );
                Some(Instant::now() + PAUSE.1)
            }
        };
    }

    fn hear_daemons(&mut self) -> Option<ExitCode> {
        while let Some(message) = self.current.as_mut().and_then(Daemon::hear) {
            match message {
                ToLauncher::Ready => {
                    if let Some(daemon) = &mut self.current {
                        daemon.give_turn();
                    }
                }
                ToLauncher::Serving => {
                    self.has_served = true;
                    if let Some(daemon) = &mut self.current {
                        daemon.stage = Stage::Serving {
                            since: Instant::now(),
                        };
                    }
                }
                // It goes on without us, for the sake of its clients.
                ToLauncher::Lingering => return Some(ExitCode::SUCCESS),
            }
        }
        while let Some(message) = self.next.as_mut().and_then(Daemon::hear) {
            if message == ToLauncher::Ready
                && let (Some(next), Some(current)) = (&mut self.next, &mut self.current)
            {
                next.stage = Stage::Ready;
                current.say(ToDaemon::Yield);
                current.stage = Stage::Yielding {
                    since: Instant::now(),
                };
            }
        }
        None
    }

    /// Daemons that have ended.
    fn collect(&mut self) -> io::Result<Option<ExitCode>> {
        if let Some(next) = &mut self.next
            && let Some(status) = next.child.try_wait()?
        {
            complain!("litefs: the new daemon did not start ({status}); the running one goes on");
            self.next = None;
        }
        let Some(current) = &mut self.current else {
            return Ok(None);
        };
        let Some(status) = current.child.try_wait()? else {
            return Ok(None);
        };
        let stage = current.stage;
        self.current = self.next.take();
        if let Some(daemon) = &mut self.current {
            // One that is not ready yet is given its turn when it is.
            if daemon.stage == Stage::Ready {
                daemon.give_turn();
            }
            return Ok(None);
        }
        if self.stopping && status.signal() == Some(Signal::SIGTERM as i32) {
            // Told to stop before it could hear of it: it had nothing to stop yet.
            return Ok(Some(ExitCode::SUCCESS));
        }
        if self.stopping || self.is_final(stage, status) {
            return Ok(Some(exit_code(status)));
        }
        self.plan_restart(stage, status);
        Ok(None)
    }

    /// Whether a daemon that ended like this is not to be started again: it could not start, or has said why it ends.
    fn is_final(&self, stage: Stage, status: ExitStatus) -> bool {
        let died = status.signal().is_some() || status.code() == Some(PANICKED);
        match stage {
            Stage::Serving { .. } | Stage::Yielding { .. } => !died,
            Stage::Preparing | Stage::Ready | Stage::Starting => !self.has_served,
        }
    }

    fn plan_restart(&mut self, stage: Stage, status: ExitStatus) {
        let steady = match stage {
            Stage::Serving { since } | Stage::Yielding { since } => since.elapsed() >= STEADY,
            Stage::Preparing | Stage::Ready | Stage::Starting => false,
        };
        let pause = match (steady, self.deaths) {
            (true, _) | (false, 0) => Duration::ZERO,
            (false, deaths) => (PAUSE.0 * 2u32.saturating_pow(deaths - 1)).min(PAUSE.1),
        };
        self.deaths = if steady { 1 } else { self.deaths.saturating_add(1) };
        complain!("litefs: the daemon died ({status}); starting it again");
        self.restart_at = Some(Instant::now() + pause);
    }

    /// A daemon that does not make room in time is killed, which is as good: the next one takes over in any case.
    fn hurry(&mut self) {
        if let Some(daemon) = &mut self.current
            && let Stage::Yielding { since } = daemon.stage
            && since.elapsed() >= YIELD_PATIENCE
        {
            daemon.signal(Signal::SIGKILL);
        }
    }

    fn spawn(&self) -> io::Result<Daemon> {
        let (ours, theirs) = pair()?;
        let number = theirs.as_raw_fd();
        let mut command = Command::new(self.program());
        command
            .arg0("litefs")
            .args([SUBCOMMAND, "--launcher", &number.to_string()])
            .args(&self.args);
        let launcher = std::process::id();
        // SAFETY: between fork and exec only system calls are made; nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                SigSet::empty().thread_set_mask()?;
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                if nix::unistd::getppid().as_raw() as u32 != launcher {
                    // It died before its death could be heard of.
                    return Err(Errno::ESRCH.into());
                }
                let link = std::os::fd::BorrowedFd::borrow_raw(number);
                fcntl(link, FcntlArg::F_SETFD(FdFlag::empty()))?;
                Ok(())
            });
        }
        Ok(Daemon {
            child: command.spawn()?,
            link: ours,
            stage: Stage::Preparing,
        })
    }

    /// The program as it is on disk now, which may be newer than the one that runs; or the one that runs, where there is none.
    fn program(&self) -> PathBuf {
        match self.program.exists() {
            true => self.program.clone(),
            false => PathBuf::from("/proc/self/exe"),
        }
    }
}

impl Daemon {
    fn hear(&mut self) -> Option<ToLauncher> {
        link::try_receive(&self.link)
    }

    fn say(&self, message: ToDaemon) {
        if let Err(error) = link::send(&self.link, message.into()) {
            // Its end is noticed next.
            complain!("litefs: tell the daemon: {error}");
        }
    }

    fn give_turn(&mut self) {
        self.say(ToDaemon::Go);
        self.stage = Stage::Starting;
    }

    fn signal(&self, signal: Signal) {
        // Not collected yet, so the number is its own.
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    /// Ends a daemon that has not had its turn.
    fn end(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
