//! A connection to one companion process: asked by any number of threads at once.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::protocol::{Outcome, Reply, Request, Task};
use super::wire;

/// An outcome, and the descriptor that came with it.
pub(super) type Answer = (Outcome, Option<OwnedFd>);
/// Who waits for which answer; `None`: the process is gone.
type Waiting = Option<HashMap<u64, SyncSender<Answer>>>;

#[derive(Clone)]
pub(super) struct Conversation {
    name: &'static str,
    socket: Arc<OwnedFd>,
    waiting: Arc<(Mutex<Waiting>, Condvar)>,
    /// The thread that an opener opens with.
    thread: Arc<OnceLock<u32>>,
}

impl Conversation {
    /// Begins to listen to the process at the other end.
    pub(super) fn begin(name: &'static str, socket: OwnedFd) -> io::Result<Conversation> {
        let conversation = Conversation {
            name,
            socket: Arc::new(socket),
            waiting: Arc::new((Mutex::new(Some(HashMap::new())), Condvar::new())),
            thread: Arc::default(),
        };
        let listening = conversation.clone();
        thread::Builder::new()
            .name(format!("companion-{name}"))
            .spawn(move || listening.listen())?;
        Ok(conversation)
    }

    fn listen(&self) {
        while let Ok(Some((reply, descriptors))) = wire::receive::<Reply>(&*self.socket) {
            if let Outcome::Ready { thread } = reply.outcome {
                // Said once.
                let _ = self.thread.set(thread);
                continue;
            }
            let mut waiting = self.waiting.0.lock();
            let sender = waiting.as_mut().and_then(|waiting| waiting.remove(&reply.id));
            drop(waiting);
            if let Some(sender) = sender {
                // Whoever asked may have lost patience.
                let _ = sender.send((reply.outcome, descriptors.into_iter().next()));
            }
        }
        self.end();
    }

    /// Everybody who still waits for an answer sees the end of the channel.
    pub(super) fn end(&self) {
        let (waiting, ended) = &*self.waiting;
        waiting.lock().take();
        ended.notify_all();
    }

    /// Whether the process is gone.
    pub(super) fn is_over(&self) -> bool {
        self.waiting.0.lock().is_none()
    }

    /// Waits until the process is gone; `false` if it is there after that time.
    pub(super) fn await_end(&self, patience: Duration) -> bool {
        let (waiting, ended) = &*self.waiting;
        let result = ended.wait_while_for(&mut waiting.lock(), |waiting| waiting.is_some(), patience);
        !result.timed_out()
    }

    /// The thread that an opener sends its requests to the mount with, once it has said so.
    pub(super) fn thread(&self) -> Option<u32> {
        self.thread.get().copied()
    }

    /// Sends a task and waits for the answer, at most for `patience`.
    ///
    /// # Errors
    /// `BrokenPipe` if the process is gone, `TimedOut` if it is too slow.
    pub(super) fn ask(&self, id: u64, task: &Task, patience: Duration) -> io::Result<Answer> {
        let (sender, answer) = sync_channel(1);
        match self.waiting.0.lock().as_mut() {
            Some(waiting) => drop(waiting.insert(id, sender)),
            None => return Err(self.gone()),
        }
        if let Err(error) = self.tell(id, task, &[]) {
            // The thread that listens has not seen the end yet.
            self.end();
            return Err(error);
        }
        match answer.recv_timeout(patience) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Disconnected) => Err(self.gone()),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(waiting) = self.waiting.0.lock().as_mut() {
                    waiting.remove(&id);
                }
                let text = format!("the {} gave no answer within {patience:?}", self.name);
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
        }
    }

    /// Sends a task that has no answer.
    pub(super) fn tell(&self, id: u64, task: &Task, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let request = Request {
            id,
            task: task.clone(),
        };
        wire::send(self.socket.as_fd(), &request, descriptors)
    }

    fn gone(&self) -> io::Error {
        io::Error::new(
            io::ErrorKind::BrokenPipe,
            format!("the {} process died", self.name),
        )
    }
}
