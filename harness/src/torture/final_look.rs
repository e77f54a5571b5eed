//! What the nodes hold when all is over: before and after a last restart, on every node, through the mount and through the API.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use litefs_api::Client;

use super::archive;
use super::field::{Field, Place};
use super::oracle::{self, Held};
use crate::content::Content;
use crate::{Error, Result, binary, inside};

/// How long a mount may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// How long nodes may take to agree.
const AGREE: Duration = Duration::from_secs(60);
const BUSY: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(10);

pub(super) struct Look {
    pub(super) held: BTreeMap<String, Held>,
    /// Of all nodes.
    pub(super) archived: BTreeSet<i64>,
}

pub(super) fn take(field: &mut Field, directory: &Path, problems: &mut Vec<String>) -> Result<Look> {
    let places = field.places()?;
    if !mounts_answer(&places, problems) {
        return Ok(Look {
            held: BTreeMap::new(),
            archived: BTreeSet::new(),
        });
    }
    find_quarantine(field, problems);
    verify(field, directory, problems);
    let mut held = databases(field, directory, problems)?;
    // What is only in memory now is gone then.
    if let Err(error) = field.restart().and_then(|()| field.catch_up()) {
        problems.push(format!("the last restart: {error}"));
    } else {
        let again = databases(field, directory, problems)?;
        compare(&mut held, &again, problems);
    }
    let mut archived = BTreeSet::new();
    for place in &places {
        archived.extend(archive::ids(&place.data, problems)?);
    }
    Ok(Look { held, archived })
}

/// What the primary holds at the moment, and what was set aside.
pub(super) fn glance(field: &Field, directory: &Path) -> Result<Look> {
    let mut problems = Vec::new();
    let held = databases(field, directory, &mut problems)?;
    let mut archived = BTreeSet::new();
    for place in field.places()? {
        archived.extend(archive::ids(&place.data, &mut problems)?);
    }
    match problems.first() {
        None => Ok(Look { held, archived }),
        Some(problem) => Err(Error::Invalid(problem.clone())),
    }
}

/// A mount that does not answer would hang whoever asks, so others ask.
fn mounts_answer(places: &[Place], problems: &mut Vec<String>) -> bool {
    let before = problems.len();
    for place in places {
        let asked = Command::new("ls")
            .arg(&place.mount)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = asked else { continue };
        let deadline = Instant::now() + ANSWER;
        let answer = loop {
            match child.try_wait() {
                Ok(None) if Instant::now() < deadline => std::thread::sleep(GLANCE),
                Ok(Some(status)) => break Some(status.success()),
                Ok(None) | Err(_) => break None,
            }
        };
        match answer {
            Some(true) => {}
            Some(false) => problems.push(format!("{}: the mount cannot be read", place.name)),
            None => {
                let _ = child.kill();
                problems.push(format!("{}: the mount hangs", place.name));
            }
        }
    }
    problems.len() == before
}

fn find_quarantine(field: &Field, problems: &mut Vec<String>) {
    match field.statuses() {
        Err(error) => problems.push(error.to_string()),
        Ok(statuses) => {
            for (node, status) in statuses {
                for database in status.databases {
                    let reason = database
                        .quarantine
                        .map(|reason| format!("{node}: {} is stuck: {reason}", database.name));
                    problems.extend(reason);
                }
            }
        }
    }
}

/// What clients read on each node is what it exports, and the same everywhere.
fn verify(field: &Field, directory: &Path, problems: &mut Vec<String>) {
    match field {
        Field::Cluster(cluster) => match cluster.verify(AGREE) {
            Ok(verified) => problems.extend(verified.problems),
            Err(error) => problems.push(format!("comparing the nodes: {error}")),
        },
        Field::Solo(solo) => {
            let names = std::fs::read_dir(solo.mount()).into_iter().flatten().flatten();
            let databases = names.filter_map(|entry| entry.file_name().into_string().ok());
            for name in databases.filter(|name| name.ends_with(".db")) {
                problems.extend(verify_one(
                    &solo.url(),
                    &solo.mount().join(&name),
                    &name,
                    directory,
                ));
            }
        }
    }
}

fn verify_one(url: &str, path: &Path, name: &str, directory: &Path) -> Option<String> {
    let file = directory.join(format!("export-{name}"));
    if let Err(error) = export(url, name, &file) {
        return Some(format!("{name}: {error}"));
    }
    let exported = Content::of_file(&file).map_err(|error| error.to_string());
    let seen = client_content(path);
    match (exported, seen) {
        (Ok(exported), Ok(seen)) if exported == seen => None,
        (exported, seen) => Some(format!(
            "{name}: clients read {seen:?}, the node exports {exported:?}"
        )),
    }
}

fn client_content(path: &Path) -> std::result::Result<Content, String> {
    let program = binary::litefs_dev().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command
        .arg("read-content")
        .arg(path)
        .arg(BUSY.as_millis().to_string());
    inside::parent(command, "", || Ok(()), Error::Invalid).map_err(|error| error.to_string())
}

/// The rows of all databases, as the primary exports them.
fn databases(field: &Field, directory: &Path, problems: &mut Vec<String>) -> Result<BTreeMap<String, Held>> {
    let (primary, url) = field.primary()?;
    let name = field.places()?.swap_remove(primary).name;
    let statuses = field.statuses()?;
    let status = statuses.into_iter().find(|(node, _)| *node == name);
    let mut found = BTreeMap::new();
    for database in status.into_iter().flat_map(|(_, status)| status.databases) {
        let file = directory.join(format!("export-{}", database.name));
        let held = export(&url, &database.name, &file).and_then(|()| check(&file));
        match held {
            Ok(held) => drop(found.insert(database.name, held)),
            Err(error) => problems.push(format!("{}: {error}", database.name)),
        }
    }
    Ok(found)
}

fn check(file: &Path) -> std::result::Result<Held, String> {
    let mut held = match oracle::held(file) {
        Ok(held) => held,
        Err(error) => {
            return oracle::salvaged(file, &error.to_string()).map_err(|error| error.to_string());
        }
    };
    let connection = rusqlite::Connection::open(file).map_err(|error| error.to_string())?;
    let verdict = connection.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
    let verdict = verdict.map_err(|error| error.to_string())?;
    if verdict != "ok" {
        held.torn.push(format!("integrity_check: {verdict}"));
    }
    Ok(held)
}

fn export(url: &str, name: &str, file: &Path) -> std::result::Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let client = Client::new(url).map_err(|error| text(&error))?;
    let mut output = std::fs::File::create(file).map_err(|error| text(&error))?;
    let runtime = super::runtime().map_err(|error: Error| text(&error))?;
    runtime.block_on(async {
        let mut stream = client.export(name).await.map_err(|error| text(&error))?;
        while let Some(part) = stream.next().await {
            let part = part.map_err(|error| text(&error))?;
            output.write_all(&part).map_err(|error| text(&error))?;
        }
        Ok(())
    })
}

/// Only what both looks found is held.
fn compare(held: &mut BTreeMap<String, Held>, again: &BTreeMap<String, Held>, problems: &mut Vec<String>) {
    for (name, first) in held {
        let Some(second) = again.get(name) else {
            problems.push(format!("{name} is gone after the last restart"));
            continue;
        };
        let gone = first.ids.difference(&second.ids).count();
        if first.digest != second.digest {
            problems.push(format!(
                "{name}: the last restart changed its rows; {gone} are gone"
            ));
        }
        first.ids.retain(|id| second.ids.contains(id));
    }
}
