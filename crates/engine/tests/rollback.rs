//! A transaction that is under way when its node ceases to be the primary ends there, whoever ends it, and the node follows on.

mod common;

use common::{Client, Node, count, integrity, replicate, send_last, wait_applied};
use engine::{Coherence, Retention, Role, StoreOptions};

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// The client rolls back.
    Rollback,
    /// It tries to commit.
    Commit,
    /// It dies, and leaves a hot journal to the next client.
    ReadAfterDeath,
    /// It dies, and the next record comes first.
    ApplyAfterDeath,
}

const ENDS: [End; 4] = [
    End::Rollback,
    End::Commit,
    End::ReadAfterDeath,
    End::ApplyAfterDeath,
];

/// A former primary whose client is in a transaction that took pages of the free list into use, which SQLite does not journal; and the new
/// primary.
fn demoted_over_free_pages(coherence: Coherence, mode: &str) -> (Node, Node, Client) {
    let options = StoreOptions {
        segment_bytes: 4096,
        ..StoreOptions::default()
    };
    let old = Node::open_with(tempfile::tempdir().unwrap(), coherence, options);
    old.store.set_role(Role::Primary { epoch: 1 }).unwrap();
    let client = old.mount();
    client.exec(&format!(
        "PRAGMA page_size=1024; PRAGMA journal_mode={mode}; CREATE TABLE t(x INTEGER PRIMARY KEY, y); CREATE TABLE u(x, y)"
    ));
    client.exec("WITH r(n) AS (VALUES(1) UNION ALL SELECT n+1 FROM r WHERE n < 40) INSERT INTO u SELECT n, randomblob(20000) FROM r");
    client.exec("DELETE FROM u WHERE x % 2 = 0; INSERT INTO t VALUES(1, 'one')");
    let new = Node::new();
    replicate(&old, &new);
    client.exec("PRAGMA cache_size=10; BEGIN IMMEDIATE");
    client.exec("WITH r(n) AS (VALUES(1) UNION ALL SELECT n+1 FROM r WHERE n < 10) INSERT INTO u SELECT -n, randomblob(20000) FROM r");
    old.store.set_role(Role::Replica).unwrap();
    new.store.set_role(Role::Primary { epoch: 2 }).unwrap();
    (old, new, client)
}

/// All cases at once: each waits for a client that is in a transaction.
#[test]
fn free_pages_that_a_rolled_back_transaction_used_are_as_before_it() {
    std::thread::scope(|scope| {
        for coherence in [Coherence::Passthrough, Coherence::Intercepted] {
            for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
                for end in ENDS {
                    scope.spawn(move || free_pages_are_as_before(coherence, mode, end));
                }
            }
        }
    });
}

fn free_pages_are_as_before(coherence: Coherence, mode: &str, end: End) {
    let case = format!("{coherence:?} {mode} {end:?}");
    let (old, new, client) = demoted_over_free_pages(coherence, mode);
    let before = new.digest();
    match end {
        End::Rollback => client.exec("ROLLBACK"),
        End::Commit => {
            let refused = client.try_exec("COMMIT").unwrap_err();
            assert!(
                refused.contains("readonly") || refused.contains("I/O"),
                "{case}: {refused}"
            );
            let _ = client.try_exec("ROLLBACK");
        }
        End::ReadAfterDeath | End::ApplyAfterDeath => client.kill(),
    }
    if end != End::ApplyAfterDeath {
        assert_eq!(count(&old.mount()), 1, "{case}");
        assert_eq!(old.digest(), before, "{case}");
    }
    new.mount().exec("INSERT INTO t VALUES(2, 'two')");
    send_last(&new, &old);
    wait_applied(&old);
    assert_eq!(old.digest(), new.digest(), "{case}");
    let reader = old.mount();
    assert_eq!(count(&reader), 2, "{case}");
    integrity(&reader);
    assert_eq!(old.db().status().quarantine, None, "{case}");
}

/// Then only a snapshot can tell what the pages were, and nothing keeps it out.
#[test]
fn free_pages_that_the_log_does_not_have_any_more_come_with_a_snapshot() {
    std::thread::scope(|scope| {
        for end in ENDS {
            scope.spawn(move || free_pages_come_with_a_snapshot(end));
        }
    });
}

fn free_pages_come_with_a_snapshot(end: End) {
    let (old, new, client) = demoted_over_free_pages(Coherence::Passthrough, "DELETE");
    old.store.maintain(&Retention {
        max_bytes: Some(0),
        ..Retention::default()
    });
    match end {
        End::Rollback => client.exec("ROLLBACK"),
        End::Commit => drop(client.try_exec("COMMIT; ROLLBACK")),
        End::ReadAfterDeath | End::ApplyAfterDeath => client.kill(),
    }
    if end != End::ApplyAfterDeath {
        assert_eq!(count(&old.mount()), 1, "{end:?}");
    }
    new.mount().exec("INSERT INTO t VALUES(2, 'two')");
    if end == End::ApplyAfterDeath {
        send_last(&new, &old);
        wait_until_quarantined(&old);
    }
    assert!(old.db().status().quarantine.is_some(), "{end:?}");
    common::send_snapshot(&new, &old);
    wait_applied(&old);
    assert_eq!(old.digest(), new.digest(), "{end:?}");
    let reader = old.mount();
    assert_eq!(count(&reader), 2, "{end:?}");
    integrity(&reader);
}

fn wait_until_quarantined(node: &Node) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while node.db().status().quarantine.is_none() {
        assert!(std::time::Instant::now() < deadline, "never quarantined");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
