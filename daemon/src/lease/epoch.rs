//! The highest epoch this node has seen, kept in the data directory as a number and a line end.

use std::io::{self, Write};
use std::path::Path;

const FILE: &str = "epoch";

/// Reads the epoch; 0 if none was ever seen.
pub(super) fn load(dir: &Path) -> io::Result<u64> {
    match std::fs::read_to_string(dir.join(FILE)) {
        Ok(text) => text.trim().parse().map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// Stores the epoch durably.
pub(super) fn save(dir: &Path, epoch: u64) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    writeln!(file, "{epoch}")?;
    file.as_file().sync_all()?;
    file.persist(dir.join(FILE)).map_err(|error| error.error)?;
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_survives() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), 0);
        save(dir.path(), 7).unwrap();
        save(dir.path(), 8).unwrap();
        assert_eq!(load(dir.path()).unwrap(), 8);
        std::fs::write(dir.path().join(FILE), "x").unwrap();
        assert!(load(dir.path()).is_err());
    }
}
