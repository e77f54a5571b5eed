//! Real daemons, mounts and faults: what is written on the primary is read everywhere, whatever happens on the way.
//!
//! Each test ends with [`sound`]: all nodes at the same positions with the same bytes, and SQLite finds no fault in them.

mod support;

use std::fs::Permissions;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use litefs_api::{Archived, Event, Position};
use litefs_dev::wire::LinkPolicy;
use litefs_dev::{Cluster, ClusterOptions, Condition, Durability, Node, NodeRole, Passthrough, Station};
use serde_json::Value;
use support::{PATIENCE, daemons, eventually};

const TTL: Duration = Duration::from_secs(3);
const DB: &str = "app.db";

fn cluster(nodes: usize) -> Option<Cluster> {
    daemons(ClusterOptions {
        nodes,
        ttl: TTL,
        ..ClusterOptions::default()
    })
}

/// Makes a table on the primary, in the given journal mode.
fn create(cluster: &Cluster, journal_mode: &str) {
    let primary = cluster.primary().unwrap();
    primary
        .sql(
            DB,
            &format!("PRAGMA journal_mode = {journal_mode}; CREATE TABLE t (a INTEGER PRIMARY KEY, b)"),
        )
        .unwrap();
}

/// Inserts `count` rows, each as a transaction of its own.
fn insert(node: Node<'_>, count: usize) {
    let sql = "INSERT INTO t (b) VALUES (hex(randomblob(200)));".repeat(count);
    node.sql(DB, &sql).unwrap();
}

fn rows(node: Node<'_>) -> i64 {
    let counted = node.sql(DB, "SELECT count(*) FROM t").unwrap();
    counted.single().and_then(Value::as_i64).unwrap()
}

/// Where a database is once all that was committed through the mount is captured.
fn position(node: Node<'_>, database: &str) -> Position {
    let mut command = node.exec("cat").unwrap();
    let output = command.arg(format!("{database}-pos")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().parse().unwrap()
}

/// What `GET /events` of the node says from now on.
fn events(node: Node<'_>) -> mpsc::Receiver<Event> {
    let client = litefs_api::Client::new(&node.url().unwrap()).unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let mut events = client.events().await.unwrap();
            while let Some(Ok(event)) = events.next().await {
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
    });
    let first = receiver.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(first, Event::Init { .. }), "{first:?}");
    receiver
}

/// The event that says what of [`DB`] was set aside.
fn archived(events: &mpsc::Receiver<Event>) -> Archived {
    loop {
        match events.recv_timeout(PATIENCE).unwrap() {
            Event::Archived { db, data } if db == DB => return data,
            _ => {}
        }
    }
}

/// Waits until all live nodes are where the primary is and checks that each reads `expected` rows.
fn all_read(cluster: &Cluster, expected: i64) {
    cluster
        .wait(&Condition::CaughtUp { node: None }, PATIENCE)
        .unwrap();
    for (node, _) in cluster.status().unwrap().live() {
        assert_eq!(rows(cluster.at(node.name)), expected, "{}", node.name);
    }
}

fn sound(cluster: &Cluster) {
    let result = cluster.verify(PATIENCE).unwrap();
    assert!(result.is_clean(), "{:#?}", result.problems);
    assert!(!result.databases.is_empty(), "nothing was compared");
}

/// Waits until a node other than `old` is primary; returns it and how long that took.
fn successor(cluster: &Cluster, old: Station) -> (Station, Duration) {
    let start = Instant::now();
    let mut found = None;
    eventually("another node is primary", || {
        found = cluster
            .status()
            .unwrap()
            .primaries()
            .map(|node| node.name)
            .find(|node| *node != old);
        found.is_some()
    });
    (found.unwrap(), start.elapsed())
}

#[test]
fn what_is_written_on_the_primary_is_read_on_every_node() {
    for journal_mode in ["wal", "delete", "truncate", "persist"] {
        let Some(cluster) = cluster(3) else { return };
        create(&cluster, journal_mode);
        insert(cluster.primary().unwrap(), 50);
        all_read(&cluster, 50);
        sound(&cluster);
    }
}

#[test]
fn verify_finds_a_page_that_is_damaged_on_the_disk_of_a_node() {
    let Some(cluster) = cluster(2) else { return };
    create(&cluster, "delete");
    insert(cluster.primary().unwrap(), 500);
    all_read(&cluster, 500);
    sound(&cluster);
    let replica = cluster.at(Station::node(2).unwrap());
    replica.stop().unwrap();
    let status = cluster.status().unwrap();
    let data = &status
        .nodes
        .iter()
        .find(|node| node.name == replica.station())
        .unwrap()
        .data;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(data.join("files").join(DB))
        .unwrap();
    // In the middle of a text, where SQLite's own check finds nothing.
    file.write_all_at(b"x", 50_000).unwrap();
    replica.start().unwrap();
    all_read(&cluster, 500);
    let problems = cluster.verify(PATIENCE).unwrap().problems;
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(
        problems[0].starts_with("n2: app.db: clients read other pages"),
        "{problems:#?}"
    );
}

/// What a checkpoint announces in the wal-index is gone with the connection that made it. Where nobody else is connected the WAL would grow
/// for as long as transactions come, and each checkpoint would read all of it again.
#[test]
fn verify_waits_for_clients_that_have_the_database_locked() {
    let Some(cluster) = cluster(2) else { return };
    create(&cluster, "delete");
    insert(cluster.primary().unwrap(), 3);
    all_read(&cluster, 3);
    let path = cluster.primary().unwrap().mount().join(DB);
    let (holds, held) = mpsc::channel();
    let holder = std::thread::spawn(move || {
        let client = rusqlite::Connection::open(path).unwrap();
        client.execute_batch("BEGIN EXCLUSIVE").unwrap();
        holds.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        client.execute_batch("ROLLBACK").unwrap();
    });
    held.recv().unwrap();
    // It looks at the node now and then while it waits.
    let verified = cluster.verify(PATIENCE).unwrap();
    assert!(verified.is_clean(), "{:?}", verified.problems);
    holder.join().unwrap();
}

#[test]
fn the_wal_of_a_replica_that_nobody_reads_stays_short() {
    let Some(cluster) = cluster(2) else { return };
    create(&cluster, "wal");
    let data = cluster.status().unwrap().nodes[1].data.clone();
    for _ in 0..3 {
        insert(cluster.primary().unwrap(), 1500);
        cluster
            .wait(&Condition::CaughtUp { node: None }, PATIENCE)
            .unwrap();
    }
    // Each transaction is two frames or more.
    let wal = data.join("files").join(format!("{DB}-wal"));
    eventually("the WAL is short", || {
        std::fs::metadata(&wal).unwrap().len() < 1500 * 4120
    });
    all_read(&cluster, 4500);
    sound(&cluster);
}

#[test]
fn it_works_the_same_without_passthrough_and_with_durable_commits() {
    let options = ClusterOptions {
        nodes: 2,
        ttl: TTL,
        passthrough: Passthrough::Off,
        durability: Durability::Commit,
        ..ClusterOptions::default()
    };
    let Some(cluster) = daemons(options) else { return };
    for (journal_mode, expected) in [("wal", 20), ("delete", 40)] {
        if expected == 20 {
            create(&cluster, journal_mode);
        } else {
            cluster
                .primary()
                .unwrap()
                .sql(DB, &format!("PRAGMA journal_mode = {journal_mode}"))
                .unwrap();
        }
        insert(cluster.primary().unwrap(), 20);
        all_read(&cluster, expected);
    }
    sound(&cluster);
}

#[test]
fn a_replica_refuses_to_write_and_the_next_primary_does_not() {
    let Some(cluster) = cluster(2) else { return };
    create(&cluster, "wal");
    all_read(&cluster, 0);
    let replica = cluster.replicas().unwrap()[0];
    let error = replica
        .sql_within(DB, "INSERT INTO t (b) VALUES (1)", Duration::from_secs(1))
        .unwrap_err();
    println!("a write on a replica: {error}");
    assert_eq!(rows(replica), 0);
    for _ in 0..3 {
        replica.sql(DB, "INSERT INTO t (b) VALUES (1)").unwrap_err();
    }
    // One line for all of them, which says where to write.
    let log = std::fs::read_to_string(replica.log()).unwrap();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("write refused"))
        .collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let primary = cluster.primary().unwrap().station().to_string();
    assert!(lines[0].contains(&primary) && lines[0].contains(DB), "{lines:?}");
    cluster.primary().unwrap().stop().unwrap();
    cluster
        .wait(
            &Condition::Role {
                node: Some(replica.station()),
                role: NodeRole::Primary,
            },
            PATIENCE,
        )
        .unwrap();
    insert(replica, 5);
    assert_eq!(rows(replica), 5);
    sound(&cluster);
}

#[test]
fn a_killed_primary_is_replaced_within_its_lease_and_returns_with_the_same_bytes() {
    let Some(cluster) = cluster(3) else { return };
    create(&cluster, "wal");
    insert(cluster.primary().unwrap(), 20);
    all_read(&cluster, 20);
    let old = cluster.primary().unwrap().station();
    cluster.at(old).kill().unwrap();
    let (new, waited) = successor(&cluster, old);
    println!("elected {waited:?} after the kill");
    assert!(waited < TTL + Duration::from_secs(2), "{waited:?}");
    insert(cluster.at(new), 20);
    all_read(&cluster, 40);
    cluster.at(old).start().unwrap();
    cluster
        .wait(
            &Condition::Role {
                node: Some(old),
                role: NodeRole::Replica,
            },
            PATIENCE,
        )
        .unwrap();
    all_read(&cluster, 40);
    sound(&cluster);
}

#[test]
fn a_stopped_primary_hands_over_at_once_and_loses_nothing() {
    let Some(cluster) = cluster(3) else { return };
    create(&cluster, "wal");
    let mut expected = 0;
    for _ in 0..3 {
        let old = cluster.primary().unwrap().station();
        insert(cluster.at(old), 20);
        expected += 20;
        cluster.at(old).stop().unwrap();
        let (new, waited) = successor(&cluster, old);
        println!("{new} elected {waited:?} after {old} stopped");
        assert!(waited < Duration::from_secs(1), "{waited:?}");
        assert_eq!(rows(cluster.at(new)), expected);
        cluster.at(old).start().unwrap();
        cluster.wait(&Condition::Settled, PATIENCE).unwrap();
    }
    all_read(&cluster, expected);
    sound(&cluster);
}

#[test]
fn a_replica_that_was_cut_off_catches_up() {
    let Some(cluster) = cluster(3) else { return };
    create(&cluster, "wal");
    all_read(&cluster, 0);
    let (primary, replica) = (cluster.primary().unwrap(), cluster.replicas().unwrap()[0]);
    cluster.partition(&[vec![replica.station()]], false).unwrap();
    insert(primary, 30);
    assert_eq!(rows(replica), 0, "nothing passes a partition");
    cluster.heal(true).unwrap();
    all_read(&cluster, 30);
    sound(&cluster);
}

#[test]
fn a_primary_that_was_cut_off_follows_its_successor_afterwards() {
    let Some(cluster) = cluster(3) else { return };
    create(&cluster, "wal");
    insert(cluster.primary().unwrap(), 10);
    all_read(&cluster, 10);
    let old = cluster.primary().unwrap().station();
    let events = events(cluster.at(old));
    cluster.partition(&[vec![old]], false).unwrap();
    let common = position(cluster.at(old), DB);
    // Acknowledged by nobody but this node.
    insert(cluster.at(old), 5);
    let lost = position(cluster.at(old), DB);
    let (new, waited) = successor(&cluster, old);
    println!("{new} elected {waited:?} after the partition");
    eventually("the old primary knows that it is none", || {
        cluster.status().unwrap().node(old).unwrap().role != NodeRole::Primary
    });
    insert(cluster.at(new), 20);
    cluster.heal(true).unwrap();
    cluster.wait(&Condition::Settled, PATIENCE).unwrap();
    all_read(&cluster, 30);
    sound(&cluster);

    let archive = cluster.directory().data(old).join("archive").join(DB);
    let said = archived(&events);
    assert_eq!(
        (said.common, said.local.txid, said.path.as_str()),
        (common.txid, lost.txid, archive.to_str().unwrap())
    );
    let mut files: Vec<_> = std::fs::read_dir(&archive)
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    files.sort_by_key(|file| file.file_name());
    // Each continues the one before it, from what all nodes have to what only this one had.
    let mut reached = (common.txid.0, common.checksum.0);
    for file in files {
        let found = ltx::verify(std::fs::File::open(file.path()).unwrap()).unwrap();
        let header = &found.header;
        assert_eq!((header.min_txid.0 - 1, header.pre_apply.get()), reached);
        let after = found.post_apply_pos();
        reached = (after.txid.0, after.post_apply.get());
    }
    assert_eq!(reached, (lost.txid.0, lost.checksum.0));
    let log = std::fs::read_to_string(cluster.at(old).log()).unwrap();
    let (db, common) = (format!("db={DB}"), format!("common={}", common.txid));
    let told = |line: &&str| line.contains(&db) && line.contains(&common) && line.contains(&said.path);
    let lines: Vec<_> = log.lines().filter(told).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("they were archived"), "{lines:?}");
}

#[test]
fn a_primary_that_slept_through_its_lease_wakes_up_as_a_replica() {
    let Some(cluster) = cluster(3) else { return };
    create(&cluster, "wal");
    insert(cluster.primary().unwrap(), 10);
    all_read(&cluster, 10);
    let old = cluster.primary().unwrap().station();
    cluster.at(old).pause().unwrap();
    let (new, _) = successor(&cluster, old);
    insert(cluster.at(new), 10);
    cluster.at(old).resume().unwrap();
    cluster
        .wait(
            &Condition::Role {
                node: Some(old),
                role: NodeRole::Replica,
            },
            PATIENCE,
        )
        .unwrap();
    all_read(&cluster, 20);
    sound(&cluster);
}

#[test]
fn a_slow_lossy_network_delays_replication_and_breaks_nothing() {
    let Some(cluster) = cluster(3) else { return };
    let policy = LinkPolicy {
        delay: Duration::from_millis(20),
        jitter: Duration::from_millis(10),
        loss: "2%".parse().unwrap(),
        duplicate: "2%".parse().unwrap(),
        reorder: "5%".parse().unwrap(),
        rate: "20mbit".parse().ok(),
    };
    let nodes: Vec<_> = Station::all(3).filter(|station| station.is_node()).collect();
    let pairs = nodes.iter().flat_map(|&from| {
        nodes
            .iter()
            .map(move |&to| litefs_dev::wire::Direction { from, to })
    });
    cluster
        .link(pairs.filter(|pair| pair.from != pair.to).collect(), policy)
        .unwrap();
    create(&cluster, "wal");
    for _ in 0..10 {
        insert(cluster.primary().unwrap(), 20);
    }
    all_read(&cluster, 200);
    sound(&cluster);
}

#[test]
fn a_transaction_over_attached_databases_is_one_in_each_of_them() {
    let Some(cluster) = cluster(3) else { return };
    let primary = cluster.primary().unwrap();
    // In rollback mode a super-journal holds the two commits together, in WAL mode nothing does.
    for journal_mode in ["delete", "wal"] {
        let databases = [
            format!("left-{journal_mode}.db"),
            format!("right-{journal_mode}.db"),
        ];
        for database in &databases {
            let sql = format!("PRAGMA journal_mode = {journal_mode}; CREATE TABLE t (a)");
            primary.sql(database, &sql).unwrap();
        }
        let before = databases
            .each_ref()
            .map(|database| position(primary, database).txid.0);
        let [left, right] = &databases;
        let both = |end: &str| {
            format!("BEGIN; INSERT INTO main.t VALUES (1); INSERT INTO other.t VALUES (1), (1); {end};")
        };
        let sql = format!(
            "ATTACH '{right}' AS other; {}{}",
            both("COMMIT").repeat(10),
            both("ROLLBACK")
        );
        primary.sql(left, &sql).unwrap();
        let after = databases
            .each_ref()
            .map(|database| position(primary, database).txid.0);
        assert_eq!(after, before.map(|txid| txid + 10), "{journal_mode}");
        cluster
            .wait(&Condition::CaughtUp { node: None }, PATIENCE)
            .unwrap();
        for (node, said) in cluster.status().unwrap().live() {
            for ((database, txid), expected) in databases.iter().zip(after).zip([10, 20]) {
                let found = said.databases.iter().find(|found| found.name == *database);
                assert_eq!(found.unwrap().txid.0, txid, "{database} on {}", node.name);
                let counted = cluster
                    .at(node.name)
                    .sql(database, "SELECT count(*) FROM t")
                    .unwrap();
                let rows = counted.single().and_then(Value::as_i64);
                assert_eq!(rows, Some(expected), "{database} on {}", node.name);
            }
        }
    }
    let result = cluster.verify(PATIENCE).unwrap();
    assert!(result.is_clean(), "{:#?}", result.problems);
    assert_eq!(result.databases.len(), 4, "{:#?}", result.databases);
}

/// An application that is not root goes on after a failover, and what is private stays private.
#[test]
fn owner_group_and_permissions_are_the_same_on_every_node() {
    let Some(cluster) = cluster(2) else { return };
    let (primary, replica) = (cluster.primary().unwrap(), cluster.replicas().unwrap()[0]);
    let of = |node: Node<'_>, path: &str| {
        let found = std::fs::metadata(node.mount().join(path)).ok()?;
        Some((found.uid(), found.gid(), found.mode() & 0o7777))
    };
    let give = |path: &str, uid, gid, mode| {
        let path = primary.mount().join(path);
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    };
    std::fs::create_dir(primary.mount().join("app")).unwrap();
    give("app", 1000, 1001, 0o2750);
    primary
        .sql("app/private.db", "PRAGMA journal_mode = wal; CREATE TABLE t (a)")
        .unwrap();
    give("app/private.db", 1000, 1001, 0o600);
    eventually("they are the primary's", || {
        of(replica, "app") == Some((1000, 1001, 0o2750))
            && of(replica, "app/private.db") == Some((1000, 1001, 0o600))
    });
    // Without a transaction.
    give("app", 1002, 1001, 0o700);
    eventually("a change of a directory arrives", || {
        of(replica, "app") == Some((1002, 1001, 0o700))
    });
    // While the replica is away, and with a database that it has yet to get.
    replica.stop().unwrap();
    give("app/private.db", 1002, 1003, 0o640);
    primary.sql("app/new.db", "CREATE TABLE t (a)").unwrap();
    give("app/new.db", 1002, 1003, 0o600);
    replica.start().unwrap();
    eventually("what changed meanwhile arrives", || {
        of(replica, "app/private.db") == Some((1002, 1003, 0o640))
            && of(replica, "app/new.db") == Some((1002, 1003, 0o600))
    });
    sound(&cluster);
}

/// Lag is what clients of the node do not see: nothing where they see all, whatever the age of that and whatever the clocks say.
#[test]
fn lag_is_what_clients_of_the_node_do_not_see_yet() {
    let Some(cluster) = cluster(2) else { return };
    create(&cluster, "delete");
    insert(cluster.primary().unwrap(), 20);
    all_read(&cluster, 20);
    let replica = cluster.replicas().unwrap()[0];
    let lag = || {
        let status = cluster.status().unwrap();
        let said = status.live().find(|(node, _)| node.name == replica.station());
        said.and_then(|(_, said)| said.lag_seconds)
    };
    // Its databases have been idle for longer than that.
    replica.stop().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    replica.start().unwrap();
    eventually("the node has caught up", || lag() == Some(0.0));

    let reader = rusqlite::Connection::open(replica.mount().join(DB)).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
    insert(cluster.primary().unwrap(), 1);
    eventually("what the reader holds up is told", || {
        lag().is_some_and(|lag| lag > 2.0)
    });
    reader.execute_batch("COMMIT").unwrap();
    eventually("it is seen", || lag() == Some(0.0));
    drop(reader);

    cluster.partition(&[vec![replica.station()]], false).unwrap();
    eventually("silence is told", || lag().is_some_and(|lag| lag > 2.0));
    cluster.heal(true).unwrap();
    eventually("the node has caught up again", || lag() == Some(0.0));
    all_read(&cluster, 21);
    sound(&cluster);
}

#[test]
fn a_new_node_and_a_returning_cluster_have_all_data() {
    let Some(cluster) = cluster(2) else { return };
    create(&cluster, "delete");
    insert(cluster.primary().unwrap(), 20);
    all_read(&cluster, 20);
    cluster.down().unwrap();
    let name = cluster.name();
    let Some(cluster) = daemons(ClusterOptions {
        name,
        nodes: 3,
        ttl: TTL,
        ..ClusterOptions::default()
    }) else {
        return;
    };
    all_read(&cluster, 20);
    insert(cluster.primary().unwrap(), 20);
    all_read(&cluster, 40);
    sound(&cluster);
}
