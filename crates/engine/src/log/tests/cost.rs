//! What an append costs in CPU time, the kernel's part included: `cargo test --release -p engine cost -- --ignored --nocapture`.

use super::*;
use crate::disk::OsDisk;

const RECORDS: u64 = 10_000;

#[test]
#[ignore = "a measurement, not a test"]
fn cost_of_one_page_records() {
    for compress in [false, true] {
        for batch in [1, 16] {
            // The least of several: the machine may be busy.
            let nanoseconds = (0..10).map(|_| measure(compress, batch)).min().unwrap();
            println!("compress {compress}, {batch} per flush: {nanoseconds} ns per record");
        }
    }
}

fn measure(compress: bool, batch: u64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions {
        compress,
        ..LogOptions::default()
    };
    let log = Log::open(OsDisk::shared(), dir.path().join("log"), options).unwrap();
    // Rows of text and a free end, as SQLite's pages are.
    let page: Vec<u8> = (0..4096u32)
        .map(|i| {
            if i < 3000 {
                ((i * i) >> 7) as u8 & 63 | 32
            } else {
                0
            }
        })
        .collect();
    let start = cpu_nanoseconds();
    let mut txid = 1;
    while txid < RECORDS {
        let mut appender = log.appender().unwrap();
        for _ in 0..batch {
            txid += 1;
            let header = Header {
                page_size: PageSize::DEFAULT,
                ..header(txid, post(txid - 1, 0))
            };
            let mut append = appender.begin(header, RecordMeta::new(Origin::Captured)).unwrap();
            append
                .page(Pgno::new(txid as u32 % 900 + 1).unwrap(), &page)
                .unwrap();
            append.finish(post(txid, 0)).unwrap();
        }
        appender.flush().unwrap();
    }
    let elapsed = cpu_nanoseconds() - start;
    elapsed / RECORDS
}

/// Of this thread.
fn cpu_nanoseconds() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}
