//! Work on the files of a mount, in a child process inside the node's namespaces: a hanging mount hangs the child, not us. The child is
//! this program again, with a hidden command.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Between two looks at a node whose mount somebody waits for.
const LOOK: Duration = Duration::from_millis(500);

/// The child's side: input from standard input, a JSON result on standard output.
pub fn child<T: Serialize>(work: impl FnOnce(&str) -> rusqlite::Result<T>) -> io::Result<()> {
    let mut input = String::new();
    io::stdin().read_to_string(&mut input)?;
    let result = work(&input).map_err(|error| error.to_string());
    let mut output = io::stdout().lock();
    serde_json::to_writer(&mut output, &result)?;
    output.flush()
}

/// The parent's side: runs the prepared child and reads its result. `check` is asked now and then while the child works; its error ends
/// the child, which may wait for a mount that nobody serves.
pub(crate) fn parent<T: DeserializeOwned>(
    mut command: Command,
    input: &str,
    mut check: impl FnMut() -> Result<()>,
    failed: impl Fn(String) -> Error,
) -> Result<T> {
    let broken = |error: io::Error| failed(error.to_string());
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(broken)?;
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    let sent = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = read_to_end(child.stdout.take());
    let errors = read_to_end(child.stderr.take());
    let output = loop {
        match output.recv_timeout(LOOK) {
            Ok(output) => break output,
            Err(RecvTimeoutError::Disconnected) => break Vec::new(),
            Err(RecvTimeoutError::Timeout) => {
                if let Err(error) = check() {
                    // Whether it ends at once is up to the kernel; nobody waits for that.
                    let _ = child.kill();
                    std::thread::spawn(move || child.wait());
                    return Err(error);
                }
            }
        }
    };
    let status = child.wait().map_err(broken)?;
    sent.map_err(broken)?;
    let result: Result<T, String> = serde_json::from_slice(&output).unwrap_or_else(|_| {
        let said = errors.recv().unwrap_or_default();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Err(format!("the child failed ({status}): {said}"))
    });
    result.map_err(failed)
}

/// All that is written to a pipe, once it is closed.
fn read_to_end(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error tells more than nothing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}
