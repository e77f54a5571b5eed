//! Clients that read, check what they read, and tidy up.

use std::time::Duration;

use rand::Rng;
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode};

use super::super::journal::Note;
use super::super::rows;
use super::pool::Verdict;
use super::{Client, RETRY, failure};

/// Rows that one look checks.
const WINDOW: i64 = 60;
/// One look in so many is SQLite's own, at everything.
const THOROUGH: u32 = 40;

impl Client {
    /// Holds a read transaction: what it sees must not change meanwhile.
    pub(super) fn read(&mut self) -> Duration {
        let hold = Duration::from_millis(match self.chance.random_range(0..10) {
            0 => 800,
            _ => self.chance.random_range(0..60),
        });
        let (place, thorough) = (self.chance.random::<f64>(), self.chance.random_ratio(1, THOROUGH));
        self.pool.advance();
        let seen = self
            .pool
            .current()
            .and_then(|connection| look(connection, place, hold, thorough));
        match seen {
            Ok((rows, faults)) => {
                self.pool.worked();
                faults
                    .into_iter()
                    .for_each(|fault| self.journal.note(&Note::Wrong(fault)));
                self.journal.note(&Note::Read { rows });
                self.about(100)
            }
            Err(error) => {
                self.journal.note(&failure("read", &error));
                match self
                    .pool
                    .failed(|fresh| look(fresh, place, Duration::ZERO, false).map(drop))
                {
                    Verdict::Kept => {}
                    Verdict::Replaced(broken) => self.journal.note(&broken),
                }
                RETRY
            }
        }
    }

    /// A checkpoint, a VACUUM or a check.
    pub(super) fn maintain(&mut self) -> Duration {
        let work = match self.chance.random_range(0..8) {
            0 => "VACUUM",
            1 => "PRAGMA wal_checkpoint(FULL)",
            2 => "PRAGMA wal_checkpoint(RESTART)",
            3 => "PRAGMA wal_checkpoint(TRUNCATE)",
            4 => "PRAGMA integrity_check",
            _ => "PRAGMA wal_checkpoint(PASSIVE)",
        };
        self.pool.advance();
        let done = self.pool.current().and_then(|connection| tidy(connection, work));
        match done {
            Ok(None) => {
                self.pool.worked();
                self.journal.note(&Note::Read { rows: 0 });
            }
            Ok(Some(fault)) => self.journal.note(&Note::Wrong(fault)),
            // A lock that others hold for long is no fault, nor is a VACUUM that a replica refuses.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                self.journal.note(&Note::Idle);
            }
            Err(error) => {
                self.journal
                    .note(&failure(work.split(' ').next().unwrap_or(work), &error));
                match self.pool.failed(|fresh| tidy(fresh, work).map(drop)) {
                    Verdict::Kept => {}
                    Verdict::Replaced(broken) => self.journal.note(&broken),
                }
            }
        }
        self.about(700)
    }
}

fn tidy(connection: &Connection, work: &str) -> rusqlite::Result<Option<String>> {
    let mut statement = connection.prepare(work)?;
    if statement.column_count() == 0 {
        return statement.raw_execute().map(|_| None);
    }
    match statement.query_row([], |row| row.get::<_, Value>(0))? {
        Value::Text(verdict) if verdict != "ok" => match unread(&verdict) {
            Some(error) => Err(error),
            None => Ok(Some(format!("{work}: {verdict}"))),
        },
        Value::Text(_) | Value::Null | Value::Integer(_) | Value::Real(_) | Value::Blob(_) => Ok(None),
    }
}

/// A verdict that says that pages could not be read says nothing of what is in them.
fn unread(verdict: &str) -> Option<rusqlite::Error> {
    let (_, code) = verdict.split_once("unable to get the page. error code=")?;
    let digits: String = code.chars().take_while(char::is_ascii_digit).collect();
    let error = rusqlite::ffi::Error::new(digits.parse().ok()?);
    Some(rusqlite::Error::SqliteFailure(
        error,
        Some("integrity_check cannot read a page".into()),
    ))
}

/// The rows there are, and what is wrong with those around a place.
fn look(
    connection: &Connection,
    place: f64,
    hold: Duration,
    thorough: bool,
) -> rusqlite::Result<(i64, Vec<String>)> {
    let transaction = connection.unchecked_transaction()?;
    let rows = count(&transaction)?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)] // some row, no matter which
    let from = (place * rows as f64) as i64;
    let mut faults = faults_from(&transaction, from)?;
    std::thread::sleep(hold);
    let again = count(&transaction)?;
    if again != rows {
        faults.push(format!("a read transaction saw {rows} rows and then {again}"));
    }
    if thorough {
        faults.extend(tidy(&transaction, "PRAGMA integrity_check")?);
    }
    transaction.commit()?;
    Ok((rows, faults))
}

fn count(connection: &Connection) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("SELECT count(*) FROM t")?
        .query_row([], |row| row.get(0))
}

fn faults_from(connection: &Connection, from: i64) -> rusqlite::Result<Vec<String>> {
    let mut statement =
        connection.prepare_cached("SELECT id, body, sum FROM t ORDER BY id LIMIT ? OFFSET ?")?;
    let found = statement.query_map([WINDOW, from], rows::fault_of)?;
    Ok(found
        .collect::<rusqlite::Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect())
}

/// How many rows there are, and a checksum over all of them.
pub(in crate::torture) fn digest(connection: &Connection) -> rusqlite::Result<(i64, u64)> {
    let mut statement = connection.prepare("SELECT id, sum FROM t ORDER BY id")?;
    let mut found = statement.query([])?;
    let (mut rows, mut digest) = (0, crc64fast::Digest::new());
    while let Some(row) = found.next()? {
        rows += 1;
        digest.write(&row.get::<_, i64>(0)?.to_be_bytes());
        digest.write(&row.get::<_, i64>(1)?.to_be_bytes());
    }
    Ok((rows, digest.sum64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_cannot_be_read_is_no_wrong_page() {
        let text = "*** in database main ***\nTree 2 page 6: unable to get the page. error code=266\nmore";
        let error = unread(text).unwrap();
        assert_eq!(error.sqlite_error().unwrap().extended_code, 266);
        assert!(unread("row 1 missing from index").is_none());
    }
}
