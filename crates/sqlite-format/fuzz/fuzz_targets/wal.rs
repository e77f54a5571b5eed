//! Any bytes as a WAL: a scan never panics and ends within the file.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run wal` in `crates/sqlite-format`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sqlite_format::wal::{FrameHeader, FrameScanner, WAL_HEADER_SIZE, WalHeader, frame_size};
use sqlite_format::{PageSize, Pgno};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = WalHeader::parse(bytes) {
        assert_eq!(header.encode(), bytes[..WAL_HEADER_SIZE]);
        scan(header, &bytes[WAL_HEADER_SIZE..]);
    }
    // No fuzzer guesses the checksums: seal the same bytes, and damage one of them.
    let Some((head, rest)) = bytes.split_at_checked(16) else {
        return;
    };
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let header = WalHeader::new(PageSize::MIN, word(0), [word(4), word(8)]);
    let mut chain = header.checksum;
    let mut wal = Vec::new();
    for page in rest.chunks_exact(512) {
        let pgno = Pgno::new(u32::from(page[0])).unwrap_or(Pgno::FIRST);
        wal.extend(FrameHeader::seal(&header, &mut chain, pgno, u32::from(page[1] & 1), page).encode());
        wal.extend(page);
    }
    let frames = wal.len() / frame_size(PageSize::MIN);
    assert_eq!(scan(header.clone(), &wal), frames as u32);
    if !wal.is_empty() {
        let at = word(12) as usize % wal.len();
        wal[at] ^= 1;
        assert_eq!(scan(header, &wal) as usize, at / frame_size(PageSize::MIN));
    }
});

fn scan(header: WalHeader, frames: &[u8]) -> u32 {
    let size = frame_size(header.page_size);
    let mut scanner = FrameScanner::new(header);
    for bytes in frames.chunks(size) {
        if scanner.next(bytes).is_err() {
            break;
        }
    }
    assert!(scanner.committed().frames <= scanner.position().frames);
    assert!(scanner.offset() <= (WAL_HEADER_SIZE + frames.len()) as u64);
    scanner.position().frames
}
