//! From a snapshot to a database file.

use std::io::{Read, Write};

use sqlite_format::Pgno;

use crate::decode::Decoder;
use crate::error::Error;
use crate::verify::Summary;

/// Writes the pages of a snapshot in order, with zeros for the lock page: the bytes of the database file. They are certain only
/// when the function returns, because the checksums stand at the end.
pub fn decode_database<R: Read, W: Write>(reader: R, mut writer: W) -> Result<Summary, Error> {
    let mut decoder = Decoder::new(reader)?;
    let header = decoder.header().clone();
    if !header.is_snapshot() {
        return Err(Error::NotSnapshot {
            min: header.min_txid,
            max: header.max_txid,
        });
    }
    let mut page = vec![0; header.page_size.bytes()];
    let lock_page = header.page_size.lock_page();
    // Completeness is the decoder's: if the lock page is not the next, the next page is.
    for pgno in Pgno::up_to(header.commit) {
        if pgno == lock_page {
            page.fill(0);
        } else {
            decoder.next_page(&mut page)?;
        }
        writer
            .write_all(&page)
            .map_err(Error::writing("write database"))?;
    }
    decoder.next_page(&mut page)?;
    let pages = decoder.pages();
    let trailer = decoder.finish()?;
    writer.flush().map_err(Error::writing("flush database"))?;
    Ok(Summary {
        header,
        trailer,
        pages,
    })
}
