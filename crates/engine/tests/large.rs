//! Databases that reach beyond the page with the lock bytes, which holds no content and is in no record.

mod common;

use common::{Node, name, replicate, wait_applied};
use ltx::{Checksum, Encoder, Header, PageSize, Pgno, Pos, Txid};

const SIZE: PageSize = PageSize::MAX;

fn page(pgno: Pgno, value: u8) -> Vec<u8> {
    vec![value.wrapping_add(pgno.get() as u8); SIZE.bytes()]
}

fn page_one(pages: u32) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let connection = rusqlite::Connection::open(file.path()).unwrap();
    connection
        .execute_batch("PRAGMA page_size=65536; VACUUM; CREATE TABLE t(x)")
        .unwrap();
    drop(connection);
    let mut page = std::fs::read(file.path()).unwrap()[..SIZE.bytes()].to_vec();
    sqlite_format::header::set_page_count(&mut page, pages);
    page
}

/// A record that sets the given pages.
fn record(pos: Pos, commit: u32, sums: &mut [u64], pages: &[(u32, Vec<u8>)]) -> (Vec<u8>, Pos) {
    let txid = Txid(pos.txid.0 + 1);
    let header = Header {
        compressed: true,
        page_size: SIZE,
        commit,
        min_txid: txid,
        max_txid: txid,
        timestamp: 1,
        pre_apply: if txid == Txid::FIRST {
            Checksum::NONE
        } else {
            pos.post_apply
        },
        wal: None,
        node_id: 1,
    };
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (number, data) in pages {
        let pgno = Pgno::new(*number).unwrap();
        encoder.encode_page(pgno, data).unwrap();
        sums[*number as usize] = ltx::page_checksum(pgno, data).0;
    }
    let rolling = sums[1..=commit as usize]
        .iter()
        .fold(Checksum::EMPTY_DATABASE, |rolling, sum| match sum {
            0 => rolling,
            sum => rolling.xor(Checksum(*sum)),
        });
    let (bytes, _) = encoder.finish(rolling).unwrap();
    (bytes, Pos::new(txid, rolling))
}

#[test]
#[ignore = "passes over a gigabyte a dozen times; run with --ignored"]
fn the_page_with_the_lock_bytes_is_left_out_everywhere() {
    let lock = SIZE.lock_page().get();
    let commit = lock + 2;
    let mut sums = vec![0; commit as usize + 10];
    let zeros = vec![0; SIZE.bytes()];
    let first: Vec<(u32, Vec<u8>)> = (1..=commit)
        .filter(|number| *number != lock)
        .map(|number| match number {
            1 => (1, page_one(commit)),
            _ if number > lock - 2 => (number, page(Pgno::new(number).unwrap(), 1)),
            _ => (number, zeros.clone()),
        })
        .collect();
    let (bytes, pos) = record(Pos::ZERO, commit, &mut sums, &first);
    let node = Node::new();
    node.store.receive(&name(), &mut &bytes[..]).unwrap();
    wait_applied(&node);
    assert_eq!(node.db().position(), pos);
    assert_eq!(
        std::fs::metadata(node.path()).unwrap().len(),
        u64::from(commit) * u64::from(SIZE.get())
    );
    // Shrinks to end with the lock page's neighbour, and grows across it again.
    let (bytes, pos) = record(pos, lock - 1, &mut sums, &[(1, page_one(lock - 1))]);
    node.store.receive(&name(), &mut &bytes[..]).unwrap();
    let next = [
        (1, page_one(lock + 1)),
        (lock - 1, page(Pgno::FIRST, 9)),
        (lock + 1, page(Pgno::FIRST, 8)),
    ];
    let (bytes, pos) = record(pos, lock + 1, &mut sums, &next);
    node.store.receive(&name(), &mut &bytes[..]).unwrap();
    wait_applied(&node);
    assert_eq!((node.db().position(), node.db().status().pages), (pos, lock + 1));
    let snapshot = node.db().snapshot().unwrap();
    assert_eq!(snapshot.pos, pos);
    let summary = ltx::verify(&mut snapshot.ltx(1).unwrap()).unwrap();
    assert_eq!(
        (summary.trailer.post_apply, summary.header.commit),
        (pos.post_apply, lock + 1)
    );
    // A start finds nothing wrong, and a primary nothing new.
    let again = Node::open(node.kill());
    again.store.set_role(engine::Role::Primary { epoch: 1 }).unwrap();
    assert_eq!(again.db().reconcile().unwrap(), pos);
    // What clients put there is not content.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(again.path())
        .unwrap();
    let offset = Pgno::new(lock).unwrap().offset(SIZE);
    again
        .db()
        .write_database(&file, offset, &page(Pgno::FIRST, 3))
        .unwrap();
    assert_eq!(again.db().reconcile().unwrap(), pos);
}

/// SQLite itself skips the page when the database grows across it.
#[test]
#[ignore = "passes over a gigabyte several times; run with --ignored"]
fn a_client_may_grow_a_database_across_the_lock_page() {
    let lock = SIZE.lock_page().get();
    let node = Node::primary();
    let client = node.mount();
    client.exec("PRAGMA page_size=65536; PRAGMA journal_mode=WAL; PRAGMA cache_size=100; CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    node.db().drain().unwrap();
    drop(client);
    // A sparse file stands for a gigabyte of free pages.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .read(true)
        .open(node.path())
        .unwrap();
    let mut head = vec![0; SIZE.bytes()];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut head, 0).unwrap();
    sqlite_format::header::set_page_count(&mut head, lock - 2);
    sqlite_format::header::increment_change_counter(&mut head);
    node.db()
        .truncate_database(&file, u64::from(lock - 2) * u64::from(SIZE.get()))
        .unwrap();
    node.db().write_database(&file, 0, &head).unwrap();
    node.db().reconcile().unwrap();
    let client = node.mount();
    for x in 0..6 {
        client.exec(&format!("INSERT INTO t VALUES({x}, randomblob(60000))"));
    }
    assert!(node.db().drain().is_ok());
    assert!(node.db().status().pages > lock);
    client.exec("PRAGMA wal_checkpoint(TRUNCATE)");
    drop(client);
    let pos = node.db().drain().unwrap();
    let replica = Node::new();
    // Fails where the content does not have the checksum of the position.
    replicate(&node, &replica);
    assert_eq!(replica.db().position(), pos);
    assert_eq!(
        replica
            .connect()
            .query("SELECT count(*) FROM t WHERE length(y)=60000"),
        "6"
    );
}
