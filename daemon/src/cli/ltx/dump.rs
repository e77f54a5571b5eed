//! `litefs ltx dump`.

use ltx::{Decoder, Txid};

use super::list::origin;
use super::{CommandError, Data, Done, Stop, Write, time};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    data: Data,
    /// The database.
    #[arg(value_name = "DB")]
    name: String,
    /// A transaction of the record.
    #[arg(value_parser = super::parse_txid)]
    txid: Txid,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Done {
    let log = args.data.log(&args.name)?;
    let Some(record) = log.find(args.txid)? else {
        let error = CommandError::new(format!(
            "{} has no record of transaction {}",
            args.name, args.txid
        ));
        return Err(error
            .hint(format!("`litefs ltx ls {}` lists the records", args.name))
            .into());
    };
    let info = record.info;
    let mut decoder = Decoder::new(record.reader()).map_err(damaged)?;
    let header = decoder.header().clone();
    writeln!(out, "transactions      {}-{}", info.min, info.max)?;
    writeln!(out, "time              {}", time(info.timestamp_ms))?;
    writeln!(out, "node              {:016X}", header.node_id)?;
    writeln!(out, "origin            {}", origin(info.meta.origin))?;
    writeln!(out, "page size         {}", info.page_size.get())?;
    writeln!(out, "pages after it    {}", info.commit)?;
    writeln!(out, "pre-apply         {}", info.pre)?;
    writeln!(out, "post-apply        {}", info.post)?;
    writeln!(
        out,
        "bytes             {}{}",
        info.len,
        if header.compressed { ", LZ4" } else { "" }
    )?;
    if let Some(wal) = header.wal {
        let [salt1, salt2] = wal.salt;
        writeln!(
            out,
            "captured from     WAL {salt1:08x} {salt2:08x}, {} bytes at {}",
            wal.size, wal.offset
        )?;
    }
    if let Some(wal) = info.meta.wal {
        let [salt1, salt2] = wal.salt;
        writeln!(
            out,
            "applied to        WAL {salt1:08x} {salt2:08x}, up to {}",
            wal.end
        )?;
    }
    if info.meta.journal_nonce != 0 {
        writeln!(out, "journal nonce     {:08x}", info.meta.journal_nonce)?;
    }
    writeln!(out)?;
    writeln!(out, "{:>10}  CHECKSUM", "PAGE")?;
    let mut page = vec![0; header.page_size.bytes()];
    while let Some(pgno) = decoder.next_page(&mut page).map_err(damaged)? {
        writeln!(out, "{pgno:>10}  {}", ltx::page_checksum(pgno, &page))?;
    }
    let trailer = decoder.finish().map_err(damaged)?;
    writeln!(out)?;
    Ok(writeln!(out, "file checksum     {}", trailer.file)?)
}

fn damaged(error: ltx::Error) -> Stop {
    CommandError::new(format!("the record is damaged: {error}"))
        .hint("a replica may have it whole")
        .into()
}
