//! What nodes set aside: the rows in `<data>/archive/**`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use ltx::Decoder;

use super::rows;
use crate::{Error, Result};

/// The ids of all rows that the archive of a node holds. A file that cannot be decoded is told of: it holds what nobody gets back.
pub(super) fn ids(data: &Path, problems: &mut Vec<String>) -> Result<BTreeSet<i64>> {
    let mut found = BTreeSet::new();
    let archive = data.join("archive");
    if archive.is_dir() {
        collect(&archive, &mut found, problems)?;
    }
    Ok(found)
}

fn collect(directory: &Path, found: &mut BTreeSet<i64>, problems: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(Error::file("listing", directory))? {
        let path = entry.map_err(Error::file("listing", directory))?.path();
        if path.is_dir() {
            collect(&path, found, problems)?;
        } else if path.extension().is_some_and(|extension| extension == "ltx") {
            if let Err(error) = collect_ltx(&path, found) {
                problems.push(format!("{}: {error}", path.display()));
            }
        } else {
            // Files of a database whose log could not be opened are set aside as they are.
            let bytes = fs::read(&path).map_err(Error::file("reading", &path))?;
            found.extend(rows::ids_in(&bytes));
        }
    }
    Ok(())
}

fn collect_ltx(
    path: &Path,
    found: &mut BTreeSet<i64>,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut decoder = Decoder::new(BufReader::new(File::open(path)?))?;
    let mut page = vec![0; decoder.header().page_size.bytes()];
    while decoder.next_page(&mut page)?.is_some() {
        found.extend(rows::ids_in_page(&page));
    }
    decoder.finish()?;
    Ok(())
}
