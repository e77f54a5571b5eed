//! Verification: is this a file, whole and nothing else?

use std::io::{ErrorKind, Read};

use crate::decode::Decoder;
use crate::error::Error;
use crate::header::{Header, Trailer};

/// What there is to know about a file besides its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub header: Header,
    pub trailer: Trailer,
    /// How many pages it holds.
    pub pages: u32,
}

impl Summary {
    /// The position of a database after the file was applied.
    pub fn post_apply_pos(&self) -> crate::Pos {
        crate::Pos::new(self.header.max_txid, self.trailer.post_apply)
    }
}

/// Checks everything that can be known without the database. The input must end with the trailer.
pub fn verify<R: Read>(mut reader: R) -> Result<Summary, Error> {
    let mut decoder = Decoder::new(&mut reader)?;
    let mut page = vec![0; decoder.header().page_size.bytes()];
    while decoder.next_page(&mut page)?.is_some() {}
    let (header, pages) = (decoder.header().clone(), decoder.pages());
    let trailer = decoder.finish()?;
    expect_end(&mut reader)?;
    Ok(Summary {
        header,
        trailer,
        pages,
    })
}

fn expect_end(reader: &mut impl Read) -> Result<(), Error> {
    let mut byte = [0];
    match reader.read_exact(&mut byte) {
        Ok(()) => Err(Error::TrailingBytes),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(()),
        Err(source) => Err(Error::Io {
            operation: "read past the trailer",
            source,
        }),
    }
}
