//! Any bytes as a wal-index: lookups and appends end, whatever the hash tables say.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run wal_index -- -max_len=70000` in `crates/sqlite-format`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sqlite_format::Pgno;
use sqlite_format::wal_index::{
    BLOCK_SIZE, CkptInfo, append, block_count, clean_up, find_frame, read_headers,
};

fuzz_target!(|input: (u32, u32, u32, Vec<u8>)| {
    let (pgno, first, last, mut index) = input;
    let _ = read_headers(&index);
    let _ = CkptInfo::parse(&index);
    let pgno = Pgno::new(pgno).unwrap_or(Pgno::FIRST);
    let (first, last) = (first % 20_000, last % 20_000);
    if let Ok(Some(frame)) = find_frame(&index[..], pgno, first..=last) {
        assert!((first..=last).contains(&frame));
    }
    if last > 0 {
        index.resize(block_count(last) * BLOCK_SIZE, 0);
        let _ = append(&mut index[..], last, pgno);
        clean_up(&mut index[..], last);
    }
});
