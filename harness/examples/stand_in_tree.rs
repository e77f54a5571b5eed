//! Stands in for a `litefs mount` that is a tree of processes: a launcher, a daemon below it (`stand_in`, beside this program), and a
//! keeper beside it that outlives both and holds the data directory's lock. For tests of how a cluster ends, and leaves, each of them.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

const ROUND: Duration = Duration::from_millis(10);

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["mount", "-config", file] => launch(Path::new(file)),
        ["companion", "keeper"] => keep(),
        _ => bail!("usage: stand_in_tree mount -config FILE"),
    }
}

/// Holds the lock, which it got as standard output, until it is killed.
fn keep() -> Result<()> {
    nix::unistd::setsid()?;
    loop {
        std::thread::park();
    }
}

fn launch(config: &Path) -> Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD]
        .into_iter()
        .collect();
    signals.thread_block()?;
    ensure_keeper(config)?;
    let mut daemon = start_daemon(config)?;
    loop {
        match signals.wait()? {
            Signal::SIGHUP => {
                end(&mut daemon, Signal::SIGKILL)?;
                daemon = start_daemon(config)?;
            }
            Signal::SIGCHLD => {
                if daemon.try_wait()?.is_some() {
                    daemon = start_daemon(config)?;
                }
            }
            // The keeper stays, as if clients had files open.
            _ => return end(&mut daemon, Signal::SIGTERM),
        }
    }
}

fn end(daemon: &mut Child, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(daemon.id())?), signal)?;
    daemon.wait()?;
    Ok(())
}

fn ensure_keeper(config: &Path) -> Result<()> {
    let data = data_directory(config)?;
    std::fs::create_dir_all(&data)?;
    let mut lock = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(data.join("lock"))?;
    if lock.try_lock().is_err() {
        return Ok(());
    }
    let keeper = Command::new(std::env::current_exe()?)
        .args(["companion", "keeper"])
        .stdin(Stdio::null())
        .stdout(lock.try_clone()?)
        .spawn()?;
    lock.set_len(0)?;
    writeln!(lock, "keeper, process {}", keeper.id())?;
    Ok(())
}

fn data_directory(config: &Path) -> Result<PathBuf> {
    let text = std::fs::read_to_string(config)?;
    let mut lines = text.lines().skip_while(|line| *line != "data:");
    let line = lines.find_map(|line| line.trim().strip_prefix("dir: "));
    let path: String = serde_json::from_str(line.context("no data directory")?)?;
    Ok(path.into())
}

fn start_daemon(config: &Path) -> Result<Child> {
    // A port that the last one had may be free a moment later.
    std::thread::sleep(ROUND);
    let mut command = Command::new(std::env::current_exe()?.with_file_name("stand_in"));
    command.args(["mount", "-config"]).arg(config);
    let prepare = || {
        set_pdeathsig(Signal::SIGKILL)?;
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    // SAFETY: between fork and exec two system calls are made; nothing is allocated.
    unsafe { command.pre_exec(prepare) };
    Ok(command.spawn()?)
}
