//! New databases on a replica: refused, without a trace.
//!
//! SQLite begins a database with an empty file, which could become anything, and on a replica an ordinary file is as good as elsewhere. What
//! tells is the next step: a journal beside the empty file, or, in journal modes without one, SQLite's header. That step is refused, as for a
//! database that exists; the empty file goes when its creator closes it, unless it has become something by then.

use std::io::{self, ErrorKind, Read};

use engine::{DbName, Error, Side};

use super::data::MAGIC;
use super::edge::Edge;
use super::errno::{Answer, Errno};
use super::node::{Node, Part};

impl Edge {
    /// Refuses a journal on a replica if it is that of a database which nobody else knows.
    pub(crate) fn refuse_new_journal(&self, part: Option<&Part>) -> Answer<()> {
        let Some((name, Side::Journal)) = part else {
            return Ok(());
        };
        if self.store.role().is_primary() || !self.may_become_database(name) {
            return Ok(());
        }
        Err(self.refuse_new_database(name))
    }

    /// The answer to the attempt to make a database of a file; notes that the file has no future.
    pub(crate) fn refuse_new_database(&self, name: &DbName) -> Errno {
        let path = name.file_in(&self.files_dir, Side::Database);
        if let Some(node) = super::kernel::inode_at(&path).and_then(|inode| self.table.by_inode(inode)) {
            node.refuse_birth();
        }
        self.refused(Error::ReadOnly(name.clone()))
    }

    /// An empty regular file, or one that begins as a database does.
    fn may_become_database(&self, name: &DbName) -> bool {
        let path = name.file_in(&self.files_dir, Side::Database);
        let Ok(meta) = std::fs::symlink_metadata(&path) else {
            return false;
        };
        if !meta.is_file() || meta.len() == 0 {
            return meta.is_file();
        }
        let mut head = [0; MAGIC.len()];
        std::fs::File::open(&path)
            .and_then(|mut file| file.read_exact(&mut head))
            .is_ok()
            && head == *MAGIC
    }

    /// Removes the empty file that a refused database has left, now that nobody has it open.
    pub(crate) fn bury(&self, node: &Node) {
        let Some((name, Side::Database)) = node.part() else {
            return;
        };
        let path = name.file_in(&self.files_dir, Side::Database);
        let mut remove = || match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.len() == 0 && super::kernel::inode_at(&path) == Some(node.id()) => {
                std::fs::remove_file(&path)
            }
            Ok(_) => Err(io::Error::from(ErrorKind::AlreadyExists)),
            Err(error) => Err(error),
        };
        let removed = self
            .store
            .discard_file(&name, &mut || node.remove_unborn(&mut remove));
        if let Err(error) = removed {
            tracing::debug!(db = %name, %error, "the file of a refused database stays");
        }
    }
}
