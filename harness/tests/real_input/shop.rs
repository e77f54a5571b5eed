//! The application: the music shop's schema and data, what its clerks do, and what holds whenever nobody is in the middle of it.
//!
//! A clerk's steps are a function of (clerk, step) and touch only the clerk's own invoices, playlists and customers, so that the steps of
//! several clerks lead to the same content in whatever order they are interleaved. Every step is one transaction that changes something.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};

/// In an order that satisfies the foreign keys.
const TABLES: [&str; 11] = [
    "Artist",
    "Album",
    "Genre",
    "MediaType",
    "Track",
    "Employee",
    "Customer",
    "Invoice",
    "InvoiceLine",
    "Playlist",
    "PlaylistTrack",
];
/// Rows of one loading transaction.
const BATCH: usize = 2500;
/// Clerks that may work side by side.
pub(crate) const CLERKS: u64 = 4;
const CUSTOMERS: u64 = 59;
const TRACKS: i64 = 3503;
/// Invoices and playlists of clerk `n` are numbered from `(n + 1) * OWN`.
const OWN: u64 = 100_000;
/// The fewest tracks of a playlist that a clerk makes.
const PLAYLIST: i64 = 36;

/// The shop's books, which triggers keep: the sum of the entries is the sum of the invoices.
const BOOKS: &str = "
    CREATE TABLE Ledger (EntryId INTEGER PRIMARY KEY AUTOINCREMENT, InvoiceId INTEGER NOT NULL, Cents INTEGER NOT NULL);
    CREATE TRIGGER InvoiceIsBooked AFTER INSERT ON Invoice BEGIN
        INSERT INTO Ledger (InvoiceId, Cents) VALUES (new.InvoiceId, round(new.Total * 100));
    END;
    CREATE TRIGGER InvoiceIsCorrected AFTER UPDATE OF Total ON Invoice BEGIN
        INSERT INTO Ledger (InvoiceId, Cents) VALUES (new.InvoiceId, round(new.Total * 100) - round(old.Total * 100));
    END;
    CREATE TRIGGER InvoiceIsCancelled AFTER DELETE ON Invoice BEGIN
        INSERT INTO Ledger (InvoiceId, Cents) VALUES (old.InvoiceId, -round(old.Total * 100));
    END;";

/// The database as SQL: the schema as one transaction, then the rows, some per transaction.
pub(crate) fn as_sql(source: &std::path::Path) -> Vec<String> {
    let source = Connection::open_with_flags(source, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let schema = "SELECT sql || ';' FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid";
    let mut scripts = vec![transaction(&format!(
        "{}{BOOKS}",
        texts(&source, schema).concat()
    ))];
    for table in TABLES {
        let columns = texts(&source, &format!("SELECT name FROM pragma_table_info('{table}')"));
        let rows = format!(
            "SELECT 'INSERT INTO {table} VALUES (' || {} || ');' FROM {table} ORDER BY rowid",
            quoted(&columns)
        );
        let statements = texts(&source, &rows);
        scripts.extend(statements.chunks(BATCH).map(|rows| transaction(&rows.concat())));
    }
    scripts
}

fn transaction(statements: &str) -> String {
    format!("PRAGMA foreign_keys = ON; BEGIN; {statements} COMMIT;")
}

fn texts(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

/// For each table a query of all its rows, sorted, as one text. An entry's number in the ledger is left out: it depends on who came first.
pub(crate) fn contents(connection: &Connection) -> Vec<(&'static str, String)> {
    let whole = |table: &'static str| {
        let columns = format!("SELECT name FROM pragma_table_info('{table}') WHERE name <> 'EntryId'");
        let row = quoted(&texts(connection, &columns));
        let lines = format!("SELECT {row} AS line FROM {table} ORDER BY line");
        (
            table,
            format!("SELECT group_concat(line, char(10)) FROM ({lines})"),
        )
    };
    TABLES.into_iter().chain(["Ledger"]).map(whole).collect()
}

/// An expression of the columns' values as SQL literals.
fn quoted(columns: &[String]) -> String {
    let values: Vec<_> = columns.iter().map(|name| format!("quote({name})")).collect();
    values.join(" || ',' || ")
}

/// One step of a clerk. `refusals`: also does what SQLite must refuse or take back, which journal mode OFF cannot.
pub(crate) fn work(
    connection: &mut Connection,
    clerk: u64,
    step: u64,
    refusals: bool,
) -> rusqlite::Result<()> {
    if refusals && step % 8 == 7 {
        take_back(connection, clerk, step)?;
    }
    let mut chance = StdRng::seed_from_u64(clerk << 32 | step);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let number = (clerk + 1) * OWN + step;
    match step % 8 {
        0..=3 => sell(&transaction, number, clerk, &mut chance)?,
        4 => correct(&transaction, number - 3)?,
        5 => cancel(&transaction, number - 3)?,
        6 => compile_playlist(&transaction, number, &mut chance)?,
        _ => {
            let address = format!("{} Real Street", step);
            let sql = "UPDATE Customer SET Address = ?, Fax = NULL WHERE CustomerId = ?";
            transaction.execute(sql, params![address, customer(clerk, &mut chance)])?;
        }
    }
    transaction.commit()
}

/// A customer that no other clerk serves.
fn customer(clerk: u64, chance: &mut StdRng) -> i64 {
    let round = chance.random_range(0..CUSTOMERS / CLERKS);
    (1 + round * CLERKS + clerk) as i64
}

fn sell(transaction: &Transaction<'_>, number: u64, clerk: u64, chance: &mut StdRng) -> rusqlite::Result<()> {
    let invoice = number as i64;
    let insert = "INSERT INTO Invoice SELECT ?, CustomerId, date('2014-01-01', ? || ' days'), Address, City, State, Country, \
                  PostalCode, 0 FROM Customer WHERE CustomerId = ?";
    let day = (number % OWN) as i64;
    let inserted = transaction.execute(insert, params![invoice, day, customer(clerk, chance)])?;
    assert_eq!(inserted, 1, "the customer is there");
    for line in 0..chance.random_range(1..=6) {
        let insert =
            "INSERT INTO InvoiceLine SELECT ?, ?, TrackId, UnitPrice, ? FROM Track WHERE TrackId = ?";
        let (quantity, track) = (chance.random_range(1..=3), chance.random_range(1..=TRACKS));
        transaction.execute(insert, params![invoice * 10 + line, invoice, quantity, track])?;
    }
    total(transaction, invoice)
}

fn total(transaction: &Transaction<'_>, invoice: i64) -> rusqlite::Result<()> {
    let sum = "UPDATE Invoice SET Total = (SELECT round(sum(UnitPrice * Quantity), 2) FROM InvoiceLine l \
               WHERE l.InvoiceId = Invoice.InvoiceId) WHERE InvoiceId = ?";
    let updated = transaction.execute(sum, [invoice])?;
    assert_eq!(updated, 1, "the invoice is there");
    Ok(())
}

fn correct(transaction: &Transaction<'_>, number: u64) -> rusqlite::Result<()> {
    let more = "UPDATE InvoiceLine SET Quantity = Quantity + 1 WHERE InvoiceId = ?";
    transaction.execute(more, [number as i64])?;
    total(transaction, number as i64)
}

fn cancel(transaction: &Transaction<'_>, number: u64) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM InvoiceLine WHERE InvoiceId = ?", [number as i64])?;
    transaction.execute("DELETE FROM Invoice WHERE InvoiceId = ?", [number as i64])?;
    Ok(())
}

fn compile_playlist(transaction: &Transaction<'_>, number: u64, chance: &mut StdRng) -> rusqlite::Result<()> {
    let insert = "INSERT INTO Playlist VALUES (?, 'Mixed ' || ?)";
    transaction.execute(insert, params![number as i64, number as i64])?;
    let tracks = "INSERT INTO PlaylistTrack SELECT ?, TrackId FROM Track WHERE TrackId % 97 = ?";
    transaction.execute(tracks, params![number as i64, chance.random_range(0..97)])?;
    Ok(())
}

/// A sale that is rolled back, and one of a track that does not exist.
fn take_back(connection: &mut Connection, clerk: u64, step: u64) -> rusqlite::Result<()> {
    let mut chance = StdRng::seed_from_u64(step);
    let number = (clerk + 1) * OWN + step;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    sell(&transaction, number, clerk, &mut chance)?;
    transaction.rollback()?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    sell(&transaction, number, clerk, &mut chance)?;
    let line = "INSERT INTO InvoiceLine VALUES (?, ?, ?, 0.99, 1)";
    let refused = transaction.execute(line, params![-(number as i64), number as i64, TRACKS + 1]);
    assert!(refused.is_err(), "a foreign key is violated and nobody minds");
    transaction.rollback()
}

/// Looks at one snapshot: how many entries the ledger has, or what is wrong.
pub(crate) fn audit(connection: &mut Connection) -> rusqlite::Result<Result<i64, String>> {
    let snapshot = connection.transaction()?;
    let number = |sql: &str| snapshot.query_row(sql, [], |row| row.get::<_, i64>(0));
    let wrong = [
        (
            "invoices differ from the sum of their lines",
            "SELECT count(*) FROM Invoice i WHERE round(Total * 100) <> \
             coalesce((SELECT sum(round(UnitPrice * 100) * Quantity) FROM InvoiceLine l WHERE l.InvoiceId = i.InvoiceId), 0)"
                .to_owned(),
        ),
        (
            "lines have no invoice",
            "SELECT count(*) FROM InvoiceLine WHERE InvoiceId NOT IN (SELECT InvoiceId FROM Invoice)".to_owned(),
        ),
        (
            "cents lie between the ledger and the invoices",
            "SELECT abs((SELECT sum(Cents) FROM Ledger) - (SELECT CAST(sum(round(Total * 100)) AS INTEGER) FROM Invoice))".to_owned(),
        ),
        (
            "playlists are unfinished",
            format!(
                "SELECT count(*) FROM Playlist p WHERE PlaylistId > {OWN} AND \
                 (SELECT count(*) FROM PlaylistTrack t WHERE t.PlaylistId = p.PlaylistId) < {PLAYLIST}"
            ),
        ),
    ];
    for (what, sql) in wrong {
        let found = number(&sql)?;
        if found != 0 {
            return Ok(Err(format!("{found} {what}")));
        }
    }
    number("SELECT count(*) FROM Ledger").map(Ok)
}
