//! What the command line asks of a cluster's supervisor, and how: one JSON line each way over the control socket.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::binary;
use crate::directory::ClusterDirectory;
use crate::error::{Error, Result};
use crate::station::Station;
use crate::wire::{Direction, LinkPolicy, Setting, Traffic};

/// More than a stop with all its patience takes.
const LONGEST_REQUEST: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    State,
    Start(Station),
    /// SIGTERM, and wait for the end.
    Stop(Station, Duration),
    /// SIGKILL, and wait for the end.
    Kill(Station, Victims),
    /// SIGHUP: the daemon is replaced by a fresh one.
    Reload(Station),
    Pause(Station),
    Resume(Station),
    Link(Vec<Direction>, LinkPolicy),
    Cut(Vec<Direction>),
    /// With `true` ends link policies too.
    Heal(bool),
    /// From now on the cluster outlives the process that made it.
    Keep,
    /// Stops what still runs and ends the supervisor.
    Shutdown,
}

/// Which processes of a node are killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Victims {
    /// The process that was started, and with it the daemon: the node crashes.
    Node,
    /// The daemon alone, which is started again at once.
    Daemon,
    /// Everything that serves the node's data, companions too.
    All,
}

/// The answer to [`Request::State`], and to every other request once it is done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SupervisorState {
    pub pid: i32,
    /// The supervisor lives in user and mount namespaces of its own, and so do the mounts.
    pub user_namespace: bool,
    pub stations: Vec<StationState>,
    pub links: Vec<LinkState>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StationState {
    pub station: Station,
    pub process: ProcessState,
    /// Descriptor of the station's network namespace in the supervisor.
    pub namespace_fd: RawFd,
    /// Port on the host's loopback address that leads to the station's API.
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum ProcessState {
    Running { pid: i32 },
    Paused { pid: i32 },
    Stopped { exit: Option<String> },
}

impl ProcessState {
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }

    pub fn pid(&self) -> Option<i32> {
        match self {
            Self::Running { pid } | Self::Paused { pid } => Some(*pid),
            Self::Stopped { .. } => None,
        }
    }

    /// The id of the process, called `name` in that cluster, if it runs and is not paused; otherwise an error that says how to get there.
    pub(crate) fn running(&self, name: impl fmt::Display, cluster: &str) -> Result<i32> {
        let (message, command) = match self {
            Self::Running { pid } => return Ok(*pid),
            Self::Paused { .. } => (format!("{name} is paused"), "resume"),
            Self::Stopped { exit: Some(exit) } => (format!("{name} is not running (last: {exit})"), "start"),
            Self::Stopped { exit: None } => (format!("{name} is not running"), "start"),
        };
        let hint = format!("{} {command} --name {cluster} {name}", binary::typed());
        Err(Error::refused(message, hint))
    }
}

/// A direction that is not a plain wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkState {
    pub direction: Direction,
    pub setting: Setting,
    pub traffic: Traffic,
}

impl SupervisorState {
    pub(crate) fn station(&self, station: Station) -> Result<&StationState> {
        let found = self.stations.iter().find(|state| state.station == station);
        found.ok_or_else(|| Error::Invalid(format!("this cluster has no {station}")))
    }
}

/// Sends a request over a connection to the supervisor and waits until it is carried out.
pub(crate) fn call(
    directory: &ClusterDirectory,
    mut stream: UnixStream,
    request: &Request,
) -> Result<SupervisorState> {
    let failed = || Error::system("talking to the cluster's supervisor");
    stream.set_read_timeout(Some(LONGEST_REQUEST)).map_err(failed())?;
    let mut line = serde_json::to_vec(request).map_err(|error| failed()(error.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(failed())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(failed())?;
    if answer.is_empty() {
        let hint = format!("see {}", directory.supervisor_log().display());
        return Err(Error::refused("the supervisor ended before it answered", hint));
    }
    let answer: Result<SupervisorState, String> =
        serde_json::from_str(&answer).map_err(|error| failed()(error.into()))?;
    answer.map_err(|text| said(&text))
}

/// What a supervisor says, which calls itself by its name alone, with its hint as whoever typed this command can paste it.
pub(crate) fn said(text: &str) -> Error {
    Error::Supervisor(match text.split_once("\nhint: ") {
        Some((message, hint)) => {
            let typed = format!("{} ", binary::typed());
            format!("{message}\nhint: {}", hint.replace("litefs-dev ", &typed))
        }
        None => text.to_owned(),
    })
}
