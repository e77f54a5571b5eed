//! The opener as the daemon knows it: reached through the keeper, which starts another one if it dies.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::conversation::{Answer, Conversation};
use super::keeper::Keeper;
use super::keeper::protocol::OpenerSocket;
use super::protocol::{Fence, Task};
use super::wire;
use crate::processes::is_dying;

/// How long an opener takes to say who it is.
const READY_PATIENCE: Duration = Duration::from_secs(5);
/// Before another attempt to start one: the keeper may be on its way, too.
const RETRY: Duration = Duration::from_millis(20);
/// Longest pause before another attempt.
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// How often it is looked whether the opener was killed: one that waits for the mount itself stays connected until it is answered.
const LOOK: Duration = Duration::from_millis(250);

/// A file that the opener keeps for this daemon.
struct Kept {
    file: Weak<File>,
    inode: u64,
    fence: Fence,
    path: PathBuf,
}

/// The opener that is spoken with.
#[derive(Clone)]
struct Opener {
    conversation: Conversation,
    process: u32,
}

pub(super) struct OpenerLink {
    keeper: Arc<Keeper>,
    /// Not held while another one is started: each request asks for its thread.
    opener: Mutex<Opener>,
    replacing: Mutex<()>,
    kept: Mutex<HashMap<u64, Kept>>,
}

impl OpenerLink {
    pub(super) fn connect(keeper: Arc<Keeper>) -> io::Result<Arc<OpenerLink>> {
        let opener = begin_patiently(&keeper)?;
        let link = Arc::new(OpenerLink {
            keeper: keeper.clone(),
            opener: Mutex::new(opener),
            replacing: Mutex::default(),
            kept: Mutex::default(),
        });
        let reached = Arc::downgrade(&link);
        keeper.set_opener_control(move || match reached.upgrade() {
            Some(link) => link.control(),
            None => Err(io::ErrorKind::NotConnected.into()),
        });
        let watched = Arc::downgrade(&link);
        thread::Builder::new()
            .name("opener-watch".into())
            .spawn(move || watch(&watched))?;
        Ok(link)
    }

    /// Whether a request comes from the opener's thread that opens.
    pub(super) fn is_thread(&self, thread: u32) -> bool {
        self.opener.lock().conversation.thread() == Some(thread)
    }

    /// Sends a task and waits for the answer, at most for `patience`. An opener that died meanwhile is replaced, and asked too.
    pub(super) fn ask(&self, id: u64, task: &Task, patience: Duration) -> io::Result<Answer> {
        let deadline = Instant::now() + patience;
        loop {
            let answer = self
                .living()
                .and_then(|conversation| conversation.ask(id, task, patience));
            match answer {
                Err(error)
                    if wire::is_gone(&error) && Instant::now() < deadline && !self.keeper.has_ended() =>
                {
                    thread::sleep(RETRY);
                }
                answer => return answer,
            }
        }
    }

    /// Notes a file that was opened under this id: another opener gets it if this one dies.
    pub(super) fn keep(&self, id: u64, file: &Arc<File>, inode: u64, fence: Fence, path: PathBuf) {
        let kept = Kept {
            file: Arc::downgrade(file),
            inode,
            fence,
            path,
        };
        self.kept.lock().insert(id, kept);
    }

    /// The daemon needs the file no more. The opener's duplicate would keep locks alive.
    pub(super) fn close(&self, id: u64) {
        self.kept.lock().remove(&id);
        self.tell(&Task::Close { ids: vec![id] });
    }

    pub(super) fn tell(&self, task: &Task) {
        let conversation = self.opener.lock().conversation.clone();
        if let Err(error) = conversation.tell(0, task, &[]) {
            tracing::debug!(%error, ?task, "tell the opener");
        }
    }

    /// A conversation with a living opener. One that died is replaced, and the new one keeps what the old one kept.
    fn living(&self) -> io::Result<Conversation> {
        if let Some(living) = self.present() {
            return Ok(living);
        }
        let _turn = self.replacing.lock();
        if let Some(living) = self.present() {
            return Ok(living);
        }
        let opener = begin(&self.keeper)?;
        let conversation = opener.conversation.clone();
        // Before it is asked to open them: of one inode it keeps the description that it knows first.
        for (id, kept) in &*self.kept.lock() {
            let Some(file) = kept.file.upgrade() else { continue };
            let task = Task::Keep {
                path: kept.path.clone(),
                inode: kept.inode,
                fence: kept.fence,
            };
            conversation.tell(*id, &task, &[file.as_fd()])?;
        }
        *self.opener.lock() = opener;
        // The keeper may have died meanwhile, and the one after it been given the opener before.
        self.keeper.adopt_opener(self.control()?)?;
        tracing::warn!("the opener process died; another one has what it kept");
        Ok(conversation)
    }

    /// The conversation, unless it is over.
    fn present(&self) -> Option<Conversation> {
        let conversation = self.opener.lock().conversation.clone();
        (!conversation.is_over()).then_some(conversation)
    }

    /// A connection to the opener for a new keeper. Fails if that died too: the new keeper is to start another.
    fn control(&self) -> io::Result<OpenerSocket> {
        let (ours, theirs) = wire::pair()?;
        let Opener {
            conversation,
            process,
        } = self.opener.lock().clone();
        conversation.tell(0, &Task::Control, &[theirs.as_fd()])?;
        Ok(OpenerSocket {
            socket: ours,
            process,
        })
    }
}

/// Has an opener that died replaced at once, for as long as the daemon has the mount: the locks through the files that it kept would end
/// with the daemon, and clients that are fenced would commit until the next one has found out.
fn watch(link: &Weak<OpenerLink>) {
    while let Some(living) = link.upgrade() {
        let opener = living.opener.lock().clone();
        drop(living);
        while !opener.conversation.await_end(LOOK) {
            if link.strong_count() == 0 {
                return;
            }
            if is_dying(opener.process) {
                opener.conversation.end();
            }
        }
        if !revive(link) {
            return;
        }
    }
}

/// `false`: nobody needs it any more.
fn revive(link: &Weak<OpenerLink>) -> bool {
    let (mut told, mut pause) = (false, RETRY);
    while let Some(link) = link.upgrade() {
        if link.keeper.has_ended() {
            return false;
        }
        let Err(error) = link.living() else { return true };
        if !std::mem::replace(&mut told, true) {
            tracing::error!(%error, "no opener: clients cannot be fenced when this daemon dies; trying again");
        }
        drop(link);
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_RETRY);
    }
    false
}

/// Begins the first conversation.
fn begin_patiently(keeper: &Keeper) -> io::Result<Opener> {
    let deadline = Instant::now() + READY_PATIENCE;
    loop {
        match begin(keeper) {
            Err(error) if wire::is_gone(&error) && Instant::now() < deadline => thread::sleep(RETRY),
            begun => return begun,
        }
    }
}

/// Begins a conversation: the opener says first which thread is the one whose requests are the daemon's own.
fn begin(keeper: &Keeper) -> io::Result<Opener> {
    let OpenerSocket { socket, process } = keeper.opener()?;
    let conversation = Conversation::begin("opener", socket)?;
    let deadline = Instant::now() + READY_PATIENCE;
    while conversation.thread().is_none() {
        if conversation.is_over() || is_dying(process) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the opener does not say who it is",
            ));
        }
        thread::sleep(Duration::from_micros(200));
    }
    Ok(Opener {
        conversation,
        process,
    })
}
