//! `litefs import`: create or replace a database with an SQLite file.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use super::Node;
use super::error::{CommandError, Result};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    node: Node,
    /// Name of the database on the node.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// The SQLite file to read.
    path: PathBuf,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let client = args.node.client()?;
    let started = Instant::now();
    super::client_runtime()?.block_on(async {
        let file = tokio::fs::File::open(&args.path).await.map_err(|error| {
            CommandError::new(format!("cannot open {}: {error}", args.path.display()))
                .hint("check the path and its permissions")
        })?;
        let body = reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::with_capacity(file, 1 << 16));
        client.import(&args.name, body).await.map_err(CommandError::from)
    })?;
    say!(
        "Import of database \"{}\" in {}",
        args.name,
        super::export::elapsed(started)
    );
    Ok(ExitCode::SUCCESS)
}
