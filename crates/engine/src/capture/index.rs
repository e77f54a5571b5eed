//! Reading the wal-index of clients, without a mapping: a client may truncate the file at any time, and a read of a
//! truncated file is short where an access to a mapping would be fatal. On the backing file a read sees what clients
//! stored through their mappings.

use std::fs::File;

use sqlite_format::wal_index::{CKPT_INFO, IndexHeader, IndexHeaderError, read_headers};

use crate::database::backing::read_full;

/// Attempts to catch the two copies of the header equal while a writer stores them.
const ATTEMPTS: usize = 100;

/// The header of the wal-index; `None` if it is not initialised or its writer died in the middle.
pub(crate) fn read_index(shm: &File) -> std::io::Result<Option<IndexHeader>> {
    read_index_with(|bytes| read_full(shm, bytes, 0))
}

/// As [`read_index`], from wherever `read` reads the beginning of the wal-index.
pub(crate) fn read_index_with(
    read: impl Fn(&mut [u8]) -> std::io::Result<usize>,
) -> std::io::Result<Option<IndexHeader>> {
    let mut bytes = [0; CKPT_INFO];
    for _ in 0..ATTEMPTS {
        let read = read(&mut bytes)?;
        match read_headers(&bytes[..read]) {
            Ok(header) => return Ok(Some(header)),
            Err(IndexHeaderError::Torn | IndexHeaderError::Checksum) => std::hint::spin_loop(),
            Err(
                IndexHeaderError::Short { .. }
                | IndexHeaderError::Uninitialised
                | IndexHeaderError::Version(_)
                | IndexHeaderError::PageSize(_),
            ) => return Ok(None),
        }
    }
    Ok(None)
}
