//! Reading: records and their bytes, without any lock, while the log grows, is cut, or lets go of its beginning.

use std::io::{self, Read};
use std::sync::Arc;

use ltx::Txid;

use super::Log;
use super::error::Result;
use super::frame::{HEADER_LEN, frame_len};
use super::record::RecordInfo;
use super::segment::Segment;
use crate::disk::DiskFile;

const READ_AHEAD: usize = 64 << 10;

/// A record of a log. Holds its segment open: retention cannot pull it away.
#[derive(Debug, Clone)]
pub struct Record {
    pub info: RecordInfo,
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
    /// Of the payload.
    offset: u64,
}

impl Record {
    fn new(segment: Arc<Segment>, file: Arc<dyn DiskFile>, offset: u64, info: RecordInfo) -> Record {
        Record {
            info,
            segment,
            file,
            offset: offset + HEADER_LEN as u64,
        }
    }

    /// The bytes of the LTX file.
    pub fn reader(&self) -> RecordReader {
        RecordReader {
            record: self.clone(),
            position: 0,
            buf: Vec::new(),
            taken: 0,
        }
    }

    /// Replaces the content of `out` with the bytes of the LTX file. For small records: one read, and no memory if
    /// `out` is used again.
    pub fn read_into(&self, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        out.resize(self.info.len as usize, 0);
        self.file.read_exact_at("log.read.record", out, self.offset)?;
        self.check_cut(self.info.len)
    }

    /// Its segment, and the offset behind it there.
    pub(super) fn place(&self) -> (Arc<Segment>, u64) {
        (
            self.segment.clone(),
            self.offset - HEADER_LEN as u64 + frame_len(self.info.len),
        )
    }

    /// Whether the first `len` bytes are still those of this record.
    fn check_cut(&self, len: u64) -> Result<()> {
        if self.segment.is_cut_before(self.offset + len) {
            return Err(self
                .segment
                .corrupt(self.offset, "record was cut off while it was read"));
        }
        Ok(())
    }
}

/// Reads the LTX bytes of a record, ahead in pieces.
#[derive(Debug)]
pub struct RecordReader {
    record: Record,
    /// Of the payload, behind `buf`.
    position: u64,
    buf: Vec<u8>,
    taken: usize,
}

impl RecordReader {
    fn fill(&mut self) -> Result<()> {
        let left = self.record.info.len - self.position;
        let count = left.min(READ_AHEAD as u64) as usize;
        self.buf.resize(count, 0);
        self.taken = 0;
        let offset = self.record.offset + self.position;
        self.record
            .file
            .read_exact_at("log.read.record", &mut self.buf, offset)?;
        self.position += count as u64;
        self.record.check_cut(self.position)
    }
}

impl Read for RecordReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.buf.len() && self.position < self.record.info.len {
            self.fill().map_err(io::Error::other)?;
        }
        let count = out.len().min(self.buf.len() - self.taken);
        out[..count].copy_from_slice(&self.buf[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

/// Records in order, up to the end of the log as it is when it is reached: after `None`, more may come.
pub struct Records<'log> {
    log: &'log Log,
    /// The TXID wanted next.
    next: Txid,
    at: Option<Cursor>,
    failed: bool,
}

struct Cursor {
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
    offset: u64,
}

impl<'log> Records<'log> {
    pub(super) fn new(log: &'log Log, from: Txid) -> Records<'log> {
        Records {
            log,
            next: from,
            at: None,
            failed: false,
        }
    }

    fn step(&mut self) -> Result<Option<Record>> {
        if let Some(cursor) = &mut self.at {
            if cursor.segment.is_cut_before(u64::MAX) {
                return Err(cursor
                    .segment
                    .corrupt(cursor.offset, "segment was cut while it was read"));
            }
            if cursor.offset < cursor.segment.end() {
                let info = cursor.segment.header(&*cursor.file, cursor.offset)?.info;
                let (segment, file) = (cursor.segment.clone(), cursor.file.clone());
                let record = Record::new(segment, file, cursor.offset, info);
                cursor.offset += frame_len(info.len);
                return Ok(Some(record));
            }
        }
        let Some(record) = self.log.locate(self.next)? else {
            return Ok(None);
        };
        let offset = record.offset + record.info.len.next_multiple_of(8);
        let (segment, file) = (record.segment.clone(), record.file.clone());
        self.at = Some(Cursor {
            segment,
            file,
            offset,
        });
        Ok(Some(record))
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        if self.failed {
            return None;
        }
        let step = self.step();
        match &step {
            Ok(Some(record)) => self.next = Txid(record.info.max.0.saturating_add(1)),
            Ok(None) => {}
            Err(_) => self.failed = true,
        }
        step.transpose()
    }
}

impl Log {
    /// The record that holds `txid`, or the first one behind it.
    pub(super) fn locate(&self, txid: Txid) -> Result<Option<Record>> {
        loop {
            let Some(segment) = self.segment_for(txid) else {
                return Ok(None);
            };
            let file = match segment.file() {
                Ok(file) => file,
                // Retention removed it in between: look again.
                Err(error)
                    if error.disk().is_some_and(|error| error.is_not_found()) && !self.lists(&segment) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            let found = segment.locate(&*file, txid)?;
            return Ok(found.map(|(offset, info)| Record::new(segment, file, offset, info)));
        }
    }
}
