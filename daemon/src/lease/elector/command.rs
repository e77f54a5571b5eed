//! What the API asks of the elector, and the answers.

use litefs_api::NodeId;
use tokio::sync::{mpsc, oneshot};

/// What the API asks of the elector.
#[derive(Debug)]
pub enum Command {
    /// Become primary, by handoff or by taking a free lease.
    Promote { force: bool, answer: Answer },
    /// Hand the lease to the replica with this id.
    HandOff { node_id: NodeId, answer: Answer },
}

/// Where the outcome of a command is told.
pub(super) type Answer = oneshot::Sender<Result<(), Refusal>>;

/// Why a command is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("not eligible to become primary")]
    NotCandidate,
    #[error("the disk of this node failed, restart it first: {0} closed for writing")]
    DiskFailed(String),
    #[error("no primary to take over from: {0}")]
    NoPrimary(String),
    #[error("this node is not the primary")]
    NotPrimary,
    #[error("cannot handoff: {0}")]
    Handoff(String),
    #[error("the node is stopping")]
    Stopping,
}

/// Sends commands to the elector. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ElectorHandle {
    commands: mpsc::Sender<Command>,
}

impl ElectorHandle {
    pub(super) fn new(commands: mpsc::Sender<Command>) -> Self {
        ElectorHandle { commands }
    }

    /// Starts to make this node primary; the leadership tells when it is.
    pub async fn promote(&self, force: bool) -> Result<(), Refusal> {
        self.send(|answer| Command::Promote { force, answer }).await
    }

    /// Hands the lease to a connected replica, and returns when it is handed over.
    pub async fn hand_off(&self, node_id: NodeId) -> Result<(), Refusal> {
        self.send(|answer| Command::HandOff { node_id, answer }).await
    }

    async fn send(&self, command: impl FnOnce(Answer) -> Command) -> Result<(), Refusal> {
        let (answer, answered) = oneshot::channel();
        self.commands
            .send(command(answer))
            .await
            .map_err(|_| Refusal::Stopping)?;
        answered.await.unwrap_or(Err(Refusal::Stopping))
    }
}
