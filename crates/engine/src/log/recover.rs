//! Opening: which segments count, and where the last one really ends.
//!
//! Frame headers are hopped over. The largest durable length among them bounds what a power loss can have harmed; records
//! behind it are verified in full, and the first one that is not whole ends the log. Where only a process has ended, the
//! length of the file tells as much: small records are written in one go, in order, and the header of a large one comes last.

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
    /// TXID of a record that is behind it: more than a torn end, unless the power failed.
    pub followed_by: Option<Txid>,
}

pub(super) struct Found {
    pub(super) history: u32,
    pub(super) segments: Vec<Arc<Segment>>,
    pub(super) tail: Option<RecordInfo>,
    pub(super) repair: Option<Repair>,
}

impl Found {
    fn empty(history: u32, repair: Option<Repair>) -> Found {
        Found {
            history,
            segments: Vec::new(),
            tail: None,
            repair,
        }
    }
}

/// What a log is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Leftovers are removed and a torn end is cut off.
    Append,
    /// Nothing is changed.
    Inspect,
}

pub(super) fn recover(disk: &Arc<dyn Disk>, dir: &Path, purpose: Purpose, same_boot: bool) -> Result<Found> {
    if !disk.exists("log.open.exists", dir)? {
        if purpose == Purpose::Inspect {
            return Ok(Found::empty(0, None));
        }
        disk.create_dir_all("log.open.create", dir)?;
    }
    let OnDisk {
        history,
        segments: mut names,
        mut leftovers,
    } = read_dir(disk, dir)?;
    let mut repair = None;
    let mut last = None;
    while let Some((first, path)) = names.pop() {
        let end = scan_last(disk, &path, purpose, same_boot)?;
        repair = repair.or_else(|| end.repair.clone());
        match end.tail {
            Some(tail) => {
                last = Some((first, path, end, tail));
                break;
            }
            // Begun, but nothing of its first record arrived.
            None => leftovers.push(path),
        }
    }
    if purpose == Purpose::Append {
        for path in &leftovers {
            disk.remove_file("log.open.discard", path)?;
        }
    }
    let Some((first, path, end, tail)) = last else {
        return Ok(Found::empty(history, repair));
    };
    let mut segments = Vec::with_capacity(names.len() + 1);
    for (first, path) in names {
        let file = disk.open("log.open.sealed", &path, OpenMode::Read)?;
        let len = file.len("log.open.length")?;
        if len == 0 {
            // Its first record was given up, and the log went on in another segment.
            if purpose == Purpose::Append {
                disk.remove_file("log.open.discard", &path)?;
            }
            continue;
        }
        segments.push(Arc::new(Segment::existing(disk, path, first, len, None)));
    }
    let last = Segment::existing(disk, path, first, end.offset, Some(end.index)).not_durable();
    segments.push(Arc::new(last));
    Ok(Found {
        history,
        segments,
        tail: Some(tail),
        repair,
    })
}

/// Makes the last segment durable while somebody opens the log: a process that died may have left it with the disk, and
/// [`Log::settle`](super::Log::settle) would wait for that.
pub(crate) fn sync_last(disk: &Arc<dyn Disk>, dir: &Path) -> Result<()> {
    if !disk.exists("log.ahead.exists", dir)? {
        return Ok(());
    }
    disk.sync_dir("log.ahead.sync_dir", dir)?;
    if let Some((_, path)) = read_dir(disk, dir)?.segments.last() {
        // Without its first record it goes when the log is opened.
        match disk.open("log.ahead.segment", path, OpenMode::Read) {
            Ok(file) => file.sync_data("log.ahead.sync")?,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

struct OnDisk {
    history: u32,
    /// Of the newest history, ascending.
    segments: Vec<(Txid, PathBuf)>,
    /// Of older histories, or of a reset that was not finished.
    leftovers: Vec<PathBuf>,
}

fn read_dir(disk: &Arc<dyn Disk>, dir: &Path) -> Result<OnDisk> {
    let names = disk.list("log.open.list", dir)?;
    let names: Vec<&str> = names.iter().filter_map(|name| name.to_str()).collect();
    let history = names
        .iter()
        .filter_map(|name| parse_file_name(name))
        .map(|(history, _)| history)
        .max();
    let mut found = OnDisk {
        history: history.unwrap_or(0),
        segments: Vec::new(),
        leftovers: Vec::new(),
    };
    for name in names {
        let path = dir.join(name);
        match parse_file_name(name) {
            Some((history, first)) if history == found.history => found.segments.push((first, path)),
            Some(_) => found.leftovers.push(path),
            None if name.ends_with(UNFINISHED) => found.leftovers.push(path),
            None => {}
        }
    }
    Ok(found)
}

struct End {
    offset: u64,
    tail: Option<RecordInfo>,
    index: Index,
    repair: Option<Repair>,
}

fn scan_last(disk: &Arc<dyn Disk>, path: &Path, purpose: Purpose, same_boot: bool) -> Result<End> {
    let mode = if purpose == Purpose::Append {
        OpenMode::Write
    } else {
        OpenMode::Read
    };
    let file = disk.open("log.open.segment", path, mode)?;
    let len = file.len("log.open.length")?;
    let chain = hop(&*file, 0, len)?;
    let whole = match same_boot {
        true => chain.end,
        false => verify_from(&file, chain.durable, chain.end)?,
    };
    let chain = if whole < chain.end {
        hop(&*file, 0, whole)?
    } else {
        chain
    };
    let mut repair = None;
    if chain.end < len {
        let repair = repair.insert(Repair {
            path: path.to_owned(),
            offset: chain.end,
            bytes: len - chain.end,
            followed_by: check_torn(&*file, path, chain.end, len, same_boot)?,
        });
        if purpose == Purpose::Append {
            file.set_len("log.open.cut", chain.end)?;
            tracing::warn!(path = %path.display(), offset = chain.end, bytes = repair.bytes, "cut off the torn end of a log");
        }
    }
    Ok(End {
        offset: chain.end,
        tail: chain.tail,
        index: chain.index,
        repair,
    })
}

/// A later record that says that bytes behind `end` were durable proves that this is no torn end but damage, which
/// must not be answered by throwing away what follows it. So does any later record where only a process has ended, unless it is the one
/// that it was writing. Otherwise tells of a record that is there.
fn check_torn(file: &dyn DiskFile, path: &Path, end: u64, len: u64, same_boot: bool) -> Result<Option<Txid>> {
    if same_boot && read_header(file, end)?.is_some() {
        return Ok(None);
    }
    let mut follows = None;
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
            if same_boot || header.durable > end {
                let reason = format!("no whole record, but {} follows", header.info.min);
                return Err(LogError::Corrupt {
                    path: path.to_owned(),
                    offset: end,
                    reason,
                });
            }
            if start + at as u64 > end {
                follows.get_or_insert(header.info.min);
            }
        }
        start += SEARCH as u64;
    }
    Ok(follows)
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
