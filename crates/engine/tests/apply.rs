//! What readers of a replica see while transactions are applied under their feet.

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{
    Client, Node, ROWS, checkpoint, count, integrity, name, replicate, send_snapshot, wait_applied,
};
use engine::{Coherence, Role, Side, StoreOptions};
use ltx::{Checksum, Encoder, Header, Txid};
use sqlite_format::{PageSize, Pgno};

fn wal_primary() -> (Node, Client) {
    let primary = Node::primary();
    let client = primary.mount();
    client.exec(
        "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(x INTEGER PRIMARY KEY, y)",
    );
    (primary, client)
}

/// Where the WAL is read through the daemon, what rests in it costs a reader a request for each page.
#[test]
fn what_was_applied_moves_to_the_main_file_while_readers_are_connected() {
    let (primary, client) = wal_primary();
    let replica = Node::new();
    replicate(&primary, &replica);
    let reader = replica.mount();
    assert_eq!(count(&reader), 0);
    client.exec("INSERT INTO t VALUES(1, randomblob(9000))");
    replicate(&primary, &replica);
    let shm = replica.store.files_dir().join("a.db-shm");
    let moved = || {
        let index = std::fs::read(&shm).unwrap();
        let word = |at: usize| u32::from_ne_bytes(index[at..at + 4].try_into().unwrap());
        // mxFrame and nBackfill.
        word(16) > 0 && word(16) == word(96)
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !moved() {
        assert!(Instant::now() < deadline, "the frames stay in the WAL");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(count(&reader), 1);
}

/// SQLite makes the wal-index say that the WAL is empty before it overwrites a frame. A reader that came between the two
/// would look for its pages in frames that hold others by now.
#[test]
fn a_reader_that_comes_while_the_wal_starts_over_sees_the_main_file() {
    let (primary, client) = wal_primary();
    client.exec("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < 50) INSERT INTO t SELECT n, randomblob(900) FROM c");
    let replica = Node::new();
    replicate(&primary, &replica);
    // Somebody stays connected, so that the wal-index lives.
    let connected = replica.connect();
    assert_eq!(count(&connected), 50);
    for round in 0..3 {
        client.exec("UPDATE t SET y=randomblob(900)");
        replicate(&primary, &replica);
        assert_eq!(count(&connected), 50 + round);
        // Everything is in the main file and nobody reads: the next apply starts over.
        checkpoint(&connected, "PASSIVE");
        let path = replica.path();
        let seen = Arc::new(AtomicU32::new(0));
        let seeing = seen.clone();
        replica.kernel.on_store(move |side| {
            if side == Side::Wal {
                let reader = Client::connect(&path);
                integrity(&reader);
                assert_eq!(count(&reader), 50 + round);
                seeing.fetch_add(1, Ordering::SeqCst);
            }
        });
        client.exec(&format!(
            "INSERT INTO t VALUES({}, randomblob(9000))",
            100 + round
        ));
        replicate(&primary, &replica);
        replica.kernel.on_store(|_| {});
        assert!(seen.load(Ordering::SeqCst) > 0, "nobody looked");
        assert_eq!(count(&connected), 51 + round);
        integrity(&connected);
        assert_eq!(primary.digest(), replica.digest());
    }
}

/// The first client to connect empties the wal-index. If that happened between the look at the index and the publication
/// of frames, a valid header would vouch for hash tables that lack all older frames.
#[test]
fn a_client_that_connects_first_finds_all_frames() {
    let (primary, client) = wal_primary();
    let replica = Node::new();
    client.exec("INSERT INTO t VALUES(1, 'one')");
    replicate(&primary, &replica);
    // The only client dies and leaves its wal-index behind.
    let killed = replica.connect();
    assert_eq!(count(&killed), 1);
    client.exec("INSERT INTO t VALUES(2, 'two')");
    replicate(&primary, &replica);
    killed.kill();
    let path = replica.path();
    let first: Arc<Mutex<Option<Client>>> = Arc::default();
    let connecting = first.clone();
    replica.kernel.on_store(move |side| {
        if side == Side::Wal {
            // It waits for the apply, so it cannot be waited for here.
            let client = Client::connect(&path);
            client.send("SELECT count(*) FROM t");
            *connecting.lock().unwrap() = Some(client);
        }
    });
    client.exec("INSERT INTO t VALUES(3, 'three')");
    replicate(&primary, &replica);
    replica.kernel.on_store(|_| {});
    let reader = first.lock().unwrap().take().expect("somebody connected");
    assert_eq!(reader.receive().unwrap(), "3");
    integrity(&reader);
    assert_eq!(primary.digest(), replica.digest());
}

/// A node that was the primary keeps writers from then out of the WAL. Without any, nothing may keep a new reader from
/// building the wal-index, for which it needs the same lock.
#[test]
fn readers_connect_after_the_node_has_become_a_replica() {
    for coherence in [Coherence::Passthrough, Coherence::Intercepted] {
        let node = Node::open_with(tempfile::tempdir().unwrap(), coherence, StoreOptions::default());
        node.store.set_role(Role::Primary { epoch: 1 }).unwrap();
        let client = node.mount();
        client.exec("PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1)");
        node.store.set_role(Role::Replica).unwrap();
        let error = client.try_exec("PRAGMA busy_timeout=10; INSERT INTO t VALUES(2)");
        assert!(error.is_err(), "the old connection still writes");
        assert_eq!(count(&node.mount()), 1);
        // Once it is gone, with or without a word, the fence falls.
        client.kill();
        assert_eq!(count(&node.mount()), 1);
        node.store.set_role(Role::Primary { epoch: 2 }).unwrap();
        node.mount().exec("INSERT INTO t VALUES(3)");
        node.store.set_role(Role::Replica).unwrap();
        assert_eq!(count(&node.mount()), 2);
    }
}

/// SQLite goes by the size of the database at the time when its checkpoint began.
#[test]
fn a_checkpoint_that_began_before_the_database_shrank_may_finish() {
    let (primary, client) = wal_primary();
    client
        .exec("PRAGMA wal_autocheckpoint=0; CREATE TABLE big(x); INSERT INTO big VALUES(randomblob(400000))");
    let replica = Node::new();
    replicate(&primary, &replica);
    client.exec("INSERT INTO big VALUES(randomblob(100000))");
    replicate(&primary, &replica);
    let reader = replica.mount();
    let large = replica.db().status().pages;
    let page = Pgno::new(large).unwrap().offset(PageSize::new(4096).unwrap());
    client.exec("DROP TABLE big; VACUUM");
    replicate(&primary, &replica);
    let small = replica.db().status().pages;
    assert!(small < large, "{small} of {large}");

    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(replica.path())
        .unwrap();
    replica.db().write_database(&file, page, &[7; 4096]).unwrap();
    // What readers may look for is protected as ever.
    replica.db().write_database(&file, 4096, &[7; 4095]).unwrap_err();
    integrity(&reader);
    checkpoint(&reader, "TRUNCATE");
    integrity(&reader);
    let size = std::fs::metadata(replica.path()).unwrap().len();
    assert_eq!(
        size,
        u64::from(small) * 4096,
        "the last checkpoint cuts the file off"
    );
    client.exec("CREATE TABLE again(x); INSERT INTO again VALUES(zeroblob(600000))");
    replicate(&primary, &replica);
    integrity(&reader);
    assert_eq!(primary.digest(), replica.digest());
}

/// A record that comes after what a node has, of one page, and of a length and an outcome of the test's choice.
fn foreign_record(node: &Node, commit: u32, post: Checksum) -> Vec<u8> {
    let pos = node.db().position();
    let txid = Txid(pos.txid.0 + 1);
    let header = Header {
        compressed: true,
        page_size: PageSize::new(4096).unwrap(),
        commit,
        min_txid: txid,
        max_txid: txid,
        timestamp: 1,
        pre_apply: pos.post_apply,
        wal: None,
        node_id: 1,
    };
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    encoder.encode_page(Pgno::new(2).unwrap(), &[7; 4096]).unwrap();
    encoder.finish(post).unwrap().0
}

/// Whatever the journal mode, readers go on with what they had.
#[test]
fn a_record_that_does_not_lead_where_it_says_is_not_applied() {
    for mode in ["DELETE", "WAL"] {
        let primary = Node::primary();
        let client = primary.mount();
        client.exec(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(x INTEGER PRIMARY KEY, y)"
        ));
        client.exec(ROWS);
        let replica = Node::new();
        replicate(&primary, &replica);
        let reader = replica.connect();
        assert_eq!(count(&reader), 60);
        let wrong = foreign_record(&replica, 4, Checksum::EMPTY_DATABASE);
        let _ = replica.store.receive(&name(), &mut &wrong[..]);
        let deadline = Instant::now() + Duration::from_secs(10);
        while replica.db().status().quarantine.is_none() {
            assert!(Instant::now() < deadline, "{mode}: it counts as sound");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(count(&reader), 60, "{mode}");
        assert_eq!(count(&replica.connect()), 60, "{mode}");
        client.exec("INSERT INTO t VALUES(1000, 1)");
        send_snapshot(&primary, &replica);
        wait_applied(&replica);
        assert_eq!(count(&reader), 61, "{mode}");
    }
}

#[test]
fn a_record_that_cannot_be_a_transaction_for_its_length_is_not_received() {
    let primary = Node::primary();
    primary.mount().exec("CREATE TABLE t(x)");
    let replica = Node::new();
    replicate(&primary, &replica);
    let before = replica.db().received();
    let endless = foreign_record(&replica, u32::MAX - 1, Checksum::EMPTY_DATABASE);
    let refused = replica.store.receive(&name(), &mut &endless[..]).unwrap_err();
    assert!(refused.to_string().contains("lacks 429"), "{refused}");
    assert_eq!(replica.db().received(), before);
}

/// In rollback mode nothing but the lock keeps a reader from a file in which a transaction is half written, or from pages of before in the
/// kernel's cache beside pages of after.
#[test]
fn readers_find_the_database_locked_while_a_transaction_is_applied_in_rollback_mode() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
        let primary = Node::primary();
        let client = primary.mount();
        client.exec(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(x INTEGER PRIMARY KEY, y)"
        ));
        client.exec("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < 50) INSERT INTO t SELECT n, printf('%0900d', 0) FROM c");
        let replica = Node::new();
        replicate(&primary, &replica);
        let reader = replica.connect();
        reader.exec("PRAGMA busy_timeout=0");
        let reader = Arc::new(Mutex::new(reader));
        let seen: Arc<Mutex<Vec<_>>> = Arc::default();
        let (reading, seeing) = (reader.clone(), seen.clone());
        replica.kernel.on_invalidate(move |side| {
            if side == Side::Database {
                let read = reading.lock().unwrap().try_exec("SELECT count(*) FROM t");
                seeing.lock().unwrap().push(read);
            }
        });
        client.exec("UPDATE t SET y=printf('%0900d', 1)");
        replicate(&primary, &replica);
        let deadline = Instant::now() + Duration::from_secs(10);
        while seen.lock().unwrap().is_empty() {
            assert!(Instant::now() < deadline, "{mode}: nobody looked");
            std::thread::sleep(Duration::from_millis(1));
        }
        replica.kernel.on_invalidate(|_| {});
        for read in &*seen.lock().unwrap() {
            let locked = read.as_ref().is_err_and(|error| error.contains("locked"));
            assert!(locked, "{mode}: {read:?}");
        }
        let reader = reader.lock().unwrap();
        reader.exec("PRAGMA busy_timeout=5000");
        assert_eq!(
            reader.query("SELECT count(*) FROM t WHERE y=printf('%0900d', 1)"),
            "50",
            "{mode}"
        );
        integrity(&reader);
    }
}
