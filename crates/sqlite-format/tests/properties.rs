//! What must hold for every WAL and wal-index, and for bytes that are neither.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use sqlite_format::journal::{JournalHeader, records};
use sqlite_format::wal::{FrameError, FrameHeader, FrameScanner, WalHeader, WalPosition, frame_size};
use sqlite_format::wal_index::{
    BLOCK_SIZE, CkptInfo, IndexHeader, append, block_count, clean_up, find_frame, read_headers,
};
use sqlite_format::{DatabaseHeader, PageSize, Pgno};

/// A WAL in either byte order: header and frames.
#[derive(Clone, Debug)]
struct Wal {
    header: WalHeader,
    frames: Vec<Vec<u8>>,
    commits: Vec<u32>,
}

prop_compose! {
    fn any_wal()(
        big_endian: bool, seq: u32, salt: [u32; 2], frames in vec((1..50u32, prop_oneof![Just(0), 1..50u32], any::<u8>()), 1..12),
    ) -> Wal {
        let mut header = WalHeader::new(PageSize::MIN, seq, salt);
        if big_endian != header.big_endian {
            header = in_other_byte_order(&header);
        }
        let mut chain = header.checksum;
        let seal = |(pgno, commit, fill): &(u32, u32, u8)| {
            let page: Vec<u8> = (0..512).map(|i| fill.wrapping_mul(i as u8)).collect();
            let head = FrameHeader::seal(&header, &mut chain, Pgno::new(*pgno).unwrap(), *commit, &page);
            [&head.encode()[..], &page].concat()
        };
        let encoded = frames.iter().map(seal).collect();
        Wal { header: header.clone(), frames: encoded, commits: frames.iter().map(|frame| frame.1).collect() }
    }
}

fn in_other_byte_order(header: &WalHeader) -> WalHeader {
    let mut other = WalHeader {
        big_endian: !header.big_endian,
        ..header.clone()
    };
    other.checksum = Default::default();
    let bytes = other.encode();
    other.checksum.update(other.big_endian, &bytes[..24]);
    other
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_scan_can_be_resumed_at_every_commit(wal in any_wal()) {
        prop_assert_eq!(WalHeader::parse(&wal.header.encode()), Ok(wal.header.clone()));
        let mut scanner = FrameScanner::new(wal.header.clone());
        let mut boundaries = vec![(scanner.committed(), 0)];
        for (bytes, commit) in wal.frames.iter().zip(&wal.commits) {
            let frame = scanner.next(bytes).unwrap();
            prop_assert_eq!(frame.commit.unwrap_or(0), *commit);
            prop_assert_eq!(frame.page, &bytes[24..]);
            if *commit != 0 {
                boundaries.push((scanner.committed(), *commit));
            }
        }
        prop_assert_eq!(scanner.offset(), 32 + (wal.frames.len() * frame_size(PageSize::MIN)) as u64);
        for (position, pages) in boundaries {
            let mut resumed = FrameScanner::resume(wal.header.clone(), position, pages);
            for bytes in &wal.frames[position.frames as usize..] {
                resumed.next(bytes).unwrap();
            }
            prop_assert_eq!(resumed.position(), scanner.position());
            prop_assert_eq!(resumed.committed(), scanner.committed());
            prop_assert_eq!(resumed.committed_pages(), scanner.committed_pages());
        }
    }

    #[test]
    fn a_damaged_frame_ends_the_wal(wal in any_wal(), which: prop::sample::Index, at: prop::sample::Index, bit in 0..8u8) {
        let mut frames = wal.frames.clone();
        let which = which.index(frames.len());
        let at = at.index(frames[which].len());
        frames[which][at] ^= 1 << bit;
        let mut scanner = FrameScanner::new(wal.header);
        for (index, bytes) in frames.iter().enumerate().take(which + 1) {
            let before = scanner.position();
            let result = scanner.next(bytes).map(|_| ());
            if index < which {
                prop_assert_eq!(result, Ok(()));
            } else {
                prop_assert!(matches!(result, Err(FrameError::Page | FrameError::Salt | FrameError::Checksum)));
                prop_assert_eq!(scanner.position(), before);
                prop_assert_eq!(scanner.next(&wal.frames[which]).map(|_| ()), Ok(()), "the scan can be repeated");
            }
        }
    }

    #[test]
    fn a_frame_of_the_wrong_length_or_place_is_refused(wal in any_wal(), cut in 0..536usize) {
        let mut scanner = FrameScanner::new(wal.header.clone());
        let error = FrameError::Length { expected: 536, actual: cut };
        prop_assert_eq!(scanner.next(&wal.frames[0][..cut]).map(|_| ()), Err(error));
        let elsewhere = WalPosition { frames: 3, checksum: Default::default() };
        let mut scanner = FrameScanner::resume(wal.header, elsewhere, 0);
        prop_assert_eq!(scanner.next(&wal.frames[0]).map(|_| ()), Err(FrameError::Checksum));
    }

    /// Against a plain list of page numbers, through appends and rollbacks.
    #[test]
    fn the_index_answers_like_a_list(
        start in prop_oneof![Just(0u32), 4000..4100u32, 8100..8200u32],
        steps in vec((vec(1..60u32, 1..200), 0..100u32), 1..5),
        windows in vec((1..8600u32, 1..8600u32), 20),
    ) {
        let mut list: Vec<u32> = (0..start).map(|i| i % 97 + 1).collect();
        let mut index = vec![0; block_count(9000) * BLOCK_SIZE];
        for (frame, pgno) in (1..).zip(&list) {
            append(&mut index[..], frame, Pgno::new(*pgno).unwrap()).unwrap();
        }
        for (pages, undo) in steps {
            for pgno in pages {
                list.push(pgno);
                append(&mut index[..], list.len() as u32, Pgno::new(pgno).unwrap()).unwrap();
            }
            list.truncate(list.len().saturating_sub(undo as usize).max(start as usize));
            if undo % 2 == 0 {
                clean_up(&mut index[..], list.len() as u32);
            }
        }
        // What was undone without a clean-up is still there, beyond the last frame.
        for (first, last) in windows.into_iter().chain([(1, list.len() as u32)]) {
            let last = last.min(list.len() as u32);
            let newest: BTreeMap<u32, u32> =
                (first..=last).filter_map(|frame| Some((*list.get(frame as usize - 1)?, frame))).collect();
            for pgno in 1..100 {
                let found = find_frame(&index[..], Pgno::new(pgno).unwrap(), first..=last);
                prop_assert_eq!(found, Ok(newest.get(&pgno).copied()));
            }
        }
    }

    #[test]
    fn garbage_in_an_index_neither_panics_nor_loops(
        garbage in vec(any::<u8>(), BLOCK_SIZE..=BLOCK_SIZE), pgno in 1..u32::MAX, last in 1..20_000u32, dense: bool,
    ) {
        let mut index = garbage;
        if dense {
            index.iter_mut().for_each(|byte| *byte |= 1);
        }
        index.resize(3 * BLOCK_SIZE, 0);
        let pgno = Pgno::new(pgno).unwrap();
        let _ = find_frame(&index[..], pgno, 1..=last);
        let _ = find_frame(&index[..], pgno, 1..=last * 1000);
        let _ = append(&mut index[..], last.min(8000), pgno);
    }

    #[test]
    fn index_headers_round_trip_and_notice_every_flip(
        change: u32, big_endian: bool, shift in 8..=16u32, max_frame: u32, page_count: u32, words: [u32; 4], at in 0..384usize,
    ) {
        let header = IndexHeader {
            change, big_endian, page_size: PageSize::new(1 << shift).ok(), max_frame, page_count,
            frame_checksum: sqlite_format::wal::WalChecksum::new(words[0], words[1]),
            salt: [words[2], words[3]],
        };
        let mut bytes = header.encode();
        prop_assert_eq!(IndexHeader::parse(&bytes), Ok(header.clone()));
        let both = [bytes, bytes].concat();
        prop_assert_eq!(read_headers(&both), Ok(header));
        bytes[at / 8] ^= 1 << (at % 8);
        prop_assert!(IndexHeader::parse(&bytes).is_err());
        let torn = [&bytes[..], &both[48..]].concat();
        prop_assert!(read_headers(&torn).is_err());
    }

    #[test]
    fn garbage_is_an_error_and_not_a_panic(garbage in vec(any::<u8>(), 0..1500), with_magic: bool) {
        let mut garbage = garbage;
        let _ = IndexHeader::parse(&garbage);
        let _ = CkptInfo::parse(&garbage);
        prop_assert!(WalHeader::parse(&garbage).is_err());
        for magic in [&b"SQLite format 3\0"[..], &sqlite_format::journal::JOURNAL_MAGIC] {
            if with_magic && garbage.len() >= magic.len() {
                garbage[..magic.len()].copy_from_slice(magic);
            }
            let _ = DatabaseHeader::parse(&garbage);
            let _ = JournalHeader::parse(&garbage);
            if let Ok(records) = records(&garbage) {
                prop_assert!(records.count() <= garbage.len());
            }
        }
    }

    #[test]
    fn records_of_a_made_up_journal_end_within_it(
        counts in vec(any::<u32>(), 1..4), body in vec(any::<u8>(), 0..4000), sector in 5..=12u32,
    ) {
        let mut journal = Vec::new();
        for count in counts {
            let header = JournalHeader {
                records: sqlite_format::journal::RecordCount::Exactly(count), nonce: count, initial_pages: 9,
                sector_size: 1 << sector, page_size: PageSize::MIN,
            };
            journal.resize(header.align(journal.len() as u64) as usize, 0);
            journal.extend(header.encode());
            journal.resize(header.align(journal.len() as u64) as usize, 0);
            journal.extend(&body);
        }
        prop_assert!(records(&journal).unwrap().count() <= journal.len());
    }
}
