//! Letting go: of the beginning, by age and size, and of a diverged end.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ltx::Txid;

use super::Log;
use super::error::{LogError, Result};
use super::segment::{Segment, read_header};
use crate::disk::DiskFile;

/// Part of a full segment that is worth a file of its own.
const WORTH_A_SEGMENT: u64 = 1024;

/// What of a log may be removed. Segments go whole, oldest first; the one that holds the last record stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetainPolicy {
    /// Segments whose newest record is older go; None = age is no reason.
    pub max_age_ms: Option<u64>,
    /// While the log is larger, segments go; None = size is no reason.
    pub max_bytes: Option<u64>,
    /// Somebody still needs this record and those behind it: neither age nor size removes them.
    pub keep_from: Option<Txid>,
    /// While the log is larger, segments go whoever needs them.
    pub hard_cap_bytes: Option<u64>,
}

/// What retention removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    pub segments: usize,
    pub bytes: u64,
}

impl Log {
    /// Removes what the policy allows.
    pub fn retain(&self, policy: &RetainPolicy, now_ms: i64) -> Result<Removed> {
        let mut removed = Removed::default();
        while let Some(next) = self.first_kept(policy, now_ms)? {
            // What stays must not be lost when what went before it is gone.
            self.sync()?;
            let Some(segment) = self.take_before(&next) else {
                continue;
            };
            self.disk
                .remove_file("log.retain.remove", &segment.path)
                .inspect_err(|_| self.put_back(segment.clone(), &next))?;
            // One at a time: if a crash brought an older one back without its successor, there would be a gap.
            self.disk.sync_dir("log.retain.sync_dir", &self.dir)?;
            removed.segments += 1;
            removed.bytes += segment.end();
        }
        self.seal_old(policy, now_ms)?;
        Ok(removed)
    }

    /// A log that grows slowly gets a new segment as well once the last one holds records that are too old, so that they
    /// can go the next time but one.
    fn seal_old(&self, policy: &RetainPolicy, now_ms: i64) -> Result<()> {
        let last = self.shared.read().segments.last().cloned();
        let Some(last) = last.filter(|last| last.end() >= self.options.segment_bytes / WORTH_A_SEGMENT)
        else {
            return Ok(());
        };
        if self.is_old(&last, policy, now_ms)? {
            // Here rather than in the append that begins the next segment.
            self.sync()?;
            self.rotate.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Removes every record behind `txid`, which must be the end of one. What is cut off is gone: the caller has
    /// archived it.
    pub fn truncate_after(&self, txid: Txid) -> Result<()> {
        let mut writer = self.writer.lock();
        self.check_poison()?;
        self.settle()?;
        let record = self.find(txid)?.filter(|record| record.info.max == txid);
        let record = record.ok_or(LogError::NoBoundary(txid))?;
        let (segment, end) = record.place();
        // From here on there is no way back, and no file may have to be opened.
        let file = segment.writable_file()?;
        let _turn = self.syncing.lock();
        let cut = {
            let mut shared = self.shared.write();
            if !shared.segments.iter().any(|listed| Arc::ptr_eq(listed, &segment)) {
                // Retention was faster.
                return Err(LogError::NoBoundary(txid));
            }
            shared
                .segments
                .iter()
                .filter(|later| later.first > segment.first)
                .for_each(|later| later.cut(0));
            segment.cut(end);
            let kept = shared
                .segments
                .partition_point(|other| other.first <= segment.first);
            let cut = shared.segments.split_off(kept);
            let successor = Arc::new(segment.successor(segment.path.clone(), end));
            *shared
                .segments
                .last_mut()
                .expect("the record's segment is listed") = successor;
            shared.tail = Some(record.info);
            shared.synced = shared.synced.min(txid);
            cut
        };
        let last = self.shared.read().segments.last().cloned();
        let result = self.remove_after(&cut, &*file, end);
        let super::writer::Writer { sink, state, .. } = &mut *writer;
        state.resume(sink, last, Some(record.info))?;
        if let Err(LogError::Disk(error)) = &result {
            // What the directory holds now is not what readers are shown.
            self.poison(error);
        }
        result?;
        self.shared.write().synced = txid;
        Ok(())
    }

    /// Newest first and one at a time, so that a crash leaves no gap.
    fn remove_after(&self, segments: &[Arc<Segment>], file: &dyn DiskFile, end: u64) -> Result<()> {
        for segment in segments.iter().rev() {
            self.disk.remove_file("log.truncate.remove", &segment.path)?;
            match self.disk.sync_dir("log.truncate.sync_dir", &self.dir) {
                // Done before anything is appended.
                Err(error) if error.is_out_of_descriptors() => self.settled.store(false, Ordering::Release),
                synced => synced?,
            }
        }
        file.set_len("log.truncate.cut", end)?;
        self.must_sync(file.sync_data("log.truncate.sync"))
    }

    /// The second segment, if the first one is to go.
    fn first_kept(&self, policy: &RetainPolicy, now_ms: i64) -> Result<Option<Arc<Segment>>> {
        let Some(next) = self.shared.read().segments.get(1).cloned() else {
            return Ok(None);
        };
        let old = self.is_old(&next, policy, now_ms)?;
        Ok(may_go(self.bytes(), &next, policy, old).then_some(next))
    }

    /// Takes the segment before `next` off the list; None if a reset or truncation was faster.
    fn take_before(&self, next: &Arc<Segment>) -> Option<Arc<Segment>> {
        let mut shared = self.shared.write();
        let still = shared
            .segments
            .get(1)
            .is_some_and(|segment| Arc::ptr_eq(segment, next));
        still.then(|| shared.segments.remove(0))
    }

    fn put_back(&self, segment: Arc<Segment>, next: &Arc<Segment>) {
        let mut shared = self.shared.write();
        if shared
            .segments
            .first()
            .is_some_and(|first| Arc::ptr_eq(first, next))
        {
            shared.segments.insert(0, segment);
        }
    }

    /// Whether the first record of a segment is too old. It stands in for the last one of the segment before it, which
    /// is no newer.
    fn is_old(&self, segment: &Segment, policy: &RetainPolicy, now_ms: i64) -> Result<bool> {
        let Some(max_age) = policy.max_age_ms else {
            return Ok(false);
        };
        let Some(header) = read_header(&*segment.file()?, 0)? else {
            return Err(segment.corrupt(0, "no record header"));
        };
        let age = now_ms.saturating_sub(header.info.timestamp_ms);
        Ok(u64::try_from(age).is_ok_and(|age| age > max_age))
    }
}

fn may_go(bytes: u64, next: &Segment, policy: &RetainPolicy, old: bool) -> bool {
    let above = |limit: Option<u64>| limit.is_some_and(|limit| bytes > limit);
    let needed = policy.keep_from.is_some_and(|txid| txid < next.first);
    above(policy.hard_cap_bytes) || !needed && (old || above(policy.max_bytes))
}
