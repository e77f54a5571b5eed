//! Rows that were acknowledged against rows that are there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::super::profile::{Profile, Promise};
use super::super::{client, rows};
use super::{Evidence, Held, Judgement, Lost, Transaction, Wrong, fault_before};

pub(super) fn match_rows(
    evidence: &Evidence<'_>,
    transactions: &BTreeMap<i64, Transaction>,
    verdict: &mut Judgement,
) {
    for (&first, transaction) in transactions {
        let held = evidence.held.get(&transaction.database);
        let is_held = |id: i64| held.is_some_and(|held| held.ids.contains(&id));
        let mut ids = first..first + transaction.rows;
        let Some(acknowledged) = transaction.acknowledged.filter(|time| *time < evidence.until) else {
            verdict.failed_and_kept += u64::from(ids.all(is_held));
            continue;
        };
        if ids.clone().all(is_held) {
            continue;
        }
        if ids.all(|id| is_held(id) || evidence.archived.contains(&id)) {
            verdict.archived += 1;
            continue;
        }
        let fault = fault_before(evidence.faults, acknowledged);
        let fault = fault.map_or("none".to_owned(), |fault| fault.kind.name());
        verdict.all_lost.push(Lost {
            first,
            rows: transaction.rows,
            client: transaction.client,
            database: transaction.database.clone(),
            node: transaction.node,
            acknowledged,
            fault,
        });
    }
}

/// Rows that nobody wrote, and transactions of which a part is there.
pub(super) fn check_held(
    evidence: &Evidence<'_>,
    transactions: &BTreeMap<i64, Transaction>,
    verdict: &mut Judgement,
) {
    for (database, held) in evidence.held {
        let wrong = |what: String| Wrong {
            database: database.clone(),
            fault: "at the end".into(),
            what,
        };
        verdict.all_wrong.extend(held.torn.iter().cloned().map(wrong));
        let is_known = |id: i64| {
            let before = transactions.range(..=id).next_back();
            before.is_some_and(|(first, transaction)| {
                id < first + transaction.rows && transaction.database == *database
            })
        };
        let strange = held.ids.iter().filter(|&&id| !is_known(id));
        let strange = strange.map(|id| wrong(format!("row {id} was written by nobody")));
        verdict.all_wrong.extend(strange);
    }
}

/// Without a journal, a statement that failed leaves what it had written.
pub(super) fn excuse(
    journals: &[(Profile, usize, PathBuf)],
    failed: &BTreeSet<String>,
    verdict: &mut Judgement,
) {
    let helpless: BTreeSet<_> = journals
        .iter()
        .map(|(profile, _, _)| profile)
        .filter(|profile| match profile.journal.promise() {
            Promise::Whole => false,
            Promise::UnlessItFailed => failed.contains(&profile.database),
        })
        .map(|profile| profile.database.clone())
        .collect();
    let is_helpless = |database: &str| helpless.contains(database);
    let (excused, wrong): (Vec<_>, Vec<_>) = std::mem::take(&mut verdict.all_wrong)
        .into_iter()
        .partition(|wrong| is_helpless(&wrong.database));
    verdict.all_wrong = wrong;
    verdict.excused = excused.iter().map(Wrong::to_string).collect();
    let (excused, lost): (Vec<_>, Vec<_>) = std::mem::take(&mut verdict.all_lost)
        .into_iter()
        .partition(|lost| is_helpless(&lost.database));
    verdict.all_lost = lost;
    for lost in excused {
        verdict.excused.push(format!(
            "{}: acknowledged row {} is lost",
            lost.database, lost.first
        ));
    }
}

/// What can be found in the pages of a file that SQLite cannot read.
pub(in crate::torture) fn salvaged(file: &Path, reason: &str) -> std::io::Result<Held> {
    let bytes = std::fs::read(file)?;
    let size = bytes
        .get(16..18)
        .map_or(0, |size| u16::from_be_bytes([size[0], size[1]]));
    let size = match size {
        // That is how SQLite writes what has no room.
        0 | 1 => 1 << 16,
        size => usize::from(size),
    };
    Ok(Held {
        ids: bytes.chunks(size).flat_map(rows::ids_in_page).collect(),
        digest: None,
        torn: vec![format!("the database cannot be read: {reason}")],
    })
}

/// What a file of a database holds.
pub(in crate::torture) fn held(file: &Path) -> rusqlite::Result<Held> {
    let connection = Connection::open(file)?;
    let mut held = Held {
        digest: Some(client::digest(&connection)?),
        ..Held::default()
    };
    let mut statement = connection.prepare("SELECT id, body, sum FROM t")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        held.ids.insert(row.get(0)?);
        held.torn.extend(rows::fault_of(row)?);
    }
    let torn = "SELECT tx, n, count(*) FROM t GROUP BY tx HAVING count(*) <> n";
    let mut statement = connection.prepare(torn)?;
    let torn = statement.query_map([], |row| {
        let (tx, n, found): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(format!("of the {n} rows of transaction {tx} {found} are there"))
    })?;
    held.torn.extend(torn.collect::<rusqlite::Result<Vec<_>>>()?);
    Ok(held)
}
