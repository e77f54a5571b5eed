//! Publication of applied frames in the wal-index, as a SQLite writer does it: hash entries first, then the second copy
//! of the header, then the first.
//!
//! Where clients map the backing file (mode K), stores are writes to that file. Where they map a cache of the kernel's
//! (mode D), what they stored themselves cannot be seen; but the entries follow from the frames, so an image of the
//! index is kept here, and the changed bytes are put into the kernel's cache.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use sqlite_format::Pgno;
use sqlite_format::wal_index::{
    BLOCK_SIZE, IndexHeader, IndexStore, IndexWords, SECOND_HEADER, append, block_count,
};

use super::wal::{Appended, Writer};
use crate::database::Database;
use crate::database::backing::read_full;
use crate::database::state::State;
use crate::error::{Error, Result};
use crate::kernel::{Coherence, Kernel};
use crate::name::Side;

/// Bytes to put into the kernel's cache, in this order.
pub(super) type Stores = Vec<(u64, Vec<u8>)>;

impl Database {
    /// Makes the wal-index long enough for that many frames, before anybody looks for them: who finds it shorter than its header says
    /// takes that for an error.
    pub(super) fn lengthen_index(&self, kernel: &dyn Kernel, frames: u32) -> Result<()> {
        let grown = {
            let mut state = self.state.lock();
            let path = state.backing.path(Side::Shm).to_owned();
            let shm = state.backing.get_or_create(Side::Shm)?;
            let needed = (block_count(frames) * BLOCK_SIZE) as u64;
            extend(&shm, needed).map_err(Error::io("shm.extend", path))?
        };
        if grown {
            // Where clients map the backing file, the kernel still has to be told of its size.
            kernel.store(&self.name, Side::Shm, 0, &[]);
        }
        Ok(())
    }

    /// The process before may have died when the frames counted here and clients were not told: where they map a cache of the kernel's,
    /// that comes last.
    pub(crate) fn publish_again(&self) -> Result<()> {
        let kernel = self.shared.kernel();
        if kernel.coherence() == Coherence::Passthrough {
            return Ok(());
        }
        let writer = Writer::take(self)?;
        let Some(index) = &writer.index else {
            return Ok(());
        };
        let mut state = self.state.lock();
        let (Some(end), Some(header)) = (state.wal.at, state.wal.header.clone()) else {
            return Ok(());
        };
        if index.salt == header.salt && index.max_frame >= end.frames {
            return Ok(());
        }
        let known = if index.salt == header.salt {
            index.max_frame
        } else {
            0
        };
        let appended = Appended::known(known + 1, end);
        let pages = state.commit;
        let stores = self.publish_frames(&mut state, &*kernel, index, &appended, pages)?;
        drop(state);
        for (offset, bytes) in stores {
            kernel.store(&self.name, Side::Shm, offset, &bytes);
        }
        Ok(())
    }

    /// Publishes frames to the clients whose wal-index has the header `index`. Where there is none nothing is published: the
    /// client that builds it finds the frames in the WAL. A header over entries that were never made would be believed.
    pub(super) fn publish_frames(
        &self,
        state: &mut State,
        kernel: &dyn Kernel,
        index: &IndexHeader,
        appended: &Appended,
        page_count: u32,
    ) -> Result<Stores> {
        let intercepted = kernel.coherence() == Coherence::Intercepted;
        let Some(wal) = state.wal.header.clone() else {
            return Ok(Stores::new());
        };
        // Frames that have an entry in the clients' wal-index.
        let indexed = match index.salt == wal.salt {
            true => index.max_frame.min(appended.first - 1),
            false => 0,
        };
        let path = state.backing.path(Side::Shm).to_owned();
        let shm = state.backing.get_or_create(Side::Shm)?;
        let header = IndexHeader {
            change: state.wal.next_change(Some(index.change)),
            big_endian: wal.big_endian,
            page_size: Some(wal.page_size),
            max_frame: appended.end.frames,
            page_count,
            frame_checksum: appended.end.checksum,
            salt: wal.salt,
        };
        let bytes = header.encode();
        if intercepted {
            let mut image = std::mem::take(&mut state.wal.image);
            if image.frames > indexed {
                image = IndexImage::default();
            }
            let mut store = ImageStore {
                image: &mut image.bytes,
                stores: Stores::new(),
            };
            for (frame, pgno) in state.wal.frames_after(image.frames) {
                if frame == indexed + 1 {
                    // Clients have the entries of older frames. To store those again would first clear their block,
                    // under the eyes of readers.
                    store.stores.clear();
                }
                append(&mut store, frame, pgno).map_err(|e| self.corrupt(e))?;
            }
            store.put(SECOND_HEADER, &bytes);
            store.put(0, &bytes);
            let stores = store.stores;
            image.frames = appended.end.frames;
            state.wal.image = image;
            for (offset, bytes) in &stores {
                shm.write_all_at(bytes, *offset)
                    .map_err(Error::io("shm.write", &path))?;
            }
            return Ok(stores);
        }
        if index.salt == wal.salt
            && index.max_frame == appended.end.frames
            && index.frame_checksum == appended.end.checksum
        {
            // The process before had come that far. To make the entries again would first remove them, under the eyes of readers.
            return Ok(Stores::new());
        }
        let mut store = FileStore {
            shm: &shm,
            error: None,
        };
        for (frame, pgno) in state.wal.frames_after(indexed) {
            append(&mut store, frame, pgno).map_err(|e| self.corrupt(e))?;
        }
        store.put(SECOND_HEADER, &bytes);
        store.put(0, &bytes);
        store.error.map_or(Ok(Stores::new()), |error| {
            Err(Error::io("shm.write", path)(error))
        })
    }
}

/// The wal-index in the backing file.
struct FileStore<'a> {
    shm: &'a File,
    error: Option<io::Error>,
}

impl FileStore<'_> {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        if let Err(error) = self.shm.write_all_at(bytes, offset as u64) {
            self.error.get_or_insert(error);
        }
    }

    fn load<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        // What cannot be read is a block that nobody has made yet: zeros. A real failure shows at the next store.
        let _ = read_full(self.shm, &mut bytes, offset as u64);
        bytes
    }
}

impl IndexWords for FileStore<'_> {
    fn load_u32(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.load(offset))
    }

    fn load_u16(&self, offset: usize) -> u16 {
        u16::from_ne_bytes(self.load(offset))
    }
}

impl IndexStore for FileStore<'_> {
    fn store_u32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_ne_bytes());
    }

    fn store_u16(&mut self, offset: usize, value: u16) {
        self.put(offset, &value.to_ne_bytes());
    }

    fn zero(&mut self, range: Range<usize>) {
        self.put(range.start, &vec![0; range.len()]);
    }
}

/// A wal-index in memory whose changes are noted.
struct ImageStore<'a> {
    image: &'a mut Vec<u8>,
    stores: Stores,
}

impl ImageStore<'_> {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.image.len() < end {
            self.image.resize(end.next_multiple_of(BLOCK_SIZE), 0);
        }
        self.image[offset..end].copy_from_slice(bytes);
        self.stores.push((offset as u64, bytes.to_vec()));
    }
}

impl IndexWords for ImageStore<'_> {
    fn load_u32(&self, offset: usize) -> u32 {
        self.image.as_slice().load_u32(offset)
    }

    fn load_u16(&self, offset: usize) -> u16 {
        self.image.as_slice().load_u16(offset)
    }
}

impl IndexStore for ImageStore<'_> {
    fn store_u32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_ne_bytes());
    }

    fn store_u16(&mut self, offset: usize, value: u16) {
        self.put(offset, &value.to_ne_bytes());
    }

    fn zero(&mut self, range: Range<usize>) {
        self.put(range.start, &vec![0; range.len()]);
    }
}

/// What clients of mode D should find in the wal-index.
#[derive(Debug, Default)]
pub(crate) struct IndexImage {
    bytes: Vec<u8>,
    /// Frames that have an entry.
    frames: u32,
}

impl crate::capture::wal::Wal {
    fn frames_after(&self, indexed: u32) -> Vec<(u32, Pgno)> {
        let order = self.order().iter().enumerate().skip(indexed as usize);
        order
            .filter_map(|(at, pgno)| Some((at as u32 + 1, Pgno::new(*pgno)?)))
            .collect()
    }
}

/// Makes the wal-index as long as that, with storage behind every page as SQLite does: a store into a hole of a mapping kills
/// the client if the disk is full. Returns whether it was shorter.
fn extend(shm: &File, needed: u64) -> io::Result<bool> {
    const PAGE: u64 = 4096;
    let len = shm.metadata()?.len();
    for page in len / PAGE..needed.div_ceil(PAGE) {
        shm.write_all_at(&[0], (page + 1) * PAGE - 1)?;
    }
    Ok(len < needed)
}
