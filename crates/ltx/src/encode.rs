//! Encoding: from pages to a file. Commit and snapshots are made with it.

use std::borrow::BorrowMut;
use std::io::Write;

use sqlite_format::Pgno;

use crate::checksum::{Checksum, Crc64};
use crate::error::{Error, PageError};
use crate::header::{Header, Trailer};
use crate::lz4::{FrameWriter, WriteBuffers};
use crate::sequence::Sequence;

/// How much output is collected before it is written, so that a small file is one write.
const FLUSH: usize = 128 * 1024;

/// Memory of an encoder. Whoever encodes many files keeps one and passes it to [`Encoder::with_buffers`].
#[derive(Default)]
pub struct EncoderBuffers {
    out: Vec<u8>,
    lz4: WriteBuffers,
}

impl EncoderBuffers {
    pub fn new() -> EncoderBuffers {
        EncoderBuffers::default()
    }
}

/// Writes one file: [`Encoder::new`], [`Encoder::encode_page`] for each page in ascending order, [`Encoder::finish`].
///
/// Writes to `W` in pieces of about 128 KiB, so `W` needs no buffer of its own. After an error the output is worthless and every
/// further call fails. A file that is not finished has no trailer and is refused by every reader.
pub struct Encoder<W, B = EncoderBuffers> {
    writer: W,
    buffers: B,
    header: Header,
    crc: Crc64,
    frame: Option<FrameWriter>,
    sequence: Sequence,
    failed: bool,
}

impl<W: Write> Encoder<W> {
    /// Begins a file.
    pub fn new(writer: W, header: Header) -> Result<Encoder<W>, Error> {
        Encoder::with_buffers(writer, header, EncoderBuffers::new())
    }
}

impl<W: Write, B: BorrowMut<EncoderBuffers>> Encoder<W, B> {
    /// Begins a file with buffers of an earlier encoder; `B` is `EncoderBuffers` or `&mut EncoderBuffers`.
    pub fn with_buffers(writer: W, header: Header, mut buffers: B) -> Result<Encoder<W, B>, Error> {
        header.validate()?;
        let EncoderBuffers { out, lz4 } = buffers.borrow_mut();
        let bytes = header.encode();
        let mut crc = Crc64::new();
        crc.update(&bytes);
        out.clear();
        out.extend_from_slice(&bytes);
        let frame = header.compressed.then(|| FrameWriter::begin(lz4, out));
        let sequence = Sequence::new(&header);
        Ok(Encoder {
            writer,
            buffers,
            header,
            crc,
            frame,
            sequence,
            failed: false,
        })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Appends a page. Refuses what [`crate::Decoder`] would: pages out of order or bounds, the lock page, gaps in a snapshot.
    pub fn encode_page(&mut self, pgno: Pgno, page: &[u8]) -> Result<(), Error> {
        self.guard(|encoder| {
            let expected = encoder.header.page_size;
            if page.len() != expected.bytes() {
                return Err(PageError::Length {
                    expected,
                    actual: page.len(),
                }
                .into());
            }
            encoder.sequence.admit(pgno.get())?;
            encoder.sequence.content(pgno, page);
            encoder.body(&pgno.get().to_be_bytes());
            encoder.body(page);
            encoder.flush(FLUSH)
        })
    }

    /// Ends the file; `post_apply` is the checksum of the database after it. Flushes `W`.
    pub fn finish(mut self, post_apply: Checksum) -> Result<(W, Trailer), Error> {
        let trailer = self.guard(|encoder| encoder.end(post_apply))?;
        Ok((self.writer, trailer))
    }

    fn end(&mut self, post_apply: Checksum) -> Result<Trailer, Error> {
        self.sequence.end()?;
        self.sequence.post_apply(&self.header, post_apply)?;
        self.body(&[0; 4]);
        let EncoderBuffers { out, lz4 } = self.buffers.borrow_mut();
        if let Some(frame) = self.frame.take() {
            frame.end(lz4, out);
        }
        self.crc.update(&post_apply.0.to_be_bytes());
        let trailer = Trailer {
            post_apply,
            file: self.crc.checksum(),
        };
        out.extend_from_slice(&trailer.encode());
        self.flush(0)?;
        self.writer.flush().map_err(Error::writing("flush"))?;
        Ok(trailer)
    }

    /// Appends bytes of the body, compressed or not; the checksum covers them as they are.
    fn body(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
        let EncoderBuffers { out, lz4 } = self.buffers.borrow_mut();
        match &mut self.frame {
            Some(frame) => frame.write(lz4, bytes, out),
            None => out.extend_from_slice(bytes),
        }
    }

    /// Writes what was collected once it is more than `threshold`.
    fn flush(&mut self, threshold: usize) -> Result<(), Error> {
        let out = &mut self.buffers.borrow_mut().out;
        if out.len() > threshold {
            self.writer.write_all(out).map_err(Error::writing("write"))?;
            out.clear();
        }
        Ok(())
    }

    fn guard<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.failed {
            return Err(Error::Failed);
        }
        let result = step(self);
        self.failed = result.is_err();
        result
    }
}
