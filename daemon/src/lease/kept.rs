//! The lease this node holds, noted in the data directory for the process that comes after this one.
//!
//! A process that dies leaves a lease behind that nobody renews and everybody waits for. The next process on the same
//! data directory knows that its predecessor is gone for good, as it has the directory's lock. It goes on with the term of
//! that lease where the mount has lived on, and takes the lease back for a new term where it has not.

use std::io::{self, Write};
use std::path::Path;

use litefs_api::NodeId;

const FILE: &str = "lease";

/// A lease and the node that held it, one per line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) id: String,
    pub(super) node_id: NodeId,
}

/// What the former process held; nothing if it let go of it, or if the note is damaged.
pub(super) fn load(dir: &Path) -> io::Result<Option<Kept>> {
    let text = match std::fs::read_to_string(dir.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut lines = text.lines();
    let kept = lines.next().zip(lines.next().and_then(|id| id.parse().ok()));
    Ok(kept.map(|(id, node_id)| Kept {
        id: id.to_string(),
        node_id,
    }))
}

/// Notes a lease, durably: it is of use only after a crash.
pub(super) fn save(dir: &Path, kept: &Kept) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    writeln!(file, "{}\n{}", kept.id, kept.node_id)?;
    file.as_file().sync_all()?;
    file.persist(dir.join(FILE)).map_err(|error| error.error)?;
    std::fs::File::open(dir)?.sync_all()
}

/// Forgets the lease, durably: somebody else may have it from now on.
pub(super) fn forget(dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(dir.join(FILE)) {
        Ok(()) => std::fs::File::open(dir)?.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_noted_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        let kept = Kept {
            id: "session-1".to_string(),
            node_id: NodeId(0xab),
        };
        save(dir.path(), &kept).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(kept));
        forget(dir.path()).unwrap();
        forget(dir.path()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        std::fs::write(dir.path().join(FILE), "torn").unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
    }
}
