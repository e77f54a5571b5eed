//! SQL on a node's databases.

use std::path::Path;
use std::time::Duration;

use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::types::ValueRef;
use rusqlite::{Batch, Connection};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The rows of the last statement that returned any.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    pub columns: Vec<String>,
    /// Integers, reals, texts and null as in JSON; a blob as `{"blob": "<hex>"}`.
    pub rows: Vec<Vec<Value>>,
}

impl Rows {
    /// The only value of a query with one row and one column.
    pub fn single(&self) -> Option<&Value> {
        match self.rows.as_slice() {
            [row] => row.first(),
            _ => None,
        }
    }

    /// As `sqlite3` prints a value: null as nothing.
    pub fn text(value: &Value) -> String {
        match value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            Value::Object(blob) => blob
                .get("blob")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            other => other.to_string(),
        }
    }
}

/// The child's side.
pub fn run(database: &Path, busy_timeout: Duration, sql: &str) -> rusqlite::Result<Rows> {
    let connection = Connection::open(database)?;
    connection.busy_timeout(busy_timeout)?;
    let mut result = Rows::default();
    let mut statements = Batch::new(&connection, sql);
    while let Some(mut statement) = statements.next()? {
        if statement.column_count() == 0 {
            statement.raw_execute()?;
            continue;
        }
        result.columns = statement.column_names().map(str::to_owned).collect();
        result.rows.clear();
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            let values = (0..result.columns.len()).map(|column| row.get_ref(column).map(json));
            result.rows.push(values.collect::<rusqlite::Result<_>>()?);
        }
    }
    Ok(result)
}

fn json(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => number.into(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
        ValueRef::Blob(bytes) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            serde_json::json!({ "blob": hex })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_the_last_query_come_back_as_json() {
        let directory = tempfile::tempdir().unwrap();
        let sql = "CREATE TABLE t (a, b); INSERT INTO t VALUES (1, 'x'), (NULL, x'00ff'); SELECT * FROM t; INSERT INTO t VALUES (2, 2.5)";
        let rows = run(&directory.path().join("db"), Duration::ZERO, sql).unwrap();
        assert_eq!(rows.columns, ["a", "b"]);
        assert_eq!(
            serde_json::to_string(&rows.rows).unwrap(),
            r#"[[1,"x"],[null,{"blob":"00ff"}]]"#
        );
        assert!(run(&directory.path().join("db"), Duration::ZERO, "SELEC").is_err());
    }
}
