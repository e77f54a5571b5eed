//! `litefs ltx export`.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use engine::log::Record;
use ltx::Txid;

use super::{CommandError, Data, Done, Stop, Write, file_name};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    data: Data,
    /// The database.
    #[arg(value_name = "DB")]
    name: String,
    /// Directory for the files; made if missing.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Begin at this transaction.
    #[arg(long, value_name = "TXID", value_parser = super::parse_txid)]
    from: Option<Txid>,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Done {
    let log = args.data.log(&args.name)?;
    std::fs::create_dir_all(&args.to).map_err(|error| failed(&args.to, &error))?;
    let mut count = 0;
    for record in log.records(args.from.unwrap_or_default()) {
        let record = record?;
        let path = args.to.join(file_name(&record));
        write(&record, &args.to, &path).map_err(|error| failed(&path, &error))?;
        count += 1;
    }
    std::fs::File::open(&args.to)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| failed(&args.to, &error))?;
    Ok(writeln!(
        out,
        "{count} records of \"{}\" in {}",
        args.name,
        args.to.display()
    )?)
}

/// Verified, complete and durable before it has its name.
fn write(record: &Record, dir: &Path, path: &Path) -> io::Result<()> {
    ltx::verify(record.reader()).map_err(io::Error::other)?;
    // Readable as any other file: a temporary one is private otherwise.
    let public = std::fs::Permissions::from_mode(0o666);
    let mut copy = tempfile::Builder::new().permissions(public).tempfile_in(dir)?;
    io::copy(&mut record.reader(), &mut copy)?;
    copy.as_file().sync_all()?;
    copy.persist(path)?;
    Ok(())
}

fn failed(path: &Path, error: &io::Error) -> Stop {
    CommandError::new(format!("cannot export to {}: {error}", path.display()))
        .hint("files written before it are whole; go on behind them with -from TXID")
        .into()
}
