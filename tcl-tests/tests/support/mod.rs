//! A run of the runner in a work directory of its own, and what there is of it on the machine.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

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
pub(crate) struct Run {
    work: tempfile::TempDir,
}

impl Run {
    pub(crate) fn new() -> Run {
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

    pub(crate) fn base(&self) -> PathBuf {
        self.work.path().join("w")
    }

    pub(crate) fn command(&self, file: &str) -> Command {
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

    pub(crate) fn log(&self) -> PathBuf {
        self.work.path().join("log")
    }

    /// busy2 takes six seconds natively, and as long again on the mount; it runs there when a replica is mounted too.
    pub(crate) fn start(&self) -> Child {
        self.start_with(&[])
    }

    /// The same, with further options.
    pub(crate) fn start_with(&self, options: &[&str]) -> Child {
        let log = File::create(self.log()).expect("a log");
        let errors = log.try_clone().expect("a log");
        let mut command = self.command("busy2.test");
        let child = command
            .args(options)
            .stdout(log)
            .stderr(errors)
            .spawn()
            .expect("the runner starts");
        self.wait_until_mounted();
        child
    }

    fn wait_until_mounted(&self) {
        wait("two mounts and a test", || self.mounts() >= 2 && self.has_test());
    }

    pub(crate) fn mounts(&self) -> usize {
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
        let base = self.base();
        table
            .lines()
            .filter(|line| line.contains(&*base.to_string_lossy()))
            .count()
    }

    /// Numbers and command lines of the processes that name the work directory.
    pub(crate) fn processes(&self) -> Vec<(i32, String)> {
        let base = self.base();
        let all = std::fs::read_dir("/proc").expect("processes").flatten();
        all.filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let words = std::fs::read(entry.path().join("cmdline")).ok()?;
            Some((id, String::from_utf8_lossy(&words).replace('\0', " ")))
        })
        .filter(|(_, words)| words.contains(&*base.to_string_lossy()))
        .collect()
    }

    pub(crate) fn has_test(&self) -> bool {
        self.processes()
            .iter()
            .any(|(_, words)| words.contains("testfixture"))
    }

    pub(crate) fn left(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.base()).expect("the work directory");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }

    pub(crate) fn assert_nothing_left(&self) {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        assert_eq!(self.processes(), Vec::new(), "{log}");
        assert_eq!(self.mounts(), 0, "{log}");
        assert_eq!(self.left(), Vec::<PathBuf>::new(), "{log}");
    }
}

pub(crate) fn wait(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn wait_for(child: &mut Child) -> std::process::ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status;
        }
        assert!(Instant::now() < deadline, "the runner does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).expect("the runner is there");
}
