//! `litefs export`: write a copy of a database to a file.
//!
//! The copy is complete and durable before it takes the place of an older file, so that a download that fails leaves
//! that file alone.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tempfile::NamedTempFile;

use super::Node;
use super::error::{CommandError, Result};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    node: Node,
    /// Name of the database on the node.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// The file to write.
    path: PathBuf,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let client = args.node.client()?;
    let started = Instant::now();
    let copy = super::client_runtime()?.block_on(download(&client, &args))?;
    replace(copy, &args.path)?;
    say!("Export of database \"{}\" in {}", args.name, elapsed(started));
    Ok(ExitCode::SUCCESS)
}

/// Time since `started`, to the millisecond.
pub(super) fn elapsed(started: Instant) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(started.elapsed().as_millis() as u64))
}

async fn download(client: &litefs_api::Client, args: &Args) -> Result<NamedTempFile> {
    let mut body = client.export(&args.name).await?;
    let failed = |error: std::io::Error| failed("write", &args.path, &error);
    let mut copy = NamedTempFile::new_in(directory(&args.path)).map_err(failed)?;
    while let Some(part) = body.next().await {
        copy.write_all(&part?).map_err(failed)?;
    }
    copy.as_file().sync_all().map_err(failed)?;
    Ok(copy)
}

/// Puts the copy in place. What belonged to an older database of that name would corrupt the new one, so it goes first.
fn replace(copy: NamedTempFile, path: &Path) -> Result<()> {
    for suffix in ["-journal", "-wal", "-shm"] {
        let mut side = path.as_os_str().to_os_string();
        side.push(suffix);
        match std::fs::remove_file(&side) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("remove", Path::new(&side), &error));
            }
            _ => {}
        }
    }
    copy.persist(path)
        .map_err(|error| failed("rename to", path, &error.error))?;
    let sync = std::fs::File::open(directory(path)).and_then(|dir| dir.sync_all());
    sync.map_err(|error| failed("sync the directory of", path, &error))
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn failed(operation: &str, path: &Path, error: &std::io::Error) -> CommandError {
    CommandError::new(format!("cannot {operation} {}: {error}", path.display()))
        .hint("choose a directory that can be written and has room")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_replaces_the_old_database_and_its_journals() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        for name in ["x.db", "x.db-wal", "x.db-shm", "x.db-journal"] {
            std::fs::write(dir.path().join(name), "old").unwrap();
        }
        let mut copy = NamedTempFile::new_in(dir.path()).unwrap();
        copy.write_all(b"new").unwrap();
        replace(copy, &path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
