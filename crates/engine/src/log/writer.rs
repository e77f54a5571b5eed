//! Where the log grows: the state behind the append lock.
//!
//! A record is *begun*, *ended* or *abandoned*, and becomes visible when it is *published*. Whatever fails in between,
//! everything that is not published is taken back; if even that fails, the log is closed for writing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ltx::{EncoderBuffers, Header, Txid};

use super::Log;
use super::error::{LogError, Result};
use super::frame::{FrameHeader, HEADER_LEN, frame_len};
use super::record::RecordInfo;
use super::segment::{Segment, UNFINISHED, file_name};
use super::sink::Sink;
use crate::disk::DiskFile;

#[derive(Default)]
pub(super) struct Writer {
    pub(super) sink: Sink,
    pub(super) buffers: EncoderBuffers,
    pub(super) state: State,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// The segment that grows.
    target: Option<Target>,
    /// The last record, published or not.
    tail: Option<RecordInfo>,
    /// Records that are ended but not published, with their offsets.
    pending: Vec<(RecordInfo, u64)>,
    /// Where the record in progress begins.
    record: u64,
    /// While a reset is written: what to return to if it is abandoned.
    replaced: Option<Replaced>,
}

#[derive(Debug)]
struct Target {
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
}

#[derive(Debug)]
struct Replaced {
    target: Option<Target>,
    tail: Option<RecordInfo>,
}

impl State {
    /// Continues behind `tail` in the last segment, if there is one.
    pub(super) fn resume(
        &mut self,
        sink: &Sink,
        segment: Option<Arc<Segment>>,
        tail: Option<RecordInfo>,
    ) -> Result<()> {
        self.target = match segment {
            Some(segment) => Some(Target {
                file: segment.writable_file()?,
                segment,
            }),
            None => None,
        };
        self.tail = tail;
        self.pending.clear();
        self.point_sink(sink);
        Ok(())
    }

    /// Prepares for a record: it must follow the last one; starts a segment where one is due.
    pub(super) fn begin(&mut self, log: &Log, sink: &Sink, header: &Header) -> Result<()> {
        log.check_poison()?;
        self.check_follows(header)?;
        log.settle()?;
        let due =
            || sink.position() >= log.options.segment_bytes || log.rotate.swap(false, Ordering::Relaxed);
        let full = self.target.is_some() && sink.position() > 0 && due();
        if full {
            self.publish(log, sink)?;
            self.seal(log)?;
        }
        // A segment whose first record was abandoned has the name of that record.
        let misnamed = |target: &Target| sink.position() == 0 && target.segment.first != header.min_txid;
        if full || self.target.as_ref().is_none_or(misnamed) {
            self.open_segment(log, sink, header.min_txid)?;
        }
        self.reserve_header(sink);
        Ok(())
    }

    /// Prepares for the snapshot that will replace everything.
    pub(super) fn begin_reset(&mut self, log: &Log, sink: &Sink, header: &Header) -> Result<()> {
        if !header.is_snapshot() {
            return Err(LogError::ResetNeedsSnapshot(header.min_txid));
        }
        log.check_poison()?;
        log.settle()?;
        self.publish(log, sink)?;
        let name = file_name(log.next_history()?, header.min_txid) + UNFINISHED;
        let (segment, file) = Segment::create(&log.disk, log.dir.join(name), header.min_txid)?;
        let target = self.target.replace(Target {
            segment: Arc::new(segment),
            file,
        });
        self.replaced = Some(Replaced {
            target,
            tail: self.tail.take(),
        });
        self.point_sink(sink);
        self.reserve_header(sink);
        Ok(())
    }

    /// Where the payload of the record in progress begins.
    fn payload(&self) -> u64 {
        self.record + HEADER_LEN as u64
    }

    /// Bytes of the payload so far.
    pub(super) fn payload_len(&self, sink: &Sink) -> u64 {
        sink.position() - self.payload()
    }

    /// The payload is complete: pads it and writes the frame header, last.
    pub(super) fn end(&mut self, log: &Log, sink: &Sink, info: RecordInfo) -> Result<()> {
        let padding = frame_len(info.len) - HEADER_LEN as u64 - info.len;
        let durable = self.target.as_ref().map_or(0, |target| target.segment.durable());
        let header = FrameHeader { info, durable }.encode();
        let padded = std::io::Write::write_all(&mut { sink }, &[0; 8][..padding as usize]);
        padded
            .map_err(LogError::writing)
            .and_then(|()| sink.patch(self.record, &header))
            .inspect_err(|_| {
                self.take_back(log, sink);
            })?;
        self.pending.push((info, self.record));
        self.tail = Some(info);
        Ok(())
    }

    /// The record in progress is not to be.
    pub(super) fn abandon(&mut self, log: &Log, sink: &Sink) {
        if let Some(replaced) = self.replaced.take() {
            let unfinished = std::mem::replace(&mut self.target, replaced.target);
            self.tail = replaced.tail;
            self.pending.clear();
            self.point_sink(sink);
            if let Some(Target { segment, .. }) = unfinished
                && let Err(error) = log.disk.remove_file("log.reset.discard", &segment.path)
            {
                tracing::warn!(%error, "unfinished log segment stays until the next start");
            }
            return;
        }
        if sink.rewind(self.record) {
            self.cut_file(log, self.record);
        }
    }

    /// Writes what is collected and lets readers see it.
    pub(super) fn publish(&mut self, log: &Log, sink: &Sink) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        sink.write_out().inspect_err(|_| self.take_back(log, sink))?;
        let target = self.target.as_ref().expect("records are pending in a segment");
        for (info, offset) in self.pending.drain(..) {
            target.segment.publish(&info, offset);
        }
        log.show(&target.segment, self.tail);
        Ok(())
    }

    /// Takes back everything that readers do not see yet.
    pub(super) fn take_back(&mut self, log: &Log, sink: &Sink) {
        if self.replaced.is_some() {
            return self.abandon(log, sink);
        }
        self.pending.clear();
        self.tail = log.tail();
        let Some(target) = &self.target else { return };
        let end = target.segment.end();
        let spilled = sink.written() > end;
        sink.redirect(Some(target.file.clone()), end);
        // A write that failed may have left a part behind the end.
        let longer = target.file.len("log.append.length").map_or(true, |len| len > end);
        if spilled || longer {
            self.cut_file(log, end);
        }
    }

    pub(super) fn tail(&self) -> Option<RecordInfo> {
        self.tail
    }

    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Makes the snapshot just ended the whole log. Returns the segment, durable under its final name.
    pub(super) fn finish_reset(&mut self, log: &Log, sink: &Sink) -> Result<(Arc<Segment>, RecordInfo)> {
        let named = self
            .name_reset(log, sink)
            .inspect_err(|_| self.abandon(log, sink))?;
        self.replaced = None;
        Ok(named)
    }

    fn name_reset(&mut self, log: &Log, sink: &Sink) -> Result<(Arc<Segment>, RecordInfo)> {
        sink.write_out()?;
        let target = self.target.as_mut().expect("a reset writes into its segment");
        log.must_sync(target.file.sync_data("log.reset.sync"))?;
        let path = target.segment.path.with_extension("");
        log.disk.rename("log.reset.rename", &target.segment.path, &path)?;
        let synced = log.must_sync(log.disk.sync_dir("log.reset.sync_dir", &log.dir));
        if let Err(error) = synced {
            // Nobody is to find the snapshot under that name, as long as the log goes on without it.
            let back = log
                .disk
                .rename("log.reset.rename_back", &path, &target.segment.path);
            back.inspect_err(|error| log.poison(error))?;
            return Err(error);
        }
        let (info, offset) = self.pending.pop().expect("the snapshot was just ended");
        target.segment.publish(&info, offset);
        target.segment = Arc::new(target.segment.successor(path, target.segment.end()));
        Ok((target.segment.clone(), info))
    }

    fn check_follows(&self, header: &Header) -> Result<()> {
        let Some(tail) = &self.tail else { return Ok(()) };
        if header.is_snapshot() {
            return Err(LogError::SnapshotInHistory);
        }
        if Some(header.min_txid) == tail.max.next() && header.pre_apply == tail.post {
            return Ok(());
        }
        Err(LogError::NotContiguous {
            tail: Some((tail.max, tail.post)),
            min: header.min_txid,
            pre: header.pre_apply,
        })
    }

    /// The full segment is durable before the next one exists: a start need not look at it.
    fn seal(&mut self, log: &Log) -> Result<()> {
        let target = self.target.as_ref().expect("only a segment can be full");
        log.sync_segment(&target.segment, &*target.file, "log.rotate.sync")
    }

    fn open_segment(&mut self, log: &Log, sink: &Sink, first: Txid) -> Result<()> {
        let path = log.dir.join(file_name(log.history(), first));
        if let Some(vacant) = self.target.take_if(|target| target.segment.end() == 0) {
            log.disk
                .remove_file("log.segment.discard", &vacant.segment.path)?;
        }
        let (segment, file) = Segment::create(&log.disk, path, first)?;
        log.must_sync(log.disk.sync_dir("log.segment.sync_dir", &log.dir))?;
        self.target = Some(Target {
            segment: Arc::new(segment),
            file,
        });
        self.point_sink(sink);
        Ok(())
    }

    fn point_sink(&self, sink: &Sink) {
        match &self.target {
            Some(target) => sink.redirect(Some(target.file.clone()), target.segment.end()),
            None => sink.redirect(None, 0),
        }
    }

    fn reserve_header(&mut self, sink: &Sink) {
        self.record = sink.position();
        sink.reserve(HEADER_LEN);
    }

    /// Bytes behind the end that cannot be removed could be taken for a record later.
    fn cut_file(&self, log: &Log, end: u64) {
        let Some(target) = &self.target else { return };
        if let Err(error) = target.file.set_len("log.append.cut", end) {
            log.poison(&error);
        }
    }
}
