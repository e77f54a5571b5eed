//! The table against a model, with the power cut at every step.

use proptest::prelude::*;

use super::*;
use crate::disk::sim::{Crash, Fault, SimDisk};

const PATH: &str = "/db/checksums";

fn disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.create_dir_all("test", Path::new("/db")).unwrap();
    disk.sync_dir("test", Path::new("/")).unwrap();
    disk
}

fn open(disk: &SimDisk) -> ChecksumTable {
    ChecksumTable::open(disk, Path::new(PATH)).unwrap()
}

fn pgno(number: u32) -> Pgno {
    Pgno::new(number).unwrap()
}

fn sum(value: u64) -> Checksum {
    Checksum(value.wrapping_mul(0x9e37_79b9_7f4a_7c15) | FLAG)
}

/// What a record does to a database, as far as the table is concerned.
#[derive(Debug, Clone)]
enum Change {
    Pages {
        first: u32,
        count: u32,
        commit: u32,
    },
    /// The database is made anew.
    Anew {
        count: u32,
    },
}

/// Applies record `txid`; twice is the same as once.
fn apply(table: &mut ChecksumTable, txid: u64, change: &Change) {
    let range = match change {
        Change::Pages { first, count, commit } => {
            table.truncate(*commit);
            *first..(first + count).min(commit + 1)
        }
        Change::Anew { count } => {
            table.reset(PageSize::DEFAULT);
            1..count + 1
        }
    };
    for number in range {
        table.set(pgno(number), sum(txid << 32 | u64::from(number)));
    }
}

/// All that a table says, for comparison.
fn view(table: &ChecksumTable) -> (Checksum, Vec<Option<Checksum>>) {
    let entries = (1..=table.pages()).map(|number| table.get(pgno(number)));
    (table.rolling(), entries.collect())
}

fn model(records: &[Change]) -> ChecksumTable {
    let mut table = open(&disk(0));
    table.reset(PageSize::DEFAULT);
    records
        .iter()
        .zip(1..)
        .for_each(|(change, txid)| apply(&mut table, txid, change));
    table
}

/// Applies records, flushing after each whose number is in `flushes`; ends at the first error. Returns how many records
/// were applied: the log is durable up to there, as a flush demands.
fn run(disk: &SimDisk, records: &[Change], flushes: &[u64]) -> u64 {
    let Ok(mut table) = ChecksumTable::open(disk, Path::new(PATH)) else {
        return 0;
    };
    if table.page_size().is_none() {
        table.reset(PageSize::DEFAULT);
    }
    for (change, txid) in records.iter().zip(1..) {
        apply(&mut table, txid, change);
        if flushes.contains(&txid) && table.flush(Txid(txid)).is_err() {
            return txid;
        }
    }
    records.len() as u64
}

/// Opens the table and replays the records up to `last` that it does not say it has.
fn replay(disk: &SimDisk, records: &[Change], last: u64) -> ChecksumTable {
    let mut table = open(disk);
    if table.page_size().is_none() {
        table.reset(PageSize::DEFAULT);
    }
    let synced = table.synced().txid.0;
    assert!(synced <= last);
    for txid in synced + 1..=last {
        apply(&mut table, txid, &records[txid as usize - 1]);
    }
    table
}

fn records() -> Vec<Change> {
    use Change::*;
    vec![
        Pages {
            first: 1,
            count: 3000,
            commit: 3000,
        },
        Pages {
            first: 700,
            count: 1,
            commit: 3000,
        },
        Pages {
            first: 1,
            count: 1,
            commit: 900,
        },
        Pages {
            first: 900,
            count: 1200,
            commit: 2000,
        },
        Anew { count: 600 },
        Pages {
            first: 601,
            count: 5000,
            commit: 5600,
        },
        Pages {
            first: 4000,
            count: 3,
            commit: 5600,
        },
    ]
}

#[test]
fn replay_repairs_the_table_after_a_crash_at_any_step() {
    let (records, flushes) = (records(), [1, 2, 3, 4, 6, 7]);
    let whole = disk(0);
    run(&whole, &records, &flushes);
    let mut torn = 0;
    for step in 0..whole.changes() {
        for seed in 0..20 {
            let disk = disk(seed << 32 | step);
            disk.power_off_after(step);
            let last = run(&disk, &records, &flushes);
            disk.crash(if seed == 0 { Crash::LoseAll } else { Crash::Random });
            torn += u64::from(!open(&disk).is_intact());
            let table = replay(&disk, &records, last);
            assert_eq!(
                view(&table),
                view(&model(&records[..last as usize])),
                "step {step}, seed {seed}"
            );
        }
    }
    assert!(
        torn > 0,
        "some crash must have hit between the table and its header"
    );
}

#[test]
fn a_flushed_table_reads_back_and_knows_its_position() {
    let disk = disk(1);
    assert_eq!(open(&disk).synced(), Pos::ZERO);
    run(&disk, &records(), &[7]);
    disk.crash(Crash::LoseAll);
    let table = open(&disk);
    assert!(table.is_intact());
    assert_eq!(view(&table), view(&model(&records())));
    assert_eq!(table.synced(), Pos::new(Txid(7), table.rolling()));
    assert_eq!(table.page_size(), Some(PageSize::DEFAULT));
}

#[test]
fn only_changed_blocks_are_written() {
    let disk = disk(1);
    let mut table = open(&disk);
    table.reset(PageSize::DEFAULT);
    for number in 1..=100_000 {
        table.set(pgno(number), sum(number.into()));
    }
    table.flush(Txid(1)).unwrap();
    let before = disk.calls("checksums.flush.write");
    table.set(pgno(5), sum(1));
    table.set(pgno(50_000), sum(2));
    let flush = table.prepare_flush(Txid(2)).unwrap();
    assert_eq!(
        flush.runs.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(),
        2 * BLOCK
    );
    flush.write().unwrap();
    table.confirm(flush);
    assert_eq!(disk.calls("checksums.flush.write") - before, 2);
    table.flush(Txid(2)).unwrap();
    assert_eq!(disk.calls("checksums.flush.write") - before, 2);
}

#[test]
fn changes_made_while_a_flush_is_written_belong_to_the_next() {
    let disk = disk(1);
    let mut table = open(&disk);
    table.reset(PageSize::DEFAULT);
    table.set(pgno(1), sum(1));
    let first = table.prepare_flush(Txid(1)).unwrap();
    table.set(pgno(1), sum(2));
    first.write().unwrap();
    table.confirm(first);
    assert_eq!(open(&disk).get(pgno(1)), Some(sum(1)));
    drop(table.prepare_flush(Txid(2)).unwrap());
    table.flush(Txid(2)).unwrap();
    assert_eq!(
        open(&disk).get(pgno(1)),
        Some(sum(2)),
        "also after a flush that was given up"
    );
}

#[test]
fn the_lock_page_has_no_checksum() {
    let mut table = open(&disk(1));
    table.reset(PageSize::MAX);
    let lock_page = PageSize::MAX.lock_page();
    table.set(pgno(lock_page.get() + 1), sum(1));
    assert_eq!(table.set(lock_page, sum(2)), None);
    assert_eq!(table.get(lock_page), None);
    assert_eq!(table.rolling(), sum(1));
}

#[test]
fn an_invalidated_table_knows_nothing_after_a_start() {
    let disk = disk(1);
    run(&disk, &records(), &[7]);
    let mut table = open(&disk);
    table.invalidate().unwrap();
    disk.crash(Crash::LoseAll);
    let mut table = open(&disk);
    assert_eq!((table.synced(), table.pages()), (Pos::ZERO, 0));
    table.reset(PageSize::MIN);
    table.set(pgno(1), sum(1));
    table.flush(Txid(1)).unwrap();
    assert_eq!(open(&disk).rolling(), sum(1));
}

#[test]
fn a_failed_sync_closes_the_table_and_a_full_disk_does_not() {
    let disk = disk(1);
    let mut table = open(&disk);
    table.reset(PageSize::DEFAULT);
    table.set(pgno(1), sum(1));
    disk.inject(Fault::on("checksums.flush.write", libc::ENOSPC));
    assert!(matches!(table.flush(Txid(1)), Err(ChecksumsError::Disk(error)) if error.is_no_space()));
    table.flush(Txid(1)).unwrap();
    assert_eq!(open(&disk).rolling(), sum(1));
    for op in ["checksums.flush.sync", "checksums.flush.sync_header"] {
        let mut table = open(&disk);
        table.set(pgno(1), sum(2));
        disk.inject(Fault::on(op, libc::EIO));
        assert!(matches!(table.flush(Txid(2)), Err(ChecksumsError::Disk(_))));
        assert!(matches!(table.flush(Txid(2)), Err(ChecksumsError::Poisoned)));
        disk.heal();
    }
}

#[test]
fn a_damaged_header_falls_back_to_the_one_before() {
    let disk = disk(1);
    run(&disk, &records()[..4], &[3, 4]);
    // The second header of a table goes into the first slot.
    disk.corrupt(PATH, |bytes| bytes[20] ^= 1);
    assert_eq!(open(&disk).synced().txid, Txid(3));
    let table = replay(&disk, &records(), 4);
    assert_eq!(view(&table), view(&model(&records()[..4])));
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (1u32..3000, 1u32..800, 1u32..3000).prop_map(|(first, count, commit)| {
            Change::Pages { first, count, commit }
        }),
        1 => (1u32..2000).prop_map(|count| Change::Anew { count }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn random_records_survive_crashes(
        records in prop::collection::vec(change(), 1..12),
        flushes in prop::collection::vec(1u64..12, 0..6),
        crash in 0u64..40,
        seed: u64,
    ) {
        let disk = disk(seed);
        disk.power_off_after(crash);
        let last = run(&disk, &records, &flushes);
        disk.crash(Crash::Random);
        let table = replay(&disk, &records, last);
        prop_assert_eq!(view(&table), view(&model(&records[..last as usize])));
    }
}
