//! Clients keep their connections while their daemon is killed, replaced, stopped and started: short courses of `litefs-dev torture` with
//! fixed seeds, in both modes of the mount and in a cluster. The long ones are run by command.

use std::sync::atomic::{AtomicBool, Ordering};

use litefs_dev::torture::fault::FaultKind;
use litefs_dev::torture::{self, Summary, TortureOptions};
use litefs_dev::{Durability, Passthrough};
use parking_lot::Mutex;

mod support;

fn course(
    name: &str,
    faults: usize,
    kinds: &[FaultKind],
    nodes: usize,
    passthrough: Passthrough,
) -> TortureOptions {
    TortureOptions {
        binary: support::litefs(),
        seed: 7,
        faults,
        kinds: kinds.to_vec(),
        nodes,
        passthrough,
        journal: None,
        stop_at_first: false,
        durability: Durability::Follow,
        directory: support::root().join(format!("keeping-{name}-{}", std::process::id())),
    }
}

fn torture(name: &str, faults: usize, kinds: &[FaultKind], nodes: usize, passthrough: Passthrough) {
    let options = course(name, faults, kinds, nodes, passthrough);
    let never = AtomicBool::new(false);
    let done = torture::run(&options, &never, &mut |line| println!("{name}: {line}"));
    torture::clean_up(&options.directory).unwrap();
    judge(name, &done.unwrap(), faults);
    torture::remove(&options.directory).unwrap();
}

fn judge(name: &str, summary: &Summary, faults: usize) {
    let text = serde_json::to_string_pretty(summary).unwrap();
    assert!(summary.is_clean(), "{name}: {text}");
    assert_eq!(summary.faults.values().sum::<usize>(), faults, "{name}");
    // A run in which nobody did anything proves nothing.
    assert!(summary.judgement.acknowledged > 500, "{name}: {text}");
}

/// Faults of which clients may notice a pause and nothing else.
const UNSEEN: [FaultKind; 3] = [FaultKind::Kill, FaultKind::KillDaemon, FaultKind::Reload];
/// Faults of a single node.
const ALONE: [FaultKind; 6] = [
    FaultKind::Kill,
    FaultKind::KillDaemon,
    FaultKind::KillAll,
    FaultKind::KillOpener,
    FaultKind::Reload,
    FaultKind::Stop,
];

/// Faults of several nodes.
const TOGETHER: [FaultKind; 7] = [
    FaultKind::Kill,
    FaultKind::KillDaemon,
    FaultKind::KillAll,
    FaultKind::Reload,
    FaultKind::Stop,
    FaultKind::StopDeposed,
    FaultKind::Handoff,
];

/// One course at a time: its clients alone are more than most machines have cores.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn a_run_that_is_interrupted_is_judged() {
    let _turn = TURN.lock();
    let options = course("interrupted", 100, &[FaultKind::Reload], 1, Passthrough::Auto);
    let interrupted = AtomicBool::new(false);
    let done = torture::run(&options, &interrupted, &mut |_| {
        interrupted.store(true, Ordering::SeqCst);
    });
    torture::clean_up(&options.directory).unwrap();
    let summary = done.unwrap();
    assert!(summary.is_clean(), "{:?}", summary.problems);
    assert_eq!(summary.faults.values().sum::<usize>(), 1);
    torture::remove(&options.directory).unwrap();
}

#[test]
fn passthrough() {
    let _turn = TURN.lock();
    torture("unseen-k", UNSEEN.len(), &UNSEEN, 1, Passthrough::On);
    torture("alone-k", ALONE.len(), &ALONE, 1, Passthrough::On);
}

#[test]
fn intercepted() {
    let _turn = TURN.lock();
    torture("unseen-d", UNSEEN.len(), &UNSEEN, 1, Passthrough::Off);
    torture("alone-d", ALONE.len(), &ALONE, 1, Passthrough::Off);
}

#[test]
fn cluster() {
    let _turn = TURN.lock();
    torture("cluster", TOGETHER.len(), &TOGETHER, 3, Passthrough::Auto);
}
