//! However a run ends, nothing of it stays: no daemon, no mount, no directory.
//!
//! On request: `cargo test -p litefs-tcl --test interrupts -- --ignored`.

mod support;

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;

use support::{Run, send, wait, wait_for};

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
        run.mounts() >= 2 && run.has_test()
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
