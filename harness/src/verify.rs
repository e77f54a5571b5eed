//! Compares what the nodes of a cluster hold, by means that share no code with the daemon: the whole file of each database as
//! `GET /export` gives it, its CRC-64/XZ (LTX uses another polynomial), what a client of the mount reads, and SQLite's own
//! `integrity_check`. Besides, the logs must agree on what each transaction led to.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use futures_util::StreamExt;
use litefs_api::{Checksum, Client, DatabaseStatus, HistoryEntry, Position, Txid};
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::cluster::Cluster;
use crate::content::Content;
use crate::error::{Error, Result};
use crate::station::Station;
use crate::status::ClusterStatus;

/// How many transactions back the nodes' logs are compared.
const HISTORY: u64 = 5000;

/// What was compared and what is wrong.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verification {
    pub nodes: Vec<Station>,
    pub databases: Vec<VerifiedDatabase>,
    /// Empty: all live nodes hold the same, and it is sound.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct VerifiedDatabase {
    pub name: String,
    pub position: String,
    pub bytes: u64,
    /// CRC-64/XZ of the file, in hexadecimal.
    pub digest: String,
}

impl Verification {
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

/// The positions of all databases on each live node.
type Positions = BTreeMap<Station, BTreeMap<String, Position>>;

pub(crate) fn positions(status: &ClusterStatus) -> Positions {
    let position = |found: &DatabaseStatus| {
        (
            found.name.clone(),
            Position {
                txid: found.txid,
                checksum: found.checksum,
            },
        )
    };
    status
        .live()
        .map(|(node, said)| (node.name, said.databases.iter().map(position).collect()))
        .collect()
}

/// Whether all nodes are at the same positions.
pub(crate) fn agree(positions: &Positions) -> bool {
    let mut all = positions.values();
    let Some(first) = all.next() else { return false };
    all.all(|other| other == first)
}

/// Compares the nodes' exports, and each with what clients of the node read. The positions must not change meanwhile; the caller checks that.
/// What the nodes' APIs say is asked with `runtime`; their clients, which take as long as they want, are waited for outside of it.
pub(crate) fn verify(cluster: &Cluster, runtime: &Runtime, status: &ClusterStatus) -> Result<Verification> {
    let positions = positions(status);
    let mut result = Verification {
        nodes: positions.keys().copied().collect(),
        ..Verification::default()
    };
    compare_positions(&positions, &mut result.problems);
    for (node, said) in status.live() {
        for database in &said.databases {
            if let Some(reason) = &database.quarantine {
                result.problems.push(format!(
                    "{}: {} is quarantined: {reason}",
                    node.name, database.name
                ));
            }
        }
    }
    let directory = tempfile::tempdir().map_err(Error::system("creating a temporary directory"))?;
    let mut histories = BTreeMap::new();
    let mut checked = BTreeSet::new();
    let mut digests = BTreeMap::new();
    for (node, said) in status.live() {
        let Some(url) = &node.api else { continue };
        let client = Client::new(url).map_err(|error| failed(node.name, error))?;
        for database in &said.databases {
            let compared = compare_history(&client, node.name, database, &mut histories);
            result.problems.extend(runtime.block_on(compared)?);
        }
        // A dropped database has a position and no bytes.
        for database in said.databases.iter().filter(|database| database.pages > 0) {
            let file = directory.path().join("export");
            let (digest, bytes) = match runtime.block_on(export(&client, &database.name, &file)) {
                Ok(exported) => exported,
                Err(error) => {
                    result
                        .problems
                        .push(format!("{}: {}: {error}", node.name, database.name));
                    continue;
                }
            };
            let difference = compare_digests(&mut digests, &database.name, node.name, digest);
            result.problems.extend(difference);
            let seen = cluster.at(node.name).content(&database.name);
            let problem = compare_contents(Content::of_file(&file), seen);
            result
                .problems
                .extend(problem.map(|text| format!("{}: {}: {text}", node.name, database.name)));
            if checked.insert((database.name.clone(), digest)) {
                let position = Position {
                    txid: database.txid,
                    checksum: database.checksum,
                }
                .to_string();
                let digest = format!("{digest:016x}");
                result.databases.push(VerifiedDatabase {
                    name: database.name.clone(),
                    position,
                    bytes,
                    digest,
                });
                let problems = integrity_problems(&file).unwrap_or_else(|error| vec![error.to_string()]);
                let problem =
                    |text: String| format!("{}: {}: integrity_check: {text}", node.name, database.name);
                result.problems.extend(problems.into_iter().map(problem));
            }
            for suffix in ["", "-wal", "-shm", "-journal"] {
                let _ = std::fs::remove_file(directory.path().join(format!("export{suffix}")));
            }
        }
    }
    Ok(result)
}

/// The checksum after a transaction of a database, and the first node that said so.
type Histories = BTreeMap<(String, Txid), (Station, Checksum)>;

/// A transaction after which this node had other content than another one, as far as both logs reach back.
async fn compare_history(
    client: &Client,
    node: Station,
    database: &DatabaseStatus,
    known: &mut Histories,
) -> Result<Option<String>> {
    let from = Txid(database.txid.0.saturating_sub(HISTORY).max(1));
    let history = match client.history(&database.name, from, HISTORY as usize + 1).await {
        Ok(history) => history,
        Err(litefs_api::Error::Status { status, .. }) if status == reqwest::StatusCode::NOT_FOUND => {
            return Ok(None);
        }
        Err(error) => return Err(failed(node, error)),
    };
    Ok(compare_entries(known, &database.name, node, &history.entries))
}

/// The first of a node's transactions that led to another content than a node before it says.
fn compare_entries(
    known: &mut Histories,
    name: &str,
    node: Station,
    entries: &[HistoryEntry],
) -> Option<String> {
    entries.iter().find_map(|HistoryEntry { txid, checksum }| {
        let key = (name.to_owned(), *txid);
        let (other, expected) = *known.entry(key).or_insert((node, *checksum));
        (expected != *checksum)
            .then(|| format!("{name}: after {txid}, {node} has checksum {checksum} and {other} {expected}"))
    })
}

/// The digest of each database, and the first node that has it.
type Digests = BTreeMap<String, (Station, u64)>;

fn compare_digests(known: &mut Digests, name: &str, node: Station, digest: u64) -> Option<String> {
    let (holder, expected) = *known.entry(name.to_owned()).or_insert((node, digest));
    (expected != digest)
        .then(|| format!("{name}: {node} has digest {digest:016x}, {holder} has {expected:016x}"))
}

/// How what a client of the mount reads differs from what the node exports.
fn compare_contents(exported: std::io::Result<Content>, seen: Result<Content>) -> Option<String> {
    match (exported, seen) {
        (Ok(exported), Ok(seen)) if exported == seen => None,
        (Ok(exported), Ok(seen)) => Some(format!(
            "clients read other pages ({seen}) than the node exports ({exported}): the file on the node's disk is damaged"
        )),
        (Err(error), _) => Some(format!("the export cannot be read: {error}")),
        (_, Err(error)) => Some(format!("clients cannot read it: {error}")),
    }
}

fn compare_positions(positions: &Positions, problems: &mut Vec<String>) {
    let Some((first, expected)) = positions.iter().next() else {
        problems.push("no node answers".into());
        return;
    };
    for (node, found) in positions.iter().skip(1) {
        let names: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
        for name in names {
            let (ours, theirs) = (expected.get(name), found.get(name));
            if ours != theirs {
                let show =
                    |position: Option<&Position>| position.map_or("nothing".to_owned(), Position::to_string);
                problems.push(format!(
                    "{name}: {node} is at {}, {first} at {}",
                    show(theirs),
                    show(ours)
                ));
            }
        }
    }
}

/// Saves a database as the node exports it; returns its digest and length.
async fn export(client: &Client, name: &str, file: &Path) -> Result<(u64, u64), String> {
    let mut stream = client.export(name).await.map_err(|error| error.to_string())?;
    let mut output = std::fs::File::create(file).map_err(|error| error.to_string())?;
    let (mut digest, mut length) = (crc64fast::Digest::new(), 0);
    while let Some(part) = stream.next().await {
        let part = part.map_err(|error| error.to_string())?;
        digest.write(&part);
        length += part.len() as u64;
        output.write_all(&part).map_err(|error| error.to_string())?;
    }
    Ok((digest.sum64(), length))
}

fn integrity_problems(file: &Path) -> rusqlite::Result<Vec<String>> {
    let connection = rusqlite::Connection::open(file)?;
    let mut statement = connection.prepare("PRAGMA integrity_check")?;
    let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
    let lines: Vec<_> = lines.collect::<rusqlite::Result<_>>()?;
    Ok(lines.into_iter().filter(|line| line != "ok").collect())
}

fn failed(node: Station, error: impl std::fmt::Display) -> Error {
    Error::Node {
        node: node.to_string(),
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(number: usize) -> Station {
        Station::node(number).unwrap()
    }

    fn at(txid: u64, checksum: u64) -> Position {
        Position {
            txid: Txid(txid),
            checksum: Checksum(checksum),
        }
    }

    /// What each node, from n1, holds: names and positions.
    fn held(nodes: &[&[(&str, Position)]]) -> Positions {
        let databases = |held: &[(&str, Position)]| {
            held.iter()
                .map(|(name, position)| (name.to_string(), *position))
                .collect()
        };
        (1..)
            .zip(nodes)
            .map(|(number, held)| (n(number), databases(held)))
            .collect()
    }

    fn problems(positions: &Positions) -> Vec<String> {
        let mut problems = Vec::new();
        compare_positions(positions, &mut problems);
        assert_eq!(agree(positions), problems.is_empty(), "{problems:?}");
        problems
    }

    #[test]
    fn equal_positions_are_no_problem() {
        let held_by_all: &[_] = &[("a.db", at(7, 1)), ("b.db", at(1, 2))];
        assert!(problems(&held(&[held_by_all; 3])).is_empty());
        assert!(problems(&held(&[&[], &[]])).is_empty());
    }

    #[test]
    fn no_node_at_all_is_a_problem() {
        assert_eq!(problems(&Positions::new()), ["no node answers"]);
    }

    #[test]
    fn another_transaction_checksum_or_set_of_databases_is_told_with_node_and_name() {
        let (behind, other) = (at(6, 1), at(7, 9));
        let all = held(&[
            &[("a.db", at(7, 1))],
            &[("a.db", behind)],
            &[("a.db", other)],
            &[],
            &[("a.db", at(7, 1)), ("b.db", at(1, 2))],
        ]);
        let (ours, extra) = (at(7, 1), at(1, 2));
        assert_eq!(
            problems(&all),
            [
                format!("a.db: n2 is at {behind}, n1 at {ours}"),
                format!("a.db: n3 is at {other}, n1 at {ours}"),
                format!("a.db: n4 is at nothing, n1 at {ours}"),
                format!("b.db: n5 is at {extra}, n1 at nothing"),
            ]
        );
    }

    #[test]
    fn another_digest_is_told_with_both_holders() {
        let mut known = Digests::new();
        assert_eq!(compare_digests(&mut known, "a.db", n(1), 1), None);
        assert_eq!(compare_digests(&mut known, "b.db", n(1), 2), None);
        assert_eq!(compare_digests(&mut known, "a.db", n(2), 1), None);
        assert_eq!(
            compare_digests(&mut known, "a.db", n(3), 2).unwrap(),
            "a.db: n3 has digest 0000000000000002, n1 has 0000000000000001"
        );
    }

    #[test]
    fn logs_are_compared_where_both_reach() {
        let entries = |range: std::ops::RangeInclusive<u64>, odd: u64| -> Vec<_> {
            range
                .map(|txid| HistoryEntry {
                    txid: Txid(txid),
                    checksum: Checksum(if txid == odd { 0 } else { 100 + txid }),
                })
                .collect()
        };
        let mut known = Histories::new();
        assert_eq!(
            compare_entries(&mut known, "a.db", n(1), &entries(5..=9, 0)),
            None
        );
        // It reaches back further, and what only it has is nobody's contradiction.
        assert_eq!(
            compare_entries(&mut known, "a.db", n(2), &entries(1..=8, 4)),
            None
        );
        assert_eq!(
            compare_entries(&mut known, "b.db", n(1), &entries(5..=9, 7)),
            None
        );
        let (txid, theirs, ours) = (Txid(7), Checksum(0), Checksum(107));
        assert_eq!(
            compare_entries(&mut known, "a.db", n(3), &entries(5..=9, 7)).unwrap(),
            format!("a.db: after {txid}, n3 has checksum {theirs} and n1 {ours}")
        );
    }

    #[test]
    fn the_digest_is_crc_64_xz() {
        let mut digest = crc64fast::Digest::new();
        digest.write(b"123456789");
        assert_eq!(digest.sum64(), 0x995d_c9bb_df19_39fa);
    }

    #[test]
    fn a_damaged_file_is_told_from_a_sound_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("db");
        let connection = rusqlite::Connection::open(&file).unwrap();
        connection
            .execute_batch("CREATE TABLE t (a PRIMARY KEY); INSERT INTO t VALUES (hex(randomblob(3000)))")
            .unwrap();
        drop(connection);
        assert!(integrity_problems(&file).unwrap().is_empty());
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[4096..4200].fill(0xff);
        std::fs::write(&file, bytes).unwrap();
        assert!(integrity_problems(&file).map_or(true, |problems| !problems.is_empty()));
    }
}
