//! The worker as the daemon knows it: a child process, started anew when it dies.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::conversation::{Answer, Conversation};
use super::process::SUBCOMMAND;
use super::protocol::Task;
use super::wire;

pub(super) struct Worker {
    program: PathBuf,
    state: Mutex<State>,
}

enum State {
    Living(Child, Conversation),
    /// Nothing is started any more.
    Stopped,
}

impl Worker {
    pub(super) fn start(program: &Path) -> io::Result<Worker> {
        let (child, conversation) = spawn(program)?;
        Ok(Worker {
            program: program.to_owned(),
            state: Mutex::new(State::Living(child, conversation)),
        })
    }

    /// Sends a task and waits for the answer, at most for `patience`. A process that died meanwhile is replaced once.
    pub(super) fn ask(&self, id: u64, task: &Task, patience: Duration) -> io::Result<Answer> {
        match self.conversation()?.ask(id, task, patience) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.conversation()?.ask(id, task, patience)
            }
            answer => answer,
        }
    }

    fn conversation(&self) -> io::Result<Conversation> {
        let mut state = self.state.lock();
        match &mut *state {
            State::Living(child, conversation) => {
                if conversation.is_over() {
                    tracing::error!("the worker process died; starting another");
                    let _ = child.wait();
                    (*child, *conversation) = spawn(&self.program)?;
                }
                Ok(conversation.clone())
            }
            State::Stopped => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the worker is stopped")),
        }
    }

    /// Lets the process end in good order and collects it. One that hangs in a request to the dying mount ends with the mount.
    pub(super) fn stop(&self, patience: Duration) {
        let State::Living(mut child, conversation) =
            std::mem::replace(&mut *self.state.lock(), State::Stopped)
        else {
            return;
        };
        if let Err(error) = conversation.tell(0, &Task::Goodbye, &[]) {
            tracing::debug!(%error, "say goodbye to the worker");
        }
        let deadline = Instant::now() + patience;
        while let Ok(None) = child.try_wait() {
            if Instant::now() >= deadline {
                tracing::warn!("the worker process does not end; killing it");
                let _ = child.kill();
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn spawn(program: &Path) -> io::Result<(Child, Conversation)> {
    let (ours, theirs) = wire::pair()?;
    let child = Command::new(program)
        .arg0("litefs")
        .args([SUBCOMMAND, "worker"])
        // A signal to the daemon's group is none to a process that it still needs.
        .process_group(0)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()?;
    Ok((child, Conversation::begin("worker", ours)?))
}
