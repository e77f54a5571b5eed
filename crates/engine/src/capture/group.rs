//! Whole transactions in the frames behind the captured ones.
//!
//! A client that overwrites frames of its own transaction writes the commit frame before the headers of all frames between, one by one. So
//! the chain of checksums is not followed from its beginning each time, but from where it broke the last time.

use std::fs::File;

use sqlite_format::Pgno;
use sqlite_format::wal::{FrameHeader, FrameScanner, WAL_HEADER_SIZE, WalPosition, frame_size};

use super::wal::Wal;
use crate::error::{Error, Result};

/// One transaction's frames.
pub(crate) struct Group {
    pub(crate) first: u32,
    /// Size of the database in pages after it.
    pub(crate) commit: u32,
    pub(crate) end: WalPosition,
    pub(super) frames: Vec<(Pgno, u32)>,
}

impl Group {
    /// The newest frame of each page, in page order.
    pub(crate) fn pages(&self) -> Vec<(Pgno, u32)> {
        newest(&mut self.frames.clone())
    }
}

/// Frames that continue the chain, none of which ends a transaction.
#[derive(Debug)]
pub(super) struct Followed {
    /// The captured frames that they follow.
    from: WalPosition,
    /// After the last of them. The frame there does not continue the chain, or is yet to be written.
    end: WalPosition,
    frames: Vec<(Pgno, u32)>,
}

impl Followed {
    fn none(from: WalPosition) -> Followed {
        Followed {
            from,
            end: from,
            frames: Vec::new(),
        }
    }
}

impl Wal {
    /// The next whole transaction after what was captured. With `limit`, frames up to it are known to be committed;
    /// without, each must continue the chain.
    pub(crate) fn next_group(&mut self, file: &File, limit: Option<u32>) -> Result<Option<Group>> {
        match limit {
            Some(limit) => self.next_published(file, limit),
            None => self.next_of_chain(file),
        }
    }

    fn next_published(&mut self, file: &File, limit: u32) -> Result<Option<Group>> {
        let (Some(header), Some(at)) = (&self.header, self.at) else {
            return Ok(None);
        };
        let mut frames = Vec::new();
        for number in at.frames + 1..=limit {
            let read = self.window.frame(file, header.page_size, number, Some(limit));
            let Some(bytes) = read.map_err(Error::io("wal.read", "-wal"))? else {
                return Ok(None);
            };
            let frame = match FrameHeader::parse(bytes) {
                Ok(frame) if frame.salt == header.salt => frame,
                Ok(_) | Err(_) => return Ok(None),
            };
            frames.push((frame.pgno, number));
            if frame.commit > 0 {
                return Ok(Some(Group {
                    first: at.frames + 1,
                    commit: frame.commit,
                    end: WalPosition {
                        frames: number,
                        checksum: frame.checksum,
                    },
                    frames,
                }));
            }
        }
        Ok(None)
    }

    fn next_of_chain(&mut self, file: &File) -> Result<Option<Group>> {
        let (Some(header), Some(at)) = (&self.header, self.at) else {
            return Ok(None);
        };
        let followed = self.followed.take().filter(|followed| followed.from == at);
        let mut followed = followed.unwrap_or_else(|| Followed::none(at));
        let mut scanner = FrameScanner::resume(header.clone(), followed.end, 0);
        loop {
            let number = followed.end.frames + 1;
            let read = self.window.frame(file, header.page_size, number, None);
            let Some(bytes) = read.map_err(Error::io("wal.read", "-wal"))? else {
                break;
            };
            let Ok(frame) = scanner.next(bytes) else { break };
            let commit = frame.commit;
            followed.frames.push((frame.pgno, number));
            followed.end = scanner.position();
            if let Some(commit) = commit {
                return Ok(Some(Group {
                    first: at.frames + 1,
                    commit,
                    end: followed.end,
                    frames: followed.frames,
                }));
            }
        }
        self.followed = Some(followed);
        Ok(None)
    }

    /// The file changes from this offset on: frames there may not continue the chain any more.
    pub(crate) fn changes_from(&mut self, offset: u64) {
        let (Some(header), Some(followed)) = (&self.header, &self.followed) else {
            return;
        };
        let size = frame_size(header.page_size) as u64;
        let intact = offset.checked_sub(WAL_HEADER_SIZE as u64).map(|from| from / size);
        if intact.is_none_or(|intact| intact < u64::from(followed.end.frames)) {
            self.followed = None;
        }
    }
}

/// The newest frame of each page, in page order.
pub(super) fn newest(frames: &mut Vec<(Pgno, u32)>) -> Vec<(Pgno, u32)> {
    if frames.len() > 1 {
        frames.sort_unstable();
        frames.reverse();
        frames.dedup_by_key(|(pgno, _)| *pgno);
        frames.reverse();
    }
    std::mem::take(frames)
}
