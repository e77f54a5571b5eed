//! Appending, finding and reading without faults.

use super::*;

#[test]
fn records_are_found_after_a_flush_and_after_a_start() {
    let disk = disk(1);
    let log = open(&disk);
    assert_eq!(log.tail(), None);
    assert_eq!(txids(&log), [0; 0]);
    let mut appender = log.appender().unwrap();
    for txid in 2..7 {
        add(&mut appender, txid, 1, 0).unwrap();
    }
    assert_eq!(log.tail().map(|tail| tail.max), None, "not before the flush");
    appender.flush().unwrap();
    drop(appender);
    assert_eq!(disk.calls("log.append.write"), 1, "five records in one write");
    for txid in 7..10 {
        append(&log, txid, 1).unwrap();
    }
    assert_eq!(
        disk.list("test", Path::new(DIR)).unwrap().len(),
        2,
        "in two segments"
    );
    for log in [&log, &open(&disk)] {
        assert_eq!(txids(log), (2..10).collect::<Vec<_>>());
        assert_eq!(log.first_txid(), Some(Txid(2)));
        assert_eq!(log.tail().unwrap().pos(), ltx::Pos::new(Txid(9), post(9, 0)));
        assert_eq!(log.find(Txid(5)).unwrap().unwrap().info.min, Txid(5));
        assert!(log.find(Txid(1)).unwrap().is_none());
        assert!(log.find(Txid(10)).unwrap().is_none());
    }
    assert_eq!(open(&disk).repair(), None);
    append(&open(&disk), 10, 1).unwrap();
    assert_eq!(txids(&open(&disk)).last(), Some(&10));
}
