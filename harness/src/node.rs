//! One node of a cluster, or its lease server, as a value to call.

use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::binary;
use crate::cluster::{Cluster, STOP};
use crate::content::Content;
use crate::control::{ProcessState, Request, Victims};
use crate::enter::enter;
use crate::error::{Error, Result};
use crate::inside;
use crate::sql::Rows;
use crate::station::Station;

/// How long to wait for locks of others.
const BUSY: Duration = Duration::from_secs(5);
/// How long, beyond that, a node may not answer while somebody waits for its mount: a daemon that died is started again by then.
const ANSWER: Duration = Duration::from_secs(5);

/// A node of a cluster, or its lease server.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) station: Station,
}

impl Node<'_> {
    pub fn station(&self) -> Station {
        self.station
    }

    pub fn mount(&self) -> PathBuf {
        self.cluster.directory().mount(self.station)
    }

    pub fn data(&self) -> PathBuf {
        self.cluster.directory().data(self.station)
    }

    pub fn log(&self) -> PathBuf {
        self.cluster.directory().log(self.station)
    }

    /// Base URL of the API as the host reaches it.
    pub fn url(&self) -> Result<String> {
        let state = self.cluster.call(&Request::State)?;
        Ok(crate::status::url(state.station(self.station)?.port))
    }

    /// Runs SQL on a database of the node; see [`Rows`].
    pub fn sql(&self, database: &str, sql: &str) -> Result<Rows> {
        self.sql_within(database, sql, BUSY)
    }

    /// As [`Self::sql`] with another busy time-out.
    pub fn sql_within(&self, database: &str, sql: &str, busy_timeout: Duration) -> Result<Rows> {
        self.inside("run-sql", database, sql, busy_timeout)
    }

    /// What a client of the mount reads of a database.
    pub(crate) fn content(&self, database: &str) -> Result<Content> {
        self.inside("read-content", database, "", BUSY)
    }

    fn inside<T: DeserializeOwned>(
        &self,
        work: &str,
        database: &str,
        input: &str,
        busy_timeout: Duration,
    ) -> Result<T> {
        let file = file_of(&self.mount(), database)?;
        let state = self.cluster.call(&Request::State)?;
        let station = state.station(self.station)?;
        station.process.running(self.station, &self.cluster.name())?;
        let mut command = Command::new(binary::litefs_dev()?);
        command
            .arg(work)
            .arg(file)
            .arg(busy_timeout.as_millis().to_string())
            .arg("--directory")
            .arg(self.mount());
        // The child enters the mount itself: until it runs nobody could end it, and the mount may not answer.
        let directory = self.cluster.directory().station(self.station);
        enter(&mut command, &state, station, &directory)?;
        let failed = |message| Error::Sql {
            node: self.station.to_string(),
            message,
        };
        let start = Instant::now();
        let check = || self.must_answer(start.elapsed() > busy_timeout + ANSWER);
        inside::parent(command, input, check, failed)
    }

    /// An error if the node does not run; if it is `late`, also if it runs and does not answer.
    fn must_answer(&self, late: bool) -> Result<()> {
        let status = self.cluster.status()?;
        let Some(node) = status.node(self.station) else {
            return Ok(());
        };
        match (&node.process, &node.error) {
            (ProcessState::Running { .. }, Some(error)) if late => Err(Error::refused(
                format!("{} does not answer: {error}", self.station),
                format!("see {}", self.log().display()),
            )),
            (ProcessState::Running { .. }, _) => Ok(()),
            // Between the end of a process and its next start a client waits for the mount.
            (ProcessState::Stopped { .. }, _) if !late => Ok(()),
            (state @ (ProcessState::Paused { .. } | ProcessState::Stopped { .. }), _) => {
                state.running(self.station, &self.cluster.name()).map(drop)
            }
        }
    }

    /// A command that will run on the node: in its namespaces, in its mount. On a paused one it could not enter the mount.
    pub fn exec(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = Command::new(program);
        command.env("LITEFS_NODE", self.station.to_string());
        let state = self.cluster.call(&Request::State)?;
        let station = state.station(self.station)?;
        if matches!(station.process, ProcessState::Paused { .. }) {
            station.process.running(self.station, &self.cluster.name())?;
        }
        let directory = match self.station.is_node() {
            true => self.mount(),
            false => self.cluster.directory().station(self.station),
        };
        enter(&mut command, &state, station, &directory)?;
        Ok(command)
    }

    pub fn start(&self) -> Result<()> {
        self.cluster.call(&Request::Start(self.station)).map(drop)
    }

    /// SIGTERM; waits for the end.
    pub fn stop(&self) -> Result<()> {
        self.cluster.call(&Request::Stop(self.station, STOP)).map(drop)
    }

    /// SIGKILL of the process that was started: the node crashes.
    pub fn kill(&self) -> Result<()> {
        self.kill_of(Victims::Node)
    }

    /// SIGKILL of some of the node's processes, or of all.
    pub fn kill_of(&self, victims: Victims) -> Result<()> {
        self.cluster.call(&Request::Kill(self.station, victims)).map(drop)
    }

    /// SIGHUP: the daemon is replaced by a fresh one, with the configuration as it is now.
    pub fn reload(&self) -> Result<()> {
        self.cluster.call(&Request::Reload(self.station)).map(drop)
    }

    pub fn pause(&self) -> Result<()> {
        self.cluster.call(&Request::Pause(self.station)).map(drop)
    }

    pub fn resume(&self) -> Result<()> {
        self.cluster.call(&Request::Resume(self.station)).map(drop)
    }
}

/// A database in the mount. No name leads out of it.
fn file_of(mount: &Path, database: &str) -> Result<PathBuf> {
    let below = |part| matches!(part, Component::Normal(_));
    if database.is_empty() || !Path::new(database).components().all(below) {
        return Err(Error::Invalid(format!(
            "{database:?} is no name of a database in the mount: a path below it, like app.db or dir/app.db"
        )));
    }
    Ok(mount.join(database))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_database_is_outside_the_mount() {
        let mount = Path::new("/mnt");
        assert_eq!(
            file_of(mount, "dir/app.db").unwrap(),
            Path::new("/mnt/dir/app.db")
        );
        for outside in ["", "/app.db", "../app.db", "dir/../../app.db"] {
            assert!(file_of(mount, outside).is_err(), "{outside}");
        }
    }
}
