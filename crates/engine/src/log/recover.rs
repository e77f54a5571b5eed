//! Opening: which segments count, and where the last one really ends.
//!
//! Frame headers are hopped over. The largest durable length among them bounds what a crash can have harmed; records
//! behind it are verified in full, and the first one that is not whole ends the log.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ltx::Txid;

use super::error::{LogError, Result};
use super::frame::{ALIGNMENT, FrameHeader, HEADER_LEN, frame_len};
use super::record::RecordInfo;
use super::segment::{Index, Segment, UNFINISHED, parse_file_name, read_header};
use crate::disk::{Disk, DiskFile, OpenMode};

/// How much is searched at once behind a torn end.
const SEARCH: usize = 1 << 20;

/// A torn end that was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    pub path: PathBuf,
    pub offset: u64,
    pub bytes: u64,
}

pub(super) struct Found {
    pub(super) history: u32,
    pub(super) segments: Vec<Arc<Segment>>,
    pub(super) tail: Option<RecordInfo>,
    /// Known to be durable up to here.
    pub(super) synced: Txid,
    pub(super) repair: Option<Repair>,
}

pub(super) fn recover(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Found> {
    if !disk.exists("log.open.exists", dir)? {
        disk.create_dir_all("log.open.create", dir)?;
        if let Some(parent) = dir.parent() {
            disk.sync_dir("log.open.sync_dir", parent)?;
        }
    }
    let (history, mut names) = segments_on_disk(disk, dir)?;
    let mut repair = None;
    while let Some((first, path)) = names.pop() {
        let end = scan_last(disk, &path)?;
        repair = repair.or(end.repair);
        let Some(tail) = end.tail else {
            // Begun, but nothing of its first record arrived.
            disk.remove_file("log.open.discard", &path)?;
            disk.sync_dir("log.open.sync_dir", dir)?;
            continue;
        };
        let mut segments = Vec::with_capacity(names.len() + 1);
        for (first, path) in names {
            let len = disk
                .open("log.open.sealed", &path, OpenMode::Read)?
                .len("log.open.length")?;
            segments.push(Arc::new(Segment::existing(disk, path, first, len, None)));
        }
        let synced = if end.durable == end.offset {
            Some(tail.max)
        } else {
            first.previous()
        };
        segments.push(Arc::new(Segment::last(
            disk,
            path,
            first,
            end.offset,
            end.durable,
            end.index,
        )));
        return Ok(Found {
            history,
            segments,
            tail: Some(tail),
            synced: synced.unwrap_or_default(),
            repair,
        });
    }
    Ok(Found {
        history,
        segments: Vec::new(),
        tail: None,
        synced: Txid::ZERO,
        repair,
    })
}

/// Segments of the newest history, ascending. What is left of older ones or of an unfinished reset is removed.
fn segments_on_disk(disk: &Arc<dyn Disk>, dir: &Path) -> Result<(u32, Vec<(Txid, PathBuf)>)> {
    let names = disk.list("log.open.list", dir)?;
    let names: Vec<&str> = names.iter().filter_map(|name| name.to_str()).collect();
    let history = names
        .iter()
        .filter_map(|name| parse_file_name(name))
        .map(|(history, _)| history)
        .max();
    let history = history.unwrap_or(0);
    let mut segments = Vec::new();
    for name in names {
        let path = dir.join(name);
        match parse_file_name(name) {
            Some((found, first)) if found == history => segments.push((first, path)),
            Some(_) => disk.remove_file("log.open.discard", &path)?,
            None if name.ends_with(UNFINISHED) => disk.remove_file("log.open.discard", &path)?,
            None => {}
        }
    }
    Ok((history, segments))
}

struct End {
    offset: u64,
    durable: u64,
    tail: Option<RecordInfo>,
    index: Index,
    repair: Option<Repair>,
}

fn scan_last(disk: &Arc<dyn Disk>, path: &Path) -> Result<End> {
    let file = disk.open("log.open.segment", path, OpenMode::Write)?;
    let len = file.len("log.open.length")?;
    let chain = hop(&*file, 0, len)?;
    let whole = verify_from(&file, chain.durable, chain.end)?;
    let chain = if whole < chain.end {
        hop(&*file, 0, whole)?
    } else {
        chain
    };
    let mut end = End {
        offset: chain.end,
        durable: chain.durable,
        tail: chain.tail,
        index: chain.index,
        repair: None,
    };
    if end.offset < len {
        check_torn(&*file, path, end.offset, len)?;
        end.repair = Some(cut(&*file, path, end.offset, len)?);
        end.durable = end.offset;
    }
    Ok(end)
}

/// A later record that says that bytes behind `end` were durable proves that this is no torn end but damage, which
/// must not be answered by throwing away what follows it.
fn check_torn(file: &dyn DiskFile, path: &Path, end: u64, len: u64) -> Result<()> {
    let mut window = vec![0; SEARCH + HEADER_LEN];
    let mut start = end;
    while start < len {
        let count = file.read_at("log.open.search", &mut window, start)?;
        for at in (0..count.min(SEARCH)).step_by(ALIGNMENT as usize) {
            let bytes = window[..count]
                .get(at..at + HEADER_LEN)
                .and_then(|bytes| bytes.try_into().ok());
            let Some(header) = bytes.and_then(FrameHeader::decode) else {
                continue;
            };
            if header.durable > end {
                let reason = format!("no whole record, but {} follows", header.info.min);
                return Err(LogError::Corrupt {
                    path: path.to_owned(),
                    offset: end,
                    reason,
                });
            }
        }
        start += SEARCH as u64;
    }
    Ok(())
}

/// Cuts the torn end off, durably: what is appended next must not find it behind itself after another crash.
fn cut(file: &dyn DiskFile, path: &Path, end: u64, len: u64) -> Result<Repair> {
    file.set_len("log.open.cut", end)?;
    file.sync_data("log.open.sync")?;
    let repair = Repair {
        path: path.to_owned(),
        offset: end,
        bytes: len - end,
    };
    tracing::warn!(path = %path.display(), offset = end, bytes = repair.bytes, "cut off the torn end of a log");
    Ok(repair)
}

struct Chain {
    end: u64,
    durable: u64,
    tail: Option<RecordInfo>,
    index: Index,
}

/// Follows frame headers as long as each belongs behind the one before.
fn hop(file: &dyn DiskFile, start: u64, len: u64) -> Result<Chain> {
    let mut chain = Chain {
        end: start,
        durable: 0,
        tail: None,
        index: Index::default(),
    };
    while chain.end + (HEADER_LEN as u64) <= len {
        let Some(header) = read_header(file, chain.end)? else {
            break;
        };
        let info = header.info;
        let follows = chain.tail.is_none_or(|tail| tail.is_followed_by(&info));
        let end = chain.end + frame_len(info.len);
        if !follows || end > len {
            break;
        }
        chain.index.add(info.min, chain.end);
        chain.durable = chain.durable.max(header.durable);
        chain.tail = Some(info);
        chain.end = end;
    }
    Ok(chain)
}

/// Verifies whole records from `start` on; returns where the first bad one begins, or `end`.
fn verify_from(file: &Arc<dyn DiskFile>, start: u64, end: u64) -> Result<u64> {
    let mut offset = start;
    while offset < end {
        let Some(header) = read_header(&**file, offset)? else {
            return Ok(offset);
        };
        if !is_whole(file, offset, &header.info)? {
            return Ok(offset);
        }
        offset += frame_len(header.info.len);
    }
    Ok(end)
}

/// Whether the payload is the record its frame header announces.
fn is_whole(file: &Arc<dyn DiskFile>, offset: u64, info: &RecordInfo) -> Result<bool> {
    let payload = Payload {
        file,
        position: offset + HEADER_LEN as u64,
        left: info.len,
    };
    match ltx::verify(std::io::BufReader::with_capacity(64 << 10, payload)) {
        Ok(summary) => {
            let found = RecordInfo::new(&summary.header, info.meta, summary.trailer.post_apply, info.len);
            Ok(found == *info)
        }
        Err(error @ ltx::Error::Io { .. }) => Err(LogError::record(error)),
        Err(_) => Ok(false),
    }
}

struct Payload<'a> {
    file: &'a Arc<dyn DiskFile>,
    position: u64,
    left: u64,
}

impl std::io::Read for Payload<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let want = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self
            .file
            .read_at("log.open.verify", &mut buf[..want], self.position);
        let count = count.map_err(std::io::Error::other)?;
        self.position += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
