//! Work on the files of a mount, in a child process inside the node's namespaces: a hanging mount hangs the child, not us. The child is
//! this program again, with a hidden command.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The child's side: input from standard input, a JSON result on standard output.
pub fn child<T: Serialize>(work: impl FnOnce(&str) -> rusqlite::Result<T>) -> std::io::Result<()> {
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input)?;
    let result = work(&input).map_err(|error| error.to_string());
    let mut output = std::io::stdout().lock();
    serde_json::to_writer(&mut output, &result)?;
    output.flush()
}

/// The parent's side: runs the prepared child and reads its result.
pub(crate) fn parent<T: DeserializeOwned>(mut command: Command, input: &str) -> Result<T, String> {
    let failed = |error: std::io::Error| error.to_string();
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    let sent = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(failed)?;
    sent.map_err(failed)?;
    serde_json::from_slice::<Result<T, String>>(&output.stdout).unwrap_or_else(|_| {
        Err(format!(
            "the child failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    })
}
