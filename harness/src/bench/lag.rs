//! Replica lag: from the return of a COMMIT on the primary until a client of a replica reads it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::bench_error;
use crate::{Cluster, Error, Result};

/// Quantiles in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Lag {
    pub commits: usize,
    pub p50: f64,
    pub p99: f64,
    pub worst: f64,
}

/// Most that p99 may be.
pub const GATE_MS: f64 = 20.0;

/// Commits at a fixed rate on the primary of a running cluster, and watches one replica.
pub fn measure(cluster: &Cluster, per_second: u32, duration: Duration) -> Result<Lag> {
    let primary = cluster.primary()?.mount().join("lag.db");
    let replicas = cluster.replicas()?;
    let replica = replicas
        .first()
        .ok_or_else(|| Error::Invalid("the cluster has no replica".to_owned()))?;
    let replica = replica.mount().join("lag.db");
    let writer = Connection::open(&primary).map_err(bench_error)?;
    writer.busy_timeout(Duration::from_secs(5)).map_err(bench_error)?;
    writer
        .execute_batch(
            "PRAGMA journal_mode=wal; DROP TABLE IF EXISTS t; CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
        )
        .map_err(bench_error)?;
    let total = i64::from(per_second) * duration.as_secs() as i64;
    let committed: Mutex<HashMap<i64, Instant>> = Mutex::new(HashMap::new());
    let (last, seen) = (AtomicI64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&replica, total, &seen, &last));
        let step = Duration::from_secs(1) / per_second;
        let started = Instant::now();
        for id in 1..=total {
            let due = started + step * id as u32;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            writer
                .execute("INSERT INTO t VALUES(?, randomblob(100))", [id])
                .map_err(bench_error)?;
            committed
                .lock()
                .unwrap_or_else(|e| e.into_inner())
                .insert(id, Instant::now());
            last.store(id, Ordering::Release);
        }
        watcher
            .join()
            .unwrap_or_else(|_| Err(Error::Invalid("the watcher panicked".to_owned())))
    })?;
    let committed = committed.into_inner().unwrap_or_else(|e| e.into_inner());
    let seen = seen.into_inner().unwrap_or_else(|e| e.into_inner());
    let mut lags: Vec<f64> = Vec::new();
    let mut next = 1;
    for (max, at) in seen {
        for id in next..=max {
            if let Some(then) = committed.get(&id) {
                lags.push(at.saturating_duration_since(*then).as_secs_f64() * 1000.0);
            }
        }
        next = next.max(max + 1);
    }
    lags.sort_by(f64::total_cmp);
    let at = |quantile: f64| {
        lags.get(((lags.len() as f64 - 1.0) * quantile) as usize)
            .copied()
            .unwrap_or(f64::NAN)
    };
    Ok(Lag {
        commits: lags.len(),
        p50: at(0.5),
        p99: at(0.99),
        worst: at(1.0),
    })
}

/// Notes when which row is first seen.
fn watch(
    path: &std::path::Path,
    total: i64,
    seen: &Mutex<Vec<(i64, Instant)>>,
    last: &AtomicI64,
) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(300);
    let mut reader: Option<Connection> = None;
    let mut known = 0;
    while known < total {
        if Instant::now() > deadline {
            let written = last.load(Ordering::Acquire);
            return Err(Error::Invalid(format!(
                "the replica shows {known} of {written} committed rows"
            )));
        }
        if reader.is_none() && path.exists() {
            let opened = Connection::open(path).map_err(bench_error)?;
            opened.busy_timeout(Duration::from_secs(5)).map_err(bench_error)?;
            reader = Some(opened);
        }
        let max = reader.as_ref().and_then(|reader| {
            // Until the table is replicated there is nothing to see.
            reader
                .query_row("SELECT ifnull(max(id), 0) FROM t", [], |row| row.get::<_, i64>(0))
                .ok()
        });
        if let Some(max) = max.filter(|max| *max > known && *max <= total) {
            seen.lock()
                .unwrap_or_else(|e| e.into_inner())
                .push((max, Instant::now()));
            known = max;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
