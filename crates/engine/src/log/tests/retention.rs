//! Letting go of the beginning and of a diverged end.

use super::*;

const ALL: RetainPolicy = RetainPolicy {
    max_age_ms: None,
    max_bytes: Some(0),
    keep_from: None,
    hard_cap_bytes: None,
};

/// Five segments of six records each, TXIDs 2..=31, one second apart.
fn filled(disk: &SimDisk) -> Log {
    let log = open(disk);
    (2..32).for_each(|txid| assert_eq!(append(&log, txid, 1).unwrap().max, Txid(txid)));
    assert_eq!(segments(disk), 5);
    log
}

#[test]
fn the_segment_with_the_last_record_stays() {
    let disk = disk(1);
    let log = filled(&disk);
    let removed = log.retain(&ALL, 0).unwrap();
    assert_eq!(
        removed,
        Removed {
            segments: 4,
            bytes: 24 * 768
        }
    );
    assert_eq!(txids(&log), (26..32).collect::<Vec<_>>());
    assert_eq!(log.retain(&ALL, 0).unwrap(), Removed::default());
    assert_eq!(txids(&open(&disk)), (26..32).collect::<Vec<_>>());
}

#[test]
fn age_and_size_remove_what_nobody_needs() {
    let age = RetainPolicy {
        max_age_ms: Some(5_000),
        max_bytes: None,
        ..ALL
    };
    let log = filled(&disk(1));
    assert_eq!(
        log.retain(&age, 13_000).unwrap().segments,
        0,
        "the second segment begins at 8 s"
    );
    assert_eq!(log.retain(&age, 13_001).unwrap().segments, 1);
    assert_eq!(log.first_txid(), Some(Txid(8)));

    let size = RetainPolicy {
        max_bytes: Some(15 * 768),
        ..ALL
    };
    let log = filled(&disk(1));
    assert_eq!(log.retain(&size, 0).unwrap().segments, 3);

    let log = filled(&disk(1));
    let needed = RetainPolicy {
        keep_from: Some(Txid(19)),
        ..ALL
    };
    assert_eq!(log.retain(&needed, 0).unwrap().segments, 2);
    assert_eq!(log.first_txid(), Some(Txid(14)));
    let capped = RetainPolicy {
        hard_cap_bytes: Some(12 * 768),
        ..needed
    };
    assert_eq!(log.retain(&capped, 0).unwrap().segments, 1);
    assert_eq!(log.first_txid(), Some(Txid(20)));
}

#[test]
fn old_records_go_from_a_log_that_grows_slowly() {
    let disk = disk(1);
    let log = open(&disk);
    append(&log, 2, 1).unwrap();
    append(&log, 3, 1).unwrap();
    let age = RetainPolicy {
        max_age_ms: Some(5_000),
        max_bytes: None,
        ..ALL
    };
    assert_eq!(log.retain(&age, 7_000).unwrap().segments, 0);
    append(&log, 4, 1).unwrap();
    assert_eq!(segments(&disk), 1, "nothing was too old");
    assert_eq!(log.retain(&age, 7_001).unwrap().segments, 0);
    assert_eq!(log.synced_txid(), Txid(4), "the next append need not wait");
    append(&log, 5, 1).unwrap();
    append(&log, 6, 1).unwrap();
    assert_eq!(segments(&disk), 2);
    assert_eq!(log.retain(&age, 10_000).unwrap().segments, 0);
    assert_eq!(log.retain(&age, 10_001).unwrap().segments, 1);
    assert_eq!(txids(&log), [5, 6]);
}

#[test]
fn what_is_read_stays_readable() {
    let log = filled(&disk(1));
    let record = log.find(Txid(3)).unwrap().unwrap();
    let mut records = log.records(Txid(2));
    records.next().unwrap().unwrap();
    log.retain(&ALL, 0).unwrap();
    ltx::verify(record.reader()).unwrap();
    let rest: Vec<_> = records.map(|record| record.unwrap().info.max.0).collect();
    assert_eq!(rest[..5], [3, 4, 5, 6, 7], "the rest of an open segment");
    assert_eq!(rest[5], 26, "then what is left");
}

#[test]
fn a_diverged_tail_is_cut_and_another_one_grows() {
    let disk = disk(1);
    let log = filled(&disk);
    let kept = log.find(Txid(15)).unwrap().unwrap();
    let lost = log.find(Txid(16)).unwrap().unwrap();
    let elsewhere = log.find(Txid(30)).unwrap().unwrap();
    let mut reading = log.records(Txid(14));
    reading.next().unwrap().unwrap();
    log.truncate_after(Txid(15)).unwrap();
    assert_eq!(log.tail().map(|tail| tail.max), Some(Txid(15)));
    assert_eq!(log.synced_txid(), Txid(15));
    assert!(log.find(Txid(16)).unwrap().is_none());
    let mut appender = log.appender().unwrap();
    for txid in 16..20 {
        let pre = post(txid - 1, u64::from(txid > 16));
        let append = appender
            .begin(header(txid, pre), RecordMeta::new(Origin::Applied))
            .unwrap();
        append.finish(post(txid, 1)).unwrap();
    }
    appender.flush().unwrap();
    drop(appender);
    for log in [&log, &open(&disk)] {
        assert_eq!(txids(log), (2..20).collect::<Vec<_>>());
        assert_eq!(log.tail().unwrap().post, post(19, 1));
    }
    ltx::verify(kept.reader()).unwrap();
    assert!(
        ltx::verify(lost.reader()).is_err(),
        "bytes of another history are not passed off as its own"
    );
    assert!(ltx::verify(elsewhere.reader()).is_err());
    assert!(reading.next().unwrap().is_err());
    assert!(reading.next().is_none());
}

#[test]
fn a_cut_needs_the_end_of_a_record() {
    let log = open(&disk(1));
    let mut two = header(2, post(1, 0));
    two.max_txid = Txid(4);
    let mut appender = log.appender().unwrap();
    appender
        .begin(two, RecordMeta::new(Origin::Applied))
        .unwrap()
        .finish(post(4, 0))
        .unwrap();
    appender.flush().unwrap();
    drop(appender);
    for txid in [1, 3, 5] {
        assert!(matches!(
            log.truncate_after(Txid(txid)),
            Err(LogError::NoBoundary(_))
        ));
    }
    log.truncate_after(Txid(4)).unwrap();
}
