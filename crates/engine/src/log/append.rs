//! Appending: one thread at a time holds the [`Appender`] and puts records at the end.

use std::io::{self, Read};

use ltx::{Checksum, Decoder, Encoder, EncoderBuffers, Header, Pgno};
use parking_lot::MutexGuard;

use super::Log;
use super::error::{LogError, Result};
use super::record::{RecordInfo, RecordMeta};
use super::sink::Sink;
use super::writer::{State, Writer};

/// SQLite does not write pages that a transaction takes and gives back again, so a record need not name all pages by which the database grows.
/// It keeps such pages in memory, of which no machine has so much: more is no transaction.
const MOST_UNNAMED: u64 = 64 << 30;

/// The right to append. Records that are finished stay in memory until [`Appender::flush`], as far as they fit: readers
/// see them only then. What was not flushed when it is dropped is taken back.
///
/// After an error some of the finished records may be visible, the first ones, because a segment was full: where to go on
/// is told by [`Appender::tail`].
pub struct Appender<'log> {
    log: &'log Log,
    writer: MutexGuard<'log, Writer>,
}

impl<'log> Appender<'log> {
    pub(super) fn new(log: &'log Log, writer: MutexGuard<'log, Writer>) -> Appender<'log> {
        Appender { log, writer }
    }

    /// The last record, flushed or not.
    pub fn tail(&self) -> Option<RecordInfo> {
        self.writer.state.tail()
    }

    /// Begins a record made of pages. It must follow the last one; whether it is compressed is the log's choice.
    pub fn begin(&mut self, header: Header, meta: RecordMeta) -> Result<Append<'_>> {
        let Writer { sink, state, .. } = &mut *self.writer;
        state.begin(self.log, sink, &header)?;
        self.encode(header, meta, false)
    }

    /// Begins the snapshot that will be the whole log: [`Append::finish`] makes it durable and only then removes all
    /// that was there before.
    pub fn begin_reset(&mut self, header: Header, meta: RecordMeta) -> Result<Append<'_>> {
        let Writer { sink, state, .. } = &mut *self.writer;
        state.begin_reset(self.log, sink, &header)?;
        self.encode(header, meta, true)
    }

    /// Appends a record that comes as the bytes of an LTX file: verifies while it writes, and takes everything back if
    /// the record is damaged, cut short, or does not follow the last one. A record that is no file of its own must end
    /// where the reader's next record begins: nothing behind the trailer is read.
    pub fn receive(&mut self, meta: RecordMeta, source: &mut dyn Read) -> Result<RecordInfo> {
        self.copy(meta, source, false)
    }

    /// As [`Appender::receive`], for a snapshot that will be the whole log.
    pub fn receive_reset(&mut self, meta: RecordMeta, source: &mut dyn Read) -> Result<RecordInfo> {
        self.copy(meta, source, true)
    }

    /// Writes finished records, in one write if they are small, and lets readers see them.
    pub fn flush(&mut self) -> Result<()> {
        let Writer { sink, state, .. } = &mut *self.writer;
        state.publish(self.log, sink)
    }

    fn encode(&mut self, mut header: Header, meta: RecordMeta, reset: bool) -> Result<Append<'_>> {
        header.compressed = self.log.options.compress;
        let Writer { sink, buffers, state } = &mut *self.writer;
        let sink = &*sink;
        let encoder = Encoder::with_buffers(sink, header.clone(), buffers).map_err(|error| {
            state.abandon(self.log, sink);
            LogError::record(error)
        })?;
        Ok(Append {
            log: self.log,
            sink,
            state,
            encoder: Some(encoder),
            meta,
            reset,
        })
    }

    fn copy(&mut self, meta: RecordMeta, source: &mut dyn Read, reset: bool) -> Result<RecordInfo> {
        let log = self.log;
        let Writer { sink, state, .. } = &mut *self.writer;
        let mut bytes = [0; ltx::HEADER_SIZE];
        source.read_exact(&mut bytes).map_err(early_end)?;
        let header = Header::parse(&bytes).map_err(|error| LogError::Invalid(error.into()))?;
        if reset {
            state.begin_reset(log, sink, &header)?;
        } else {
            state.begin(log, sink, &header)?;
        }
        let tee = Tee {
            source: (&bytes[..]).chain(source),
            sink,
        };
        let before = match reset {
            true => 0,
            false => state.tail().map_or(0, |tail| tail.commit),
        };
        let post = match verify(tee, before) {
            Ok(post) => post,
            Err(error) => {
                give_up(log, sink, state, &error);
                return Err(error);
            }
        };
        let info = RecordInfo::new(&header, meta, post, state.payload_len(sink));
        complete(log, sink, state, info, reset)?;
        Ok(info)
    }
}

impl Drop for Appender<'_> {
    fn drop(&mut self) {
        let Writer { sink, state, .. } = &mut *self.writer;
        if state.has_pending() {
            state.take_back(self.log, sink);
        }
    }
}

/// A record being made of pages. Dropped without [`Append::finish`] it never was.
pub struct Append<'a> {
    log: &'a Log,
    sink: &'a Sink,
    state: &'a mut State,
    /// None once the record is finished or given up.
    encoder: Option<Encoder<&'a Sink, &'a mut EncoderBuffers>>,
    meta: RecordMeta,
    reset: bool,
}

impl Append<'_> {
    /// Appends a page; in ascending order, without the lock page.
    pub fn page(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        let encoder = self
            .encoder
            .as_mut()
            .ok_or(LogError::Invalid(ltx::Error::Failed))?;
        encoder.encode_page(pgno, page).map_err(|error| self.fail(error))
    }

    /// Ends the record: the database has checksum `post` after it. Readers see it after [`Appender::flush`].
    pub fn finish(mut self, post: Checksum) -> Result<RecordInfo> {
        let encoder = self.encoder.take().ok_or(LogError::Invalid(ltx::Error::Failed))?;
        let header = encoder.header().clone();
        encoder.finish(post).map_err(|error| self.fail(error))?;
        let info = RecordInfo::new(&header, self.meta, post, self.state.payload_len(self.sink));
        complete(self.log, self.sink, self.state, info, self.reset)?;
        Ok(info)
    }

    /// Forgets the record. The same as dropping it.
    pub fn abort(self) {}

    fn fail(&mut self, error: ltx::Error) -> LogError {
        let error = LogError::record(error);
        self.encoder = None;
        give_up(self.log, self.sink, self.state, &error);
        error
    }
}

impl Drop for Append<'_> {
    fn drop(&mut self) {
        if self.encoder.is_some() {
            self.state.abandon(self.log, self.sink);
        }
    }
}

/// After a failed write the file may hold parts of earlier records too; a bad record concerns only itself.
fn give_up(log: &Log, sink: &Sink, state: &mut State, error: &LogError) {
    if error.disk().is_some() {
        state.take_back(log, sink);
    } else {
        state.abandon(log, sink);
    }
}

fn complete(log: &Log, sink: &Sink, state: &mut State, info: RecordInfo, reset: bool) -> Result<()> {
    state.end(log, sink, info)?;
    if reset {
        let (segment, info) = state.finish_reset(log, sink)?;
        log.replace_all(segment, info);
    }
    Ok(())
}

/// Reads a record to its end; returns its post-apply checksum. `before`: pages of the database before it.
fn verify(source: impl Read, before: u32) -> Result<Checksum> {
    let mut decoder = Decoder::new(source).map_err(LogError::record)?;
    let (commit, page_size) = (decoder.header().commit, decoder.header().page_size);
    let mut page = vec![0; page_size.bytes()];
    let mut named = 0;
    while let Some(pgno) = decoder.next_page(&mut page).map_err(LogError::record)? {
        named += u32::from(pgno.get() > before);
    }
    let trailer = decoder.finish().map_err(LogError::record)?;
    let unnamed = commit.saturating_sub(before).saturating_sub(named);
    if u64::from(unnamed) * page_size.bytes() as u64 > MOST_UNNAMED {
        return Err(LogError::Incomplete { commit, unnamed });
    }
    Ok(trailer.post_apply)
}

fn early_end(error: io::Error) -> LogError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => LogError::Invalid(ltx::Error::Truncated("header")),
        _ => LogError::Source(error),
    }
}

/// Copies what is read.
struct Tee<'a, R> {
    source: R,
    sink: &'a Sink,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buf)?;
        io::Write::write_all(&mut self.sink, &buf[..count])?;
        Ok(count)
    }
}
