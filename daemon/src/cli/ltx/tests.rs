use std::path::Path;

use clap::Parser;
use engine::log::{LogOptions, Origin, RecordMeta};
use ltx::{Checksum, Encoder, Header, PageSize, Pgno};

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// A data directory with a database of three transactions.
fn data() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (id, name) in [("1", "b.db"), ("2", "sub/a.db")] {
        let home = dir.path().join("databases").join(id);
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(home.join("name"), name).unwrap();
    }
    let options = LogOptions::default();
    let log = Log::open(OsDisk::shared(), dir.path().join("databases/1/log"), options).unwrap();
    let mut appender = log.appender().unwrap();
    let mut pre = Checksum::NONE;
    for txid in 1..=3 {
        let bytes = record(txid, pre);
        let info = appender
            .receive(RecordMeta::new(Origin::Applied), &mut &bytes[..])
            .unwrap();
        pre = info.post;
    }
    appender.flush().unwrap();
    dir
}

fn record(txid: u64, pre_apply: Checksum) -> Vec<u8> {
    let header = Header {
        compressed: false,
        page_size: PageSize::MIN,
        commit: 1,
        min_txid: Txid(txid),
        max_txid: Txid(txid),
        timestamp: 1_700_000_000_123,
        pre_apply,
        wal: None,
        node_id: 0xab,
    };
    let page = [txid as u8; 512];
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    encoder.encode_page(Pgno::FIRST, &page).unwrap();
    encoder.finish(ltx::page_checksum(Pgno::FIRST, &page)).unwrap().0
}

fn litefs_ltx(data: &Path, words: &[&str]) -> std::result::Result<String, CommandError> {
    let (command, rest) = words.split_first().unwrap();
    let words = ["ltx", command, "--data", data.to_str().unwrap()]
        .into_iter()
        .chain(rest.iter().copied());
    let line = Line::try_parse_from(words).map_err(|error| CommandError::new(error.to_string()))?;
    let mut out = Vec::new();
    let done = match line.args.command {
        Command::Ls(args) => list::run(&args, &mut out),
        Command::Dump(args) => dump::run(&args, &mut out),
        Command::Verify(args) => verify::run(&args, &mut out),
        Command::Export(args) => export::run(&args, &mut out),
    };
    match done {
        Ok(()) => Ok(String::from_utf8(out).unwrap()),
        Err(Stop::Failed(error)) => Err(error),
        Err(Stop::Pipe) => panic!("no pipe here"),
    }
}

#[test]
fn databases_and_records_are_listed() {
    let data = data();
    let all = litefs_ltx(data.path(), &["ls"]).unwrap();
    let lines: Vec<Vec<&str>> = all
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["FIRST", "LAST", "BYTES", "DATABASE"]);
    assert_eq!(lines[1], ["0000000000000001", "0000000000000003", "2304", "b.db"]);
    assert_eq!(lines[2], ["-", "-", "0", "sub/a.db"]);
    let records = litefs_ltx(data.path(), &["ls", "b.db"]).unwrap();
    let second: Vec<_> = records.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(
        second[..3],
        ["0000000000000002", "0000000000000002", "2023-11-14T22:13:20.123Z"]
    );
    assert_eq!(second[3..6], ["applied", "1", "636"]);
    let error = litefs_ltx(data.path(), &["ls", "c.db"]).unwrap_err();
    assert_eq!(error.hint.unwrap(), "known are: b.db, sub/a.db");
}

#[test]
fn a_record_is_dumped_with_its_pages() {
    let data = data();
    let dump = litefs_ltx(data.path(), &["dump", "b.db", "2"]).unwrap();
    for line in [
        "node              00000000000000AB",
        "transactions      0000000000000002-0000000000000002",
    ] {
        assert!(dump.lines().any(|found| found == line), "{dump}");
    }
    assert!(
        dump.contains(&format!(
            "         1  {}",
            ltx::page_checksum(Pgno::FIRST, &[2; 512])
        )),
        "{dump}"
    );
    assert!(litefs_ltx(data.path(), &["dump", "b.db", "4"]).is_err());
    assert!(litefs_ltx(data.path(), &["dump", "b.db", "x"]).is_err());
}

#[test]
fn damage_is_found() {
    let data = data();
    let sound = litefs_ltx(data.path(), &["verify"]).unwrap();
    assert_eq!(
        sound,
        "b.db: ok, 3 records, 0000000000000001-0000000000000003, 2304 bytes\nsub/a.db: ok, empty\n"
    );
    let path = data.path().join("databases/1/log/00000000-0000000000000001.log");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[768 + 400] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let damaged = litefs_ltx(data.path(), &["verify", "b.db"]).unwrap_err();
    let damaged = format!("{damaged:?}");
    assert!(damaged.contains("1 damaged"), "{damaged}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing is repaired");
    std::fs::write(&path, &bytes[..1536]).unwrap();
    let torn = litefs_ltx(data.path(), &["verify", "b.db"]).unwrap();
    assert!(
        torn.contains("ok, 1 record, ") && torn.ends_with(", 768 bytes of a torn end\n"),
        "{torn}"
    );
}

#[test]
fn exported_files_are_ordinary_ltx_files() {
    let data = data();
    let to = data.path().join("out/ltx");
    litefs_ltx(
        data.path(),
        &["export", "b.db", "--to", to.to_str().unwrap(), "--from", "2"],
    )
    .unwrap();
    let mut names: Vec<_> = std::fs::read_dir(&to)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "0000000000000002-0000000000000002.ltx",
            "0000000000000003-0000000000000003.ltx"
        ]
    );
    let bytes = std::fs::read(to.join(&names[0])).unwrap();
    assert_eq!(bytes, record(2, ltx::page_checksum(Pgno::FIRST, &[1; 512])));
}
