//! What must not grow with the database: the cost of a commit, and of a start.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::{BenchOptions, bench_error, median};
use crate::solo::{Solo, SoloOptions};
use crate::{Error, Result};

/// Pages of 4 KiB in the small and in the large database.
const SMALL: u64 = 256;
const LARGE: u64 = 262_400;
/// Commits per round: few enough that no checkpoint falls into some rounds and not into others.
const COMMITS: u64 = 500;

/// A comparison of two medians.
#[derive(Debug, Clone)]
pub struct Comparison {
    pub what: String,
    pub base: f64,
    pub other: f64,
    pub unit: &'static str,
    pub most: f64,
}

impl Comparison {
    pub fn ratio(&self) -> f64 {
        self.other / self.base
    }

    pub fn passes(&self) -> bool {
        self.ratio() <= self.most
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let verdict = if self.passes() { "ok" } else { "MISS" };
        let Comparison {
            what,
            base,
            other,
            unit,
            most,
        } = self;
        format!(
            "{what}: {other:.1} {unit} against {base:.1} {unit}: {:.2} (gate ≤{most}) {verdict}",
            self.ratio()
        )
    }
}

/// CPU time that the daemon spends on a commit in a 1 GiB database against one in a 1 MiB database.
pub fn commit_cost(options: &BenchOptions, mut progress: impl FnMut(&str)) -> Result<Comparison> {
    let dir = options.dir.join("commit-cost");
    let files = dir.join("data/files");
    std::fs::create_dir_all(&files).map_err(Error::file("mkdir", &files))?;
    progress("making a database of 1 GiB");
    make(&files.join("small.db"), SMALL)?;
    make(&files.join("large.db"), LARGE)?;
    let solo = start(options, &dir)?;
    wait_captured(&solo, 2)?;
    let connections = [("small.db", SMALL), ("large.db", LARGE)].map(|(name, pages)| {
        let connection = Connection::open(solo.mount().join(name)).map_err(bench_error)?;
        connection
            .execute_batch("PRAGMA journal_mode=wal; PRAGMA synchronous=normal; PRAGMA wal_autocheckpoint=0")
            .map_err(bench_error)?;
        // What is measured is the commit, not the first read of a page through the mount.
        connection
            .query_row("SELECT sum(length(v)) FROM pad", [], |_| Ok(()))
            .map_err(bench_error)?;
        Ok::<_, Error>((connection, pages))
    });
    let [small, large] = connections;
    let (small, large) = (small?, large?);
    let mut costs = [Vec::new(), Vec::new()];
    for round in 0..options.rounds as u64 {
        progress(&format!("commit cost round {}", round + 1));
        for (at, (connection, pages)) in [&small, &large].into_iter().enumerate() {
            let before = cpu_ns(&solo)?;
            for i in 0..COMMITS {
                let row = 1 + (round * COMMITS + i).wrapping_mul(2_654_435_761) % (pages / 2);
                connection
                    .execute("UPDATE pad SET n=n+1 WHERE id=?", [row as i64])
                    .map_err(bench_error)?;
            }
            solo.get("/status")?;
            costs[at].push((cpu_ns(&solo)? - before) as f64 / COMMITS as f64 / 1000.0);
        }
    }
    let [small, large] = costs;
    Ok(Comparison {
        what: "CPU time of the daemon per commit, 1 GiB against 1 MiB".to_owned(),
        base: median(small.into_iter()),
        other: median(large.into_iter()),
        unit: "µs",
        most: 1.2,
    })
}

/// Time from exec to a usable mount with a 1 GiB database, after a clean stop and after SIGKILL, against an empty node
/// after the same.
pub fn start_time(options: &BenchOptions, mut progress: impl FnMut(&str)) -> Result<Vec<Comparison>> {
    let empty_dir = options.dir.join("start-empty");
    let large_dir = options.dir.join("start-large");
    let files = large_dir.join("data/files");
    std::fs::create_dir_all(&files).map_err(Error::file("mkdir", &files))?;
    progress("making a database of 1 GiB");
    make(&files.join("large.db"), LARGE)?;
    let mut empty = start(options, &empty_dir)?;
    let mut large = start(options, &large_dir)?;
    wait_captured(&large, 1)?;
    let mut times: [Vec<f64>; 4] = Default::default();
    for round in 0..options.rounds {
        progress(&format!("start round {}", round + 1));
        empty.stop()?;
        times[0].push(milliseconds(empty.restart()?));
        large.stop()?;
        times[1].push(milliseconds(large.restart()?));
        write_some(&large)?;
        large.kill()?;
        times[2].push(milliseconds(large.restart()?));
        empty.kill()?;
        times[3].push(milliseconds(empty.restart()?));
    }
    let [base, clean, killed, base_killed] = times.map(|times| median(times.into_iter()));
    let comparison = |what: &str, base, other| Comparison {
        what: format!("start on 1 GiB after {what}, against an empty node after the same"),
        base,
        other,
        unit: "ms",
        most: 1.5,
    };
    Ok(vec![
        comparison("a clean stop", base, clean),
        comparison("SIGKILL", base_killed, killed),
    ])
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn start(options: &BenchOptions, dir: &Path) -> Result<Solo> {
    Solo::start(SoloOptions {
        binary: options.binary.clone(),
        dir: dir.to_owned(),
        passthrough: options.modes.first().copied().unwrap_or("on"),
        durability: "follow",
    })
}

/// A database of about `pages` pages whose rows are spread over them.
fn make(path: &Path, pages: u64) -> Result<()> {
    let _ = std::fs::remove_file(path);
    let mut connection = Connection::open(path).map_err(bench_error)?;
    let fill = |connection: &mut Connection| -> rusqlite::Result<()> {
        connection.execute_batch("PRAGMA synchronous=off; PRAGMA journal_mode=off")?;
        connection.execute_batch("CREATE TABLE pad(id INTEGER PRIMARY KEY, n INTEGER, v BLOB)")?;
        let transaction = connection.transaction()?;
        {
            let mut insert = transaction.prepare("INSERT INTO pad VALUES(?, 0, randomblob(3800))")?;
            for id in 1..=pages {
                insert.execute([id as i64])?;
            }
        }
        transaction.commit()
    };
    fill(&mut connection).map_err(bench_error)
}

fn write_some(solo: &Solo) -> Result<()> {
    let connection = Connection::open(solo.mount().join("large.db")).map_err(bench_error)?;
    connection
        .execute_batch("PRAGMA journal_mode=wal; PRAGMA synchronous=normal")
        .map_err(bench_error)?;
    for id in 1..200 {
        connection
            .execute("UPDATE pad SET n=n+1 WHERE id=?", [id])
            .map_err(bench_error)?;
    }
    // Left open until the daemon is gone: closing it would checkpoint.
    std::mem::forget(connection);
    Ok(())
}

/// Waits until so many databases have a transaction.
fn wait_captured(solo: &Solo, databases: usize) -> Result<()> {
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    loop {
        let status: serde_json::Value = serde_json::from_str(&solo.get("/status")?)
            .map_err(|e| Error::Invalid(format!("/status: {e}")))?;
        let listed = status["databases"].as_array().map_or(&[][..], Vec::as_slice);
        let captured = listed
            .iter()
            .filter(|db| db["pages"].as_u64().unwrap_or(0) > 0)
            .count();
        if captured >= databases {
            return Ok(());
        }
        if std::time::Instant::now() > deadline {
            return Err(Error::Invalid(format!(
                "only {captured} of {databases} databases were captured: {status}"
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// CPU time of all threads of the daemon in nanoseconds.
fn cpu_ns(solo: &Solo) -> Result<u64> {
    let pid = solo
        .daemon_pid()
        .ok_or_else(|| Error::Invalid("the daemon is not running".to_owned()))?;
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    let mut total = 0;
    for task in std::fs::read_dir(&tasks)
        .map_err(Error::file("read", &tasks))?
        .flatten()
    {
        let path = task.path().join("schedstat");
        // A thread may end while the list is read.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        total += text
            .split(' ')
            .next()
            .and_then(|ns| ns.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(total)
}
