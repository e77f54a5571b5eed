//! However a run ends, nothing of it stays: no daemon, no mount, no directory.
//!
//! On request: `cargo test -p litefs-tcl --test interrupts -- --ignored`.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigHandler, Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(90);

fn daemon() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "-q", "--workspace", "--bin", "litefs"])
            .status()
            .expect("cargo runs");
        assert!(built.success());
        Path::new(env!("CARGO_BIN_EXE_litefs-tcl")).with_file_name("litefs")
    })
}

/// A run of one file in a work directory of its own.
struct Run {
    work: tempfile::TempDir,
}

impl Run {
    fn new() -> Run {
        let work = tempfile::tempdir().expect("a work directory");
        // The test user passes through it.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(work.path(), mode).expect("chmod");
        std::fs::create_dir(work.path().join("w")).expect("mkdir");
        std::fs::set_permissions(
            work.path().join("w"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .expect("chmod");
        Run { work }
    }

    fn base(&self) -> PathBuf {
        self.work.path().join("w")
    }

    fn command(&self, file: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_litefs-tcl"));
        command
            .args(["run", file, "--jobs", "1", "--replica", "--litefs"])
            .arg(daemon())
            .arg("--work")
            .arg(self.base())
            .arg("--results")
            .arg(self.work.path().join("results"))
            .stdin(Stdio::null());
        // Whoever runs the tests in the background ignores SIGINT, and the runner would leave it so.
        // SAFETY: between fork and exec nothing but system calls is made.
        unsafe {
            command.pre_exec(|| {
                for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
                    nix::sys::signal::signal(signal, SigHandler::SigDfl)?;
                }
                Ok(())
            });
        }
        command
    }

    fn log(&self) -> PathBuf {
        self.work.path().join("log")
    }

    /// busy2 takes six seconds natively, and as long again on the mount; it runs there when a replica is mounted too.
    fn start(&self) -> Child {
        let log = File::create(self.log()).expect("a log");
        let errors = log.try_clone().expect("a log");
        let mut command = self.command("busy2.test");
        let child = command
            .stdout(log)
            .stderr(errors)
            .spawn()
            .expect("the runner starts");
        self.wait_until_mounted();
        child
    }

    fn wait_until_mounted(&self) {
        wait("two mounts and a test", || {
            self.mounts() >= 2 && self.processes().iter().any(|words| words.contains("testfixture"))
        });
    }

    fn mounts(&self) -> usize {
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
        let base = self.base();
        table
            .lines()
            .filter(|line| line.contains(&*base.to_string_lossy()))
            .count()
    }

    /// Command lines that name the work directory.
    fn processes(&self) -> Vec<String> {
        let base = self.base();
        let all = std::fs::read_dir("/proc").expect("processes").flatten();
        all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
            .map(|words| String::from_utf8_lossy(&words).replace('\0', " "))
            .filter(|words| words.contains(&*base.to_string_lossy()))
            .collect()
    }

    fn left(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.base()).expect("the work directory");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }

    fn assert_nothing_left(&self) {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        assert_eq!(self.processes(), Vec::<String>::new(), "{log}");
        assert_eq!(self.mounts(), 0, "{log}");
        assert_eq!(self.left(), Vec::<PathBuf>::new(), "{log}");
    }
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_for(child: &mut Child) -> std::process::ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status;
        }
        assert!(Instant::now() < deadline, "the runner does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).expect("the runner is there");
}

#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn signals_end_a_run_in_order_also_when_they_come_more_than_once() {
    for signals in [
        &[Signal::SIGTERM][..],
        &[Signal::SIGINT, Signal::SIGINT],
        &[Signal::SIGHUP, Signal::SIGHUP, Signal::SIGTERM],
    ] {
        let run = Run::new();
        let mut child = run.start();
        for signal in signals {
            send(&child, *signal);
        }
        assert_eq!(wait_for(&mut child).code(), Some(1), "{signals:?}");
        run.assert_nothing_left();
    }
}

/// The terminal is gone: its processes get SIGHUP, and whatever they print fails.
#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_run_whose_terminal_goes_away_ends_in_order() {
    let run = Run::new();
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    // The runner must not keep its own terminal alive.
    fcntl(&pty.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("fcntl");
    let mut command = run.command("busy2.test");
    let terminal = |fd: &OwnedFd| fd.try_clone().expect("the terminal");
    command
        .stdin(terminal(&pty.slave))
        .stdout(terminal(&pty.slave))
        .stderr(terminal(&pty.slave));
    // SAFETY: two system calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            nix::errno::Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            Ok(())
        });
    }
    let mut child = command.spawn().expect("the runner starts");
    drop(command);
    drop(pty.slave);
    // What it prints is read, so that it never waits for us.
    let nonblocking = FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
    fcntl(&pty.master, nonblocking).expect("fcntl");
    wait("two mounts and a test", || {
        let mut bytes = [0; 4096];
        let _ = nix::unistd::read(&pty.master, &mut bytes);
        run.mounts() >= 2 && run.processes().iter().any(|words| words.contains("testfixture"))
    });
    drop(pty.master);
    assert_eq!(wait_for(&mut child).code(), Some(1));
    run.assert_nothing_left();
}

/// Nobody can clean up after SIGKILL at once: the kernel ends the processes, the next run removes the rest.
#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_killed_run_leaves_no_process_and_the_next_run_removes_the_rest() {
    let run = Run::new();
    let mut child = run.start();
    send(&child, Signal::SIGKILL);
    child.wait().expect("wait");
    wait("the end of all processes", || run.processes().is_empty());
    assert_eq!(run.left().len(), 1);
    let output = run.command("select1.test").output().expect("the runner runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("what a killed run left"), "{text}");
    run.assert_nothing_left();
}
