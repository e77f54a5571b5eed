//! What a cluster is doing: the supervisor's view of the processes, joined with what each node says of itself.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use litefs_api::{Client, Role, Status};
use serde::Serialize;

use crate::control::{LinkState, ProcessState, StationState, SupervisorState};
use crate::directory::ClusterDirectory;
use crate::spec::ClusterSpec;
use crate::station::Station;

/// A node that takes longer to answer counts as down.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Serialize)]
pub struct ClusterStatus {
    pub name: String,
    pub running: bool,
    /// The `litefs` that the nodes run, or will run.
    pub binary: PathBuf,
    pub nodes: Vec<NodeStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseStatus>,
    /// Directions that are not plain wires.
    pub links: Vec<LinkState>,
    /// The mounts are visible only to `exec` and `sql`.
    #[serde(rename = "userNamespace")]
    pub user_namespace: bool,
    pub supervisor: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    Primary,
    Replica,
    /// Not running, paused, or not answering.
    Down,
}

impl std::fmt::Display for NodeRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::Down => "down",
        })
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    pub name: Station,
    pub role: NodeRole,
    #[serde(flatten)]
    pub process: ProcessState,
    pub address: std::net::Ipv4Addr,
    pub mount: PathBuf,
    pub data: PathBuf,
    pub log: PathBuf,
    /// Base URL of the API as the host reaches it.
    pub api: Option<String>,
    /// Why a running node counts as down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the node says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Status>,
}

#[derive(Clone, Debug, Serialize)]
pub struct LeaseStatus {
    pub address: std::net::SocketAddr,
    /// Base URL as the host reaches it.
    pub api: String,
    #[serde(flatten)]
    pub process: ProcessState,
    pub log: PathBuf,
}

impl ClusterStatus {
    /// The status of a cluster whose supervisor does not run.
    pub(crate) fn stopped(directory: &ClusterDirectory, spec: &ClusterSpec) -> Self {
        let process = ProcessState::Stopped { exit: None };
        Self {
            name: directory.name(),
            running: false,
            binary: spec.binary.clone(),
            nodes: spec
                .node_stations()
                .map(|station| NodeStatus::down(directory, station, process.clone(), None))
                .collect(),
            lease: None,
            links: Vec::new(),
            user_namespace: false,
            supervisor: None,
        }
    }

    /// Asks all nodes at once.
    pub(crate) async fn collect(
        directory: &ClusterDirectory,
        spec: &ClusterSpec,
        supervisor: SupervisorState,
    ) -> Self {
        let (nodes, lease): (Vec<_>, Vec<_>) = supervisor
            .stations
            .iter()
            .partition(|state| state.station.is_node());
        let lease = lease.first().map(|state| LeaseStatus {
            address: Station::LEASE.service(),
            api: url(state.port),
            process: state.process.clone(),
            log: directory.log(Station::LEASE),
        });
        Self {
            name: directory.name(),
            running: true,
            binary: spec.binary.clone(),
            nodes: join_all(nodes.into_iter().map(|state| NodeStatus::ask(directory, state))).await,
            lease,
            links: supervisor.links,
            user_namespace: supervisor.user_namespace,
            supervisor: Some(supervisor.pid),
        }
    }

    pub fn node(&self, station: Station) -> Option<&NodeStatus> {
        self.nodes.iter().find(|node| node.name == station)
    }

    /// The nodes that say they are primary. More than one only while a deposed one has not noticed.
    pub fn primaries(&self) -> impl Iterator<Item = &NodeStatus> {
        self.nodes.iter().filter(|node| node.role == NodeRole::Primary)
    }

    /// The nodes that answer, with what they say.
    pub fn live(&self) -> impl Iterator<Item = (&NodeStatus, &Status)> {
        self.nodes
            .iter()
            .filter_map(|node| Some((node, node.node.as_ref()?)))
    }

    /// Whether there is one primary and all other running nodes follow it.
    pub fn is_settled(&self) -> bool {
        let mut primaries = self.live().filter(|(node, _)| node.role == NodeRole::Primary);
        let (Some((primary, status)), None) = (primaries.next(), primaries.next()) else {
            return false;
        };
        let name = primary.name.to_string();
        let follows = |node: &NodeStatus, said: &Status| {
            said.ready
                && said
                    .primary
                    .as_ref()
                    .is_some_and(|followed| followed.hostname == name)
                && status
                    .replicas
                    .iter()
                    .any(|replica| replica.node_id == said.node_id)
                && node.role == NodeRole::Replica
        };
        let running = self
            .nodes
            .iter()
            .filter(|node| node.process.is_running() && node.name != primary.name);
        running
            .into_iter()
            .all(|node| node.node.as_ref().is_some_and(|said| follows(node, said)))
    }

    /// One line that says who is what, for messages.
    pub fn summary(&self) -> String {
        let nodes = self.nodes.iter().map(|node| {
            let trouble = node
                .error
                .as_ref()
                .map(|error| format!(" ({error})"))
                .unwrap_or_default();
            format!("{} {}{trouble}", node.name, node.role)
        });
        nodes.collect::<Vec<_>>().join(", ")
    }
}

impl NodeStatus {
    fn down(directory: &ClusterDirectory, name: Station, process: ProcessState, port: Option<u16>) -> Self {
        Self {
            name,
            role: NodeRole::Down,
            process,
            address: name.ip(),
            mount: directory.mount(name),
            data: directory.data(name),
            log: directory.log(name),
            api: port.map(url),
            error: None,
            node: None,
        }
    }

    async fn ask(directory: &ClusterDirectory, state: &StationState) -> Self {
        let mut node = Self::down(directory, state.station, state.process.clone(), Some(state.port));
        if !state.process.is_running() {
            return node;
        }
        let answer = async { Client::new(&url(state.port))?.status().await };
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(status)) => {
                node.role = match status.role {
                    Role::Primary => NodeRole::Primary,
                    Role::Replica => NodeRole::Replica,
                };
                node.node = Some(status);
            }
            Ok(Err(error)) => node.error = Some(error.to_string()),
            Err(_) => node.error = Some(format!("no answer within {PATIENCE:?}")),
        }
        node
    }
}

pub(crate) fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}
