//! `litefs ltx ls`.

use engine::log::{Log, Origin};
use ltx::Txid;

use super::{Data, Done, Write, time};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    data: Data,
    /// List the records of this database.
    #[arg(value_name = "DB")]
    name: Option<String>,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Done {
    match &args.name {
        Some(name) => records(&args.data.log(name)?, out),
        None => databases(&args.data, out),
    }
}

fn databases(data: &Data, out: &mut dyn Write) -> Done {
    let logs = data.logs()?;
    writeln!(out, "{:<16}  {:<16}  {:>12}  DATABASE", "FIRST", "LAST", "BYTES")?;
    for (name, log) in logs {
        match log.as_ref().map(|log| (log, log.first_txid().zip(log.tail()))) {
            Ok((log, Some((first, tail)))) => {
                writeln!(out, "{first}  {}  {:>12}  {name}", tail.max, log.bytes())?;
            }
            Ok((_, None)) => writeln!(out, "{:<16}  {:<16}  {:>12}  {name}", "-", "-", 0)?,
            Err(error) => writeln!(out, "{:<16}  {:<16}  {:>12}  {name}: {error}", "?", "?", "?")?,
        }
    }
    Ok(())
}

fn records(log: &Log, out: &mut dyn Write) -> Done {
    let columns = ("MIN", "MAX", "TIME", "ORIGIN", "PAGES", "BYTES", "POST-APPLY");
    let (min, max, at, from, pages, bytes, post) = columns;
    writeln!(
        out,
        "{min:<16}  {max:<16}  {at:<24}  {from:<8}  {pages:>10}  {bytes:>12}  {post}"
    )?;
    for record in log.records(Txid::ZERO) {
        let info = record?.info;
        let (at, from) = (time(info.timestamp_ms), origin(info.meta.origin));
        let (min, max, pages, bytes, post) = (info.min, info.max, info.commit, info.len, info.post);
        writeln!(
            out,
            "{min}  {max}  {at:<24}  {from:<8}  {pages:>10}  {bytes:>12}  {post}"
        )?;
    }
    Ok(())
}

pub(super) fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Captured => "captured",
        Origin::Applied => "applied",
        Origin::Snapshot => "snapshot",
    }
}
