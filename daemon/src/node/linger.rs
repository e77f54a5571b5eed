//! After a stop: what is left of a node while clients have files of its mount open.
//!
//! Their databases are captured and fenced, the lease is another's, and the mount is detached. Were it to end under them, clients with
//! passthrough files could commit into nowhere; so the process goes on serving it, as a replica without a primary does: reads are answered,
//! writes are refused. It ends with the last client, or for a next daemon, which takes the mount over and attaches it again.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use engine::Store;

use crate::companion::Keeper;
use crate::fuse::Mount;
use crate::launcher::Link;

/// How often it is looked whether clients are left.
const LOOK: Duration = Duration::from_millis(50);

pub(super) struct Rest {
    pub(super) mount: Mount,
    pub(super) store: Arc<Store>,
    pub(super) keeper: Arc<Keeper>,
    pub(super) link: Arc<Link>,
}

impl Rest {
    /// Detaches the mount, and ends it if nobody has files open; else what is left is returned.
    pub(super) fn finish(self) -> Option<Rest> {
        self.mount.shut_unfinished();
        if let Err(error) = self.mount.detach() {
            tracing::error!(%error, "cannot detach the mount");
        }
        if self.mount.client_handles() > 0 {
            return Some(self);
        }
        self.end();
        None
    }

    fn end(self) {
        if let Err(error) = self.store.close() {
            tracing::error!(%error, "cannot close the store in order");
        }
        // Last of all: another process may start from here on.
        if let Err(error) = self.mount.stop() {
            tracing::error!(%error, "cannot end the mount");
        }
    }

    /// Serves until the last client has closed its files or the next daemon comes.
    pub(super) async fn linger(self) {
        self.tell();
        let leave = self.keeper.leave().clone();
        self.keeper.linger();
        detach_from_launcher();
        self.link.lingering();
        while self.mount.client_handles() > 0 {
            tokio::select! {
                // The next daemon takes over what is there, as it is.
                () = leave.cancelled() => std::process::exit(0),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        let _ = tokio::task::spawn_blocking(move || self.end()).await;
    }

    fn tell(&self) {
        let holders = self.mount.holders();
        let holders: Vec<String> = holders
            .iter()
            .map(|holder| format!("{} ({})", holder.process, holder.command))
            .collect();
        tracing::warn!(
            files = self.mount.client_handles(),
            holders = holders.join(", "),
            "clients have files of the mount open: they can read and not write until they close them, or litefs starts again"
        );
    }
}

/// The launcher ends now, and its session and terminal must not take this process with them.
fn detach_from_launcher() {
    let outcome = nix::sys::prctl::set_pdeathsig(None)
        .and_then(|()| nix::unistd::setsid().map(drop))
        .map_err(std::io::Error::from)
        .and_then(|()| {
            let nowhere = File::options().read(true).write(true).open("/dev/null")?;
            nix::unistd::dup2_stdin(&nowhere)?;
            nix::unistd::dup2_stdout(&nowhere)?;
            nix::unistd::dup2_stderr(&nowhere)?;
            Ok(())
        });
    if let Err(error) = outcome {
        tracing::debug!(%error, "leave the launcher");
    }
}
