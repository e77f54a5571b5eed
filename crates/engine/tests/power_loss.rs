//! The power goes when a client without a journal on disk has just been told that its COMMIT succeeded. What it synced is in the main
//! file; of the log there is what was synced.

mod common;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::{Client, Node, integrity, lose_power, replicate};
use engine::disk::{Disk, DiskFile, Op, OpenMode, OsDisk, Result};
use engine::{Coherence, Retention, Role, StoreOptions};
use tempfile::TempDir;

/// Knows how much of each segment of a log survives a power loss.
#[derive(Debug, Clone, Default)]
struct Durable(Arc<Mutex<BTreeMap<PathBuf, u64>>>);

#[derive(Debug)]
struct DurableFile(Arc<dyn DiskFile>, Durable);

impl Durable {
    fn cut_off(&self) {
        for (path, len) in &*self.0.lock().unwrap() {
            if path.parent().is_some_and(|parent| parent.ends_with("log")) && path.exists() {
                File::options()
                    .write(true)
                    .open(path)
                    .unwrap()
                    .set_len(*len)
                    .unwrap();
            }
        }
    }
}

impl Disk for Durable {
    fn open(&self, op: Op, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(DurableFile(OsDisk.open(op, path, mode)?, self.clone())))
    }
    fn rename(&self, op: Op, from: &Path, to: &Path) -> Result<()> {
        OsDisk.rename(op, from, to)
    }
    fn remove_file(&self, op: Op, path: &Path) -> Result<()> {
        OsDisk.remove_file(op, path)
    }
    fn create_dir_all(&self, op: Op, path: &Path) -> Result<()> {
        OsDisk.create_dir_all(op, path)
    }
    fn remove_dir_all(&self, op: Op, path: &Path) -> Result<()> {
        OsDisk.remove_dir_all(op, path)
    }
    fn list(&self, op: Op, path: &Path) -> Result<Vec<OsString>> {
        OsDisk.list(op, path)
    }
    fn exists(&self, op: Op, path: &Path) -> Result<bool> {
        OsDisk.exists(op, path)
    }
    fn sync_dir(&self, op: Op, path: &Path) -> Result<()> {
        OsDisk.sync_dir(op, path)
    }
}

impl DurableFile {
    fn synced(&self, op: Op) -> Result<()> {
        let len = self.0.len(op)?;
        self.1.0.lock().unwrap().insert(self.path().to_owned(), len);
        Ok(())
    }
}

impl DiskFile for DurableFile {
    fn read_at(&self, op: Op, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.0.read_at(op, buf, offset)
    }
    fn write_all_at(&self, op: Op, data: &[u8], offset: u64) -> Result<()> {
        self.0.write_all_at(op, data, offset)
    }
    fn set_len(&self, op: Op, len: u64) -> Result<()> {
        self.0.set_len(op, len)
    }
    fn len(&self, op: Op) -> Result<u64> {
        self.0.len(op)
    }
    fn sync_data(&self, op: Op) -> Result<()> {
        self.0.sync_data(op)?;
        self.synced(op)
    }
    fn sync_all(&self, op: Op) -> Result<()> {
        self.0.sync_all(op)?;
        self.synced(op)
    }
    fn path(&self) -> &Path {
        self.0.path()
    }
}

fn primary_on(disk: &Durable) -> (Node, Client) {
    let options = StoreOptions {
        disk: Arc::new(disk.clone()),
        ..StoreOptions::default()
    };
    let node = Node::open_with(tempfile::tempdir().unwrap(), Coherence::Passthrough, options);
    node.store.set_role(Role::Primary { epoch: 1 }).unwrap();
    let client = node.mount();
    client.exec(
        "PRAGMA journal_mode=MEMORY; PRAGMA synchronous=FULL; CREATE TABLE t(x INTEGER PRIMARY KEY, y)",
    );
    client.exec(
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < 60) \
         INSERT INTO t SELECT n, randomblob(900) FROM c",
    );
    node.db().drain().unwrap();
    (node, client)
}

/// Ends the node's threads, so that nothing but the client's own requests has a part in its COMMIT; then the machine starts again.
fn commit_and_lose_power(node: Node, client: Client, disk: &Durable) -> TempDir {
    node.store.abandon();
    client.exec("CREATE INDEX i ON t(x); UPDATE t SET y=zeroblob(900)");
    let dir = node.kill();
    client.kill();
    disk.cut_off();
    lose_power(dir.path());
    dir
}

fn check(dir: TempDir) {
    let node = Node::open(dir);
    node.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    let reader = node.mount();
    assert_eq!(reader.query("SELECT count(*) FROM t WHERE y=zeroblob(900)"), "60");
    assert_eq!(reader.query("SELECT count(*) FROM sqlite_schema"), "2");
    integrity(&reader);
    // The log says the same as the file: a replica gets all of it.
    let replica = Node::new();
    replicate(&node, &replica);
    assert_eq!(node.digest(), replica.digest());
    integrity(&replica.connect());
}

#[test]
fn a_synced_commit_without_a_journal_is_in_the_log_before_it_returns() {
    let disk = Durable::default();
    let (node, client) = primary_on(&disk);
    check(commit_and_lose_power(node, client, &disk));
}

/// The table does not tell which pages changed since: only the record does.
#[test]
fn such_a_commit_is_whole_when_the_table_was_flushed_before_it() {
    let disk = Durable::default();
    let (node, client) = primary_on(&disk);
    node.store.maintain(&Retention::default());
    check(commit_and_lose_power(node, client, &disk));
}

/// The log is synced first, so the power may go before any of the pages is on disk.
#[test]
fn such_a_commit_is_written_from_the_log_when_the_main_file_lost_it() {
    let disk = Durable::default();
    let (node, client) = primary_on(&disk);
    let (path, before) = (node.path(), std::fs::read(node.path()).unwrap());
    let dir = commit_and_lose_power(node, client, &disk);
    std::fs::write(path, before).unwrap();
    check(dir);
}
