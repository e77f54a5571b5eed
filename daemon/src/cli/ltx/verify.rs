//! `litefs ltx verify`.

use engine::log::{Log, LogError, Record, RecordInfo};
use ltx::Txid;

use super::{CommandError, Data, Done, Write};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    data: Data,
    /// Only this database.
    #[arg(value_name = "DB")]
    name: Option<String>,
}

/// What is wrong with a log, or a sum of what is right.
type Verdict = Result<String, String>;

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Done {
    let logs = match &args.name {
        Some(name) => vec![(name.clone(), Ok(args.data.log(name)?))],
        None => args
            .data
            .logs()?
            .into_iter()
            .map(|(name, log)| (name.to_string(), log))
            .collect(),
    };
    let mut damaged = 0;
    for (name, log) in logs {
        match log
            .map_err(|error| error.to_string())
            .and_then(|log| verify(&log))
        {
            Ok(sum) => writeln!(out, "{name}: {sum}")?,
            Err(fault) => {
                damaged += 1;
                writeln!(out, "{name}: DAMAGED: {fault}")?;
            }
        }
    }
    if damaged > 0 {
        let hint = "export what can be read with `litefs ltx export`; a replica has the others";
        return Err(CommandError::new(format!("{damaged} damaged")).hint(hint).into());
    }
    Ok(())
}

fn verify(log: &Log) -> Verdict {
    let (mut records, mut last): (u64, Option<RecordInfo>) = (0, None);
    for record in log.records(Txid::ZERO) {
        let info = check(record, last.as_ref())?;
        records += 1;
        last = Some(info);
    }
    if let Some((repair, next)) = log
        .repair()
        .and_then(|repair| Some((repair, repair.followed_by?)))
    {
        let end = last.map_or(Txid::ZERO, |last| last.max);
        return Err(format!(
            "no whole record after {end}, at offset {} of {}, but record {next} follows: unless the power failed, which may leave that, \
             the disk has lost something",
            repair.offset,
            repair.path.display()
        ));
    }
    let torn = log.repair().map_or(String::new(), |repair| {
        format!(", {} bytes of a torn end", repair.bytes)
    });
    let plural = if records == 1 { "" } else { "s" };
    Ok(match (log.first_txid(), last) {
        (Some(first), Some(last)) => {
            format!(
                "ok, {records} record{plural}, {first}-{}, {} bytes{torn}",
                last.max,
                log.bytes()
            )
        }
        _ => format!("ok, empty{torn}"),
    })
}

fn check(record: Result<Record, LogError>, last: Option<&RecordInfo>) -> Result<RecordInfo, String> {
    let record = record.map_err(|error| error.to_string())?;
    let info = record.info;
    let name = format!("{}-{}", info.min, info.max);
    if let Some(last) = last.filter(|last| !last.is_followed_by(&info)) {
        return Err(format!("record {name} does not follow {}", last.pos()));
    }
    let summary = ltx::verify(record.reader()).map_err(|error| format!("record {name}: {error}"))?;
    let (header, trailer) = (summary.header, summary.trailer);
    let same = (
        header.min_txid,
        header.max_txid,
        header.pre_apply,
        trailer.post_apply,
    ) == (info.min, info.max, info.pre, info.post);
    if same {
        Ok(info)
    } else {
        Err(format!("record {name} is not what its frame says"))
    }
}
