//! Readers, syncs and retention beside the appender.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;
use crate::disk::OsDisk;

const LAST: u64 = 3000;

#[test]
fn readers_see_whole_records_in_order_while_the_log_grows_and_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions {
        segment_bytes: 64 << 10,
        ..LogOptions::default()
    };
    let log = &Log::open(OsDisk::shared(), dir.path().join("log"), options).unwrap();
    append(log, 2, 1).unwrap();
    let done = &AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| follow(log));
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let before = log.tail().unwrap().max;
                log.sync().unwrap();
                assert!(log.synced_txid() >= before);
                let policy = RetainPolicy {
                    max_bytes: Some(256 << 10),
                    ..RetainPolicy::default()
                };
                log.retain(&policy, 0).unwrap();
            }
        });
        for txid in 3..=LAST {
            append(log, txid, 1 + txid as u32 % 3).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(log.first_txid().unwrap() > Txid(2), "retention took part");
}

/// Reads until the last record was seen; what retention removed first may be missing.
fn follow(log: &Log) {
    let mut last = 0;
    while last < LAST {
        for record in log.records(Txid(last + 1)) {
            let record = record.unwrap();
            let summary = ltx::verify(record.reader()).unwrap();
            assert_eq!(summary.header.max_txid, record.info.max);
            assert!(record.info.max.0 > last);
            last = record.info.max.0;
        }
    }
}
