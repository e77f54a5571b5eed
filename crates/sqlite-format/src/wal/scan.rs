//! Validation of consecutive frames: which part of a WAL counts.

use super::{FRAME_HEADER_SIZE, FrameHeader, WalChecksum, WalHeader, frame_offset, frame_size};
use crate::page::Pgno;

/// A boundary between frames, enough to continue a scan there later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalPosition {
    /// How many frames lie before the boundary.
    pub frames: u32,
    /// The chain over the header and those frames.
    pub checksum: WalChecksum,
}

/// A valid frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Number of the frame; the first of a WAL is 1.
    pub number: u32,
    pub pgno: Pgno,
    /// Size of the database in pages, if the frame ends a transaction.
    pub commit: Option<u32>,
    pub page: &'a [u8],
}

/// Why a frame does not continue the WAL. All but [`FrameError::Length`] mean "the WAL ends before this frame".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("WAL frame needs {expected} bytes, got {actual}")]
    Length { expected: usize, actual: usize },
    #[error("WAL frame: page number 0")]
    Page,
    #[error("WAL frame: salts of another generation")]
    Salt,
    #[error("WAL frame: wrong checksum")]
    Checksum,
    #[error("WAL frame: more frames than SQLite can number")]
    TooMany,
}

/// Follows a WAL frame by frame. A rejected frame leaves the scanner where it was.
///
/// Frames after the last commit are not final: a writer may rewrite them within its transaction (they have neither salts nor
/// checksums for a while then), and the next writer overwrites them. So [`FrameScanner::rewind`] before scanning again.
#[derive(Clone, Debug)]
pub struct FrameScanner {
    header: WalHeader,
    position: WalPosition,
    committed: WalPosition,
    pages: u32,
}

impl FrameScanner {
    /// Begins before frame 1.
    pub fn new(header: WalHeader) -> FrameScanner {
        let start = WalPosition {
            frames: 0,
            checksum: header.checksum,
        };
        FrameScanner::resume(header, start, 0)
    }

    /// Continues at a boundary that an earlier scan of the same generation reached and that ends a transaction;
    /// `pages` is the size of the database there (0 at the start of the WAL).
    pub fn resume(header: WalHeader, committed: WalPosition, pages: u32) -> FrameScanner {
        FrameScanner {
            header,
            position: committed,
            committed,
            pages,
        }
    }

    pub fn header(&self) -> &WalHeader {
        &self.header
    }

    /// After the last valid frame.
    pub fn position(&self) -> WalPosition {
        self.position
    }

    /// After the last valid frame that ends a transaction.
    pub fn committed(&self) -> WalPosition {
        self.committed
    }

    /// Size of the database in pages at [`FrameScanner::committed`]; 0 when no transaction was seen.
    pub fn committed_pages(&self) -> u32 {
        self.pages
    }

    /// Where the next frame begins in the file.
    pub fn offset(&self) -> u64 {
        frame_offset(1, self.header.page_size) + self.frames_len(self.position.frames)
    }

    /// Where the last committed transaction ends in the file.
    pub fn committed_offset(&self) -> u64 {
        frame_offset(1, self.header.page_size) + self.frames_len(self.committed.frames)
    }

    fn frames_len(&self, frames: u32) -> u64 {
        u64::from(frames) * frame_size(self.header.page_size) as u64
    }

    /// Gives up frames after the last commit: the writer will overwrite them.
    pub fn rewind(&mut self) {
        self.position = self.committed;
    }

    /// Validates the next frame, which must be exactly [`frame_size`] bytes.
    pub fn next<'a>(&mut self, bytes: &'a [u8]) -> Result<Frame<'a>, FrameError> {
        let expected = frame_size(self.header.page_size);
        if bytes.len() != expected {
            return Err(FrameError::Length {
                expected,
                actual: bytes.len(),
            });
        }
        let (head, page) = bytes.split_at(FRAME_HEADER_SIZE);
        let frame = FrameHeader::parse(head)?;
        if frame.salt != self.header.salt {
            return Err(FrameError::Salt);
        }
        let mut checksum = self.position.checksum;
        checksum.update(self.header.big_endian, &head[..8]);
        checksum.update(self.header.big_endian, page);
        if checksum != frame.checksum {
            return Err(FrameError::Checksum);
        }
        let frames = self.position.frames.checked_add(1).ok_or(FrameError::TooMany)?;
        self.position = WalPosition { frames, checksum };
        let commit = (frame.commit != 0).then_some(frame.commit);
        if let Some(pages) = commit {
            self.committed = self.position;
            self.pages = pages;
        }
        Ok(Frame {
            number: frames,
            pgno: frame.pgno,
            commit,
            page,
        })
    }
}
