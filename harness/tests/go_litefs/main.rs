//! A cluster of the original LiteFS 0.5 and this one: each follows the other, takes over from it and hands back, with the same bytes on
//! both sides after every step; the command lines and the HTTP API of both fit each other.
//!
//! Runs where Go is installed, or where `LITEFS_GO` names a binary.

mod member;
mod original;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use litefs_dev::binary::Wanted;
use litefs_dev::lease::LeaseServer;
use member::Member;
use reqwest::{Method, StatusCode};
use rusqlite::Connection;
use serde_json::Value;
use support::eventually;

/// Journal mode and page size of the databases.
const DATABASES: [(&str, u32); 4] = [
    ("wal", 4096),
    ("delete", 4096),
    ("truncate", 1024),
    ("persist", 65536),
];
const COMMITS: usize = 10;

#[test]
fn each_follows_the_other_and_takes_over_from_it() {
    if support::impossible() {
        return;
    }
    let binary = match original::litefs() {
        Ok(binary) => binary,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let directory = tempfile::tempdir().unwrap();
    let lease = serve_leases();
    let mut original = Member::start("original", binary, directory.path(), lease);
    let mut ours = Member::start("ours", Wanted::default().find().unwrap(), directory.path(), lease);
    assert!(original.is_primary(), "the first one");

    life_of_databases(&original, &ours);
    copies(&original, &ours, directory.path());
    same_answers(&original, &ours);

    promote(&ours, &original);
    all_go_on(&ours, &original, "original");
    life_of_databases(&ours, &original);
    copies(&ours, &original, directory.path());
    same_answers(&ours, &original);

    promote(&original, &ours);
    all_go_on(&original, &ours, "ours");
    end_and_return(&mut original, &ours);
    end_and_return(&mut ours, &original);
    part_ways(&mut original, &mut ours);
    part_ways(&mut ours, &mut original);
    let archived = std::fs::read_dir(ours.archive("ours-wal.db")).unwrap();
    assert!(archived.count() > 0, "what only this node had is set aside");
}

/// A lease server of this process, for as long as it lives.
fn serve_leases() -> SocketAddr {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let server = LeaseServer::start("127.0.0.1:0".parse().unwrap(), None)
                .await
                .unwrap();
            sender.send(server.address()).unwrap();
            server.run().await;
        });
    });
    receiver.recv().unwrap()
}

/// On the primary databases are made, written, cleaned up, dropped and made again; the replica has the same each time.
fn life_of_databases(primary: &Member, replica: &Member) {
    for (mode, page_size) in DATABASES {
        let name = format!("{}-{mode}.db", primary.name);
        // The original cannot change the page size of a name that it knows.
        let create = format!(
            "PRAGMA page_size = {page_size}; PRAGMA journal_mode = {mode}; CREATE TABLE t (a INTEGER PRIMARY KEY, b)"
        );
        for _ in 0..2 {
            let db = primary.open(&name);
            db.execute_batch(&create).unwrap();
            write(&db);
            agree(primary, replica, &name);
            db.execute_batch("DELETE FROM t WHERE a % 2; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)")
                .unwrap();
            write(&db);
            agree(primary, replica, &name);
            db.close().unwrap();
            std::fs::remove_file(primary.path(&name)).unwrap();
            eventually("the replica drops it", || !replica.path(&name).exists());
        }
        primary.open(&name).execute_batch(&create).unwrap();
        agree(primary, replica, &name);
    }
}

fn write(db: &Connection) {
    for _ in 0..COMMITS {
        db.execute_batch(
            "BEGIN; INSERT INTO t (b) VALUES (randomblob(9000)), (randomblob(10)); UPDATE t SET b = randomblob(100) \
             WHERE a = (SELECT min(a) FROM t); COMMIT",
        )
        .unwrap();
    }
}

/// The databases that `maker` made are written on another primary.
fn all_go_on(primary: &Member, replica: &Member, maker: &str) {
    for (mode, _) in DATABASES {
        let name = format!("{maker}-{mode}.db");
        write(&primary.open(&name));
        agree(primary, replica, &name);
    }
}

/// Both get to the same position, and there they have the same bytes, which are a sound database.
fn agree(primary: &Member, replica: &Member, name: &str) {
    let position = primary.position(name).expect("the primary has it");
    eventually(&format!("{} has {name} at {position}", replica.name), || {
        replica.position(name).as_deref() == Some(position.as_str())
    });
    let export = format!("/export?name={name}");
    let (expected, found) = (primary.get(&export), replica.get(&export));
    assert!(found == expected, "{name} at {position}: the exports differ");
    let count = |member: &Member| -> (i64, Option<i64>) {
        let count = "SELECT count(*), sum(length(b)) FROM t";
        let db = member.open(name);
        db.query_row(count, [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
    };
    assert_eq!(
        count(replica),
        count(primary),
        "{name} at {position}, through the mounts"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), found).unwrap();
    sound(file.path());
}

fn sound(file: &std::path::Path) {
    let copy = Connection::open(file).unwrap();
    let verdict: String = copy
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(verdict, "ok");
}

/// `import` and `export` of each command line at the other's API.
fn copies(primary: &Member, replica: &Member, directory: &std::path::Path) {
    let source = directory.join(format!("{}-source.db", replica.name));
    let db = Connection::open(&source).unwrap();
    db.execute_batch(
        "CREATE TABLE t (a INTEGER PRIMARY KEY, b); INSERT INTO t (b) VALUES (randomblob(100000))",
    )
    .unwrap();
    db.close().unwrap();
    let name = format!("imported-by-{}.db", replica.name);
    let file = source.to_str().unwrap();
    for _ in 0..2 {
        replica.run(&["import", "-url", &primary.url(), "-name", &name, file]);
        agree(primary, replica, &name);
    }
    for (by, from) in [(primary, replica), (replica, primary)] {
        let target = directory.join(format!("by-{}-from-{}.db", by.name, from.name));
        let _ = std::fs::remove_file(&target);
        by.run(&[
            "export",
            "-url",
            &from.url(),
            "-name",
            &name,
            target.to_str().unwrap(),
        ]);
        assert!(
            std::fs::read(&target).unwrap() == primary.get(&format!("/export?name={name}")),
            "{} exports something else",
            by.name
        );
        sound(&target);
    }
}

fn promote(member: &Member, old: &Member) {
    let (status, body) = member.request(Method::POST, "/promote").unwrap();
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    eventually("the promoted one is primary and the other knows", || {
        member.is_primary() && old.primary().as_deref() == Some(member.name)
    });
}

/// A primary is stopped; the other takes over and goes on; the first returns and follows.
fn end_and_return(leaving: &mut Member, staying: &Member) {
    leaving.stop();
    eventually("the other takes over", || staying.is_primary());
    for (mode, _) in DATABASES {
        write(&staying.open(&format!("original-{mode}.db")));
    }
    leaving.restart();
    all_go_on(staying, leaving, "original");
    all_go_on(staying, leaving, "ours");
}

/// The primary commits what the other never gets; then the other is primary, without it, and the first has to give it up.
fn part_ways(first: &mut Member, second: &mut Member) {
    if !first.is_primary() {
        promote(first, second);
    }
    let names = DATABASES.map(|(mode, _)| format!("ours-{mode}.db"));
    second.stop();
    for name in &names {
        write(&first.open(name));
    }
    first.stop();
    second.restart();
    eventually("the second is primary", || second.is_primary());
    for name in &names {
        second
            .open(name)
            .execute_batch("DELETE FROM t WHERE a = 1")
            .unwrap();
    }
    first.restart();
    for name in &names {
        agree(second, first, name);
    }
}

/// What clients of LiteFS ask for has the same form on both.
fn same_answers(primary: &Member, replica: &Member) {
    let name = format!("{}-wal.db", primary.name);
    for path in ["/info", "/nothing", "/export?name=nothing", "/export"] {
        let (ours, theirs) = (
            replica.request(Method::GET, path).unwrap(),
            primary.request(Method::GET, path).unwrap(),
        );
        assert_eq!(ours.0, theirs.0, "GET {path}");
    }
    assert_eq!(
        shape(&primary.info().unwrap()),
        shape(&replica.info().unwrap()),
        "GET /info"
    );
    let change = || write(&primary.open(&name));
    let is_tx = |event: &Value| event["type"] == "tx" && event["db"] == name.as_str();
    let first = |member: &Member| {
        let events = member.events(change, is_tx);
        assert_eq!(events[0]["type"], "init", "{}: {}", member.name, events[0]);
        shape(events.iter().find(|event| is_tx(event)).unwrap())
    };
    assert_eq!(first(primary), first(replica), "GET /events");
    let documented = include_str!("../../../docs/metrics.md");
    let (here, there) = (metrics(primary), metrics(replica));
    for name in here.symmetric_difference(&there) {
        let name = format!("`{name}`");
        assert!(documented.contains(&name), "GET /metrics: {name}");
    }
}

/// The paths to a value's leaves, with their types.
fn shape(value: &Value) -> BTreeSet<String> {
    match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, value)| {
                shape(value)
                    .into_iter()
                    .map(move |below| format!("{key}.{below}"))
            })
            .collect(),
        Value::Null => BTreeSet::from(["null".into()]),
        Value::Bool(_) => BTreeSet::from(["bool".into()]),
        Value::Number(_) => BTreeSet::from(["number".into()]),
        Value::String(_) => BTreeSet::from(["string".into()]),
        Value::Array(_) => BTreeSet::from(["array".into()]),
    }
}

fn metrics(member: &Member) -> BTreeSet<String> {
    let text = String::from_utf8(member.get("/metrics")).unwrap();
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names = names.filter_map(|line| line.split(' ').next());
    names
        .filter(|name| name.starts_with("litefs_"))
        .map(str::to_owned)
        .collect()
}
