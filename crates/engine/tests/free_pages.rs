//! Pages that a transaction adds to the database and frees again are never written: nobody but a byte-wise copy cares what
//! they hold, and it must be the same everywhere.

mod common;

use common::{Node, integrity, replicate};
use engine::{Coherence, Role, StoreOptions};

/// The frames of such a page are older than the last checkpoint: readers look past them, into the main file.
#[test]
fn pages_that_come_back_unwritten_have_the_content_of_the_main_file() {
    for coherence in [Coherence::Passthrough, Coherence::Intercepted] {
        let node = Node::open_with(tempfile::tempdir().unwrap(), coherence, StoreOptions::default());
        node.store.set_role(Role::Primary { epoch: 1 }).unwrap();
        let replica = Node::new();
        let client = node.mount();
        client.exec("PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0");
        client.exec("CREATE TABLE t(x INTEGER PRIMARY KEY, y); INSERT INTO t VALUES(0, 0)");
        let reader = node.mount();
        for round in 0..3 {
            client.exec("INSERT INTO t VALUES(1, randomblob(200000))");
            client.exec("DELETE FROM t WHERE x=1");
            // The database shrinks in the WAL, then in the main file; a reader keeps the WAL from starting over.
            client.exec("PRAGMA incremental_vacuum");
            reader.exec("BEGIN");
            assert_eq!(common::count(&reader), 1);
            client.exec("PRAGMA wal_checkpoint(PASSIVE)");
            client.exec("BEGIN; INSERT INTO t VALUES(1, zeroblob(200000)); DELETE FROM t WHERE x=1; COMMIT");
            replicate(&node, &replica);
            reader.exec("COMMIT");
            client.exec("PRAGMA wal_checkpoint(TRUNCATE)");
            replicate(&node, &replica);
            assert_eq!(node.digest(), replica.digest(), "{coherence:?}, round {round}");
            let position = node.db().drain().unwrap();
            assert_eq!(
                node.db().reconcile().unwrap(),
                position,
                "{coherence:?}, round {round}"
            );
        }
        integrity(&replica.connect());
    }
}
