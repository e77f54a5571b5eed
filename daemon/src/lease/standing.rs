//! Whether a node may become primary of a cluster that has had one before.
//!
//! Pure: compares what this node has with what the last primary recorded.

use std::collections::BTreeMap;
use std::fmt;

use litefs_api::{Checksum, Position, Txid};

use super::types::ClusterState;

/// A node's right to take a free lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Has everything that was recorded.
    Eligible,
    /// Has nothing, while the cluster has something.
    Empty,
    /// Lacks recorded transactions of a database.
    Behind {
        database: String,
        local: Position,
        recorded: Position,
    },
    /// Has other transactions than those recorded.
    Diverged {
        database: String,
        local: Position,
        recorded: Position,
    },
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Standing::Eligible => f.write_str("has everything the cluster has recorded"),
            Standing::Empty => f.write_str("this node is empty and the cluster is not"),
            Standing::Behind {
                database,
                local,
                recorded,
            } => {
                write!(
                    f,
                    "this node is behind: {database} is at {local}, the cluster recorded {recorded}"
                )
            }
            Standing::Diverged {
                database,
                local,
                recorded,
            } => {
                write!(
                    f,
                    "this node diverged: {database} is at {local}, which does not contain {recorded}"
                )
            }
        }
    }
}

/// Compares `local` positions with the recorded `state`. `checksum_at` looks a transaction up in the local log; it
/// answers nothing for one that the log does not reach back to.
pub fn standing(
    local: &BTreeMap<String, Position>,
    state: Option<&ClusterState>,
    checksum_at: &dyn Fn(&str, Txid) -> Option<Checksum>,
) -> Standing {
    let recorded: Vec<(&String, Position)> = match state {
        None => return Standing::Eligible,
        Some(state) => state
            .positions
            .iter()
            .filter_map(|(name, text)| Some((name, text.parse::<Position>().ok()?)))
            .filter(|(_, position)| position.txid > Txid(0))
            .collect(),
    };
    if !recorded.is_empty() && local.values().all(|position| position.txid == Txid(0)) {
        return Standing::Empty;
    }
    for (name, recorded) in recorded {
        let local = local.get(name).copied().unwrap_or_default();
        let database = name.clone();
        if local.txid < recorded.txid {
            return Standing::Behind {
                database,
                local,
                recorded,
            };
        }
        let ours = if local.txid == recorded.txid {
            Some(local.checksum)
        } else {
            checksum_at(name, recorded.txid)
        };
        if ours.is_some_and(|ours| ours != recorded.checksum) {
            return Standing::Diverged {
                database,
                local,
                recorded,
            };
        }
    }
    Standing::Eligible
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(txid: u64, checksum: u64) -> Position {
        Position {
            txid: Txid(txid),
            checksum: Checksum(checksum),
        }
    }

    fn state(positions: &[(&str, Position)]) -> ClusterState {
        let positions = positions
            .iter()
            .map(|(name, position)| (name.to_string(), position.to_string()))
            .collect();
        ClusterState {
            epoch: 3,
            primary: "p".to_string(),
            positions,
        }
    }

    fn judge(local: &[(&str, Position)], state: Option<&ClusterState>) -> Standing {
        let local = local
            .iter()
            .map(|(name, position)| (name.to_string(), *position))
            .collect();
        // The log of `a` went through checksum 50 at transaction 5 and does not reach back beyond it.
        standing(&local, state, &|name, txid| {
            (name == "a" && txid == Txid(5)).then_some(Checksum(50))
        })
    }

    #[test]
    fn anybody_may_start_a_new_cluster() {
        assert_eq!(judge(&[], None), Standing::Eligible);
        assert_eq!(judge(&[], Some(&state(&[]))), Standing::Eligible);
        assert_eq!(
            judge(&[], Some(&state(&[("a", position(0, 0))]))),
            Standing::Eligible
        );
    }

    #[test]
    fn an_empty_node_never_leads_a_cluster_with_data() {
        let recorded = state(&[("a", position(1, 10))]);
        assert_eq!(judge(&[], Some(&recorded)), Standing::Empty);
        assert_eq!(judge(&[("a", position(0, 0))], Some(&recorded)), Standing::Empty);
    }

    #[test]
    fn a_node_that_lacks_a_transaction_is_behind() {
        let recorded = state(&[("a", position(5, 50)), ("b", position(2, 20))]);
        assert!(matches!(
            judge(&[("a", position(4, 40)), ("b", position(2, 20))], Some(&recorded)),
            Standing::Behind { .. }
        ));
        assert!(matches!(
            judge(&[("a", position(5, 50))], Some(&recorded)),
            Standing::Behind { .. }
        ));
        assert_eq!(
            judge(&[("a", position(5, 50)), ("b", position(2, 20))], Some(&recorded)),
            Standing::Eligible
        );
    }

    #[test]
    fn a_node_on_another_branch_is_not_eligible_even_when_it_is_ahead() {
        let other = state(&[("a", position(5, 51))]);
        assert!(matches!(
            judge(&[("a", position(5, 50))], Some(&other)),
            Standing::Diverged { .. }
        ));
        assert!(matches!(
            judge(&[("a", position(9, 90))], Some(&other)),
            Standing::Diverged { .. }
        ));
        let same = state(&[("a", position(5, 50))]);
        assert_eq!(judge(&[("a", position(9, 90))], Some(&same)), Standing::Eligible);
        let beyond_the_log = state(&[("a", position(4, 1))]);
        assert_eq!(
            judge(&[("a", position(9, 90))], Some(&beyond_the_log)),
            Standing::Eligible
        );
    }
}
