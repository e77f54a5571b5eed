//! A database that was grown by a hole costs what its data costs: holes are not read, and replicas have them too.

mod common;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use common::{Node, checkpoint, integrity, replicate};
use ltx::{Checksum, PageSize, Pgno};
use sqlite_format::header;

const SIZE: PageSize = PageSize::DEFAULT;
const PAGES: u32 = (32 << 20) / 4096;
/// What the few pages with content and what is read around them may cost.
const LITTLE: u64 = 1 << 20;
/// An entry for a page of zeros is small, and there is one for each.
const LOG: u64 = 2 << 20;

/// Bytes that this thread has read from files so far.
fn bytes_read() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.unwrap().parse().unwrap()
}

fn reading<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let before = bytes_read();
    let result = run();
    let read = bytes_read() - before;
    assert!(read < LITTLE, "{what} reads {read} bytes");
    result
}

/// Bytes that a file, or all files of a directory, use on disk.
fn used(path: &std::path::Path) -> u64 {
    let metadata = std::fs::metadata(path).unwrap();
    match metadata.is_dir() {
        true => std::fs::read_dir(path)
            .unwrap()
            .map(|entry| used(&entry.unwrap().path()))
            .sum(),
        false => metadata.blocks() * 512,
    }
}

fn primary(journal_mode: &str) -> Node {
    let node = Node::primary();
    let client = node.mount();
    client.exec(&format!(
        "PRAGMA page_size=4096; PRAGMA journal_mode={journal_mode}; CREATE TABLE t(x INTEGER PRIMARY KEY, y)"
    ));
    client.exec("INSERT INTO t VALUES(1, randomblob(100000))");
    drop(client);
    node.db().drain().unwrap();
    node
}

/// A raw write, as of a program that makes a sparse file.
fn grow(node: &Node, pages: u32) {
    let file = File::options().read(true).write(true).open(node.path()).unwrap();
    let mut head = vec![0; SIZE.bytes()];
    file.read_exact_at(&mut head, 0).unwrap();
    header::set_page_count(&mut head, pages);
    header::increment_change_counter(&mut head);
    let size = SIZE.file_size(pages);
    node.db().truncate_database(&file, size).unwrap();
    node.db().write_database(&file, 0, &head).unwrap();
}

/// The checksum of the file's bytes, with nothing but them to go by.
fn checksum(path: &std::path::Path) -> Checksum {
    let file = File::open(path).unwrap();
    let mut page = vec![0; SIZE.bytes()];
    let pages = Pgno::up_to((file.metadata().unwrap().len() / u64::from(SIZE.get())) as u32);
    pages.fold(Checksum::EMPTY_DATABASE, |sum, pgno| {
        file.read_exact_at(&mut page, pgno.offset(SIZE)).unwrap();
        sum.xor(ltx::page_checksum(pgno, &page))
    })
}

fn a_hole_is_cheap(journal_mode: &str) {
    let node = primary(journal_mode);
    let replica = Node::new();
    replicate(&node, &replica);
    grow(&node, PAGES);
    let pos = reading("capture", || node.db().reconcile().unwrap());
    assert_eq!(node.db().status().pages, PAGES);
    let record = node.db().record(pos.txid).unwrap().unwrap();
    assert!(record.info.len < LOG, "the record has {} bytes", record.info.len);
    // LiteFS adds up what the record holds, so each new page is in it.
    assert!(ltx::verify(record.reader()).unwrap().pages > PAGES - 100);
    assert_eq!(pos.post_apply, checksum(&node.path()));

    replicate(&node, &replica);
    assert_eq!(replica.db().position(), pos);
    let files = replica.store.files_dir();
    assert!(
        used(files) < LITTLE,
        "{journal_mode}: the replica's files use {} bytes",
        used(files)
    );
    // A client sees the size, and its checkpoint makes the file that long.
    let client = replica.mount();
    assert_eq!(client.query("PRAGMA page_count"), PAGES.to_string());
    assert_eq!(client.query("SELECT length(y) FROM t"), "100000");
    checkpoint(&client, "TRUNCATE");
    drop(client);
    assert_eq!(
        std::fs::metadata(replica.path()).unwrap().len(),
        SIZE.file_size(PAGES)
    );
    assert!(used(files) < LITTLE);
    assert_eq!(checksum(&replica.path()), pos.post_apply);

    let snapshot = reading("a snapshot", || node.db().snapshot().unwrap());
    assert_eq!(
        (snapshot.pos, snapshot.database_len()),
        (pos, SIZE.file_size(PAGES))
    );
    let late = Node::new();
    late.store
        .receive(&common::name(), &mut snapshot.ltx(1).unwrap())
        .unwrap();
    common::wait_applied(&late);
    assert_eq!(checksum(&late.path()), pos.post_apply);
    assert!(used(late.store.files_dir()) < LITTLE);
    the_hole_goes_away(&node, &replica, journal_mode);
}

fn the_hole_goes_away(node: &Node, replica: &Node, journal_mode: &str) {
    let client = node.mount();
    client.exec("INSERT INTO t VALUES(2, randomblob(100000))");
    replicate(node, replica);
    assert!(used(replica.store.files_dir()) < 2 * LITTLE);
    client.exec("VACUUM");
    replicate(node, replica);
    let reader = replica.mount();
    integrity(&reader);
    assert_eq!(common::count(&reader), 2);
    drop(reader);
    assert!(node.db().status().pages < 100);
    assert_eq!(node.digest(), replica.digest(), "{journal_mode}");
    drop(client);
    // What was cut off comes back as zeros.
    node.db().drain().unwrap();
    grow(node, PAGES / 10);
    let pos = node.db().reconcile().unwrap();
    replicate(node, replica);
    assert_eq!(node.digest(), replica.digest(), "{journal_mode}");
    assert_eq!(pos, replica.db().position());
}

#[test]
fn a_hole_is_not_read_and_not_written_in_wal_mode() {
    a_hole_is_cheap("WAL");
}

#[test]
fn a_hole_is_not_read_and_not_written_in_rollback_mode() {
    a_hole_is_cheap("DELETE");
}

/// Pages that were cut off may come back as zeros: what the WAL of a replica holds of them from before is not their content.
#[test]
fn pages_that_come_back_empty_are_not_read_from_old_frames() {
    let node = primary("WAL");
    let replica = Node::new();
    replicate(&node, &replica);
    // Keeps the WAL.
    let reader = replica.mount();
    assert_eq!(common::count(&reader), 1);
    let client = node.mount();
    client.exec("INSERT INTO t VALUES(2, randomblob(200000))");
    replicate(&node, &replica);
    let pages = node.db().status().pages;
    client.exec("DELETE FROM t WHERE x = 2; VACUUM");
    replicate(&node, &replica);
    checkpoint(&client, "TRUNCATE");
    drop(client);
    assert!(node.db().status().pages < pages);
    grow(&node, pages);
    let pos = node.db().reconcile().unwrap();
    replicate(&node, &replica);
    assert_eq!(reader.query("PRAGMA page_count"), pages.to_string());
    checkpoint(&reader, "TRUNCATE");
    assert_eq!(checksum(&replica.path()), pos.post_apply);
}

/// After a kill the files are compared with the log, from which the table is made again.
#[test]
fn a_start_reads_data_only() {
    let node = primary("DELETE");
    grow(&node, PAGES);
    let pos = node.db().reconcile().unwrap();
    let home = node.kill();
    let node = reading("a start", || Node::open(home));
    assert_eq!(node.db().position(), pos);
    assert_eq!(checksum(&node.path()), pos.post_apply);
}
