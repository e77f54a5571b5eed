//! The power fails, calls fail, the disk is full: at every single step.

use proptest::prelude::*;

use super::model::{Model, Step};
use super::*;
use crate::disk::sim::{Crash, Fault};

/// More than the sink keeps in memory.
const LARGE: u32 = 300;

fn script() -> Vec<Step> {
    use Step::*;
    vec![
        Append(1),
        Sync,
        Batch(3),
        Append(LARGE),
        Abandon(LARGE),
        Sync,
        Append(2),
        Batch(2),
        Reopen,
        Append(1),
        Retain(4),
        Batch(12),
        Abandon(1),
        Sync,
        Truncate(4),
        Append(1),
        Sync,
        Batch(3),
        Truncate(1),
        Reset,
        Append(1),
        Sync,
        Append(3),
        Reopen,
        Append(1),
        Reset,
        Batch(20),
        Sync,
        Retain(1),
        Append(1),
    ]
}

/// Runs until the script ends or a step fails; true = it ended.
fn run(model: &mut Model, disk: &SimDisk, script: &[Step]) -> bool {
    let Ok(mut log) = Log::open(disk.shared(), DIR.into(), options()) else {
        return false;
    };
    script.iter().all(|step| model.run(disk, &mut log, step).is_ok())
}

/// After a crash the log is what the model allows, can be continued, and keeps what is appended then.
fn check_after_crash(model: &mut Model, disk: &SimDisk, how: Crash) {
    disk.crash(how);
    let mut log = open(disk);
    model.settle(&log);
    for step in [Step::Batch(2), Step::Append(1), Step::Sync, Step::Append(1)] {
        model.run(disk, &mut log, &step).unwrap();
    }
    disk.crash(how);
    model.settle(&open(disk));
}

fn crash_at_any_step(script: &[Step]) -> u64 {
    let whole = disk(0);
    assert!(run(&mut Model::default(), &whole, script));
    let steps = whole.changes();
    for step in 0..steps {
        for seed in 0..4 {
            let disk = disk(seed * 1000 + step);
            let mut model = Model::default();
            disk.power_off_after(step);
            assert!(!run(&mut model, &disk, script) || !disk.is_off(), "step {step}");
            let how = if seed == 0 { Crash::LoseAll } else { Crash::Random };
            check_after_crash(&mut model, &disk, how);
        }
    }
    steps
}

#[test]
fn a_crash_at_any_step_loses_nothing_that_was_synced() {
    let steps = crash_at_any_step(&script());
    assert!(steps > 80, "{steps}");
}

/// The record that begins a segment is given up, the log is cut off before it, and the segments around the empty one fill.
#[test]
fn a_segment_without_a_record_hides_none_behind_it() {
    use Step::*;
    crash_at_any_step(&[
        Append(1),
        Append(6),
        Abandon(1),
        Truncate(1),
        Batch(4),
        Batch(5),
        Batch(2),
        Retain(1),
    ]);
}

#[test]
fn a_dying_process_loses_nothing_that_was_flushed() {
    let whole = disk(0);
    assert!(run(&mut Model::default(), &whole, &script()));
    for step in 0..whole.changes() {
        let disk = disk(step);
        let mut model = Model::default();
        disk.power_off_after(step);
        run(&mut model, &disk, &script());
        disk.crash(Crash::Process);
        let mut log = reopen(&disk);
        model.settle(&log);
        // Nor does a power loss bring back what the process had removed, once there is something new.
        model.run(&disk, &mut log, &Step::Append(1)).unwrap();
        disk.crash(if step % 2 == 0 {
            Crash::LoseAll
        } else {
            Crash::Random
        });
        model.settle(&open(&disk));
    }
}

/// A process may end in the middle of a write: its bytes are there up to some point.
#[test]
fn records_that_a_dying_process_wrote_in_part_are_cut_off() {
    let whole = disk(0);
    let log = open(&whole);
    append(&log, 2, 1).unwrap();
    let before = log.bytes() as usize;
    let mut appender = log.appender().unwrap();
    let ends: Vec<usize> = (3..6)
        .scan(before, |end, txid| {
            *end += frame::frame_len(add(&mut appender, txid, 2, 0).unwrap().len) as usize;
            Some(*end)
        })
        .collect();
    appender.flush().unwrap();
    drop(appender);
    assert_eq!(whole.calls("log.append.write"), 2, "three records in one write");
    assert_eq!(log.bytes() as usize, *ends.last().unwrap());
    for len in before..=log.bytes() as usize {
        let disk = disk(0);
        append(&open(&disk), 2, 1).unwrap();
        let content = whole.content(file(0, 2)).unwrap();
        disk.corrupt(file(0, 2), |bytes| *bytes = content[..len].to_vec());
        let log = reopen(&disk);
        let last = 2 + ends.iter().filter(|end| **end <= len).count() as u64;
        assert_eq!(txids(&log), (2..=last).collect::<Vec<_>>(), "{len} bytes");
        append(&log, last + 1, 1).unwrap();
        assert_eq!(txids(&open(&disk)).len() as u64, last);
    }
}

/// Each call fails once, the step is tried again, and at the end nothing is missing. A log that closed itself is opened
/// again after the restart it needs.
fn every_call_fails_once(errno: i32) {
    let whole = disk(0);
    run(&mut Model::default(), &whole, &script());
    let calls = whole.calls("log");
    let mut failed = 0;
    for call in 0..calls {
        let disk = disk(call);
        let mut model = Model::default();
        let mut log = open(&disk);
        disk.inject(Fault::on("log", errno).after(call));
        for step in script() {
            if let Err(error) = model.run(&disk, &mut log, &step) {
                failed += 1;
                retry(&mut model, &disk, &mut log, &step, error);
            }
        }
        disk.heal();
        model.assert_exact(&log);
        disk.crash(Crash::Process);
        model.assert_exact(&open(&disk));
    }
    assert!(failed > calls / 2, "{failed} of {calls} faults were noticed");
}

fn retry(model: &mut Model, disk: &SimDisk, log: &mut Log, step: &Step, error: LogError) {
    // An abandoned record that cannot be cut off closes the log, which the next step finds.
    assert!(
        error.disk().is_some() || matches!(error, LogError::Poisoned(_)),
        "{error}"
    );
    if let Err(error) = log.appender().map(drop) {
        assert!(matches!(error, LogError::Poisoned(_)), "{error}");
        assert!(matches!(log.sync(), Err(LogError::Poisoned(_))));
        disk.crash(Crash::Process);
        *log = open(disk);
    }
    model.settle(log);
    model.run(disk, log, step).unwrap();
}

#[test]
fn an_io_error_at_any_call_is_reported_and_survived() {
    every_call_fails_once(libc::EIO);
}

#[test]
fn a_full_disk_at_any_call_is_reported_and_survived() {
    every_call_fails_once(libc::ENOSPC);
}

#[test]
fn a_write_that_is_cut_by_a_full_disk_leaves_no_trace() {
    for room in (0..8000).step_by(97) {
        let disk = disk(room);
        let log = open(&disk);
        append(&log, 2, 1).unwrap();
        disk.limit_space(room);
        let error = append(&log, 3, 20).err();
        assert!(error.is_none_or(|error| error.disk().is_some_and(|error| error.is_no_space())));
        disk.heal();
        let next = log.tail().unwrap().max.0 + 1;
        append(&log, next, 1).unwrap();
        disk.crash(Crash::Process);
        let log = open(&disk);
        assert_eq!(txids(&log), (2..=next).collect::<Vec<_>>());
        assert_eq!(log.repair(), None);
    }
}

#[test]
fn a_failed_sync_closes_the_log() {
    let disk = disk(1);
    let log = open(&disk);
    append(&log, 2, 1).unwrap();
    disk.inject(Fault::on("log.append.sync", libc::EIO));
    let error = log.sync().unwrap_err();
    assert_eq!(
        error.to_string(),
        "log.append.sync /db/log/00000000-0000000000000002.log: Input/output error"
    );
    for result in [
        log.sync(),
        append(&log, 3, 1).map(drop),
        log.truncate_after(Txid(2)),
    ] {
        assert!(matches!(result, Err(LogError::Poisoned(_))));
    }
    assert_eq!(txids(&log), [2], "it can still be read");
}

/// No directory can be opened: what was to be synced is as it was, and nothing is lost.
#[test]
fn want_of_descriptors_closes_no_log() {
    let disk = disk(1);
    let log = open(&disk);
    for txid in 2..6 {
        append(&log, txid, LARGE).unwrap();
    }

    disk.inject(Fault::on("log.segment.sync_dir", libc::EMFILE));
    assert!(append(&log, 6, 1).is_err());
    append(&log, 6, 1).unwrap();

    disk.inject(Fault::on("log.reset.sync_dir", libc::EMFILE));
    let mut appender = log.appender().unwrap();
    let meta = RecordMeta::new(Origin::Snapshot);
    let error = appender.receive_reset(meta, &mut &snapshot(6)[..]).unwrap_err();
    assert!(error.to_string().starts_with("log.reset.sync_dir"), "{error}");
    drop(appender);
    assert_eq!(
        txids(&reopen(&disk)),
        [2, 3, 4, 5, 6],
        "who starts now finds the log as it is"
    );
    append(&log, 7, 1).unwrap();

    disk.inject(Fault::on("log.truncate.sync_dir", libc::EMFILE).times(2));
    disk.inject(Fault::on("log.settle.sync_dir", libc::EMFILE));
    log.truncate_after(Txid(3)).unwrap();
    assert!(
        append(&log, 4, 1).is_err(),
        "what was removed could come back behind it"
    );
    append(&log, 4, 1).unwrap();
    assert_eq!(txids(&log), [2, 3, 4]);
    log.sync().unwrap();
    disk.crash(Crash::LoseAll);
    assert_eq!(txids(&open(&disk)), [2, 3, 4]);
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![1u32..12, Just(LARGE)].prop_map(Step::Append),
        4 => (1u32..9).prop_map(Step::Batch),
        1 => prop_oneof![1u32..5, Just(LARGE)].prop_map(Step::Abandon),
        4 => Just(Step::Sync),
        1 => (1u64..8).prop_map(Step::Retain),
        1 => (1u64..6).prop_map(Step::Truncate),
        1 => Just(Step::Reset),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]
    #[test]
    fn random_scripts_survive_crashes(
        script in prop::collection::vec(step(), 1..40),
        crashes in prop::collection::vec(0u64..60, 1..4),
        seed: u64,
    ) {
        let disk = disk(seed);
        let mut model = Model::default();
        for crash in crashes {
            disk.power_off_after(crash);
            run(&mut model, &disk, &script);
            check_after_crash(&mut model, &disk, Crash::Random);
        }
    }
}
