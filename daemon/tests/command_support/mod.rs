//! `litefs mount` as a process. Needs root and /dev/fuse.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(unreachable_pub, reason = "a module of several programs")]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Daemon {
    pub child: Child,
    pub dir: tempfile::TempDir,
}

impl Daemon {
    /// Starts a node with this `lease` section and these further lines.
    pub fn start(lease: &str, more: &str) -> Daemon {
        Daemon::spawn(configure(lease, more), &[])
    }

    /// Starts the node whose configuration is in `dir`.
    pub fn spawn(dir: tempfile::TempDir, flags: &[&str]) -> Daemon {
        let child = litefs(dir.path()).args(flags).spawn().unwrap();
        Daemon { child, dir }
    }

    pub fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let path = self.mount();
        mounts
            .lines()
            .any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == path))
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    #[track_caller]
    pub fn eventually(&mut self, what: &str, mut condition: impl FnMut(&mut Daemon) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end; exit code, standard output and standard error.
    #[track_caller]
    pub fn end(&mut self) -> (Option<i32>, String, String) {
        self.eventually("the daemon ends", |daemon| {
            daemon.child.try_wait().unwrap().is_some()
        });
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut stdout)
            .unwrap();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        (self.child.wait().unwrap().code(), stdout, stderr)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = nix::mount::umount2(&self.mount(), nix::mount::MntFlags::MNT_DETACH);
    }
}

pub fn configure(lease: &str, more: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().display();
    let text = format!(
        "data: {{dir: {root}/data}}\nfuse: {{dir: {root}/mnt}}\nlease: {lease}\n{}\n{more}\n",
        if more.contains("http:") {
            ""
        } else {
            "http: {addr: '127.0.0.1:0'}"
        },
    );
    std::fs::write(dir.path().join("litefs.yml"), text).unwrap();
    dir
}

pub fn litefs(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_litefs"));
    command.args(["mount", "-config"]).arg(dir.join("litefs.yml"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub const PRIMARY: &str = "{type: static, hostname: one, advertise-url: 'http://127.0.0.1:1'}";
pub const REPLICA: &str =
    "{type: static, candidate: false, hostname: one, advertise-url: 'http://127.0.0.1:1'}";

/// Has the process start with these limits of open files, the hard one for good.
pub fn limit_files(command: &mut Command, soft: u64, hard: Option<u64>) {
    use std::os::unix::process::CommandExt;

    // SAFETY: these are system calls and touch no memory of the parent.
    unsafe {
        command.pre_exec(move || {
            let mut limit = std::mem::zeroed();
            check(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit))?;
            if let Some(hard) = hard {
                limit.rlim_max = hard;
                // Without this capability no process of the node can raise the limit again.
                check(libc::prctl(libc::PR_CAPBSET_DROP, 24 /* CAP_SYS_RESOURCE */))?;
            }
            limit.rlim_cur = soft.min(limit.rlim_max);
            check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit))
        });
    }
}

fn check(result: libc::c_int) -> std::io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
