//! Conditions of a cluster that can be waited for.

use std::fmt;

use litefs_api::Txid;

use crate::station::Station;
use crate::status::{ClusterStatus, NodeRole};

#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// One primary, and all other running nodes follow it.
    Settled,
    /// The node is the primary or follows it.
    Joined { node: Station },
    /// The node has the role; without a node, some node has.
    Role { node: Option<Station>, role: NodeRole },
    /// The node has applied the transaction; without a node, all live nodes have.
    Position {
        node: Option<Station>,
        database: String,
        txid: Txid,
    },
    /// The node is where the primary is, in all databases; without a node, all live nodes are.
    CaughtUp { node: Option<Station> },
}

impl Condition {
    /// The node that it is about, if it is about one.
    pub fn node(&self) -> Option<Station> {
        match self {
            Self::Settled => None,
            Self::Joined { node } => Some(*node),
            Self::Role { node, .. } | Self::Position { node, .. } | Self::CaughtUp { node } => *node,
        }
    }

    pub fn holds(&self, status: &ClusterStatus) -> bool {
        match self {
            Self::Settled => status.is_settled(),
            Self::Joined { node } => {
                concerned(status, Some(*node)).any(|node| node.node.as_ref().is_some_and(|said| said.ready))
            }
            Self::Role { node, role } => concerned(status, *node).any(|node| node.role == *role),
            Self::Position { node, database, txid } => all_live(status, *node, |said| {
                said.databases
                    .iter()
                    .any(|found| found.name == *database && found.txid >= *txid)
            }),
            Self::CaughtUp { node } => {
                let mut primaries = status.live().filter(|(node, _)| node.role == NodeRole::Primary);
                let (Some((_, primary)), None) = (primaries.next(), primaries.next()) else {
                    return false;
                };
                let place = |said: &litefs_api::Status| -> Vec<_> {
                    said.databases
                        .iter()
                        .map(|found| (found.name.clone(), found.txid, found.checksum))
                        .collect()
                };
                let target = place(primary);
                all_live(status, *node, |said| place(said) == target)
            }
        }
    }
}

fn concerned(
    status: &ClusterStatus,
    node: Option<Station>,
) -> impl Iterator<Item = &crate::status::NodeStatus> {
    status
        .nodes
        .iter()
        .filter(move |found| node.is_none_or(|node| node == found.name))
}

/// Whether there is a node to ask, all running ones answer, and the condition holds for each.
fn all_live(
    status: &ClusterStatus,
    node: Option<Station>,
    holds: impl Fn(&litefs_api::Status) -> bool,
) -> bool {
    let mut asked: Vec<_> = concerned(status, node).collect();
    if node.is_none() {
        asked.retain(|found| found.process.is_running());
    }
    !asked.is_empty() && asked.iter().all(|found| found.node.as_ref().is_some_and(&holds))
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who =
            |node: &Option<Station>, nobody: &str| node.map_or(nobody.to_owned(), |node| node.to_string());
        match self {
            Self::Settled => f.write_str("there is one primary and all running nodes follow it"),
            Self::Joined { node } => write!(f, "{node} is the primary or follows it"),
            Self::Role { node, role } => write!(f, "{} is {role}", who(node, "some node")),
            Self::Position { node, database, txid } => {
                write!(
                    f,
                    "{} has transaction {txid} of {database}",
                    who(node, "every live node")
                )
            }
            Self::CaughtUp { node } => write!(f, "{} is where the primary is", who(node, "every live node")),
        }
    }
}
