//! Decoding: from a file to pages. Apply, verification and compaction read with it.

use std::borrow::BorrowMut;
use std::io::Read;

use sqlite_format::Pgno;

use crate::checksum::Crc64;
use crate::error::{Error, PageError, TrailerError};
use crate::header::{HEADER_SIZE, Header, TRAILER_SIZE, Trailer};
use crate::lz4::{FrameReader, ReadBuffers};
use crate::sequence::Sequence;

/// Memory of a decoder. Whoever decodes many files keeps one and passes it to [`Decoder::with_buffers`].
#[derive(Default)]
pub struct DecoderBuffers {
    lz4: ReadBuffers,
}

impl DecoderBuffers {
    pub fn new() -> DecoderBuffers {
        DecoderBuffers::default()
    }
}

/// Reads one file: [`Decoder::new`], [`Decoder::next_page`] until there is none, [`Decoder::finish`].
///
/// Pages are checked for order, bounds and completeness as they come, but the checksums stand at the end: nothing read
/// is certain before `finish` returned. Exactly the bytes of the file are taken from `R`, in small reads; give a buffered
/// reader where that matters. After an error every further call fails.
pub struct Decoder<R, B = DecoderBuffers> {
    reader: R,
    buffers: B,
    header: Header,
    crc: Crc64,
    body: Body,
    sequence: Sequence,
    state: State,
}

enum Body {
    Raw,
    /// `None` once the frame has ended.
    Lz4(Option<FrameReader>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Pages,
    /// The end marker was read, the trailer comes next.
    End,
    Failed,
}

impl<R: Read> Decoder<R> {
    /// Reads the header.
    pub fn new(reader: R) -> Result<Decoder<R>, Error> {
        Decoder::with_buffers(reader, DecoderBuffers::new())
    }
}

impl<R: Read, B: BorrowMut<DecoderBuffers>> Decoder<R, B> {
    /// Reads the header; with buffers of an earlier decoder. `B` is `DecoderBuffers` or `&mut DecoderBuffers`.
    pub fn with_buffers(mut reader: R, buffers: B) -> Result<Decoder<R, B>, Error> {
        let mut bytes = [0; HEADER_SIZE];
        reader.read_exact(&mut bytes).map_err(Error::reading("header"))?;
        let header = Header::parse(&bytes)?;
        let mut crc = Crc64::new();
        crc.update(&bytes);
        let body = match header.compressed {
            true => Body::Lz4(Some(FrameReader::begin(&mut reader)?)),
            false => Body::Raw,
        };
        let sequence = Sequence::new(&header);
        Ok(Decoder {
            reader,
            buffers,
            header,
            crc,
            body,
            sequence,
            state: State::Pages,
        })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How many pages were read.
    pub fn pages(&self) -> u32 {
        self.sequence.pages()
    }

    /// Reads the next page into `page`, which must have the page size; `None` after the last one.
    pub fn next_page(&mut self, page: &mut [u8]) -> Result<Option<Pgno>, Error> {
        match self.state {
            State::Failed => return Err(Error::Failed),
            State::End => return Ok(None),
            State::Pages => {}
        }
        self.state = State::Failed;
        let pgno = self.read_page(page)?;
        self.state = if pgno.is_some() { State::Pages } else { State::End };
        Ok(pgno)
    }

    /// Reads pages nobody has read, and the trailer, and checks everything that can only be known now.
    pub fn finish(mut self) -> Result<Trailer, Error> {
        if self.state == State::Pages {
            let mut page = vec![0; self.header.page_size.bytes()];
            while self.next_page(&mut page)?.is_some() {}
        }
        if self.state == State::Failed {
            return Err(Error::Failed);
        }
        let mut bytes = [0; TRAILER_SIZE];
        self.reader
            .read_exact(&mut bytes)
            .map_err(Error::reading("trailer"))?;
        let trailer = Trailer::parse(&bytes);
        self.crc.update(&bytes[..8]);
        let actual = self.crc.checksum();
        if trailer.file != actual {
            return Err(TrailerError::File {
                stored: trailer.file,
                actual,
            }
            .into());
        }
        self.sequence.post_apply(&self.header, trailer.post_apply)?;
        Ok(trailer)
    }

    fn read_page(&mut self, page: &mut [u8]) -> Result<Option<Pgno>, Error> {
        let expected = self.header.page_size;
        if page.len() != expected.bytes() {
            return Err(PageError::Length {
                expected,
                actual: page.len(),
            }
            .into());
        }
        let mut number = [0; 4];
        self.read(&mut number, "page number")?;
        if number == [0; 4] {
            self.end_pages()?;
            return Ok(None);
        }
        let pgno = self.sequence.admit(u32::from_be_bytes(number))?;
        self.read(page, "page")?;
        self.sequence.content(pgno, page);
        Ok(Some(pgno))
    }

    fn end_pages(&mut self) -> Result<(), Error> {
        self.sequence.end()?;
        if let Body::Lz4(frame) = &mut self.body
            && let Some(frame) = frame.take()
        {
            frame.end(&mut self.reader, &mut self.buffers.borrow_mut().lz4)?;
        }
        Ok(())
    }

    fn read(&mut self, out: &mut [u8], what: &'static str) -> Result<(), Error> {
        match &mut self.body {
            Body::Raw => self.reader.read_exact(out).map_err(Error::reading(what))?,
            Body::Lz4(Some(frame)) => {
                frame.read(&mut self.reader, &mut self.buffers.borrow_mut().lz4, out)?
            }
            Body::Lz4(None) => return Err(Error::Failed),
        }
        self.crc.update(out);
        Ok(())
    }
}
