//! The contract of the log, on a simulated disk.

use std::path::Path;

use ltx::{Checksum, Header, PageSize, Pgno, Txid};

use super::*;
use crate::disk::sim::SimDisk;

mod basics;
mod concurrent;
mod cost;
mod crash;
mod model;
mod retention;

pub(super) const DIR: &str = "/db/log";
pub(super) const PAGE: usize = 512;

/// A disk with the directory of a database.
pub(super) fn disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.create_dir_all("test", Path::new("/db")).unwrap();
    disk.sync_dir("test", Path::new("/")).unwrap();
    disk
}

pub(super) fn file(history: u32, first: u64) -> String {
    format!("{DIR}/{history:08x}-{first:016x}.log")
}

pub(super) fn segments(disk: &SimDisk) -> usize {
    disk.list("test", Path::new(DIR)).unwrap().len()
}

pub(super) fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 4096,
        compress: false,
        same_boot: false,
    }
}

/// As a process does that follows one that was killed.
pub(super) fn reopen(disk: &SimDisk) -> Log {
    let options = LogOptions {
        same_boot: true,
        ..options()
    };
    Log::open(disk.shared(), DIR.into(), options).unwrap()
}

pub(super) fn open(disk: &SimDisk) -> Log {
    Log::open(disk.shared(), DIR.into(), options()).unwrap()
}

/// The checksum that record `txid` leaves in these tests; `branch` tells histories apart.
pub(super) fn post(txid: u64, branch: u64) -> Checksum {
    Checksum(Checksum::FLAG | branch << 32 | txid)
}

pub(super) fn header(txid: u64, pre: Checksum) -> Header {
    Header {
        compressed: false,
        page_size: PageSize::MIN,
        commit: 1000,
        min_txid: Txid(txid),
        max_txid: Txid(txid),
        timestamp: txid as i64 * 1000,
        pre_apply: pre,
        wal: None,
        node_id: 1,
    }
}

/// Appends an incremental record of `pages` pages; the first one of a log begins at TXID 2.
pub(super) fn add(appender: &mut Appender<'_>, txid: u64, pages: u32, branch: u64) -> Result<RecordInfo> {
    let pre = appender.tail().map_or(post(txid - 1, branch), |tail| tail.post);
    let mut append = appender.begin(header(txid, pre), RecordMeta::new(Origin::Captured))?;
    for pgno in Pgno::up_to(pages) {
        append.page(pgno, &content(txid, pgno.get()))?;
    }
    append.finish(post(txid, branch))
}

pub(super) fn content(txid: u64, pgno: u32) -> Vec<u8> {
    (0..PAGE)
        .map(|i| (txid as usize * 31 + pgno as usize * 7 + i) as u8)
        .collect()
}

/// An LTX file that makes the database at TXID `max`.
pub(super) fn snapshot(max: u64) -> Vec<u8> {
    let mut header = header(1, Checksum::NONE);
    header.max_txid = Txid(max);
    header.commit = 2;
    let mut encoder = ltx::Encoder::new(Vec::new(), header).unwrap();
    let mut checksum = Checksum::EMPTY_DATABASE;
    for pgno in Pgno::up_to(2) {
        encoder.encode_page(pgno, &content(0, pgno.get())).unwrap();
        checksum = checksum.xor(ltx::page_checksum(pgno, &content(0, pgno.get())));
    }
    encoder.finish(checksum).unwrap().0
}

/// Appends and flushes one record.
pub(super) fn append(log: &Log, txid: u64, pages: u32) -> Result<RecordInfo> {
    let mut appender = log.appender()?;
    let info = add(&mut appender, txid, pages, 0)?;
    appender.flush()?;
    Ok(info)
}

/// TXIDs that can be read, each of them verified.
pub(super) fn txids(log: &Log) -> Vec<u64> {
    let read = |record: Result<Record>| {
        let record = record.unwrap();
        let summary = ltx::verify(record.reader()).unwrap();
        assert_eq!(summary.header.max_txid, record.info.max);
        assert_eq!(summary.trailer.post_apply, record.info.post);
        record.info.max.0
    };
    log.records(Txid::ZERO).map(read).collect()
}
