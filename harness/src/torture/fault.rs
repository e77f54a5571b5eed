//! What happens to the daemons, chosen by a seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// SIGKILL of the process that was started, and a start soon after.
    Kill,
    /// SIGKILL of the daemon below it, which it starts again.
    KillDaemon,
    /// SIGKILL of everything that serves the node, and a start.
    KillAll,
    /// SIGKILL of the process that holds the mount.
    KillKeeper,
    /// SIGKILL of the process that holds the locks.
    KillOpener,
    /// SIGHUP: a fresh daemon takes over.
    Reload,
    /// SIGTERM, and a start.
    Stop,
    /// The primary is cut off until another leads, and stopped then.
    StopDeposed,
    /// A node is cut off for a while.
    Partition,
    /// A node stands still for a while.
    Pause,
    /// The primary hands its lease to a replica.
    Handoff,
    /// A replica asks for the lease.
    Promote,
    /// All nodes are stopped and started.
    StopAll,
    /// All nodes are killed and started.
    KillCluster,
}

/// What the daemon must be for a fault to be possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Generation {
    /// The process that is started is the daemon.
    Single,
    /// The process that is started starts the daemon, and a keeper holds the mount.
    Launcher,
}

impl FaultKind {
    pub const ALL: [Self; 14] = [
        Self::Kill,
        Self::KillDaemon,
        Self::KillAll,
        Self::KillKeeper,
        Self::KillOpener,
        Self::Reload,
        Self::Stop,
        Self::StopDeposed,
        Self::Partition,
        Self::Pause,
        Self::Handoff,
        Self::Promote,
        Self::StopAll,
        Self::KillCluster,
    ];

    /// Whether the fault can happen to so many nodes of that kind.
    pub fn is_possible(self, nodes: usize, generation: Generation) -> bool {
        match self {
            Self::Kill | Self::KillAll | Self::KillOpener | Self::Stop => true,
            Self::KillDaemon | Self::KillKeeper | Self::Reload => generation >= Generation::Launcher,
            Self::StopDeposed
            | Self::Partition
            | Self::Pause
            | Self::Handoff
            | Self::Promote
            | Self::StopAll
            | Self::KillCluster => nodes > 1,
        }
    }

    /// What clients may see of the fault on a single node.
    pub fn visibility(self) -> Visibility {
        match self {
            Self::Kill | Self::KillDaemon | Self::Reload => Visibility::None,
            Self::KillAll
            | Self::KillKeeper
            | Self::KillOpener
            | Self::Stop
            | Self::StopDeposed
            | Self::Partition
            | Self::Pause
            | Self::Handoff
            | Self::Promote
            | Self::StopAll
            | Self::KillCluster => Visibility::Errors,
        }
    }

    /// What becomes of the connections of clients.
    pub fn connections(self) -> Connections {
        match self {
            Self::KillAll => Connections::End,
            Self::Kill
            | Self::KillKeeper
            | Self::KillDaemon
            | Self::KillOpener
            | Self::Reload
            | Self::Stop
            | Self::StopDeposed
            | Self::Partition
            | Self::Pause
            | Self::Handoff
            | Self::Promote
            | Self::StopAll
            | Self::KillCluster => Connections::Survive,
        }
    }

    /// Milliseconds that the node is away at most.
    fn longest(self) -> u64 {
        match self {
            Self::Partition | Self::Pause => APART,
            Self::Kill
            | Self::KillDaemon
            | Self::KillAll
            | Self::KillKeeper
            | Self::KillOpener
            | Self::Reload
            | Self::Stop
            | Self::StopDeposed
            | Self::Handoff
            | Self::Promote
            | Self::StopAll
            | Self::KillCluster => DOWN,
        }
    }

    pub fn name(self) -> String {
        let name = serde_json::to_value(self).ok();
        name.and_then(|name| Some(name.as_str()?.to_owned()))
            .unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Statements wait; none fails.
    None,
    Errors,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    Survive,
    /// Nobody holds the mount any more: its clients must connect anew, and may read what is old until they do.
    End,
}

/// To which node it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Primary,
    /// The so many-th of the replicas, counted around.
    Replica(usize),
}

#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: FaultKind,
    pub victim: Victim,
    /// How long the node is down, cut off or paused.
    pub lasts: Duration,
    /// How long nothing happens afterwards.
    pub rest: Duration,
}

/// Down for at most so long: a supervisor starts its service again sooner.
const DOWN: u64 = 2000;
/// As long as a lease or two.
const APART: u64 = 7000;

/// Deals faults: all kinds in some order, then all again, so that a short course has each.
pub(super) struct Dealer {
    kinds: Vec<FaultKind>,
    left: Vec<FaultKind>,
    chance: StdRng,
}

impl Dealer {
    /// `kinds` is not empty.
    pub(super) fn new(seed: u64, kinds: Vec<FaultKind>) -> Self {
        Self {
            kinds,
            left: Vec::new(),
            chance: StdRng::seed_from_u64(seed),
        }
    }

    pub(super) fn next(&mut self) -> Fault {
        if self.left.is_empty() {
            self.left.clone_from(&self.kinds);
            self.left.shuffle(&mut self.chance);
        }
        let kind = self.left.pop().expect("some kind is possible");
        let victim = match self.chance.random_bool(0.7) {
            true => Victim::Primary,
            false => Victim::Replica(self.chance.random_range(0..16)),
        };
        // Nearly half of them are over at once.
        let share = (self.chance.random::<f64>() * 1.8 - 0.8).max(0.0);
        Fault {
            kind,
            victim,
            lasts: Duration::from_millis(kind.longest()).mul_f64(share),
            rest: Duration::from_millis(self.chance.random_range(100..1200)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_means_a_course() {
        let course = |seed| -> Vec<String> {
            let mut dealer = Dealer::new(seed, FaultKind::ALL.to_vec());
            (0..50).map(|_| format!("{:?}", dealer.next())).collect()
        };
        assert_eq!(course(3), course(3));
        assert_ne!(course(3), course(4));
    }

    #[test]
    fn every_kind_is_dealt_before_one_is_dealt_again() {
        let mut dealer = Dealer::new(1, FaultKind::ALL.to_vec());
        for _ in 0..3 {
            let mut dealt: Vec<_> = FaultKind::ALL.iter().map(|_| dealer.next().kind).collect();
            dealt.sort();
            assert_eq!(dealt, FaultKind::ALL);
        }
    }

    #[test]
    fn todays_daemon_is_not_asked_for_what_it_does_not_know() {
        let possible = |nodes, generation| {
            FaultKind::ALL
                .into_iter()
                .filter(move |kind| kind.is_possible(nodes, generation))
        };
        assert!(possible(1, Generation::Single).all(|kind| kind != FaultKind::Reload));
        assert_eq!(possible(3, Generation::Launcher).count(), FaultKind::ALL.len());
    }
}
