//! What a log may hold after a crash in the middle of a script.

use super::*;

/// A record as the model knows it: last TXID and post-apply checksum.
type Entry = (u64, Checksum);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// One record of that many pages.
    Append(u32),
    /// That many one-page records with one flush.
    Batch(u32),
    /// A record that is begun and given up.
    Abandon(u32),
    Sync,
    /// Keeps that many of the last records at least.
    Retain(u64),
    /// Cuts that many records off the end.
    Truncate(u64),
    /// A snapshot of the present state replaces everything.
    Reset,
    /// The process restarts.
    Reopen,
}

/// A sequence of records the log may hold a part of.
#[derive(Debug, Clone, Default)]
struct Candidate {
    entries: Vec<Entry>,
    /// Entries before this one may have been removed by retention.
    needed_from: usize,
    /// Entries from this one on may be lost.
    needed_to: usize,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    now: Candidate,
    /// What the log holds instead if the step in progress takes effect.
    after: Option<Candidate>,
    branch: u64,
}

impl Model {
    /// Runs one step and keeps the books.
    pub(super) fn run(&mut self, disk: &SimDisk, log: &mut Log, step: &Step) -> Result<()> {
        self.after = None;
        match step {
            Step::Append(pages) => self.append(log, &[*pages]),
            Step::Batch(count) => self.append(log, &vec![1; *count as usize]),
            Step::Abandon(pages) => self.abandon(log, *pages),
            Step::Sync => {
                log.sync()?;
                self.now.needed_to = self.now.entries.len();
                Ok(())
            }
            Step::Retain(keep) => self.retain(log, *keep),
            Step::Truncate(count) => self.truncate(log, *count),
            Step::Reset => self.reset(log),
            Step::Reopen => {
                *log = Log::open(disk.shared(), DIR.into(), options())?;
                Ok(())
            }
        }
    }

    fn tail(&self) -> Entry {
        self.now.entries.last().copied().unwrap_or((1, post(1, 0)))
    }

    fn append(&mut self, log: &Log, pages: &[u32]) -> Result<()> {
        let (mut txid, mut pre) = self.tail();
        let mut after = self.now.clone();
        let mut appender = log.appender()?;
        for pages in pages {
            txid += 1;
            let mut append = appender.begin(header(txid, pre), RecordMeta::new(Origin::Captured))?;
            after.entries.push((txid, post(txid, self.branch)));
            self.after = Some(after.clone());
            for pgno in Pgno::up_to(*pages) {
                append.page(pgno, &content(txid, pgno.get()))?;
            }
            append.finish(post(txid, self.branch))?;
            pre = post(txid, self.branch);
        }
        appender.flush()?;
        self.now = after;
        Ok(())
    }

    fn abandon(&mut self, log: &Log, pages: u32) -> Result<()> {
        let (txid, pre) = self.tail();
        let mut appender = log.appender()?;
        let mut append = appender.begin(header(txid + 1, pre), RecordMeta::new(Origin::Captured))?;
        for pgno in Pgno::up_to(pages) {
            append.page(pgno, &content(txid + 1, pgno.get()))?;
        }
        append.abort();
        Ok(())
    }

    fn retain(&mut self, log: &Log, keep: u64) -> Result<()> {
        let keep_index = self.now.entries.len().saturating_sub(keep as usize);
        let Some((txid, _)) = self.now.entries.get(keep_index) else {
            return Ok(());
        };
        let mut after = self.now.clone();
        after.needed_from = after.needed_from.max(keep_index);
        after.needed_to = after.entries.len();
        self.after = Some(after.clone());
        let policy = RetainPolicy {
            max_bytes: Some(0),
            keep_from: Some(Txid(*txid)),
            ..Default::default()
        };
        if log.retain(&policy, 0)?.segments > 0 {
            self.now = after;
        }
        Ok(())
    }

    fn truncate(&mut self, log: &Log, count: u64) -> Result<()> {
        let kept = self
            .now
            .entries
            .len()
            .saturating_sub(count as usize)
            .max(self.now.needed_from + 1);
        if kept >= self.now.entries.len() {
            return Ok(());
        }
        let synced = self.now.needed_to;
        self.now.needed_to = synced.min(kept);
        log.truncate_after(Txid(self.now.entries[kept - 1].0))?;
        self.now.entries.truncate(kept);
        self.now.needed_to = kept;
        self.branch += 1;
        Ok(())
    }

    fn reset(&mut self, log: &Log) -> Result<()> {
        let (txid, _) = self.tail();
        let mut snapshot = header(1, Checksum::NONE);
        snapshot.max_txid = Txid(txid);
        snapshot.commit = 3;
        let sum = |sum: Checksum, pgno: Pgno| sum.xor(ltx::page_checksum(pgno, &content(0, pgno.get())));
        let checksum = Pgno::up_to(3).fold(Checksum::EMPTY_DATABASE, sum);
        self.after = Some(Candidate {
            entries: vec![(txid, checksum)],
            needed_from: 0,
            needed_to: 1,
        });
        let mut appender = log.appender()?;
        let mut append = appender.begin_reset(snapshot, RecordMeta::new(Origin::Snapshot))?;
        for pgno in Pgno::up_to(3) {
            append.page(pgno, &content(0, pgno.get()))?;
        }
        append.finish(checksum)?;
        self.now = self.after.take().expect("set above");
        self.branch += 1;
        Ok(())
    }

    /// What the log holds must be what the model allows; the model goes on from there.
    pub(super) fn settle(&mut self, log: &Log) {
        let found: Vec<Entry> = log
            .records(Txid::ZERO)
            .map(|record| checked(&record.unwrap()))
            .collect();
        let candidates = [Some(self.now.clone()), self.after.take()];
        let fits = candidates
            .iter()
            .flatten()
            .find(|candidate| candidate.allows(&found));
        assert!(fits.is_some(), "found {found:?}\nallowed {candidates:#?}");
        let reached = found.len();
        self.now = Candidate {
            entries: found,
            needed_from: 0,
            needed_to: 0,
        };
        self.now.needed_to = self
            .now
            .entries
            .iter()
            .filter(|(txid, _)| *txid <= log.synced_txid().0)
            .count();
        assert_eq!(
            log.tail().map(|tail| tail.max.0),
            self.now.entries.last().map(|(txid, _)| *txid)
        );
        assert!(self.now.needed_to <= reached);
        // A new branch: what is lost now must not come back later.
        self.branch += 1;
    }

    /// Nothing was lost: the log holds exactly what it should.
    pub(super) fn assert_exact(&self, log: &Log) {
        let found: Vec<Entry> = log
            .records(Txid::ZERO)
            .map(|record| checked(&record.unwrap()))
            .collect();
        assert!(
            self.now.entries.ends_with(&found),
            "found {found:?}\nallowed {:#?}",
            self.now
        );
        assert!(found.len() >= self.now.entries.len() - self.now.needed_from);
    }
}

impl Candidate {
    fn allows(&self, found: &[Entry]) -> bool {
        let Some(first) = found.first() else {
            return self.needed_to == 0;
        };
        let Some(from) = self.entries.iter().position(|entry| entry == first) else {
            return false;
        };
        let to = from + found.len();
        let part = self.entries.get(from..to);
        part == Some(found) && from <= self.needed_from && to >= self.needed_to
    }
}

fn checked(record: &Record) -> Entry {
    let summary = ltx::verify(record.reader()).unwrap();
    assert_eq!(summary.header.min_txid, record.info.min);
    assert_eq!(summary.header.max_txid, record.info.max);
    assert_eq!(summary.trailer.post_apply, record.info.post);
    (record.info.max.0, record.info.post)
}
