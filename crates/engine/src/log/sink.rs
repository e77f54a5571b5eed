//! Bytes on their way into a segment: collected, so that small records go out together in one write, and spilled, so
//! that large ones need no memory.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::Arc;

use super::error::Result;
use crate::disk::{self, DiskFile, Op};

/// More than this is written before its record is finished.
const SPILL: usize = if cfg!(test) { 16 << 10 } else { 256 << 10 };
/// What an idle log keeps.
const KEEP: usize = 64 << 10;

/// Shared by the encoder that fills it and the writer that owns it, within one thread.
#[derive(Debug, Default)]
pub(super) struct Sink {
    inner: RefCell<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    file: Option<Arc<dyn DiskFile>>,
    /// Offset in the file of the first byte of `buf`.
    start: u64,
    buf: Vec<u8>,
}

impl Sink {
    /// From now on bytes go to `file` from `start` on. What was not written is forgotten.
    pub(super) fn redirect(&self, file: Option<Arc<dyn DiskFile>>, start: u64) {
        let inner = &mut *self.inner.borrow_mut();
        inner.file = file;
        inner.start = start;
        inner.buf.clear();
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> u64 {
        let inner = self.inner.borrow();
        inner.start + inner.buf.len() as u64
    }

    /// Bytes before this offset are in the file.
    pub(super) fn written(&self) -> u64 {
        self.inner.borrow().start
    }

    /// Leaves room for `len` bytes that are patched in later.
    pub(super) fn reserve(&self, len: usize) {
        let buf = &mut self.inner.borrow_mut().buf;
        buf.resize(buf.len() + len, 0);
    }

    /// Overwrites bytes at an earlier offset, wherever they are by now.
    pub(super) fn patch(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let inner = &mut *self.inner.borrow_mut();
        if let Some(at) = offset.checked_sub(inner.start) {
            inner.buf[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
            return Ok(());
        }
        inner.write_out("log.append.write")?;
        inner.file().write_all_at("log.append.header", bytes, offset)?;
        Ok(())
    }

    /// Forgets bytes from `offset` on; true if some of them are in the file already.
    pub(super) fn rewind(&self, offset: u64) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        let spilled = offset < inner.start;
        inner.buf.truncate(offset.saturating_sub(inner.start) as usize);
        inner.start = inner.start.min(offset);
        spilled
    }

    pub(super) fn write_out(&self) -> Result<()> {
        let inner = &mut *self.inner.borrow_mut();
        inner.write_out("log.append.write")?;
        inner.buf.shrink_to(KEEP);
        Ok(())
    }
}

impl Inner {
    fn file(&self) -> &dyn DiskFile {
        self.file
            .as_deref()
            .expect("a record is begun only after its segment is open")
    }

    fn write_out(&mut self, op: Op) -> disk::Result<()> {
        if self.buf.is_empty() {
            return Ok(());
        }
        self.file().write_all_at(op, &self.buf, self.start)?;
        self.start += self.buf.len() as u64;
        self.buf.clear();
        Ok(())
    }
}

impl Write for &Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let inner = &mut *self.inner.borrow_mut();
        inner.buf.extend_from_slice(bytes);
        if inner.buf.len() > SPILL {
            inner.write_out("log.append.spill").map_err(io::Error::other)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
