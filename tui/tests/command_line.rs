//! What `litefs-tui --once` prints, as a process.

use std::process::{Command, Stdio};

#[test]
fn a_reader_that_goes_away_ends_the_program_without_a_word() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_litefs-tui"))
        .args(["--once", "http://127.0.0.1:1"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    // 128 + SIGPIPE, as a shell counts it.
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_silent_node_is_named_once() {
    let output = Command::new(env!("CARGO_BIN_EXE_litefs-tui"))
        .args(["--once", "http://127.0.0.1:1"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.matches("http://127.0.0.1:1").count(), 1, "{said}");
    assert!(said.contains("silent"), "{said}");
}
