//! Faults in random order while somebody writes, round after round. After each round the network heals, everything is started again, and
//!
//! * the cluster finds one primary by itself and all nodes reach it,
//! * all nodes hold the same bytes, agree on what every transaction led to, and SQLite finds no fault in them,
//! * every row that all nodes had before the round is still there. (A row acknowledged *during* a fault may go with the primary that
//!   acknowledged it: `durability: follow` promises no more.)
//!
//! `TORTURE_SEED` and `TORTURE_ROUNDS` choose another course and length; the seed is printed.

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use litefs_dev::wire::{Direction, LinkPolicy};
use litefs_dev::{Cluster, ClusterOptions, Condition, ProcessState, Station};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use support::{PATIENCE, daemons, eventually};

const NODES: usize = 3;
const TTL: Duration = Duration::from_secs(3);
const DB: &str = "torture.db";
const BUSY: Duration = Duration::from_millis(500);
/// After a fault in the worst case: the lease ends, a node is elected, replicas come back.
const SETTLE: Duration = Duration::from_secs(60);

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn what_a_healed_cluster_holds_is_never_lost() {
    let (seed, rounds) = (environment("TORTURE_SEED", 20), environment("TORTURE_ROUNDS", 5));
    println!("TORTURE_SEED={seed}");
    let options = ClusterOptions {
        nodes: NODES,
        ttl: TTL,
        lock_delay: Duration::from_millis(200),
        seed,
        ..ClusterOptions::default()
    };
    let Some(cluster) = daemons(options) else { return };
    let mut chance = StdRng::seed_from_u64(seed);
    let mode = if seed % 4 == 3 { "delete" } else { "wal" };
    let create = format!("PRAGMA journal_mode = {mode}; CREATE TABLE t (a INTEGER PRIMARY KEY, b)");
    cluster.primary().unwrap().sql(DB, &create).unwrap();
    let next = AtomicI64::new(0);
    let mut held = BTreeSet::new();
    for round in 1..=rounds {
        // In peace, so that there is something to lose.
        for _ in 0..5 {
            // On a busy machine a lease may lapse in peace too.
            eventually("a row is written", || {
                let number = next.fetch_add(1, Ordering::Relaxed);
                write(&cluster, number).is_ok_and(|()| held.insert(number))
            });
        }
        cluster
            .wait(&Condition::CaughtUp { node: None }, PATIENCE)
            .unwrap();

        let over = AtomicBool::new(false);
        let acknowledged = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_until(&cluster_again(&cluster), &next, &over));
            for _ in 0..chance.random_range(1..=3) {
                let fault = disturb(&cluster, &mut chance);
                println!("round {round}: {fault}");
                std::thread::sleep(Duration::from_millis(chance.random_range(0..3000)));
            }
            over.store(true, Ordering::Relaxed);
            // A write on a paused node cannot end before the node goes on.
            repair(&cluster);
            writer.join().unwrap()
        });
        let found = judge(&cluster, &held);
        let lost = acknowledged.difference(&found).count();
        println!(
            "round {round}: {} acknowledged during the faults, {lost} of them gone with a primary",
            acknowledged.len()
        );
        held = found;
    }
}

/// The value of another thread: a [`Cluster`] is not shared between threads.
fn cluster_again(cluster: &Cluster) -> Cluster {
    Cluster::open_in(&support::root(), Some(&cluster.name())).unwrap()
}

fn write(cluster: &Cluster, number: i64) -> litefs_dev::Result<()> {
    let sql = format!("INSERT INTO t VALUES ({number}, hex(randomblob(300)))");
    cluster.primary()?.sql_within(DB, &sql, BUSY).map(drop)
}

/// Writes wherever a primary is; returns what was acknowledged.
fn write_until(cluster: &Cluster, next: &AtomicI64, over: &AtomicBool) -> BTreeSet<i64> {
    let mut acknowledged = BTreeSet::new();
    while !over.load(Ordering::Relaxed) {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if write(cluster, number).is_ok() {
            acknowledged.insert(number);
        }
    }
    acknowledged
}

/// Does one bad thing and tells what.
fn disturb(cluster: &Cluster, chance: &mut StdRng) -> String {
    let mut stations: Vec<_> = Station::all(NODES).collect();
    let running = |station: &Station| {
        let status = cluster.status().unwrap();
        status
            .node(*station)
            .is_some_and(|node| node.process.is_running())
    };
    let nodes: Vec<_> = stations
        .iter()
        .copied()
        .filter(|station| station.is_node())
        .filter(running)
        .collect();
    let victim = nodes.choose(chance).copied();
    match (chance.random_range(0..7), victim) {
        (0, Some(node)) => {
            cluster.at(node).kill().unwrap();
            format!("kill {node}")
        }
        (1, Some(node)) => {
            cluster.at(node).pause().unwrap();
            format!("pause {node}")
        }
        (2, Some(node)) => {
            cluster.at(node).kill().unwrap();
            cluster.at(node).start().unwrap();
            format!("kill and start {node}")
        }
        (3, Some(node)) => {
            cluster.at(node).stop().unwrap();
            format!("stop {node}")
        }
        (4, _) => {
            let policy = LinkPolicy {
                delay: Duration::from_millis(chance.random_range(0..50)),
                jitter: Duration::from_millis(chance.random_range(0..20)),
                loss: format!("{}%", chance.random_range(0..20)).parse().unwrap(),
                duplicate: format!("{}%", chance.random_range(0..5)).parse().unwrap(),
                reorder: format!("{}%", chance.random_range(0..10)).parse().unwrap(),
                rate: None,
            };
            let all = stations
                .iter()
                .flat_map(|&from| stations.iter().map(move |&to| Direction { from, to }));
            cluster
                .link(all.filter(|pair| pair.from != pair.to).collect(), policy)
                .unwrap();
            format!("all links: {policy}")
        }
        _ => {
            stations.shuffle(chance);
            let (left, right) = stations.split_at(chance.random_range(1..stations.len()));
            let one_way = chance.random_bool(0.3);
            cluster
                .partition(&[left.to_vec(), right.to_vec()], one_way)
                .unwrap();
            let names =
                |group: &[Station]| group.iter().map(Station::to_string).collect::<Vec<_>>().join(",");
            format!(
                "partition {} / {}{}",
                names(left),
                names(right),
                if one_way { " one way" } else { "" }
            )
        }
    }
}

fn repair(cluster: &Cluster) {
    cluster.heal(true).unwrap();
    for node in cluster.status().unwrap().nodes {
        match node.process {
            ProcessState::Running { .. } => {}
            ProcessState::Paused { .. } => cluster.at(node.name).resume().unwrap(),
            ProcessState::Stopped { .. } => cluster.at(node.name).start().unwrap(),
        }
    }
}

/// Checks everything a healed cluster must be; returns the rows it holds.
fn judge(cluster: &Cluster, held: &BTreeSet<i64>) -> BTreeSet<i64> {
    cluster.wait(&Condition::Settled, SETTLE).unwrap();
    cluster.wait(&Condition::CaughtUp { node: None }, SETTLE).unwrap();
    let verified = cluster.verify(PATIENCE).unwrap();
    assert!(verified.is_clean(), "{:#?}", verified.problems);
    let rows = cluster.primary().unwrap().sql(DB, "SELECT a FROM t").unwrap();
    let found: BTreeSet<_> = rows.rows.iter().filter_map(|row| row[0].as_i64()).collect();
    let lost: Vec<_> = held.difference(&found).collect();
    assert!(lost.is_empty(), "rows that every node had are gone: {lost:?}");
    found
}
