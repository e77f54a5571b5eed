//! Import: a SQLite file becomes the content of a database, in one transaction.
//!
//! The file is received and checked first. Then it takes the way of a received record: into the log, and from there
//! under SQLite's locks into the files, so that it is applied as safely as everything else.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ltx::{Checksum, Header, Pos, Txid};
use sqlite_format::header::{self, DatabaseHeader, HEADER_SIZE, JournalMode};
use sqlite_format::{PageSize, Pgno};

use crate::apply::WriterLock;
use crate::database::Database;
use crate::database::state::State;
use crate::error::{Error, Result};
use crate::log::{Origin, RecordMeta};
use crate::name::Side;
use crate::snapshot::spool_in;

/// How long an import waits for clients to finish their transactions.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(2);
/// The call of [`Error::Io`] that failed when the sender did, and nothing was changed.
pub const IMPORT_RECEIVE: &str = "import.receive";

/// A received SQLite file.
pub(crate) struct Image {
    file: File,
    header: DatabaseHeader,
    pages: u32,
}

impl Image {
    /// Receives the file and checks that it is a whole database.
    pub(crate) fn spool(dir: &Path, body: &mut dyn Read) -> Result<Image> {
        let mut file = spool_in(dir)?;
        let len = std::io::copy(body, &mut file).map_err(Error::io(IMPORT_RECEIVE, "import"))?;
        let mut head = vec![0; HEADER_SIZE.min(usize::try_from(len).unwrap_or(HEADER_SIZE))];
        file.read_exact_at(&mut head, 0)
            .map_err(Error::io("import.read", "import"))?;
        let invalid = |reason: String| Error::Invalid(format!("cannot import: {reason}"));
        let header = DatabaseHeader::parse(&head).map_err(|e| invalid(e.to_string()))?;
        let size = u64::from(header.page_size.get());
        if len % size != 0 {
            return Err(invalid(format!(
                "{len} bytes are no whole number of pages of {size} bytes: the file is cut"
            )));
        }
        let in_file = u32::try_from(len / size).map_err(|_| invalid("too many pages".to_owned()))?;
        let pages = header.valid_page_count().unwrap_or(in_file);
        if pages > in_file {
            return Err(invalid(format!(
                "the header counts {pages} pages, the file has {in_file}: the file is cut"
            )));
        }
        Ok(Image { file, header, pages })
    }

    fn read(&self, pgno: Pgno, page: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(page, pgno.offset(self.header.page_size))
            .map_err(Error::io("import.read", "import"))
    }
}

impl Database {
    /// Replaces the content. The clients' journal mode stays where they are connected in WAL mode.
    pub(crate) fn import(self: &Arc<Self>, image: &Image) -> Result<Pos> {
        let deadline = Instant::now() + PATIENCE;
        let _turn = self.backlog.receiving.lock();
        let _locks = loop {
            match self.lock_for(image) {
                Ok(locks) => break locks,
                Err(Error::Busy { .. }) if Instant::now() < deadline => std::thread::sleep(LOOK),
                Err(error) => return Err(error),
            }
        };
        self.drain()?;
        {
            let mut state = self.state.lock();
            self.health.check_usable()?;
            if self.log.tail().is_some_and(|tail| tail.pos() != state.pos) {
                return Err(self.busy("an import that is being applied"));
            }
            self.log_image(&mut state, image)?;
        }
        // What is in the log will be applied, if not now then when its clients let it.
        self.apply_pending(deadline)
            .inspect_err(|_| self.start_worker())?;
        Ok(self.position())
    }

    /// Keeps writers away; if the WAL cannot take the image up, everybody.
    fn lock_for(&self, image: &Image) -> Result<WriterLock> {
        let page_size = self.state.lock().page_size();
        if page_size.is_none_or(|page_size| page_size == image.header.page_size) {
            return WriterLock::take(self);
        }
        self.empty_wal(image.header.page_size)?;
        let locks = WriterLock::take_exclusive(self)?;
        match self.state.lock().wal.frames() {
            0 => Ok(locks),
            _ => Err(self.busy("the WAL")),
        }
    }

    /// Appends the difference between the database and the image as a record, without changing the database yet.
    fn log_image(&self, state: &mut State, image: &Image) -> Result<()> {
        let page_size = image.header.page_size;
        let replaces = state.page_size() != Some(page_size);
        let txid = state.pos.txid.next().unwrap_or(Txid::MAX);
        let header = Header {
            compressed: self.shared.options.compress,
            page_size,
            commit: image.pages,
            min_txid: txid,
            max_txid: txid,
            timestamp: (self.shared.options.clock)(),
            pre_apply: if txid == Txid::FIRST {
                Checksum::NONE
            } else {
                state.pos.post_apply
            },
            wal: None,
            node_id: self.shared.options.node_id,
        };
        let mut rolling = Checksum::EMPTY_DATABASE;
        let mut page = vec![0; page_size.bytes()];
        let counter = self
            .change_counter(state)?
            .max(image.header.change_counter)
            .wrapping_add(1);
        let mut appender = self.log.appender()?;
        // Not `Captured`: after a crash the files follow the log.
        let mut append = appender.begin(header, RecordMeta::new(Origin::Applied))?;
        for pgno in Pgno::up_to(image.pages).filter(|pgno| *pgno != page_size.lock_page()) {
            image.read(pgno, &mut page)?;
            if pgno == Pgno::FIRST {
                // Connections notice by the counter that their caches are stale.
                header::set_change_counter(&mut page, counter);
                self.keep_journal_mode(state, &mut page, page_size)?;
            }
            let checksum = ltx::page_checksum(pgno, &page);
            rolling = rolling.xor(checksum);
            if replaces || state.table.get(pgno) != Some(checksum) {
                append.page(pgno, &page)?;
            }
        }
        append.finish(rolling)?;
        appender.flush()?;
        self.log.sync()?;
        Ok(())
    }

    fn change_counter(&self, state: &mut State) -> Result<u32> {
        Ok(self
            .current_header(state)?
            .map_or(0, |header| header.change_counter))
    }

    /// A database that clients have open in WAL mode stays in it.
    fn keep_journal_mode(&self, state: &mut State, page: &mut [u8], page_size: PageSize) -> Result<()> {
        if state.page_size() == Some(page_size)
            && state.commit > 0
            && self
                .current_header(state)?
                .is_some_and(|header| header.journal_mode() == JournalMode::Wal)
        {
            header::set_journal_mode(page, JournalMode::Wal);
        }
        Ok(())
    }

    fn current_header(&self, state: &mut State) -> Result<Option<DatabaseHeader>> {
        let Some(page_size) = state.page_size().filter(|_| state.commit > 0) else {
            return Ok(None);
        };
        let mut page = vec![0; page_size.bytes()];
        state.read_page(Pgno::FIRST, page_size, &mut page)?;
        Ok(DatabaseHeader::parse(&page).ok())
    }

    /// The journal mode of the main file on disk.
    pub(crate) fn file_journal_mode(&self, state: &mut State) -> Result<Option<JournalMode>> {
        let mut head = [0; HEADER_SIZE];
        let read = state.backing.read_padded(Side::Database, &mut head, 0)?;
        Ok(DatabaseHeader::parse(&head[..read])
            .ok()
            .map(|header| header.journal_mode()))
    }
}
