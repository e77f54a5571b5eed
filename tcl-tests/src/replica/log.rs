//! What the records of a database's log add up to: exported with `litefs ltx export` and applied here, one after the other, to an
//! empty file.

use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use ltx::{Decoder, Pos};

use crate::execution::errand;

/// The image that a log adds up to, and the position it leads to.
pub(super) struct Replayed {
    pub(super) image: File,
    pub(super) position: Pos,
}

/// Exports the log of `name` from the data directory `data` and applies it below `scratch`.
pub(super) fn replay(litefs: &Path, data: &Path, name: &str, scratch: &Path) -> Result<Replayed> {
    let records = scratch.join("records");
    let mut command = Command::new(litefs);
    command
        .args(["ltx", "export", "--data"])
        .arg(data)
        .arg("--to")
        .arg(&records)
        .arg("--")
        .arg(name);
    errand(&mut command, "litefs ltx export").map_err(anyhow::Error::msg)?;
    let replayed = apply_all(&sorted(&records)?, &scratch.join("image"));
    std::fs::remove_dir_all(&records).with_context(|| format!("remove {}", records.display()))?;
    replayed
}

/// The names of records begin with their transaction, in hexadecimal digits of one width.
fn sorted(records: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(records).with_context(|| format!("list {}", records.display()))?;
    let paths: std::io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.with_context(|| format!("list {}", records.display()))?;
    paths.sort();
    Ok(paths)
}

fn apply_all(records: &[PathBuf], image: &Path) -> Result<Replayed> {
    let mut options = File::options();
    let image = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(image)
        .context("make an image")?;
    let mut position = Pos::ZERO;
    for path in records {
        position = apply(path, &image, position).with_context(|| {
            format!(
                "record {}",
                path.file_name().unwrap_or_default().to_string_lossy()
            )
        })?;
    }
    Ok(Replayed { image, position })
}

fn apply(path: &Path, image: &File, position: Pos) -> Result<Pos> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut decoder = Decoder::new(BufReader::new(file)).context("header")?;
    let header = decoder.header().clone();
    ensure!(
        header.is_snapshot() || header.follows(position),
        "does not follow {position}"
    );
    let size = header.page_size;
    if header.is_snapshot() {
        image.set_len(0).context("empty the image")?;
    }
    let mut page = vec![0; size.bytes()];
    while let Some(pgno) = decoder.next_page(&mut page).context("page")? {
        image
            .write_all_at(&page, pgno.offset(size))
            .context("write a page")?;
    }
    image
        .set_len(size.file_size(header.commit))
        .context("cut the image")?;
    let trailer = decoder.finish().context("trailer")?;
    Ok(Pos {
        txid: header.max_txid,
        post_apply: trailer.post_apply,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ltx::{Checksum, Encoder, Header, PageSize, Pgno, Txid, page_checksum};

    /// A record that writes one page of 512 bytes.
    fn record(path: &Path, txid: u64, commit: u32, pgno: u32, fill: u8, pre: Checksum) -> Checksum {
        let header = Header {
            compressed: true,
            page_size: PageSize::new(512).unwrap(),
            commit,
            min_txid: Txid(txid),
            max_txid: Txid(txid),
            timestamp: 1,
            pre_apply: pre,
            wal: None,
            node_id: 1,
        };
        let (pgno, page) = (Pgno::new(pgno).unwrap(), [fill; 512]);
        let before = if txid == 1 { Checksum::EMPTY_DATABASE } else { pre };
        let post = before.xor(page_checksum(pgno, &page));
        let mut encoder = Encoder::new(File::create(path).unwrap(), header).unwrap();
        encoder.encode_page(pgno, &page).unwrap();
        encoder.finish(post).unwrap();
        post
    }

    #[test]
    fn records_add_up_to_an_image_and_a_gap_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let first = record(&path("1"), 1, 1, 1, 7, Checksum::NONE);
        let second = record(&path("2"), 2, 2, 2, 8, first);
        let third = record(&path("3"), 3, 3, 3, 9, second);
        let all = [path("1"), path("2"), path("3")];
        let replayed = apply_all(&all, &path("image")).unwrap();
        assert_eq!(replayed.position, Pos::new(Txid(3), third));
        let image = std::fs::read(path("image")).unwrap();
        assert_eq!(image, [[7; 512], [8; 512], [9; 512]].concat());
        let error = apply_all(&[path("1"), path("3")], &path("image")).err().unwrap();
        assert!(format!("{error:#}").contains("does not follow"), "{error:#}");
    }
}
