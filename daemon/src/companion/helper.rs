//! One companion process, seen from the daemon: started when needed, asked by any number of threads at once.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use parking_lot::Mutex;

use super::process::SUBCOMMAND;
use super::protocol::{self, Outcome, Reply, Request, Task};

/// Which of the two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Opener,
    Worker,
}

impl Part {
    pub(super) fn name(self) -> &'static str {
        match self {
            Part::Opener => "opener",
            Part::Worker => "worker",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Part> {
        [Part::Opener, Part::Worker]
            .into_iter()
            .find(|part| part.name() == name)
    }
}

type Answer = (Outcome, Option<OwnedFd>);
type Waiting = Arc<Mutex<Option<HashMap<u64, SyncSender<Answer>>>>>;

pub(super) struct Helper {
    part: Part,
    program: PathBuf,
    /// The lock of the data directory, which the opener shares.
    lock: Option<OwnedFd>,
    pid: AtomicU32,
    living: Mutex<Option<Living>>,
    /// Nothing is started any more.
    stopped: AtomicBool,
}

struct Living {
    child: Child,
    socket: Arc<OwnedFd>,
    /// `None` inside: the process is gone.
    waiting: Waiting,
}

impl Helper {
    pub(super) fn start(part: Part, program: &Path, lock: Option<OwnedFd>) -> io::Result<Helper> {
        let program = program.to_owned();
        let helper = Helper {
            part,
            program,
            lock,
            pid: AtomicU32::new(0),
            living: Mutex::new(None),
            stopped: AtomicBool::new(false),
        };
        helper.socket().map(drop)?;
        Ok(helper)
    }

    pub(super) fn is_process(&self, pid: u32) -> bool {
        self.pid.load(Ordering::Relaxed) == pid
    }

    /// Sends a task and waits for the answer, at most for `patience`. A process that died meanwhile is replaced once.
    pub(super) fn ask(&self, id: u64, task: &Task, patience: Duration) -> io::Result<Answer> {
        match self.ask_once(id, task, patience) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.ask_once(id, task, patience),
            answer => answer,
        }
    }

    fn ask_once(&self, id: u64, task: &Task, patience: Duration) -> io::Result<Answer> {
        let (socket, waiting) = self.socket()?;
        let (sender, answer) = sync_channel(1);
        match waiting.lock().as_mut() {
            Some(waiting) => drop(waiting.insert(id, sender)),
            None => return Err(self.gone()),
        }
        if let Err(error) = protocol::send(
            &*socket,
            &Request {
                id,
                task: task.clone(),
            },
            None,
        ) {
            // The thread that reads answers has not seen the end yet.
            waiting.lock().take();
            return Err(error);
        }
        match answer.recv_timeout(patience) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Disconnected) => Err(self.gone()),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(waiting) = waiting.lock().as_mut() {
                    waiting.remove(&id);
                }
                let text = format!("the {} gave no answer within {patience:?}", self.part.name());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
        }
    }

    /// Sends a task that has no answer.
    pub(super) fn tell(&self, id: u64, task: Task) -> io::Result<()> {
        let living = self.living.lock();
        let Some(living) = living.as_ref() else {
            return Ok(());
        };
        protocol::send(&*living.socket, &Request { id, task }, None)
    }

    /// Lets the process end in good order and collects it. One that hangs in a request to the dying mount ends with the mount.
    pub(super) fn stop(&self, patience: Duration) {
        self.stopped.store(true, Ordering::Relaxed);
        let Some(mut living) = self.living.lock().take() else {
            return;
        };
        let goodbye = Request {
            id: 0,
            task: Task::Goodbye,
        };
        if let Err(error) = protocol::send(&*living.socket, &goodbye, None) {
            tracing::debug!(%error, part = self.part.name(), "say goodbye");
        }
        let deadline = Instant::now() + patience;
        while let Ok(None) = living.child.try_wait() {
            if Instant::now() >= deadline {
                tracing::warn!(
                    part = self.part.name(),
                    "the companion process does not end; killing it"
                );
                let _ = living.child.kill();
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The connection to a living process, started anew if the last one died.
    fn socket(&self) -> io::Result<(Arc<OwnedFd>, Waiting)> {
        let mut living = self.living.lock();
        if self.stopped.load(Ordering::Relaxed) {
            return Err(self.gone());
        }
        let dead = living
            .as_ref()
            .is_some_and(|living| living.waiting.lock().is_none());
        if dead && let Some(mut gone) = living.take() {
            tracing::error!(
                part = self.part.name(),
                "the companion process died; starting another"
            );
            let _ = gone.child.wait();
        }
        let living = match &mut *living {
            Some(living) => living,
            none @ None => none.insert(self.spawn()?),
        };
        Ok((living.socket.clone(), living.waiting.clone()))
    }

    fn spawn(&self) -> io::Result<Living> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let lock = self.lock.as_ref().map(OwnedFd::try_clone).transpose()?;
        let child = Command::new(&self.program)
            .arg0("litefs")
            .args([SUBCOMMAND, self.part.name()])
            // Whoever kills the daemon's whole group must not kill the guardian with it.
            .process_group(0)
            .stdin(Stdio::from(theirs))
            .stdout(lock.map_or_else(Stdio::null, Stdio::from))
            .spawn()?;
        self.pid.store(child.id(), Ordering::Relaxed);
        let (socket, waiting) = (Arc::new(ours), Waiting::new(Mutex::new(Some(HashMap::new()))));
        let (reader, answers) = (socket.clone(), waiting.clone());
        thread::Builder::new()
            .name(format!("companion-{}", self.part.name()))
            .spawn(move || {
                while let Ok(Some((reply, descriptor))) = protocol::receive::<Reply>(&*reader) {
                    let sender = answers
                        .lock()
                        .as_mut()
                        .and_then(|waiting| waiting.remove(&reply.id));
                    if let Some(sender) = sender {
                        // Whoever asked may have lost patience.
                        let _ = sender.send((reply.outcome, descriptor));
                    }
                }
                // Everybody who still waits sees the end of the channel.
                answers.lock().take();
            })?;
        Ok(Living {
            child,
            socket,
            waiting,
        })
    }

    fn gone(&self) -> io::Error {
        io::Error::new(
            io::ErrorKind::BrokenPipe,
            format!("the {} process died", self.part.name()),
        )
    }
}
