//! Daemons that are replaced while SQLite's tests run, and what must not be taken for it.
//!
//! On request: `cargo test -p litefs-tcl --test reloads -- --ignored`.

mod support;

use std::process::Output;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::{Run, wait_for};

fn text(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr];
    parts
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .concat()
}

/// The modes that this kernel has, as the caller knows.
fn modes() -> Vec<String> {
    let words = std::env::var("LITEFS_TCL_MODES").unwrap_or_else(|_| "passthrough intercepted".to_owned());
    words.split_whitespace().map(str::to_owned).collect()
}

/// busy2 takes six seconds, most of which it waits for locks; select2 writes.
#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_mount_whose_daemons_are_replaced_equals_native() {
    for mode in modes() {
        let run = Run::new();
        let mut command = run.command("busy2.test");
        command.args(["select2.test", "--reload-every", "1", "--mode", &mode]);
        let output = command.output().expect("the runner runs");
        let text = text(&output);
        assert_eq!(output.status.code(), Some(0), "{mode}: {text}");
        let counted = text
            .split_once("daemons were replaced ")
            .and_then(|(_, rest)| rest.split_once(" times")?.0.parse::<u32>().ok());
        // Two daemons, for six seconds at least.
        assert!(counted.is_some_and(|count| count >= 6), "{mode}: {text}");
        run.assert_nothing_left();
    }
}

#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_run_that_is_over_before_a_daemon_was_replaced_is_no_success() {
    let run = Run::new();
    let mut command = run.command("select1.test");
    let output = command
        .args(["--reload-every", "600"])
        .output()
        .expect("the runner runs");
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("no daemon was replaced"), "{text}");
    run.assert_nothing_left();
}

#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn an_interrupt_while_daemons_are_replaced_leaves_nothing() {
    let run = Run::new();
    let mut child = run.start_with(&["--reload-every", "1"]);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    support::send(&child, Signal::SIGINT);
    assert_eq!(wait_for(&mut child).code(), Some(1));
    run.assert_nothing_left();
}

/// The launcher starts another one at once and the test passes, but a daemon that dies is a fault.
#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_daemon_that_dies_is_noticed_although_another_takes_its_place() {
    died("litefs daemon", "took its place");
}

/// Keeper and opener stay and wait for another daemon.
#[test]
#[ignore = "needs root, /dev/fuse and a built testfixture"]
fn a_launcher_that_is_killed_is_noticed_and_leaves_nothing() {
    died(" mount -config", "the process behind the mount ended");
}

/// Kills the process of the primary that has these words on its command line.
fn died(words: &str, told: &str) {
    let run = Run::new();
    let mut child = run.start();
    let (id, _) = run
        .processes()
        .into_iter()
        .find(|(_, line)| line.contains(words) && !line.contains("/replica/"))
        .expect("the process");
    kill(Pid::from_raw(id), Signal::SIGKILL).expect("kill");
    assert_eq!(wait_for(&mut child).code(), Some(1));
    let log = std::fs::read_to_string(run.log()).expect("the log");
    assert!(log.contains("mount-died") && log.contains(told), "{log}");
    run.assert_nothing_left();
}
