//! The rules about which pages a file may and must hold, shared by encoder and decoder.

use sqlite_format::{PageSize, Pgno};

use crate::checksum::{Checksum, page_checksum};
use crate::error::{PageError, TrailerError};
use crate::header::{Header, validate_post_apply};

/// Follows the pages of one file.
#[derive(Debug)]
pub(crate) struct Sequence {
    page_size: PageSize,
    commit: u32,
    last: Option<Pgno>,
    /// Checksum of the pages so far, where it is known what it must be at the end: in snapshots.
    snapshot: Option<Checksum>,
    pages: u32,
}

impl Sequence {
    pub(crate) fn new(header: &Header) -> Sequence {
        Sequence {
            page_size: header.page_size,
            commit: header.commit,
            last: None,
            snapshot: header.is_snapshot().then_some(Checksum::EMPTY_DATABASE),
            pages: 0,
        }
    }

    pub(crate) fn pages(&self) -> u32 {
        self.pages
    }

    /// Whether `number` may come next.
    pub(crate) fn admit(&mut self, number: u32) -> Result<Pgno, PageError> {
        let pgno = Pgno::new(number).ok_or(PageError::Zero)?;
        if number > self.commit {
            return Err(PageError::OutOfBounds {
                pgno,
                commit: self.commit,
            });
        }
        if pgno == self.page_size.lock_page() {
            return Err(PageError::LockPage(pgno));
        }
        if let Some(last) = self.last.filter(|last| *last >= pgno) {
            return Err(PageError::Order { pgno, last });
        }
        if let Some(missing) = self.missing().filter(|missing| *missing != pgno) {
            return Err(PageError::Missing(missing));
        }
        self.last = Some(pgno);
        self.pages += 1;
        Ok(pgno)
    }

    /// Takes note of the content of an admitted page.
    pub(crate) fn content(&mut self, pgno: Pgno, page: &[u8]) {
        if let Some(checksum) = &mut self.snapshot {
            *checksum = checksum.xor(page_checksum(pgno, page));
        }
    }

    /// Whether the file may end here.
    pub(crate) fn end(&self) -> Result<(), PageError> {
        self.missing()
            .map_or(Ok(()), |pgno| Err(PageError::Missing(pgno)))
    }

    /// Whether the database can have this checksum after the file.
    pub(crate) fn post_apply(&self, header: &Header, stored: Checksum) -> Result<(), TrailerError> {
        validate_post_apply(header, stored)?;
        match self.snapshot {
            Some(actual) if actual != stored => Err(TrailerError::Snapshot { stored, actual }),
            Some(_) | None => Ok(()),
        }
    }

    /// The page a snapshot must continue with; `None` when it is complete or the file is no snapshot.
    fn missing(&self) -> Option<Pgno> {
        self.snapshot?;
        let mut next = self.last.map_or(Some(Pgno::FIRST), Pgno::next)?;
        if next == self.page_size.lock_page() {
            next = next.next()?;
        }
        (next.get() <= self.commit).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::txid::Txid;

    fn snapshot(page_size: PageSize, commit: u32) -> Sequence {
        Sequence::new(&Header {
            compressed: false,
            page_size,
            commit,
            min_txid: Txid::FIRST,
            max_txid: Txid(9),
            timestamp: 0,
            pre_apply: Checksum::NONE,
            wal: None,
            node_id: 0,
        })
    }

    #[test]
    fn a_snapshot_skips_the_lock_page_and_only_that() {
        let lock_page = PageSize::MAX.lock_page().get();
        let mut sequence = snapshot(PageSize::MAX, lock_page + 1);
        for number in 1..lock_page {
            sequence.admit(number).unwrap();
        }
        let missing = PageError::Missing(Pgno::new(lock_page + 1).unwrap());
        assert_eq!(sequence.end(), Err(missing));
        assert_eq!(
            sequence.admit(lock_page),
            Err(PageError::LockPage(PageSize::MAX.lock_page()))
        );
        sequence.admit(lock_page + 1).unwrap();
        assert_eq!(sequence.end(), Ok(()));
        assert_eq!(sequence.pages(), lock_page);
    }

    #[test]
    fn a_snapshot_may_end_before_or_at_the_lock_page() {
        let lock_page = PageSize::MAX.lock_page().get();
        for commit in [lock_page - 1, lock_page] {
            let mut sequence = snapshot(PageSize::MAX, commit);
            for number in 1..lock_page {
                assert!(sequence.end().is_err());
                sequence.admit(number).unwrap();
            }
            assert_eq!(sequence.end(), Ok(()));
        }
    }
}
