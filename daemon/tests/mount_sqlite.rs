//! SQLite on a real mount, in both modes. Needs root and /dev/fuse.

mod mount_support;

use mount_support::{MODES, Mode, Rig, check};
use rusqlite::Connection;

#[test]
fn daemon_process() {
    mount_support::serve_if_daemon();
}

fn open(rig: &Rig, name: &str, journal: &str, synchronous: &str) -> Connection {
    let db = Connection::open(rig.path(name)).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let mode: String = db
        .query_row(&format!("PRAGMA journal_mode={journal}"), [], |row| row.get(0))
        .unwrap();
    assert_eq!(mode, journal);
    db.execute_batch(&format!("PRAGMA synchronous={synchronous}"))
        .unwrap();
    db
}

#[test]
fn every_journal_mode_works() {
    for mode in MODES {
        let rig = Rig::start(mode);
        for journal in ["delete", "truncate", "persist", "memory", "off", "wal"] {
            let db = open(&rig, &format!("{journal}.db"), journal, "full");
            db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
                .unwrap();
            for i in 0..20 {
                db.execute("INSERT INTO t(b) VALUES (?1)", [format!("row {i}")])
                    .unwrap();
            }
            let other = Connection::open(rig.path(&format!("{journal}.db"))).unwrap();
            let count: i64 = other
                .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
                .unwrap();
            assert_eq!(count, 20, "{journal} in mode {mode:?}");
            check(&db);
        }
        rig.stop();
    }
}

/// The daemon looks whether anybody is connected: between the last client's removal of the wal-index and that look nothing may be left.
#[test]
fn the_last_client_leaves_no_side_file() {
    for mode in MODES {
        let rig = Rig::start(mode);
        for round in 0..1000 {
            let db = open(&rig, "a.db", "wal", "normal");
            db.execute_batch("CREATE TABLE IF NOT EXISTS t(a); INSERT INTO t VALUES (1)")
                .unwrap();
            drop(db);
            for side in ["-wal", "-shm"] {
                let path = rig.path(&format!("a.db{side}"));
                assert!(!path.exists(), "{side} after round {round} in mode {mode:?}");
            }
        }
        rig.stop();
    }
}

/// What a process has read, in bytes; requests of the kernel among it.
fn read_by(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
    read.parse().unwrap()
}

/// SQLite writes the commit frame first and then the headers of all frames behind the first that it overwrote. Also over a takeover, which
/// knows nothing of the frames that the daemon before had seen.
#[test]
fn a_transaction_that_outgrows_the_page_cache_is_looked_through_a_few_times() {
    for mode in MODES {
        for is_taken_over in [false, true] {
            let mut rig = Rig::start(mode);
            let db = open(&rig, "a.db", "wal", "normal");
            db.execute_batch(
                "CREATE TABLE t(id INTEGER PRIMARY KEY, k TEXT UNIQUE); PRAGMA cache_size=20; BEGIN",
            )
            .unwrap();
            let fill = "WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s WHERE x < 4000)
                INSERT INTO t(k) SELECT hex(randomblob(50)) FROM s";
            db.execute_batch(fill).unwrap();
            if is_taken_over {
                rig.kill();
                rig.restart();
            }
            let before = read_by(rig.pid());
            db.execute_batch(fill).unwrap();
            db.execute_batch("COMMIT").unwrap();
            let read = read_by(rig.pid()) - before;
            let wal = std::fs::metadata(rig.path("a.db-wal")).unwrap().len();
            assert!(wal > 1_000_000, "the test spills nothing: {wal}");
            assert!(
                read < 30 * wal,
                "{read} bytes read for a WAL of {wal} in mode {mode:?}, taken over: {is_taken_over}"
            );
            drop(db);
            rig.stop();
        }
    }
}

/// The daemon itself opens a file now and then to look at its locks.
const STRAY: f64 = 0.1;

/// Requests per transaction after a warm-up, averaged over many.
fn per_transaction(rig: &mut Rig, mut transaction: impl FnMut()) -> (f64, String) {
    const N: u64 = 100;
    for _ in 0..3 {
        transaction();
    }
    let before = rig.requests();
    for _ in 0..N {
        transaction();
    }
    let counts = rig.requests().since(&before);
    (counts.total() as f64 / N as f64, format!("{counts:?}"))
}

#[test]
fn the_kernel_asks_as_rarely_as_promised() {
    for mode in MODES {
        for (journal, synchronous, select, commit) in [
            ("wal", "normal", 0.0, if mode == Mode::K { 0.0 } else { 4.0 }),
            ("wal", "full", 0.0, if mode == Mode::K { 1.0 } else { 5.0 }),
            ("delete", "full", 0.0, if mode == Mode::K { 14.0 } else { 25.0 }),
            ("truncate", "full", 0.0, if mode == Mode::K { 12.0 } else { 23.0 }),
            // SQLite opens a persistent journal with each SELECT, to see whether it is hot; as root it also gives it to the owner.
            ("persist", "full", 4.0, if mode == Mode::K { 16.0 } else { 26.0 }),
        ] {
            let mut rig = Rig::start(mode);
            let db = open(&rig, "a.db", journal, synchronous);
            db.execute_batch("PRAGMA wal_autocheckpoint=0; CREATE TABLE t(a INTEGER PRIMARY KEY, b);")
                .unwrap();
            db.execute_batch("INSERT INTO t VALUES (1, 0)").unwrap();
            let (count, detail) = per_transaction(&mut rig, || {
                db.query_row("SELECT b FROM t WHERE a=1", [], |_| Ok(())).unwrap();
            });
            eprintln!("{mode:?} {journal} {synchronous} SELECT: {count} {detail}");
            assert!(count <= select + STRAY, "{mode:?} {journal} SELECT: {detail}");
            let (count, detail) = per_transaction(&mut rig, || {
                db.execute("UPDATE t SET b=b+1 WHERE a=1", []).unwrap();
            });
            eprintln!("{mode:?} {journal} {synchronous} COMMIT: {count} {detail}");
            assert!(count <= commit + STRAY, "{mode:?} {journal} commit: {detail}");
        }
    }
}
