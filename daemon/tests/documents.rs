//! What the documentation says of this repository. No mount, no network.

use std::collections::BTreeSet;
use std::path::Path;

/// A row of the map in `docs/semantics.md`: the statement, and the functions that hold it with their files.
struct Row<'a> {
    statement: &'a str,
    tests: Vec<(&'a str, &'a str)>,
}

const HEADING: &str = "## Where each statement is tested";

fn semantics() -> String {
    std::fs::read_to_string(docs().join("semantics.md")).unwrap()
}

fn docs() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs"))
}

fn rows(text: &str) -> Vec<Row<'_>> {
    let (_, map) = text.split_once(HEADING).expect("the map is there");
    let lines = map.lines().filter(|line| line.starts_with("| "));
    lines.skip(1).map(row).collect()
}

fn row(line: &str) -> Row<'_> {
    let (statement, rest) = line[2..].split_once(" |").unwrap();
    let links = rest.split("[`").skip(1);
    let tests = links.map(|link| {
        let (function, rest) = link.split_once("`](").expect("a test is a link to its file");
        let (file, _) = rest.split_once(')').unwrap();
        (function.rsplit("::").next().unwrap(), file)
    });
    Row {
        statement,
        tests: tests.collect(),
    }
}

/// The numbers of the statements, as they stand at the beginning of their lines.
fn statements(text: &str) -> BTreeSet<u32> {
    let numbers = text.lines().filter_map(|line| line.split_once(". "));
    numbers.filter_map(|(number, _)| number.parse().ok()).collect()
}

#[test]
fn every_test_in_the_map_of_statements_exists() {
    let text = semantics();
    let rows = rows(&text);
    assert!(
        rows.iter().map(|row| row.tests.len()).sum::<usize>() > 50,
        "the map was not read"
    );
    for row in rows {
        for (function, file) in row.tests {
            let source = std::fs::read_to_string(docs().join(file));
            let source =
                source.unwrap_or_else(|error| panic!("statement {}: {file}: {error}", row.statement));
            assert!(
                source.contains(&format!("fn {function}(")),
                "statement {}: {file} has no function {function}",
                row.statement
            );
        }
    }
}

#[test]
fn every_statement_is_in_the_map() {
    let text = semantics();
    let rows = rows(&text);
    let mapped: BTreeSet<u32> = rows.iter().filter_map(|row| row.statement.parse().ok()).collect();
    assert_eq!(mapped, statements(&text), "{HEADING}");
    for row in rows {
        let statement = row.statement;
        assert!(
            !row.tests.is_empty(),
            "statement {statement}: a row names a test, what has none is below"
        );
    }
}
