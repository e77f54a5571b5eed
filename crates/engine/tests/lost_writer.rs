//! A client dies between the moment when its commit is durable and the one when others can see it. Nobody was told that it
//! succeeded, and the next writer overwrites its frames.

mod common;

use common::{Node, count, integrity, replicate};
use engine::{Coherence, Role, StoreOptions};

fn lose_writers(coherence: Coherence, synchronous: &str) {
    let node = Node::open_with(tempfile::tempdir().unwrap(), coherence, StoreOptions::default());
    node.store.set_role(Role::Primary { epoch: 1 }).unwrap();
    let client = node.mount();
    let setup = format!("PRAGMA synchronous={synchronous}; PRAGMA wal_autocheckpoint=0");
    client.exec(&format!(
        "PRAGMA journal_mode=WAL; {setup}; CREATE TABLE t(x INTEGER PRIMARY KEY, y)"
    ));
    let replica = Node::new();
    let mut rows = 0;
    for (round, (lost, next)) in [(10, 10), (9000, 10), (10, 9000), (9000, 20000)]
        .into_iter()
        .enumerate()
    {
        client.exec(&format!("INSERT INTO t VALUES({}, randomblob(500))", 100 * round));
        rows += 1;
        let victim = node.mount();
        victim.exec(&setup);
        assert_eq!(count(&victim), rows);
        node.edge.kill_next_committer();
        victim.send(&format!(
            "INSERT INTO t VALUES({}, randomblob({lost}))",
            100 * round + 1
        ));
        victim.await_death();
        replicate(&node, &replica);
        assert_eq!(count(&client), rows, "the others never saw it");
        if round % 2 == 1 {
            // The WAL starts over without it.
            client.exec("PRAGMA wal_checkpoint(RESTART)");
        }
        client.exec(&format!(
            "INSERT INTO t VALUES({}, randomblob({next}))",
            100 * round + 2
        ));
        rows += 1;
        node.db().drain().unwrap();
        replicate(&node, &replica);
        assert_eq!(node.digest(), replica.digest(), "round {round}");
        assert_eq!(count(&client), rows);
        let reader = replica.connect();
        assert_eq!(count(&reader), rows, "round {round}");
        integrity(&reader);
    }
    client.exec("PRAGMA wal_checkpoint(TRUNCATE)");
    let position = node.db().drain().unwrap();
    assert_eq!(node.db().reconcile().unwrap(), position);
}

#[test]
fn a_commit_that_was_synced_and_never_published_is_taken_back() {
    lose_writers(Coherence::Passthrough, "FULL");
}

#[test]
fn a_commit_that_was_written_and_never_published_is_taken_back() {
    lose_writers(Coherence::Intercepted, "NORMAL");
}
