//! Runs one process to its end or to its limit, as another user if wanted.
//!
//! Invariants: the process leads a process group of its own, and nothing of that group is alive when [`run`] returns,
//! except a process that the kernel itself cannot end (waiting on a hung mount), which is reported as
//! [`Ended::Stuck`]. Everything that touches a mount goes through here: a thread of the runner that
//! waits on a hung mount could never be ended.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Gid, Pid, Uid};
use terminal::interrupt;

/// Who runs the tests. Numeric: no user has to exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// The runner's own user.
    Own,
    Other {
        uid: u32,
        gid: u32,
    },
}

impl Account {
    /// Drops to this account in the child, with no supplementary groups.
    pub fn apply(self, command: &mut Command) {
        if let Account::Other { uid, gid } = self {
            // The standard library clears the supplementary groups when root sets a user.
            command.uid(uid).gid(gid);
        }
    }

    pub fn uid(self) -> u32 {
        match self {
            Account::Own => nix::unistd::geteuid().as_raw(),
            Account::Other { uid, .. } => uid,
        }
    }

    /// Makes this account the owner of a directory on an ordinary file system.
    pub fn give(self, path: &Path) -> Result<()> {
        match self {
            Account::Own => Ok(()),
            Account::Other { uid, gid } => {
                nix::unistd::chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                    .with_context(|| format!("chown {}", path.display()))
            }
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exited(ExitStatus),
    /// Killed at the limit.
    TimedOut,
    /// Killed at the limit, and still there.
    Stuck,
}

impl Ended {
    pub fn success(self) -> bool {
        matches!(self, Ended::Exited(status) if status.success())
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Exited(status) => write!(f, "{status}"),
            Ended::TimedOut => f.write_str("killed at the time limit"),
            Ended::Stuck => f.write_str("killed at the time limit, but the kernel cannot end it"),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub ended: Ended,
    pub wall: Duration,
    /// User and system time of the process and of the children it waited for.
    pub cpu: Duration,
}

/// The limit of an ordinary login. Some tests use up all descriptors that there are.
const OPEN_FILES: u64 = 1024;

/// Gives the process as many files to open as a user's processes have by default.
pub fn limit_open_files(command: &mut Command) {
    let limit = libc::rlimit {
        rlim_cur: OPEN_FILES,
        rlim_max: OPEN_FILES,
    };
    // SAFETY: a system call only, which is allowed between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// How long a killed process may take to disappear.
const DEATH: Duration = Duration::from_secs(10);

/// Runs `command` in its own process group for at most `limit`.
pub fn run(command: &mut Command, limit: Duration) -> Result<Usage> {
    let program = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    command.process_group(0);
    die_with_parent(command, Signal::SIGKILL);
    let child = command.spawn().with_context(|| format!("start {program}"))?;
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("the kernel's process ids fit"));
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || {
        // Without reaping: until then the process id, and with it the group's, cannot be used again.
        let waited = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        // Nobody listens any more when the process was given up as stuck.
        let _ = sender.send(waited.is_ok());
    });
    let in_time = wait_until(&ended, start + limit);
    let wall = start.elapsed();
    // At the limit this ends the process; otherwise what it left behind in its group, which would go on writing
    // into the next test's directory.
    kill_group(pid);
    if !in_time && ended.recv_timeout(DEATH).is_err() {
        return Ok(Usage {
            ended: Ended::Stuck,
            wall,
            cpu: Duration::ZERO,
        });
    }
    let (status, cpu) = reap(pid).with_context(|| format!("wait for {program}"))?;
    let ended = if in_time {
        Ended::Exited(status)
    } else {
        Ended::TimedOut
    };
    Ok(Usage { ended, wall, cpu })
}

/// Has the kernel send `signal` to the process when the thread that starts it ends: what ends the runner without a chance to
/// clean up must not leave processes behind.
pub fn die_with_parent(command: &mut Command, signal: Signal) {
    // SAFETY: the closure runs between fork and exec and makes one system call.
    unsafe {
        command.pre_exec(move || Ok(nix::sys::prctl::set_pdeathsig(signal)?));
    }
}

/// Whether the process ended by itself. An interrupt counts as the end of its time.
fn wait_until(ended: &mpsc::Receiver<bool>, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if ended.recv_timeout(left.min(Duration::from_millis(200))).is_ok() {
            return true;
        }
        if left.is_zero() || interrupt::requested() {
            return false;
        }
    }
}

fn kill_group(leader: Pid) {
    // ESRCH is the good case: the group is empty.
    let _ = killpg(leader, Signal::SIGKILL);
}

fn reap(pid: Pid) -> std::io::Result<(ExitStatus, Duration)> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to live, writable memory of the right type.
        let waited = unsafe { libc::wait4(pid.as_raw(), &mut status, 0, usage.as_mut_ptr()) };
        if waited == pid.as_raw() {
            break;
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: zeroed bytes are a valid rusage, and wait4 has filled it.
    let usage = unsafe { usage.assume_init() };
    Ok((
        ExitStatus::from_raw(status),
        duration(usage.ru_utime) + duration(usage.ru_stime),
    ))
}

fn duration(time: libc::timeval) -> Duration {
    let micros = time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_usec);
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        command
    }

    #[test]
    fn an_exit_status_and_the_time_used_are_reported() {
        let usage = run(&mut shell("exit 3"), Duration::from_secs(30)).unwrap();
        assert!(
            matches!(usage.ended, Ended::Exited(status) if status.code() == Some(3)),
            "{:?}",
            usage.ended
        );
        assert!(!usage.ended.success());
    }

    #[test]
    fn a_process_over_its_limit_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let script = format!(
            "(exec 3>{fifo}; sleep 600) & exec sleep 600",
            fifo = fifo.display()
        );
        // The read ends only when the grandchild, which holds the other end, is dead.
        let reader = std::thread::spawn(move || std::fs::read(&fifo).unwrap());
        let usage = run(&mut shell(&script), Duration::from_millis(500)).unwrap();
        assert_eq!(usage.ended, Ended::TimedOut);
        assert!(reader.join().unwrap().is_empty());
    }

    #[test]
    fn what_a_finished_process_leaves_behind_is_killed_too() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let script = format!("exec 3>{}; sleep 600 >/dev/null 2>&1 & exit 0", fifo.display());
        let reader = std::thread::spawn(move || std::fs::read(&fifo).unwrap());
        assert!(
            run(&mut shell(&script), Duration::from_secs(30))
                .unwrap()
                .ended
                .success()
        );
        assert!(reader.join().unwrap().is_empty());
    }
}
