//! The archive: transactions that the primary does not have, as ordinary LTX files. Nothing that a client was promised is thrown away.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;

use ltx::{Checksum, Encoder, Header, Pos, Txid, WalRange};
use sqlite_format::Pgno;
use sqlite_format::wal::{FRAME_HEADER_SIZE, WalHeader, frame_offset, frame_size};

use super::Database;
use super::scratch::Left;
use super::state::State;
use crate::capture::group::Group;
use crate::capture::wal::Wal;
use crate::database::backing::read_full;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::layout;
use crate::log::Record;
use crate::name::Side;

impl Database {
    /// Copies the records behind `after` into the archive, as ordinary LTX files.
    pub(crate) fn archive_tail(&self, after: Txid) -> Result<Option<PathBuf>> {
        let first = after.next().unwrap_or(Txid::MAX);
        let mut range: Option<(Txid, Txid)> = None;
        for record in self.log.records(first) {
            let record = record?;
            let info = record.info;
            if info.min <= after {
                continue;
            }
            let (path, mut file) = self.new_archive(info.min, info.max)?;
            let mut reader = record.reader();
            copy(&mut reader, &mut file).map_err(Error::io("archive.write", &path))?;
            file.sync_all().map_err(Error::io("archive.sync", &path))?;
            range = Some((range.map_or(info.min, |(first, _)| first), info.max));
        }
        let Some((first, last)) = range else {
            return Ok(None);
        };
        self.tell_archived(first, last)?;
        Ok(Some(layout::archive(&self.shared.dir, &self.name)))
    }

    /// Archives what clients committed to the WAL of a replica after everything that served it was killed, and with it the fence of those
    /// from a time as primary. The log was ahead of the files by then, so they follow no record that comes next.
    pub(super) fn archive_strays(
        &self,
        state: &mut State,
        file: &File,
        header: &WalHeader,
        left: &Left,
    ) -> Result<()> {
        let (Some(mut pos), true) = (left.files_at, left.same_boot) else {
            return Ok(());
        };
        let Some(mut commit) = self.log.find(pos.txid)?.map(|record| record.info.commit) else {
            return Ok(());
        };
        let mut wal = Wal::default();
        wal.begin(header.clone());
        if let Some(cursor) = left.cursor.filter(|cursor| cursor.salt == header.salt) {
            wal.map(file, Some(cursor.at.frames))?;
            if wal.frames() != cursor.at.frames {
                return Ok(());
            }
        }
        let mut archived: Option<(Txid, Txid)> = None;
        while let Some(group) = wal.next_group(file, None)? {
            let next = match archived {
                None => self.log.find(pos.txid.next().unwrap_or(Txid::MAX))?,
                Some(_) => None,
            };
            pos = match next.filter(|next| is_of(&group, next, file).unwrap_or(false)) {
                // The dead daemon had applied it.
                Some(record) => record.info.pos(),
                None => {
                    let stray = Stray {
                        base: (pos, commit),
                        group: &group,
                    };
                    let archived_at = self.archive_stray(state, &wal, file, stray)?;
                    archived = Some((
                        archived.map_or(archived_at.txid, |(first, _)| first),
                        archived_at.txid,
                    ));
                    archived_at
                }
            };
            commit = group.commit;
            wal.enter(group);
        }
        match archived {
            Some((first, last)) => self.tell_archived(first, last),
            None => Ok(()),
        }
    }

    /// Archives one transaction; returns the position behind it.
    fn archive_stray(&self, state: &mut State, wal: &Wal, file: &File, stray: Stray<'_>) -> Result<Pos> {
        let Stray { base, group } = stray;
        let ((pos, old_commit), Some(known)) = (base, &wal.header) else {
            return Ok(base.0);
        };
        let page_size = known.page_size;
        let txid = pos.txid.next().unwrap_or(Txid::MAX);
        let header = Header {
            compressed: self.shared.options.compress,
            page_size,
            commit: group.commit,
            min_txid: txid,
            max_txid: txid,
            timestamp: (self.shared.options.clock)(),
            pre_apply: pos.post_apply,
            wal: Some(WalRange {
                offset: frame_offset(group.first, page_size),
                size: u64::from(group.end.frames + 1 - group.first) * frame_size(page_size) as u64,
                salt: known.salt,
            }),
            node_id: self.shared.options.node_id,
        };
        let (path, target) = self.new_archive(txid, txid)?;
        let mut encoder = Encoder::new(target, header)?;
        let mut rolling = pos.post_apply;
        let counts = |pgno: Pgno| pgno != page_size.lock_page();
        let mut page = vec![0; page_size.bytes()];
        let old = |state: &mut State, pgno: Pgno| -> Result<Checksum> {
            let mut page = vec![0; page_size.bytes()];
            match wal.frame_of(pgno) {
                Some(frame) => read_frame(file, frame, &mut page)?,
                None => drop(
                    state
                        .backing
                        .read_padded(Side::Database, &mut page, pgno.offset(page_size))?,
                ),
            }
            Ok(ltx::page_checksum(pgno, &page))
        };
        for (pgno, frame) in group.pages() {
            if pgno.get() > group.commit || !counts(pgno) {
                continue;
            }
            read_frame(file, frame_offset(frame, page_size), &mut page)?;
            encoder.encode_page(pgno, &page)?;
            let new = ltx::page_checksum(pgno, &page);
            rolling = match pgno.get() <= old_commit {
                true => rolling.replace(old(state, pgno)?, new),
                false => rolling.xor(new),
            };
        }
        for pgno in (group.commit + 1..=old_commit)
            .filter_map(Pgno::new)
            .filter(|pgno| counts(*pgno))
        {
            rolling = rolling.xor(old(state, pgno)?);
        }
        let (target, _) = encoder.finish(rolling)?;
        target.sync_all().map_err(Error::io("archive.sync", &path))?;
        Ok(Pos::new(txid, rolling))
    }

    /// Makes the file of these transactions. An archive is never overwritten.
    fn new_archive(&self, min: Txid, max: Txid) -> Result<(PathBuf, File)> {
        let dir = layout::archive(&self.shared.dir, &self.name);
        std::fs::create_dir_all(&dir).map_err(Error::io("archive.mkdir", &dir))?;
        let path = free_path(dir.join(ltx::file_name(min, max)));
        let file = File::create_new(&path).map_err(Error::io("archive.create", &path))?;
        Ok((path, file))
    }

    fn tell_archived(&self, first: Txid, last: Txid) -> Result<()> {
        let dir = layout::archive(&self.shared.dir, &self.name);
        sync_dir(&dir)?;
        tracing::warn!(
            db = %self.name, %first, %last, archive = %dir.display(),
            "transactions that the primary does not have are set aside"
        );
        let event = Event::Diverged {
            db: self.name.clone(),
            first,
            last,
            archive: dir,
        };
        self.shared.events.publish(&event);
        Ok(())
    }
}

/// A client's transaction on top of a state that the database was in.
#[derive(Clone, Copy)]
struct Stray<'a> {
    /// Position, and size in pages.
    base: (Pos, u32),
    group: &'a Group,
}

/// Whether the frames hold what the record does.
pub(super) fn is_of(group: &Group, record: &Record, file: &File) -> Result<bool> {
    let page_size = record.info.page_size;
    if group.commit != record.info.commit {
        return Ok(false);
    }
    let mut written = group.pages().into_iter().peekable();
    let mut page = vec![0; page_size.bytes()];
    let mut all = true;
    super::repair::for_each_page(record, |pgno, data| {
        // Pages that are as they were need no frame.
        if let Some((_, frame)) = written.next_if(|(written, _)| *written == pgno) {
            read_frame(file, frame_offset(frame, page_size), &mut page)?;
            all &= page == data;
        }
        Ok(())
    })?;
    Ok(all && written.peek().is_none())
}

/// The page of the frame at this offset.
fn read_frame(file: &File, frame: u64, page: &mut [u8]) -> Result<()> {
    let read =
        read_full(file, page, frame + FRAME_HEADER_SIZE as u64).map_err(Error::io("wal.read", "-wal"))?;
    page[read..].fill(0);
    Ok(())
}

/// The path, or the path with a number before the extension if it is taken: an archive is never overwritten.
fn free_path(path: PathBuf) -> PathBuf {
    let numbered = |number: u32| path.with_extension(format!("{number}.ltx"));
    match path.exists() {
        true => (1..).map(numbered).find(|path| !path.exists()).unwrap_or(path),
        false => path,
    }
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    std::io::copy(from, to).map(|_| ())
}

fn sync_dir(dir: &std::path::Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("archive.sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_archived_before_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(ltx::file_name(Txid(1), Txid(2)));
        for name in ["2.ltx", "2.1.ltx", "2.2.ltx"] {
            let free = free_path(path.clone());
            assert!(free.to_str().unwrap().ends_with(name), "{}", free.display());
            File::create_new(free).unwrap();
        }
    }
}
