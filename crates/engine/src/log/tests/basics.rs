//! Appending, finding, receiving and letting go without faults.

use std::io::Read;

use super::*;
use crate::disk::OpenMode;

#[test]
fn records_are_found_after_a_flush_and_after_a_start() {
    let disk = disk(1);
    let log = open(&disk);
    assert_eq!(log.tail(), None);
    assert_eq!(txids(&log), [0; 0]);
    assert!(log.records_back().next().is_none());
    let mut appender = log.appender().unwrap();
    for txid in 2..7 {
        add(&mut appender, txid, 1, 0).unwrap();
    }
    assert_eq!(log.tail().map(|tail| tail.max), None, "not before the flush");
    assert_eq!(appender.tail().map(|tail| tail.max), Some(Txid(6)));
    appender.flush().unwrap();
    drop(appender);
    assert_eq!(disk.calls("log.append.write"), 1, "five records in one write");
    for txid in 7..10 {
        append(&log, txid, 1).unwrap();
    }
    assert_eq!(segments(&disk), 2);
    for log in [&log, &open(&disk)] {
        assert_eq!(txids(log), (2..10).collect::<Vec<_>>());
        assert_eq!(log.first_txid(), Some(Txid(2)));
        assert_eq!(log.tail().unwrap().pos(), ltx::Pos::new(Txid(9), post(9, 0)));
        assert_eq!(log.find(Txid(5)).unwrap().unwrap().info.min, Txid(5));
        assert!(log.find(Txid(1)).unwrap().is_none());
        assert!(log.find(Txid(10)).unwrap().is_none());
        assert_eq!(log.records(Txid(8)).count(), 2);
        let back: Vec<u64> = log
            .records_back()
            .map(|record| record.unwrap().info.max.0)
            .collect();
        assert_eq!(back, (2..10).rev().collect::<Vec<_>>());
    }
    assert_eq!(open(&disk).repair(), None);
    append(&open(&disk), 10, 1).unwrap();
    assert_eq!(txids(&open(&disk)).last(), Some(&10));
}

#[test]
fn what_is_not_flushed_never_was() {
    let disk = disk(1);
    let log = open(&disk);
    append(&log, 2, 1).unwrap();
    add(&mut log.appender().unwrap(), 3, 1, 0).unwrap();
    let mut appender = log.appender().unwrap();
    let mut begun = appender
        .begin(header(3, post(2, 0)), RecordMeta::new(Origin::Captured))
        .unwrap();
    begun.page(Pgno::FIRST, &content(3, 1)).unwrap();
    begun.abort();
    assert_eq!(appender.tail().map(|tail| tail.max), Some(Txid(2)));
    drop(appender);
    append(&log, 3, 2).unwrap();
    assert_eq!(txids(&log), [2, 3]);
    assert_eq!(log.bytes() as usize, disk.content(file(0, 2)).unwrap().len());
}

#[test]
fn a_record_must_follow_the_last_one() {
    let log = open(&disk(1));
    append(&log, 5, 1).unwrap();
    let meta = RecordMeta::new(Origin::Captured);
    let mut appender = log.appender().unwrap();
    for wrong in [
        header(5, post(4, 0)),
        header(7, post(6, 0)),
        header(6, post(5, 1)),
    ] {
        let error = appender.begin(wrong, meta).err().unwrap();
        assert!(matches!(error, LogError::NotContiguous { .. }), "{error}");
    }
    let error = appender.begin(header(1, Checksum::NONE), meta).err().unwrap();
    assert!(matches!(error, LogError::SnapshotInHistory));
    let error = appender.begin_reset(header(6, post(5, 0)), meta).err().unwrap();
    assert!(matches!(error, LogError::ResetNeedsSnapshot(Txid(6))));
    add(&mut appender, 6, 1, 0).unwrap();
}

#[test]
fn a_page_out_of_order_spoils_its_record_only() {
    let log = open(&disk(1));
    let mut appender = log.appender().unwrap();
    add(&mut appender, 2, 1, 0).unwrap();
    let mut append = appender
        .begin(header(3, post(2, 0)), RecordMeta::new(Origin::Captured))
        .unwrap();
    append.page(Pgno::new(2).unwrap(), &content(3, 2)).unwrap();
    let error = append.page(Pgno::FIRST, &content(3, 1)).unwrap_err();
    assert!(matches!(error, LogError::Invalid(ltx::Error::Page(_))), "{error}");
    assert!(append.finish(post(3, 0)).is_err());
    add(&mut appender, 3, 1, 0).unwrap();
    appender.flush().unwrap();
    assert_eq!(txids(&log), [2, 3]);
}

#[test]
fn frame_header_fields_survive() {
    let disk = disk(1);
    let wal = Some(WalPosition {
        salt: [1, 2],
        end: 4152,
    });
    let meta = RecordMeta {
        origin: Origin::Applied,
        journal_nonce: 77,
        wal,
    };
    let log = open(&disk);
    let mut appender = log.appender().unwrap();
    let info = appender
        .begin(header(2, post(1, 0)), meta)
        .unwrap()
        .finish(post(2, 0))
        .unwrap();
    appender.flush().unwrap();
    assert_eq!(info.meta, meta);
    assert_eq!(open(&disk).tail(), Some(info));
}

#[test]
fn a_received_record_is_verified_while_it_is_written() {
    let (from, to) = (disk(1), disk(2));
    let source = open(&from);
    append(&source, 2, 3).unwrap();
    append(&source, 3, 3).unwrap();
    let mut bytes = Vec::new();
    source
        .find(Txid(2))
        .unwrap()
        .unwrap()
        .read_into(&mut bytes)
        .unwrap();
    let log = open(&to);
    let meta = RecordMeta::new(Origin::Applied);
    let mut appender = log.appender().unwrap();
    for at in [0, 101, 300, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        let error = appender.receive(meta, &mut &damaged[..]).unwrap_err();
        assert!(matches!(error, LogError::Invalid(_)), "{error}");
    }
    let error = appender
        .receive(meta, &mut &bytes[..bytes.len() - 1])
        .unwrap_err();
    assert!(
        matches!(error, LogError::Invalid(ltx::Error::Truncated(_))),
        "{error}"
    );
    let error = appender
        .receive(meta, &mut (&bytes[..200]).chain(Broken))
        .unwrap_err();
    assert!(matches!(error, LogError::Source(_)), "{error}");
    assert_eq!(appender.tail(), None);

    let mut stream = (&bytes[..]).chain(&b"next"[..]);
    assert_eq!(appender.receive(meta, &mut stream).unwrap().max, Txid(2));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"next", "nothing behind the record is read");
    assert!(matches!(
        appender.receive(meta, &mut &bytes[..]),
        Err(LogError::NotContiguous { .. })
    ));
    appender
        .receive(meta, &mut source.find(Txid(3)).unwrap().unwrap().reader())
        .unwrap();
    appender.flush().unwrap();
    assert_eq!(txids(&log), [2, 3]);
    let mut copy = Vec::new();
    log.find(Txid(2))
        .unwrap()
        .unwrap()
        .reader()
        .read_to_end(&mut copy)
        .unwrap();
    assert_eq!(copy, bytes);
}

/// A connection that breaks.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::ConnectionReset.into())
    }
}

#[test]
fn a_large_record_needs_no_memory() {
    let disk = disk(1);
    let log = open(&disk);
    let mut appender = log.appender().unwrap();
    add(&mut appender, 2, 1, 0).unwrap();
    add(&mut appender, 3, 1000, 0).unwrap();
    add(&mut appender, 4, 1, 0).unwrap();
    assert!(disk.calls("log.append.spill") > 0);
    assert_eq!(
        log.tail().map(|tail| tail.max),
        Some(Txid(3)),
        "a full segment is flushed"
    );
    appender.flush().unwrap();
    drop(appender);
    assert_eq!(txids(&log), [2, 3, 4]);
    assert_eq!(txids(&open(&disk)), [2, 3, 4]);
}

#[test]
fn a_reset_replaces_everything_at_once() {
    let disk = disk(1);
    let log = open(&disk);
    for txid in 2..20 {
        append(&log, txid, 1).unwrap();
    }
    let reading = log.find(Txid(3)).unwrap().unwrap();
    let mut behind = log.records(Txid(18));
    behind.next().unwrap().unwrap();
    let snapshot = snapshot(30);
    let mut appender = log.appender().unwrap();
    let meta = RecordMeta::new(Origin::Snapshot);
    let mut cut = &snapshot[..snapshot.len() - 1];
    assert!(matches!(
        appender.receive_reset(meta, &mut cut),
        Err(LogError::Invalid(_))
    ));
    assert_eq!(log.tail().map(|tail| tail.max), Some(Txid(19)));
    appender.receive_reset(meta, &mut &snapshot[..]).unwrap();
    drop(appender);
    for log in [&log, &open(&disk)] {
        assert_eq!(txids(log), [30]);
        assert_eq!(log.first_txid(), Some(Txid(1)));
        assert_eq!(log.find(Txid(7)).unwrap().unwrap().info.max, Txid(30));
    }
    assert_eq!(log.synced_txid(), Txid(30));
    assert_eq!(segments(&disk), 1);
    ltx::verify(reading.reader()).unwrap();
    let rest: Vec<_> = behind.map(|record| record.unwrap().info.min.0).collect();
    assert_eq!(rest, [19, 1], "who reads on comes to the snapshot");
    let pre = log.tail().unwrap().post;
    let mut appender = log.appender().unwrap();
    appender
        .begin(header(31, pre), meta)
        .unwrap()
        .finish(post(31, 0))
        .unwrap();
    appender.flush().unwrap();
    assert_eq!(txids(&open(&disk)), [30, 31]);
}

#[test]
fn damage_that_is_no_torn_end_is_reported_when_it_is_read() {
    let disk = disk(1);
    let log = open(&disk);
    for txid in 2..12 {
        append(&log, txid, 1).unwrap();
    }
    disk.corrupt(file(0, 2), |bytes| bytes[768 + 40] ^= 1);
    let log = open(&disk);
    assert_eq!(log.tail().map(|tail| tail.max), Some(Txid(11)));
    let error = log.find(Txid(3)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "log /db/log/00000000-0000000000000002.log is damaged at offset 768: no record header"
    );
}

#[test]
fn damage_before_durable_records_is_no_torn_end() {
    let disk = disk(1);
    let log = open(&disk);
    for txid in 2..5 {
        append(&log, txid, 1).unwrap();
        log.sync().unwrap();
    }
    let whole = disk.content(file(0, 2)).unwrap();
    disk.corrupt(file(0, 2), |bytes| bytes[768 + 300] ^= 1);
    assert_eq!(
        open(&disk).tail().map(|tail| tail.max),
        Some(Txid(4)),
        "pages that were durable are not read"
    );
    disk.corrupt(file(0, 2), |bytes| bytes[768 + 40] ^= 1);
    let error = Log::open(disk.shared(), DIR.into(), options()).unwrap_err();
    assert!(matches!(error, LogError::Corrupt { offset: 768, .. }), "{error}");
    assert_eq!(
        disk.content(file(0, 2)).unwrap().len(),
        whole.len(),
        "nothing is cut off"
    );
    disk.corrupt(file(0, 2), |bytes| {
        bytes.clone_from(&whole);
        bytes[2 * 768 + 300] ^= 1;
    });
    let log = open(&disk);
    assert_eq!(txids(&log), [2, 3]);
    assert_eq!(
        log.repair().map(|repair| (repair.offset, repair.bytes)),
        Some((2 * 768, 768))
    );
}

#[test]
fn inspection_changes_nothing() {
    let disk = disk(1);
    let log = open(&disk);
    (2..12).for_each(|txid| assert_eq!(append(&log, txid, 1).unwrap().min, Txid(txid)));
    disk.open("test", Path::new("/db/log/x.log.tmp"), OpenMode::Create)
        .unwrap();
    let last = file(0, 8);
    disk.corrupt(&last, |bytes| bytes.truncate(bytes.len() - 10));
    let (before, changes) = (disk.content(&last), disk.changes());
    let seen = Log::inspect(disk.shared(), DIR.into()).unwrap();
    assert_eq!(txids(&seen), (2..11).collect::<Vec<_>>());
    assert_eq!(seen.repair().map(|repair| repair.bytes), Some(768 - 10));
    assert!(matches!(seen.appender(), Err(LogError::Poisoned(_))));
    assert!(matches!(seen.sync(), Err(LogError::Poisoned(_))));
    assert!(matches!(seen.truncate_after(Txid(3)), Err(LogError::Poisoned(_))));
    assert!(
        seen.retain(
            &RetainPolicy {
                max_bytes: Some(0),
                ..Default::default()
            },
            0
        )
        .is_err()
    );
    assert_eq!((disk.content(&last), disk.changes()), (before, changes));
    assert_eq!(segments(&disk), 3);
}
