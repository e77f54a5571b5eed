//! The deep criterion, which the suite does not give: after each file, every database on the mount equals the replica's copy and
//! what the node itself gives out.
//!
//! Five views are compared byte by byte. *The file* is what SQLite makes of a copy of the mount's files, with a hot journal
//! rolled back and a WAL checkpointed, or the file as it is where SQLite cannot ([`inspect`]); *the replica's file* is the same of
//! the replica's mount; *the primary* and *the replica* are the nodes' exports, which may take a page from the log that the file
//! lost; *the log* is what the primary's records add up to ([`log`]). What is not compared is counted.

pub mod inspect;
mod log;

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::StreamExt;
use litefs_api::{Client, DatabaseStatus, ExportStream};
use terminal::explain;

use crate::child;
use crate::execution::ERRAND;
use crate::run::Databases;
use inspect::Found;
use log::Replayed;

/// How long a replica may come no nearer to what the primary holds.
const CATCH_UP: Duration = Duration::from_secs(30);
/// Nothing keeps a replica from moving pages from its WAL into its file while both are copied: how often to copy again.
const TRIES: u32 = 3;
/// How long a node may take to capture what it tells the position of: a test writes gigabytes.
const CAPTURE: Duration = Duration::from_secs(120);
const COPY_AGAIN: Duration = Duration::from_millis(300);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Compares one primary with one replica.
pub struct Checker {
    runtime: tokio::runtime::Runtime,
    primary: Client,
    replica: Client,
    scratch: PathBuf,
    /// Program and data directory of the primary.
    litefs: PathBuf,
    data: PathBuf,
    /// Where the replica is mounted.
    replica_mount: PathBuf,
}

/// Export of a record costs a sync; beyond this many the log is not replayed, only counted as such.
const LONGEST_LOG: u64 = 2_000;
/// A replay takes several times its space.
const LARGEST_LOG: u64 = 1 << 30;

/// What one file left behind, compared.
#[derive(Debug, Default)]
pub struct Checked {
    pub databases: Databases,
    pub findings: Vec<String>,
}

impl Checker {
    /// `home` is the primary's directory: copies go there, its data is in `data`, and the replica lives in `replica`.
    pub fn new(primary: &str, replica: &str, litefs: PathBuf, home: PathBuf) -> Result<Checker> {
        // A thread of its own answers the nodes' pings while a file runs; nodes give up silent connections.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("tokio")?;
        Ok(Checker {
            runtime,
            primary: Client::new(primary).context("client of the primary")?,
            replica: Client::new(replica).context("client of the replica")?,
            data: home.join("data"),
            replica_mount: home.join("replica/mnt"),
            scratch: home,
            litefs,
        })
    }

    /// Checks all databases below `directory`, whose names on the node begin with `prefix`.
    pub fn check(&self, directory: &Path, prefix: &str) -> Checked {
        let mut checked = Checked::default();
        if let Err(error) = self.try_check(directory, prefix, &mut checked) {
            checked
                .findings
                .push(format!("replica check: {}", explain(&error)));
        }
        let _ = std::fs::remove_dir_all(self.copies());
        checked
    }

    fn copies(&self) -> PathBuf {
        self.scratch.join("copies")
    }

    /// Checks that nothing is left on either node of the databases whose names begin with `prefix`: their directory was removed.
    pub fn check_removed(&self, prefix: &str) -> Vec<String> {
        let left = self.try_check_removed(prefix);
        let _ = std::fs::remove_dir_all(self.copies());
        left.err()
            .map(|error| format!("after the test directory was removed: {}", explain(&error)))
            .into_iter()
            .collect()
    }

    fn try_check_removed(&self, prefix: &str) -> Result<()> {
        self.runtime.block_on(async {
            // A database that was deleted keeps its name and its log, with no pages.
            for status in databases(&self.primary, prefix).await?.values() {
                let name = &status.name;
                anyhow::ensure!(
                    status.pages == 0,
                    "the primary still has {} pages of {name}",
                    status.pages
                );
                if status.txid.0 > 0 && status.quarantine.is_none() {
                    self.catch_up(status).await.with_context(|| name.clone())?;
                }
            }
            self.same_names(prefix).await
        })?;
        let found = inspected(&self.replica_mount.join(prefix), &self.copies().join("replica"))?;
        if let Some(file) = found.iter().find(|file| file.begins_like_one) {
            anyhow::bail!("the replica's mount still has {prefix}{}", file.name);
        }
        Ok(())
    }

    fn try_check(&self, directory: &Path, prefix: &str, checked: &mut Checked) -> Result<()> {
        let found = inspected(directory, &self.copies().join("mount"))?;
        let known = self.runtime.block_on(databases(&self.primary, prefix))?;
        for file in found.iter().filter(|file| file.begins_like_one) {
            let name = format!("{prefix}{}", file.name);
            match known.get(&name).map(|status| status.quarantine.as_deref()) {
                None if file.not_a_database.is_some() => checked.databases.local += 1,
                None => checked.fail(format!("{name}: is a database, but not known to the node")),
                Some(Some(reason)) if file.healthy && !file.unfinished => {
                    checked.fail(format!(
                        "{name}: SQLite finds nothing wrong, but it is not replicated: {reason}"
                    ));
                }
                Some(Some(_)) => checked.databases.local += 1,
                Some(None) => {}
            }
        }
        let mut equal = Vec::new();
        for (name, status) in known.iter().filter(|(_, status)| status.quarantine.is_none()) {
            let file = find(&found, prefix, name);
            if status.txid.0 == 0 {
                // Known by name only: nothing was ever committed.
                match file.filter(|file| file.not_a_database.is_none()) {
                    Some(file) if file.unfinished => checked.databases.local += 1,
                    Some(_) => checked.fail(format!("{name}: is a database, and nothing of it was captured")),
                    None => {}
                }
                continue;
            }
            checked.databases.compared += 1;
            match self.check_one(status, file, checked) {
                Ok(()) => equal.push(status),
                Err(error) => checked.fail(format!("{name}: {}", explain(&error))),
            }
        }
        if let Err(error) = self.runtime.block_on(self.same_names(prefix)) {
            checked.findings.push(explain(&error));
        }
        self.check_replica_files(prefix, equal, checked)
    }

    fn check_one(&self, status: &DatabaseStatus, file: Option<&Found>, checked: &mut Checked) -> Result<()> {
        let mut views = Vec::new();
        match view("the file", status, file)? {
            Seen::View(mut view) => {
                view.may_go_on = status.pages > 0 && counted_pages(&view.file) == Some(status.pages);
                views.push(view);
            }
            Seen::Nothing => {}
            Seen::Unreadable => checked.databases.uncompared += 1,
        }
        if let Some(log) = self.replay(status).context("log")? {
            checked.databases.replayed += 1;
            views.push(View {
                whose: "the log",
                file: log.image,
                may_go_on: false,
            });
        }
        self.runtime.block_on(async {
            self.catch_up(status).await?;
            self.compare(status, views).await
        })
    }

    /// Reads the replica's mount as clients do.
    fn check_replica_files(
        &self,
        prefix: &str,
        mut left: Vec<&DatabaseStatus>,
        checked: &mut Checked,
    ) -> Result<()> {
        for attempt in 1..=TRIES {
            if left.is_empty() {
                break;
            }
            let found = inspected(&self.replica_mount.join(prefix), &self.copies().join("replica"))
                .context("the replica's mount")?;
            let mut again = Vec::new();
            for status in left {
                let file = find(&found, prefix, &status.name);
                match self.check_replica_file(status, file, checked) {
                    Ok(()) => {}
                    Err(error) if attempt == TRIES => {
                        checked.fail(format!("{}: {}", status.name, explain(&error)))
                    }
                    Err(_) => again.push(status),
                }
            }
            left = again;
            if !left.is_empty() {
                std::thread::sleep(COPY_AGAIN);
            }
        }
        Ok(())
    }

    fn check_replica_file(
        &self,
        status: &DatabaseStatus,
        file: Option<&Found>,
        checked: &mut Checked,
    ) -> Result<()> {
        match view("the replica's file", status, file)? {
            Seen::View(view) => self.runtime.block_on(self.compare(status, vec![view]))?,
            Seen::Nothing => {}
            Seen::Unreadable => checked.databases.uncompared += 1,
        }
        Ok(())
    }

    /// The log replayed; `None` where it is too long or too large.
    fn replay(&self, status: &DatabaseStatus) -> Result<Option<Replayed>> {
        let records = status.log.last_txid.0.saturating_sub(status.log.first_txid.0);
        if records > LONGEST_LOG || status.log.bytes > LARGEST_LOG {
            return Ok(None);
        }
        let replayed = log::replay(&self.litefs, &self.data, &status.name, &self.copies())?;
        let (txid, checksum) = (replayed.position.txid.get(), replayed.position.post_apply.get());
        anyhow::ensure!(
            (txid, checksum) == (status.txid.0, status.checksum.0),
            "leads to {}, the position is {}/{}",
            replayed.position,
            status.txid,
            status.checksum
        );
        Ok(Some(replayed))
    }

    /// Compares both nodes' exports, and `views` with them.
    async fn compare(&self, status: &DatabaseStatus, mut views: Vec<View>) -> Result<()> {
        if status.pages > 0 {
            self.compare_pages(status, &mut views).await?;
        }
        for view in &mut views {
            let beyond = view.beyond()?;
            anyhow::ensure!(
                beyond == 0 || view.may_go_on,
                "{} goes on for {beyond} bytes after page {}",
                view.whose,
                status.pages
            );
        }
        Ok(())
    }

    async fn compare_pages(&self, status: &DatabaseStatus, views: &mut [View]) -> Result<()> {
        let export = self.primary.export(&status.name).await;
        let mut primary = Bytes::new(export.context("export of the primary")?);
        let export = self.replica.export(&status.name).await;
        let mut replica = Bytes::new(export.context("export of the replica")?);
        let size = status.page_size as usize;
        let mut checksum = ltx::Checksum::EMPTY_DATABASE;
        for number in 1..=status.pages {
            let ours = primary
                .take(size)
                .await
                .with_context(|| format!("primary's page {number}"))?;
            let theirs = replica
                .take(size)
                .await
                .with_context(|| format!("replica's page {number}"))?;
            anyhow::ensure!(
                ours == theirs,
                "page {number} of the replica differs from the primary's"
            );
            for view in &mut *views {
                view.expect(number, &ours)?;
            }
            checksum = with_page(checksum, number, &ours)?;
        }
        for (whose, export) in [("primary", &mut primary), ("replica", &mut replica)] {
            anyhow::ensure!(
                export.at_end().await?,
                "the {whose}'s export is longer than {} pages",
                status.pages
            );
        }
        anyhow::ensure!(
            checksum.get() == status.checksum.0,
            "the position says checksum {}, the bytes have {checksum}",
            status.checksum
        );
        Ok(())
    }

    /// Waits until the replica knows no database that the primary does not know. What the primary has and the replica lacks
    /// is told by [`Self::catch_up`].
    async fn same_names(&self, prefix: &str) -> Result<()> {
        let deadline = Instant::now() + CATCH_UP;
        loop {
            let here = databases(&self.primary, prefix).await?;
            let mut there = databases(&self.replica, prefix).await?;
            there.retain(|name, _| !here.contains_key(name));
            if there.is_empty() {
                return Ok(());
            }
            let names: Vec<String> = there.into_keys().collect();
            anyhow::ensure!(
                Instant::now() <= deadline,
                "the replica has databases that the primary does not have: {}",
                names.join(", ")
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until the replica is where the primary was.
    async fn catch_up(&self, wanted: &DatabaseStatus) -> Result<()> {
        let mut deadline = Instant::now() + CATCH_UP;
        let mut before = None;
        loop {
            let there = databases(&self.replica, &wanted.name).await?;
            let reached = there.get(&wanted.name);
            let at = reached.map(|status| status.txid);
            if at != before {
                (deadline, before) = (Instant::now() + CATCH_UP, at);
            }
            match reached {
                Some(status) if status.txid == wanted.txid => {
                    if let Some(reason) = &status.quarantine {
                        anyhow::bail!("the replica does not follow any more: {reason}");
                    }
                    anyhow::ensure!(
                        status.checksum == wanted.checksum,
                        "at {} the replica has checksum {}, the primary {}",
                        wanted.txid,
                        status.checksum,
                        wanted.checksum
                    );
                    return Ok(());
                }
                _ if Instant::now() > deadline => anyhow::bail!(
                    "the replica did not catch up: primary at {}, replica at {}",
                    wanted.txid,
                    reached.map_or("nothing".to_string(), |status| status.txid.to_string())
                ),
                _ => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }
}

impl Checked {
    fn fail(&mut self, finding: String) {
        self.databases.different += 1;
        self.findings.push(finding);
    }
}

/// The checksum of a database with one more page, from the bytes alone.
fn with_page(checksum: ltx::Checksum, number: u32, page: &[u8]) -> Result<ltx::Checksum> {
    let size = ltx::PageSize::new(page.len() as u32).context("page size")?;
    let pgno = ltx::Pgno::new(number).context("page number")?;
    Ok(if pgno == size.lock_page() {
        checksum
    } else {
        checksum.xor(ltx::page_checksum(pgno, page))
    })
}

/// A file that has to hold the pages of a database and no more.
struct View {
    whose: &'static str,
    file: std::fs::File,
    /// Its header says how many pages count, so it may go on after them: SQLite lets it grow in chunks, and cuts it off only after
    /// the commit.
    may_go_on: bool,
}

/// What became of a file.
enum Seen {
    View(View),
    /// No file, and none is needed.
    Nothing,
    /// Too large to copy, or nobody but the node can tell what journal and file amount to.
    Unreadable,
}

fn view(whose: &'static str, status: &DatabaseStatus, file: Option<&Found>) -> Result<Seen> {
    let Some(file) = file else {
        anyhow::ensure!(
            status.pages == 0,
            "{whose} is not there, the database has {} pages",
            status.pages
        );
        return Ok(Seen::Nothing);
    };
    let Some(path) = &file.copy else {
        return Ok(Seen::Unreadable);
    };
    let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    Ok(Seen::View(View {
        whose,
        file,
        may_go_on: false,
    }))
}

/// How many pages the header of a database says that it has, if nobody has changed the file who does not keep that number.
fn counted_pages(file: &std::fs::File) -> Option<u32> {
    let mut header = [0; 100];
    file.read_exact_at(&mut header, 0).ok()?;
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (changes, valid_for) = (word(24), word(92));
    (changes == valid_for).then(|| word(28))
}

impl View {
    fn expect(&mut self, number: u32, export: &[u8]) -> Result<()> {
        let page = page_of(&mut self.file, export.len())
            .with_context(|| format!("page {number} of {}", self.whose))?;
        anyhow::ensure!(
            page == export,
            "page {number} of {} differs from the export's: {}",
            self.whose,
            first_difference(&page, export)
        );
        Ok(())
    }

    /// Bytes after the last page.
    fn beyond(&mut self) -> Result<u64> {
        let read = self.file.stream_position().context("position")?;
        let length = self.file.metadata().context("stat")?.len();
        Ok(length.saturating_sub(read))
    }
}

/// The next page of a file. SQLite takes what is missing of the last page for zeros.
fn page_of(file: &mut std::fs::File, size: usize) -> Result<Vec<u8>> {
    let mut page = Vec::with_capacity(size);
    file.take(size as u64).read_to_end(&mut page).context("read")?;
    anyhow::ensure!(!page.is_empty(), "is not there");
    page.resize(size, 0);
    Ok(page)
}

fn first_difference(page: &[u8], export: &[u8]) -> String {
    let at = page.iter().zip(export).position(|(a, b)| a != b);
    let at = at.expect("pages that differ have the same length");
    format!(
        "at byte {at} it has {:02x}, the export {:02x}",
        page[at], export[at]
    )
}

fn find<'a>(found: &'a [Found], prefix: &str, name: &str) -> Option<&'a Found> {
    let name = name.strip_prefix(prefix)?;
    found.iter().find(|file| file.name == name)
}

/// The node's databases with a name that begins like this.
async fn databases(client: &Client, prefix: &str) -> Result<BTreeMap<String, DatabaseStatus>> {
    let deadline = Instant::now() + CAPTURE;
    let status = loop {
        match client.status().await {
            Err(litefs_api::Error::Transport { source, .. })
                if source.is_timeout() && Instant::now() < deadline => {}
            answer => break answer.with_context(|| format!("status of {}", client.base()))?,
        }
    };
    let wanted = status
        .databases
        .into_iter()
        .filter(|database| database.name.starts_with(prefix));
    Ok(wanted.map(|database| (database.name.clone(), database)).collect())
}

/// Runs the inspection in a process of its own: it touches the mount.
fn inspected(directory: &Path, copies: &Path) -> Result<Vec<Found>> {
    let _ = std::fs::remove_dir_all(copies);
    std::fs::create_dir_all(copies).with_context(|| format!("create {}", copies.display()))?;
    let list = copies.join("list.json");
    // Not by its path: a new build may have taken that meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("inspect")
        .arg(directory)
        .arg(copies)
        .arg(&list)
        .stdin(Stdio::null());
    let usage = child::run(&mut command, ERRAND)?;
    anyhow::ensure!(
        usage.ended.success(),
        "inspection of {}: {}",
        directory.display(),
        usage.ended
    );
    let text = std::fs::read(&list).with_context(|| format!("read {}", list.display()))?;
    serde_json::from_slice(&text).context("decode the inspection")
}

/// An export, by pages.
struct Bytes {
    stream: ExportStream,
    buffer: Vec<u8>,
}

impl Bytes {
    fn new(stream: ExportStream) -> Bytes {
        Bytes {
            stream,
            buffer: Vec::new(),
        }
    }

    async fn take(&mut self, count: usize) -> Result<Vec<u8>> {
        while self.buffer.len() < count {
            let part = tokio::time::timeout(CATCH_UP, self.stream.next())
                .await
                .context("no data in time")?;
            let part = part.context("the export is too short")?.context("receive")?;
            self.buffer.extend_from_slice(&part);
        }
        let rest = self.buffer.split_off(count);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    async fn at_end(&mut self) -> Result<bool> {
        while self.buffer.is_empty() {
            match tokio::time::timeout(CATCH_UP, self.stream.next())
                .await
                .context("no end in time")?
            {
                Some(part) => self.buffer.extend_from_slice(&part.context("receive")?),
                None => return Ok(true),
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(copy: Option<PathBuf>) -> Found {
        Found {
            name: "test.db".to_string(),
            begins_like_one: true,
            copy,
            not_a_database: None,
            unfinished: false,
            healthy: true,
        }
    }

    fn status(pages: u32) -> DatabaseStatus {
        let text = format!(
            r#"{{"name":"t/test.db","txid":"0000000000000001","checksum":"8000000000000000","received":"0000000000000001",
            "pageSize":512,"pages":{pages},"mode":"rollback","log":{{"firstTxid":"0000000000000001","lastTxid":"0000000000000001","bytes":1}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_database_with_pages_has_to_have_a_file() {
        let error = view("the file", &status(2), None).err().unwrap();
        assert!(error.to_string().contains("the file is not there"), "{error}");
        assert!(matches!(view("the file", &status(0), None), Ok(Seen::Nothing)));
        let large = view("the file", &status(2), Some(&found(None)));
        assert!(matches!(large, Ok(Seen::Unreadable)));
    }

    #[test]
    fn a_file_has_to_hold_the_pages_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        std::fs::write(&path, [[1; 512], [2; 512], [3; 512]].concat()).unwrap();
        let Ok(Seen::View(mut view)) = view("the file", &status(3), Some(&found(Some(path)))) else {
            panic!("the file can be read");
        };
        view.expect(1, &[1; 512]).unwrap();
        assert_eq!(view.beyond().unwrap(), 1024);
        let error = view.expect(2, &[7; 512]).unwrap_err().to_string();
        assert!(error.contains("page 2 of the file differs"), "{error}");
        view.expect(3, &[3; 512]).unwrap();
        assert_eq!(view.beyond().unwrap(), 0);
        let error = format!("{:#}", view.expect(4, &[0; 512]).unwrap_err());
        assert!(error.contains("page 4 of the file: is not there"), "{error}");
    }
    #[test]
    fn a_header_counts_pages_only_while_everybody_keeps_the_number() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(counted_pages(&file), None);
        file.write_all_at(&[0; 100], 0).unwrap();
        file.write_all_at(&[0, 0, 0, 9], 28).unwrap();
        assert_eq!(counted_pages(&file), Some(9));
        file.write_all_at(&[0, 0, 0, 1], 24).unwrap();
        assert_eq!(counted_pages(&file), None);
    }
}
