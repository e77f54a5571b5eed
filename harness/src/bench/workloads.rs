//! What programs do with SQLite, as functions of a directory. Every figure is "per second".

use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Result};

/// Rows of the database for reading: about 100 MB.
const ROWS: u64 = 96_000;

/// One workload.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    pub name: &'static str,
    pub journal_mode: &'static str,
    pub synchronous: &'static str,
    pub kind: Kind,
    /// Least acceptable ratio to a plain directory, in mode K and in mode D.
    pub gate: (Option<f64>, Option<f64>),
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Transactions of so many single-row INSERTs.
    Insert(u32),
    /// SELECT by primary key at random.
    Select,
    /// A full scan; megabytes.
    Scan,
    /// One transaction of 100,000 rows; rows.
    Big,
    /// VACUUM of the database for reading; megabytes.
    Vacuum,
    /// Four readers beside a writer; reads.
    Mixed,
}

/// All of them.
pub const WORKLOADS: [Workload; 11] = [
    workload(
        "insert-1-wal-normal",
        "wal",
        "normal",
        Kind::Insert(1),
        (Some(0.5), None),
    ),
    workload("insert-1-wal-full", "wal", "full", Kind::Insert(1), (None, None)),
    workload(
        "insert-1-delete-full",
        "delete",
        "full",
        Kind::Insert(1),
        (None, None),
    ),
    workload(
        "insert-1-persist-full",
        "persist",
        "full",
        Kind::Insert(1),
        (None, None),
    ),
    workload(
        "insert-100-wal-normal",
        "wal",
        "normal",
        Kind::Insert(100),
        (None, None),
    ),
    workload(
        "select-wal",
        "wal",
        "normal",
        Kind::Select,
        (Some(0.9), Some(0.9)),
    ),
    workload("select-delete", "delete", "normal", Kind::Select, (None, None)),
    workload("mixed-wal", "wal", "normal", Kind::Mixed, (None, None)),
    workload("scan-wal", "wal", "normal", Kind::Scan, (None, None)),
    workload("big-wal-normal", "wal", "normal", Kind::Big, (None, None)),
    workload("vacuum-wal", "wal", "normal", Kind::Vacuum, (None, None)),
];

const fn workload(
    name: &'static str,
    journal_mode: &'static str,
    synchronous: &'static str,
    kind: Kind,
    gate: (Option<f64>, Option<f64>),
) -> Workload {
    Workload {
        name,
        journal_mode,
        synchronous,
        kind,
        gate,
    }
}

/// A measured run: units per second, and how many operations they came from.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub per_second: f64,
    pub operations: u64,
}

impl Workload {
    /// Whether it uses the database that [`prepare`] makes.
    pub fn reads(&self) -> bool {
        !matches!(self.kind, Kind::Insert(_) | Kind::Big)
    }

    /// Runs once.
    pub fn run(&self, dir: &Path, duration: Duration) -> Result<Run> {
        match self.kind {
            Kind::Insert(rows) => self.insert(dir, duration, rows),
            Kind::Big => self.big(dir),
            Kind::Select => self.select(dir, duration),
            Kind::Scan => self.scan(dir, duration),
            Kind::Vacuum => self.vacuum(dir),
            Kind::Mixed => self.mixed(dir, duration),
        }
    }

    fn open(&self, path: &Path) -> Result<Connection> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.query_row(&format!("PRAGMA journal_mode={}", self.journal_mode), [], |_| {
            Ok(())
        })?;
        connection.execute_batch(&format!("PRAGMA synchronous={}", self.synchronous))?;
        Ok(connection)
    }

    fn fresh(&self, dir: &Path) -> Result<Connection> {
        let path = dir.join("write.db");
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
        }
        let connection = self.open(&path)?;
        connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, v BLOB)")?;
        Ok(connection)
    }

    fn insert(&self, dir: &Path, duration: Duration, rows: u32) -> Result<Run> {
        let connection = self.fresh(dir)?;
        let value = vec![7u8; 100];
        let mut begin = connection.prepare("BEGIN")?;
        let mut insert = connection.prepare("INSERT INTO t(a,v) VALUES(?,?)")?;
        let mut commit = connection.prepare("COMMIT")?;
        measure(duration, 8, |i| {
            if rows > 1 {
                begin.execute([])?;
            }
            for row in 0..rows {
                insert.execute((i as i64 * i64::from(rows) + i64::from(row), &value))?;
            }
            if rows > 1 {
                commit.execute([])?;
            }
            Ok(())
        })
    }

    fn big(&self, dir: &Path) -> Result<Run> {
        let connection = self.fresh(dir)?;
        let value = vec![7u8; 100];
        let started = Instant::now();
        connection.execute_batch("BEGIN")?;
        let mut insert = connection.prepare("INSERT INTO t(a,v) VALUES(?,?)")?;
        for i in 0..100_000 {
            insert.execute((i, &value))?;
        }
        connection.execute_batch("COMMIT")?;
        Ok(Run {
            per_second: 100_000.0 / started.elapsed().as_secs_f64(),
            operations: 1,
        })
    }

    fn select(&self, dir: &Path, duration: Duration) -> Result<Run> {
        let connection = self.open(&big_path(dir))?;
        let mut select = connection.prepare("SELECT a FROM t WHERE id=?")?;
        let mut random = 88_172_645_463_325_252;
        // Every page once, so that both sides read from memory.
        connection.query_row("SELECT sum(length(v)) FROM t", [], |_| Ok(()))?;
        measure(duration, 32, |_| {
            select.query_row([(next(&mut random) % ROWS) as i64], |_| Ok(()))
        })
    }

    fn scan(&self, dir: &Path, duration: Duration) -> Result<Run> {
        let connection = self.open(&big_path(dir))?;
        let mut scan = connection.prepare("SELECT sum(length(v)), sum(a) FROM t")?;
        scan.query_row([], |_| Ok(()))?;
        let run = measure(duration, 1, |_| scan.query_row([], |_| Ok(())))?;
        Ok(Run {
            per_second: run.per_second * megabytes(dir),
            ..run
        })
    }

    fn vacuum(&self, dir: &Path) -> Result<Run> {
        let connection = self.open(&big_path(dir))?;
        let started = Instant::now();
        connection.execute_batch("VACUUM")?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(Run {
            per_second: megabytes(dir) / started.elapsed().as_secs_f64(),
            operations: 1,
        })
    }

    fn mixed(&self, dir: &Path, duration: Duration) -> Result<Run> {
        const READERS: u64 = 4;
        let path = big_path(dir);
        self.open(&path)?
            .execute_batch("CREATE TABLE IF NOT EXISTS w(id INTEGER PRIMARY KEY, v BLOB)")?;
        let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
        let start = Barrier::new(READERS as usize + 2);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| -> Result<()> {
                let connection = self.open(&path);
                start.wait();
                let connection = connection?;
                let mut insert = connection.prepare("INSERT INTO w(v) VALUES(randomblob(100))")?;
                while !stop.load(Ordering::Relaxed) {
                    insert.execute([])?;
                }
                Ok(())
            });
            let readers: Vec<_> = (0..READERS)
                .map(|seed| {
                    let (stop, reads, start, path) = (&stop, &reads, &start, &path);
                    scope.spawn(move || -> Result<()> {
                        let connection = self.open(path);
                        start.wait();
                        let connection = connection?;
                        let mut select = connection.prepare("SELECT a FROM t WHERE id=?")?;
                        let mut random = 88_172_645_463_325_252 + seed * 7777;
                        while !stop.load(Ordering::Relaxed) {
                            select.query_row([(next(&mut random) % ROWS) as i64], |_| Ok(()))?;
                            reads.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
                .collect();
            start.wait();
            let started = Instant::now();
            std::thread::sleep(duration);
            stop.store(true, Ordering::Relaxed);
            let elapsed = started.elapsed().as_secs_f64();
            for thread in readers.into_iter().chain([writer]) {
                thread.join().unwrap_or(Ok(()))?;
            }
            let operations = reads.load(Ordering::Relaxed);
            Ok(Run {
                per_second: operations as f64 / elapsed,
                operations,
            })
        })
    }
}

/// Makes the database for reading.
pub fn prepare(dir: &Path) -> Result<()> {
    let mut connection = Connection::open(big_path(dir))?;
    connection.execute_batch("PRAGMA journal_mode=wal; PRAGMA synchronous=off")?;
    connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, v BLOB)")?;
    let transaction = connection.transaction()?;
    {
        let value = vec![7u8; 1000];
        let mut insert = transaction.prepare("INSERT INTO t VALUES(?,?,?)")?;
        for i in 0..ROWS {
            insert.execute((i as i64, (i * 7919 % 1_000_003) as i64, &value))?;
        }
    }
    transaction.commit()?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

fn big_path(dir: &Path) -> PathBuf {
    dir.join("read.db")
}

fn megabytes(dir: &Path) -> f64 {
    std::fs::metadata(big_path(dir)).map_or(0.0, |meta| meta.len() as f64 / 1e6)
}

/// Repeats for the duration, looking at the clock after each `batch`.
fn measure(duration: Duration, batch: u64, mut step: impl FnMut(u64) -> Result<()>) -> Result<Run> {
    for i in 0..20 {
        step(i)?;
    }
    let started = Instant::now();
    let mut operations = 0;
    loop {
        for _ in 0..batch {
            step(20 + operations)?;
            operations += 1;
        }
        let elapsed = started.elapsed();
        if elapsed >= duration {
            return Ok(Run {
                per_second: operations as f64 / elapsed.as_secs_f64(),
                operations,
            });
        }
    }
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
