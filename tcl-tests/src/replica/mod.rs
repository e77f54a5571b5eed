//! The deep criterion, which the suite does not give: after each file, every database on the mount equals the replica's copy and
//! what the node itself gives out.
//!
//! Four views are compared byte by byte. *The file* is what SQLite makes of a copy of the mount's files, with a hot journal
//! rolled back and a WAL checkpointed ([`inspect`]); *the primary* and *the replica* are the nodes' exports; *the log* is what the
//! primary's records add up to ([`log`]).

pub mod inspect;
mod log;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::StreamExt;
use litefs_api::{Client, DatabaseStatus, ExportStream};

use crate::child;
use crate::execution::ERRAND;
use crate::run::Databases;
use inspect::Found;
use log::Replayed;

/// How long a replica may take to hold what the primary holds.
const CATCH_UP: Duration = Duration::from_secs(30);
/// How long a node may take to capture what it tells the position of: a test writes gigabytes.
const CAPTURE: Duration = Duration::from_secs(120);
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
}

/// Export of a record costs a sync; beyond this many the log is not replayed, only counted as such.
const LONGEST_LOG: u64 = 400;

/// What one file left behind, compared.
#[derive(Debug, Default)]
pub struct Checked {
    pub databases: Databases,
    pub findings: Vec<String>,
}

impl Checker {
    /// `home` is the primary's directory: copies go there, and its data is in `data`.
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
            scratch: home,
            litefs,
        })
    }

    /// Checks all databases below `directory`, whose names on the node begin with `prefix`.
    pub fn check(&self, directory: &Path, prefix: &str) -> Checked {
        let mut checked = Checked::default();
        if let Err(error) = self.try_check(directory, prefix, &mut checked) {
            checked.findings.push(format!("replica check: {error:#}"));
        }
        let _ = std::fs::remove_dir_all(self.copies());
        checked
    }

    fn copies(&self) -> PathBuf {
        self.scratch.join("copies")
    }

    fn try_check(&self, directory: &Path, prefix: &str, checked: &mut Checked) -> Result<()> {
        let found = inspected(directory, &self.copies())?;
        let known = self.runtime.block_on(databases(&self.primary, prefix))?;
        for file in &found {
            let name = format!("{prefix}{}", file.name);
            let Some(status) = known.get(&name) else {
                match &file.not_a_database {
                    Some(_) => checked.databases.local += 1,
                    None => checked.fail(format!("{name}: is a database, but not known to the node")),
                }
                continue;
            };
            if status.quarantine.is_some() {
                checked.databases.local += 1;
            }
        }
        for (name, status) in known.iter().filter(|(_, status)| status.quarantine.is_none()) {
            let file = found
                .iter()
                .find(|file| name.strip_prefix(prefix) == Some(file.name.as_str()));
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
            let log = match self.replay(status) {
                Ok(log) => log,
                Err(error) => {
                    checked.fail(format!("{name}: log: {error:#}"));
                    continue;
                }
            };
            checked.databases.replayed += u32::from(log.is_some());
            if let Err(error) = self.runtime.block_on(self.compare(status, file, log.as_ref())) {
                checked.fail(format!("{name}: {error:#}"));
            }
        }
        Ok(())
    }

    /// The log replayed; `None` where it is too long.
    fn replay(&self, status: &DatabaseStatus) -> Result<Option<Replayed>> {
        let records = status.log.last_txid.0.saturating_sub(status.log.first_txid.0);
        if records > LONGEST_LOG {
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

    async fn compare(
        &self,
        status: &DatabaseStatus,
        file: Option<&Found>,
        log: Option<&Replayed>,
    ) -> Result<()> {
        self.catch_up(status).await?;
        if status.pages == 0 {
            return Ok(());
        }
        let mut primary = Bytes::new(
            self.primary
                .export(&status.name)
                .await
                .context("export of the primary")?,
        );
        let mut replica = Bytes::new(
            self.replica
                .export(&status.name)
                .await
                .context("export of the replica")?,
        );
        let mut copy = match file.and_then(|file| file.copy.as_ref()) {
            Some(path) => {
                Some(std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?)
            }
            None => None,
        };
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
            if let Some(copy) = &mut copy {
                let page = page_of(copy, size).with_context(|| format!("page {number} of the file"))?;
                anyhow::ensure!(
                    page == ours,
                    "page {number} of the export differs from the file's: {}",
                    first_difference(&page, &ours)
                );
            }
            if let Some(log) = log {
                let mut page = vec![0; size];
                let offset = u64::from(number - 1) * size as u64;
                log.image
                    .read_exact_at(&mut page, offset)
                    .with_context(|| format!("page {number} is not in the log"))?;
                anyhow::ensure!(page == ours, "page {number} of the log differs from the export's");
            }
            checksum = with_page(checksum, number, &ours)?;
        }
        anyhow::ensure!(
            primary.at_end().await?,
            "the primary's export is longer than {} pages",
            status.pages
        );
        anyhow::ensure!(
            replica.at_end().await?,
            "the replica's export is longer than {} pages",
            status.pages
        );
        anyhow::ensure!(
            checksum.get() == status.checksum.0,
            "the position says checksum {}, the bytes have {checksum}",
            status.checksum
        );
        Ok(())
    }

    /// Waits until the replica is where the primary was.
    async fn catch_up(&self, wanted: &DatabaseStatus) -> Result<()> {
        let deadline = Instant::now() + CATCH_UP;
        loop {
            let there = databases(&self.replica, &wanted.name).await?;
            let reached = there.get(&wanted.name);
            match reached {
                Some(status) if status.txid == wanted.txid => {
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

/// The next page of a file. SQLite takes what is missing of the last page for zeros.
fn page_of(file: &mut std::fs::File, size: usize) -> Result<Vec<u8>> {
    let mut page = Vec::with_capacity(size);
    file.take(size as u64).read_to_end(&mut page).context("read")?;
    anyhow::ensure!(!page.is_empty(), "is not there");
    page.resize(size, 0);
    Ok(page)
}

fn first_difference(file: &[u8], export: &[u8]) -> String {
    match file.iter().zip(export).position(|(a, b)| a != b) {
        Some(at) => format!(
            "at byte {at} the file has {:02x}, the export {:02x}",
            file[at], export[at]
        ),
        None => "their lengths differ".to_string(),
    }
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
