//! The power goes when a client without a journal on disk has just been told that its COMMIT succeeded. What it synced is in the main
//! file; of the log there is what was synced.

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use common::disk::{Watch, Watched};
use common::{Client, Node, ROWS, integrity, lose_power, replicate};
use engine::disk::{DiskFile, Op, Result};
use engine::{Retention, Role, StoreOptions};
use tempfile::TempDir;

/// Knows how much of each segment of a log survives a power loss.
#[derive(Debug, Clone, Default)]
struct Durable(Arc<Mutex<BTreeMap<PathBuf, u64>>>);

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

impl Watch for Durable {
    fn synced(&self, op: Op, file: &dyn DiskFile) -> Result<()> {
        let len = file.len(op)?;
        self.0.lock().unwrap().insert(file.path().to_owned(), len);
        Ok(())
    }
}

fn primary_on(disk: &Durable) -> (Node, Client) {
    let options = StoreOptions {
        disk: Arc::new(Watched(disk.clone())),
        ..StoreOptions::default()
    };
    let node = Node::primary_with(options);
    let client = node.mount();
    client.exec(
        "PRAGMA journal_mode=MEMORY; PRAGMA synchronous=FULL; CREATE TABLE t(x INTEGER PRIMARY KEY, y)",
    );
    client.exec(ROWS);
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
