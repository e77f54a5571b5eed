//! WAL and wal-index as SQLite writes them.

mod live;

use std::collections::BTreeMap;

use live::Live;
use sqlite_format::wal::{FrameError, FrameHeader, FrameScanner, WAL_HEADER_SIZE, WalHeader, frame_size};
use sqlite_format::wal_index::{
    BLOCK_SIZE, CKPT_INFO, CkptInfo, SECOND_HEADER, append, block_count, clean_up, find_frame, read_headers,
};
use sqlite_format::{PageSize, Pgno};

/// The index of a WAL made from its frames.
fn hash_tables(frames: &[Pgno]) -> Vec<u8> {
    let mut index = vec![0; block_count(frames.len() as u32) * BLOCK_SIZE];
    for (frame, pgno) in (1..).zip(frames) {
        append(&mut index[..], frame, *pgno).unwrap();
    }
    index
}

/// Puts header and checkpoint information in front of hash tables.
fn with_headers(mut index: Vec<u8>, scanner: &FrameScanner, change: u32, ckpt: &CkptInfo) -> Vec<u8> {
    let header = live::index_header(scanner, change).encode();
    index[..SECOND_HEADER].copy_from_slice(&header);
    index[SECOND_HEADER..CKPT_INFO].copy_from_slice(&header);
    index[CKPT_INFO..CKPT_INFO + CkptInfo::SIZE].copy_from_slice(&ckpt.encode());
    index
}

/// Says where they differ, because a dump of megabytes helps nobody.
fn assert_same(actual: &[u8], expected: &[u8]) {
    assert_eq!(actual.len(), expected.len());
    let different = actual.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(different, None, "first different byte");
}

/// The live index is what `tables` with the right headers is.
fn assert_is_live(tables: &[u8], scanner: &FrameScanner, live: &Live) {
    let index = live.index();
    let header = read_headers(&index).unwrap();
    assert_eq!(header, live::index_header(scanner, header.change));
    let ckpt = CkptInfo::parse(&index).unwrap();
    assert_same(
        &with_headers(tables.to_vec(), scanner, header.change, &ckpt),
        &index,
    );
}

#[test]
fn the_index_of_a_long_wal_is_rebuilt_byte_for_byte() {
    let live = Live::new(512);
    live.fill(6000);
    let (scanner, frames) = live.scan();
    assert!(
        frames.len() > 4062 + 4096,
        "the test wants three blocks, got {} frames",
        frames.len()
    );
    assert_eq!(CkptInfo::parse(&live.index()).unwrap().backfill, 0);
    assert_is_live(&hash_tables(&frames), &scanner, &live);
}

#[test]
fn recovery_by_sqlite_makes_the_same_index() {
    let live = Live::new(512);
    live.fill(6000);
    let (scanner, frames) = live.scan();
    let recovered = live.copy_without_index();
    recovered
        .connection
        .query_row("SELECT count(*) FROM t", [], |_| Ok(()))
        .unwrap();
    let ckpt = CkptInfo::recovered(frames.len() as u32);
    assert_same(
        &with_headers(hash_tables(&frames), &scanner, 0, &ckpt),
        &recovered.index(),
    );
}

#[test]
fn lookups_find_the_newest_frame_of_every_snapshot() {
    let live = Live::new(512);
    live.fill(6000);
    let (_, frames) = live.scan();
    let index = live.index();
    let last = frames.len() as u32;
    let pages = frames.iter().max().unwrap().get() + 3;
    for (first, last) in [
        (1, last),
        (1, 1),
        (1, 4062),
        (1, 4063),
        (4062, 4063),
        (4063, last),
        (700, 8158),
        (8, 7),
    ] {
        let mut newest = BTreeMap::new();
        for frame in first..=last {
            newest.insert(frames[frame as usize - 1], frame);
        }
        for pgno in Pgno::up_to(pages) {
            let found = find_frame(&index[..], pgno, first..=last).unwrap();
            assert_eq!(
                found,
                newest.get(&pgno).copied(),
                "page {pgno} in {first}..={last}"
            );
        }
    }
}

/// A transaction that spills into the WAL and is rolled back leaves entries behind, and SQLite removes them.
#[test]
fn a_rollback_is_cleaned_up_as_sqlite_does_it() {
    let live = Live::new(512);
    live.fill(1500);
    let (scanner, frames) = live.scan();
    let committed = frames.len() as u32;
    live.connection.pragma_update(None, "cache_size", 5).unwrap();
    live.connection
        .execute_batch("BEGIN; UPDATE t SET x = x || 'changed';")
        .unwrap();
    let spilled = live.scan_all();
    assert!(spilled.len() > frames.len() + 100, "the test wants a spill");
    live.connection.execute_batch("ROLLBACK").unwrap();
    let mut model = hash_tables(&spilled);
    clean_up(&mut model[..], committed);
    assert_is_live(&model, &scanner, &live);

    live.connection
        .execute_batch("UPDATE t SET x = 'again' WHERE id < 40")
        .unwrap();
    let (scanner, frames) = live.scan();
    for frame in committed + 1..=frames.len() as u32 {
        append(&mut model[..], frame, frames[frame as usize - 1]).unwrap();
    }
    assert_is_live(&model, &scanner, &live);
}

/// What a writer that died left behind is removed by the next one that appends.
#[test]
fn leftovers_of_a_dead_writer_are_removed_on_append() {
    let pgno = |number| Pgno::new(number).unwrap();
    let written: Vec<Pgno> = (1..=300).map(pgno).collect();
    let mut index = hash_tables(&written);
    for (frame, number) in (201..).zip([7, 7, 400]) {
        append(&mut index[..], frame, pgno(number)).unwrap();
    }
    let expected: Vec<Pgno> = (1..=200).chain([7, 7, 400]).map(pgno).collect();
    assert_same(&index, &hash_tables(&expected));
}

#[test]
fn frames_are_made_as_sqlite_makes_them() {
    let live = Live::new(1024);
    live.fill(50);
    let wal = live.wal();
    let size = PageSize::new(1024).unwrap();
    let header = WalHeader::parse(&wal).unwrap();
    assert_eq!(wal[..WAL_HEADER_SIZE], header.encode());
    assert_eq!(WalHeader::new(size, header.checkpoint_seq, header.salt), header);
    let mut chain = header.checksum;
    let mut transactions = 0;
    for bytes in wal[WAL_HEADER_SIZE..].chunks(frame_size(size)) {
        let (head, page) = bytes.split_at(24);
        let frame = FrameHeader::parse(head).unwrap();
        transactions += u32::from(frame.commit != 0);
        assert_eq!(
            FrameHeader::seal(&header, &mut chain, frame.pgno, frame.commit, page),
            frame
        );
        assert_eq!(frame.encode(), head);
    }
    assert!(transactions > 1);
}

#[test]
fn a_restarted_wal_continues_the_salts_and_ends_before_old_frames() {
    let live = Live::new(1024);
    live.fill(50);
    let before = WalHeader::parse(&live.wal()).unwrap();
    live.connection
        .query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()))
        .unwrap();
    live.connection
        .execute_batch("UPDATE t SET x = 'one' WHERE id = 1")
        .unwrap();
    let wal = live.wal();
    let after = WalHeader::parse(&wal).unwrap();
    assert_eq!(after, before.restarted(after.salt[1]));
    let mut scanner = FrameScanner::new(after);
    let mut frames = wal[WAL_HEADER_SIZE..].chunks(frame_size(before.page_size));
    let end = frames.find_map(|frame| scanner.next(frame).err());
    assert_eq!(end, Some(FrameError::Salt));
    let header = read_headers(&live.index()).unwrap();
    assert_eq!(header, live::index_header(&scanner, header.change));
}
