//! One file of the log, and the sparse index over the records in it.
//!
//! A segment grows at its end only, up to `end`, behind which readers see nothing. It is durable up to `durable`.
//! Where a diverged tail was cut off, a new `Segment` takes over the file and the old one keeps the offset of the cut:
//! who still reads through it gets an error instead of bytes of another history.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use ltx::Txid;
use parking_lot::Mutex;

use super::error::{LogError, Result};
use super::frame::{FrameHeader, HEADER_LEN, frame_len};
use super::record::RecordInfo;
use crate::disk::{Disk, DiskFile, OpenMode};

/// One index entry per this many bytes; between two entries a search hops from header to header.
const INDEX_STEP: u64 = 64 << 10;
const SUFFIX: &str = ".log";
pub(super) const UNFINISHED: &str = ".tmp";

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    /// The first TXID in it.
    pub(super) first: Txid,
    disk: Arc<dyn Disk>,
    /// Open as long as somebody reads or writes.
    file: Mutex<Option<Weak<dyn DiskFile>>>,
    end: AtomicU64,
    durable: AtomicU64,
    cut: AtomicU64,
    /// None until somebody searches a segment that was there at the start.
    index: Mutex<Option<Index>>,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Index {
    entries: Vec<(Txid, u64)>,
}

impl Index {
    pub(super) fn add(&mut self, min: Txid, offset: u64) {
        if self
            .entries
            .last()
            .is_none_or(|(_, last)| offset - last >= INDEX_STEP)
        {
            self.entries.push((min, offset));
        }
    }

    /// Where to begin to look for the record that holds `txid`.
    fn before(&self, txid: Txid) -> u64 {
        let behind = self.entries.partition_point(|(min, _)| *min <= txid);
        behind.checked_sub(1).map_or(0, |entry| self.entries[entry].1)
    }
}

/// `<history>-<first TXID>.log`. The history goes up by one with each reset, so that what is left of an older one is
/// known as such.
pub(super) fn file_name(history: u32, first: Txid) -> String {
    format!("{history:08x}-{first}{SUFFIX}")
}

pub(super) fn parse_file_name(name: &str) -> Option<(u32, Txid)> {
    let (history, first) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    if history.len() != 8 {
        return None;
    }
    Some((u32::from_str_radix(history, 16).ok()?, first.parse().ok()?))
}

impl Segment {
    /// A segment with `end` bytes, all durable; searched lazily unless `index` is given.
    pub(super) fn existing(
        disk: &Arc<dyn Disk>,
        path: PathBuf,
        first: Txid,
        end: u64,
        index: Option<Index>,
    ) -> Segment {
        Segment {
            path,
            first,
            disk: disk.clone(),
            file: Mutex::new(None),
            end: AtomicU64::new(end),
            durable: AtomicU64::new(end),
            cut: AtomicU64::new(u64::MAX),
            index: Mutex::new(index),
        }
    }

    /// Nothing is known about what of it a power loss would leave.
    pub(super) fn not_durable(self) -> Segment {
        self.durable.store(0, Ordering::Release);
        self
    }

    /// A segment without records, open for the writer.
    pub(super) fn create(
        disk: &Arc<dyn Disk>,
        path: PathBuf,
        first: Txid,
    ) -> Result<(Segment, Arc<dyn DiskFile>)> {
        // A file of that name is what an earlier attempt left behind: it has no record.
        let file = disk.open("log.segment.create", &path, OpenMode::Truncate)?;
        let segment = Segment::existing(disk, path, first, 0, Some(Index::default()));
        *segment.file.lock() = Some(Arc::downgrade(&file));
        Ok((segment, file))
    }

    /// Takes over the file of a segment that is cut at `end`, or renamed.
    pub(super) fn successor(&self, path: PathBuf, end: u64) -> Segment {
        let index = self.index.lock().as_ref().map(|index| {
            let entries = index
                .entries
                .iter()
                .copied()
                .filter(|(_, offset)| *offset < end)
                .collect();
            Index { entries }
        });
        let next = Segment::existing(&self.disk, path, self.first, end, index);
        *next.file.lock() = self.file.lock().clone();
        next
    }

    /// The file, for reading.
    pub(super) fn file(&self) -> Result<Arc<dyn DiskFile>> {
        let mut cached = self.file.lock();
        if let Some(file) = cached.as_ref().and_then(Weak::upgrade) {
            return Ok(file);
        }
        let file = self.disk.open("log.segment.open", &self.path, OpenMode::Read)?;
        *cached = Some(Arc::downgrade(&file));
        Ok(file)
    }

    /// The file, for writing; readers share it from now on.
    pub(super) fn writable_file(&self) -> Result<Arc<dyn DiskFile>> {
        let file = self.disk.open("log.segment.open", &self.path, OpenMode::Write)?;
        *self.file.lock() = Some(Arc::downgrade(&file));
        Ok(file)
    }

    /// Bytes that hold records.
    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    pub(super) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    pub(super) fn set_durable(&self, end: u64) {
        self.durable.fetch_max(end, Ordering::AcqRel);
    }

    /// Makes a record visible that was written at `offset`.
    pub(super) fn publish(&self, info: &RecordInfo, offset: u64) {
        if let Some(index) = self.index.lock().as_mut() {
            index.add(info.min, offset);
        }
        self.end.store(offset + frame_len(info.len), Ordering::Release);
    }

    /// Readers that come behind `offset` from now on fail.
    pub(super) fn cut(&self, offset: u64) {
        self.cut.store(offset, Ordering::Release);
    }

    pub(super) fn is_cut_before(&self, end: u64) -> bool {
        self.cut.load(Ordering::Acquire) < end
    }

    /// The header at `offset`, which lies before the end.
    pub(super) fn header(&self, file: &dyn DiskFile, offset: u64) -> Result<FrameHeader> {
        read_header(file, offset)?.ok_or_else(|| self.corrupt(offset, "no record header"))
    }

    /// Offset and header of the record that holds `txid`, or of the first behind it.
    pub(super) fn locate(&self, file: &dyn DiskFile, txid: Txid) -> Result<Option<(u64, RecordInfo)>> {
        let end = self.end();
        let mut offset = self.search_start(file, txid)?;
        while offset < end {
            let info = self.header(file, offset)?.info;
            if info.max >= txid {
                return Ok(Some((offset, info)));
            }
            offset += frame_len(info.len);
        }
        Ok(None)
    }

    fn search_start(&self, file: &dyn DiskFile, txid: Txid) -> Result<u64> {
        if let Some(index) = self.index.lock().as_ref() {
            return Ok(index.before(txid));
        }
        let mut index = Index::default();
        let (mut offset, end) = (0, self.end());
        while offset < end {
            let info = self.header(file, offset)?.info;
            index.add(info.min, offset);
            offset += frame_len(info.len);
        }
        let start = index.before(txid);
        *self.index.lock() = Some(index);
        Ok(start)
    }

    pub(super) fn corrupt(&self, offset: u64, reason: impl Into<String>) -> LogError {
        LogError::Corrupt {
            path: self.path.clone(),
            offset,
            reason: reason.into(),
        }
    }
}

/// None: there is no valid header at `offset`.
pub(super) fn read_header(file: &dyn DiskFile, offset: u64) -> Result<Option<FrameHeader>> {
    let mut bytes = [0; HEADER_LEN];
    let count = file.read_at("log.read.header", &mut bytes, offset)?;
    Ok(if count == HEADER_LEN {
        FrameHeader::decode(&bytes)
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_sort_by_history_first() {
        let name = file_name(2, Txid(0xab));
        assert_eq!(name, "00000002-00000000000000ab.log");
        assert_eq!(parse_file_name(&name), Some((2, Txid(0xab))));
        assert!(file_name(1, Txid(9)) < file_name(2, Txid(1)));
        for other in [
            "x.log",
            "00000002-00000000000000ab.log.tmp",
            "2-00000000000000ab.log",
            "checksums",
        ] {
            assert_eq!(parse_file_name(other), None, "{other}");
        }
    }

    #[test]
    fn the_index_is_sparse() {
        let mut index = Index::default();
        (0..100).for_each(|n| index.add(Txid(n + 1), n * (INDEX_STEP / 4)));
        assert_eq!(index.entries.len(), 25);
        assert_eq!(index.before(Txid(6)), INDEX_STEP);
        assert_eq!(index.before(Txid(5)), INDEX_STEP);
        assert_eq!(index.before(Txid(4)), 0);
    }
}
