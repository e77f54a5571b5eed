//! What clients write: rows that tell by themselves whether they are right, wherever they are found.
//!
//! A row's `body` begins with a mark, its id and a checksum of both; so a row is recognised in a page of an LTX file without the b-tree
//! around it. The rest of the body follows from the id, and `sum` is the checksum of all of it.

use rusqlite::{Connection, Row};

pub(super) const SCHEMA: &str =
    "CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, tx INTEGER, n INTEGER, body BLOB, sum INTEGER)";
pub(super) const INSERT: &str = "INSERT INTO t VALUES(?, ?, ?, ?, ?)";
const MARK: &[u8; 8] = b"LFSROW\x01\xfe";
/// Mark, id and checksum.
const HEAD: usize = 24;
/// Ids of one client; those of the next begin here.
const PER_CLIENT: i64 = 1_000_000_000;

/// The first id of a client.
pub(super) fn first_id(client: u32) -> i64 {
    i64::from(client) * PER_CLIENT + 1
}

fn head(id: i64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(MARK);
    head[8..16].copy_from_slice(&id.to_be_bytes());
    let sum = checksum(&head[..16]);
    head[16..].copy_from_slice(&sum.to_be_bytes());
    head
}

/// The body of a row, of that many bytes at least.
pub(super) fn body(id: i64, length: usize) -> Vec<u8> {
    let mut bytes = head(id).to_vec();
    let mut state = id.cast_unsigned() ^ 0x9e37_79b9_7f4a_7c15;
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes
}

pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let mut digest = crc64fast::Digest::new();
    digest.write(bytes);
    digest.sum64()
}

/// Inserts a row of the transaction that begins with id `tx` and has `n` rows.
pub(super) fn insert(
    connection: &Connection,
    id: i64,
    tx: i64,
    n: i64,
    length: usize,
) -> rusqlite::Result<()> {
    let body = body(id, length);
    let sum = checksum(&body).cast_signed();
    let mut statement = connection.prepare_cached(INSERT)?;
    statement
        .execute(rusqlite::params![id, tx, n, body, sum])
        .map(drop)
}

/// What is wrong with a row `(id, body, sum)`.
pub(super) fn fault_of(row: &Row<'_>) -> rusqlite::Result<Option<String>> {
    let id: i64 = row.get(0)?;
    let found: Vec<u8> = row.get(1)?;
    let sum: i64 = row.get(2)?;
    if checksum(&found).cast_signed() != sum {
        return Ok(Some(format!("row {id}: the checksum is not that of the body")));
    }
    let same = found == body(id, found.len());
    Ok((!same).then(|| format!("row {id}: the body is that of another row")))
}

/// The ids of the rows whose beginning is somewhere in `bytes`.
pub(super) fn ids_in(bytes: &[u8]) -> impl Iterator<Item = i64> {
    bytes.windows(HEAD).filter_map(|window| {
        if !window.starts_with(MARK) {
            return None;
        }
        let id = i64::from_be_bytes(window[8..16].try_into().ok()?);
        (window == head(id)).then_some(id)
    })
}

/// A leaf of a table's b-tree.
const LEAF: u8 = 13;
/// The mark is among the first bytes of a record, behind its header and two integers.
const PREFIX: usize = 64 + HEAD;

/// The ids of the rows in a page: of its cells only, not of what is left in its free space.
pub(super) fn ids_in_page(page: &[u8]) -> Vec<i64> {
    let header = if page.starts_with(b"SQLite format 3") {
        100
    } else {
        0
    };
    let number = |at: usize| {
        page.get(at..at + 2)
            .map(|bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    };
    if page.get(header) != Some(&LEAF) {
        return Vec::new();
    }
    let cells = number(header + 3).unwrap_or(0);
    let cell = |index: usize| {
        let cell = page.get(number(header + 8 + 2 * index)?..)?;
        let (_, rest) = varint(cell)?;
        let (id, record) = varint(rest)?;
        let prefix = &record[..record.len().min(PREFIX)];
        ids_in(prefix).next().filter(|found| *found == id)
    };
    (0..cells).filter_map(cell).collect()
}

/// SQLite's variable-length integer, and what follows it.
fn varint(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let mut value = 0_u64;
    for (index, &byte) in bytes.iter().take(9).enumerate() {
        if index == 8 {
            return Some((((value << 8) | u64::from(byte)).cast_signed(), &bytes[9..]));
        }
        value = (value << 7) | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value.cast_signed(), &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_are_found_in_the_bytes_of_a_database_and_a_changed_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        for id in 1..=20 {
            insert(&connection, id, 1, 20, 40 + 300 * usize::try_from(id).unwrap()).unwrap();
        }
        let mut statement = connection.prepare("SELECT id, body, sum FROM t").unwrap();
        let faults: Vec<_> = statement
            .query_map([], fault_of)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert!(faults.len() == 20 && faults.iter().all(Option::is_none));
        drop(statement);
        connection
            .execute_batch("UPDATE t SET body = (SELECT body FROM t WHERE id = 2) WHERE id = 1")
            .unwrap();
        let fault = connection.query_row("SELECT id, body, sum FROM t WHERE id = 1", [], fault_of);
        assert!(fault.unwrap().unwrap().contains("checksum"));
        drop(connection);
        let bytes = std::fs::read(&path).unwrap();
        let in_cells = |bytes: &[u8]| -> BTreeSet<i64> { bytes.chunks(4096).flat_map(ids_in_page).collect() };
        let found = in_cells(&bytes);
        assert_eq!(found, (2..=20).collect());
        // The old content of row 1 is in the free space of its page.
        let everywhere: BTreeSet<_> = ids_in(&bytes).collect();
        assert!(everywhere.is_superset(&found));
        let damaged: Vec<u8> = bytes
            .iter()
            .map(|&byte| if byte == MARK[0] { 0 } else { byte })
            .collect();
        assert!(in_cells(&damaged).is_empty());
    }
}
