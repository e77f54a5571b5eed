//! Reading many pages in order. A database may be mostly a hole, such as one that was grown by gigabytes: pages there are
//! zeros, and neither read nor fed to a checksum.
//!
//! A scan is valid as long as the mutex of the database is held: what the file system says of holes is remembered.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use ltx::{Checksum, ZeroPages};
use sqlite_format::{PageSize, Pgno};

use super::state::State;
use crate::error::Result;
use crate::name::Side;

/// Fewer pages than this are simply read: asking for holes costs system calls too.
const WORTH_ASKING: u32 = 1024;

/// A pass over pages in ascending order.
pub(crate) struct Scan {
    page_size: PageSize,
    /// `None`: not worth asking.
    holes: Option<Holes>,
    zeros: Option<ZeroPages>,
    page: Vec<u8>,
    /// `page` holds zeros.
    blank: bool,
}

/// A page as clients see it.
pub(crate) struct Scanned<'a> {
    pub(crate) data: &'a [u8],
    pub(crate) checksum: Checksum,
    /// It is known to hold nothing but zeros.
    pub(crate) is_zero: bool,
}

impl<'a> Scanned<'a> {
    /// A page from elsewhere.
    pub(crate) fn of(pgno: Pgno, data: &'a [u8]) -> Scanned<'a> {
        Scanned {
            data,
            checksum: ltx::page_checksum(pgno, data),
            is_zero: is_zero(data),
        }
    }
}

impl Scan {
    /// A pass over about `pages` pages.
    pub(crate) fn new(state: &mut State, page_size: PageSize, pages: u32) -> Result<Scan> {
        let holes = match pages < WORTH_ASKING {
            true => None,
            false => Some(Holes::of(state.backing.get(Side::Database)?)),
        };
        Ok(Scan {
            page_size,
            zeros: holes.as_ref().map(|_| ZeroPages::new(page_size)),
            holes,
            page: vec![0; page_size.bytes()],
            blank: true,
        })
    }

    /// The mutex was released since the last page.
    pub(crate) fn begin_turn(&mut self, state: &mut State) -> Result<()> {
        if let Some(holes) = &mut self.holes {
            *holes = Holes::of(state.backing.get(Side::Database)?);
        }
        Ok(())
    }

    /// The page's content and checksum.
    pub(crate) fn page(&mut self, state: &mut State, pgno: Pgno) -> Result<Scanned<'_>> {
        if let (Some(holes), Some(zeros)) = (&mut self.holes, &self.zeros)
            && !state.wal.holds(pgno)
            && holes.contain(pgno, self.page_size)
        {
            if !std::mem::replace(&mut self.blank, true) {
                self.page.fill(0);
            }
            return Ok(Scanned {
                data: &self.page,
                checksum: zeros.checksum(pgno),
                is_zero: true,
            });
        }
        self.blank = false;
        state.read_page(pgno, self.page_size, &mut self.page)?;
        Ok(Scanned {
            data: &self.page,
            checksum: ltx::page_checksum(pgno, &self.page),
            is_zero: false,
        })
    }
}

pub(crate) fn is_zero(page: &[u8]) -> bool {
    // Equal to itself shifted by one: slices are compared faster than bytes one by one.
    page.first() == Some(&0) && page[1..] == page[..page.len() - 1]
}

/// The holes of a file, as far as they were asked for. What lies behind the end counts as one.
#[derive(Debug)]
pub(crate) struct Holes {
    file: Option<Arc<File>>,
    /// What is known of one part of the file.
    part: Range<u64>,
    is_hole: bool,
}

impl Holes {
    /// `None` is a file that does not exist: nothing but a hole.
    pub(crate) fn of(file: Option<Arc<File>>) -> Holes {
        Holes {
            part: match file {
                Some(_) => 0..0,
                None => 0..u64::MAX,
            },
            is_hole: file.is_none(),
            file,
        }
    }

    /// Whether the page lies in a hole as a whole.
    pub(crate) fn contain(&mut self, pgno: Pgno, page_size: PageSize) -> bool {
        let start = pgno.offset(page_size);
        let end = start + u64::from(page_size.get());
        if !self.part.contains(&start) {
            self.look(start);
        }
        self.is_hole && end <= self.part.end
    }

    /// Finds the part that `offset` lies in.
    fn look(&mut self, offset: u64) {
        let seek = |whence| self.file.as_deref().map(|file| seek(file, offset, whence));
        (self.part, self.is_hole) = match seek(libc::SEEK_DATA) {
            Some(Ok(data)) if data > offset => (offset..data, true),
            // The part with data ends at the next hole; the end of the file is one.
            Some(Ok(_)) => match seek(libc::SEEK_HOLE) {
                Some(Ok(hole)) => (offset..hole.max(offset + 1), false),
                Some(Err(_)) | None => (offset..u64::MAX, false),
            },
            Some(Err(libc::ENXIO)) | None => (offset..u64::MAX, true),
            // A file system that does not tell has data everywhere.
            Some(Err(_)) => (0..u64::MAX, false),
        };
    }
}

/// Nobody uses the position of backing files: reads and writes name theirs.
fn seek(file: &File, offset: u64, whence: i32) -> std::result::Result<u64, i32> {
    let Ok(offset) = libc::off64_t::try_from(offset) else {
        return Err(libc::ENXIO);
    };
    // SAFETY: the descriptor is open as long as `file` is borrowed, and no memory is passed.
    let found = unsafe { libc::lseek64(file.as_raw_fd(), offset, whence) };
    u64::try_from(found).map_err(|_| {
        std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EINVAL)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    const SIZE: PageSize = PageSize::DEFAULT;

    fn in_holes(holes: &mut Holes, pages: Range<u32>) -> Vec<u32> {
        let in_hole = |number: &u32| holes.contain(Pgno::new(*number).expect("not 0"), SIZE);
        pages.filter(in_hole).collect()
    }

    #[test]
    fn pages_between_data_and_behind_the_end_are_in_holes() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 4096], 0).unwrap();
        // A page that is cut short by the end of the file, and data that begins within a page.
        file.write_all_at(&[1; 10], 4096 * 100 + 5).unwrap();
        let mut holes = Holes::of(Some(Arc::new(file)));
        let expected: Vec<u32> = (2..110).filter(|number| *number != 101).collect();
        assert_eq!(in_holes(&mut holes, 1..110), expected);
    }

    #[test]
    fn a_file_that_does_not_exist_is_a_hole() {
        assert_eq!(in_holes(&mut Holes::of(None), 1..4), [1, 2, 3]);
    }
}
