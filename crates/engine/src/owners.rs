//! To whom databases belong. Owner, group and mode of a database and of the directories that it is in are those that it has on the primary:
//! an application that is not root goes on after a failover, and what is private stays private.
//!
//! What a primary does not tell of (LiteFS does not), and what the daemon makes by itself, belongs to the owner of the directory it is in, and
//! who may use that may use it.

use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::name::{DbName, Side};
use crate::tree::{Place, Tree};

/// Permission bits of a file that travel, and of a directory, which may hand its group down or keep its files from being removed by others.
const FILE_BITS: u32 = 0o777;
const DIRECTORY_BITS: u32 = 0o3777;

/// Owner, group and permissions of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// What files get that nobody else gives an owner. `None`: what their directory has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnerDefaults {
    /// User.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Permissions that they do not get.
    pub umask: Option<u32>,
}

/// What is known of owners.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    defaults: OwnerDefaults,
    /// What the primary told, by paths below the root of the tree.
    told: Mutex<HashMap<PathBuf, Owner>>,
    /// Grows with each change of an owner or of permissions on the mount.
    changes: AtomicU64,
    /// It was said that this process cannot give files away.
    powerless: AtomicBool,
}

impl Owners {
    pub(crate) fn new(defaults: OwnerDefaults) -> Owners {
        Owners {
            defaults,
            ..Owners::default()
        }
    }

    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes what the primary told.
    pub(crate) fn note(&self, relative: &Path, owner: Owner) {
        self.told.lock().insert(relative.to_owned(), owner);
    }

    /// Gives what the daemon has just made its owner. A failure leaves it to the daemon's own user.
    pub(crate) fn give(&self, made: &File, relative: &Path, directory: &Metadata) -> io::Result<()> {
        let told = self.told.lock().get(relative).copied();
        let all = if made.metadata()?.is_dir() { 0o777 } else { 0o666 };
        let permitted = match self.defaults.umask {
            Some(umask) => !umask,
            None => directory.mode(),
        };
        let owner = told.unwrap_or(Owner {
            uid: self.defaults.uid.unwrap_or(directory.uid()),
            gid: self.defaults.gid.unwrap_or(directory.gid()),
            mode: all & permitted,
        });
        self.set(made, relative, owner).map(drop)
    }

    /// Returns whether that changed something.
    pub(crate) fn set(&self, file: &File, relative: &Path, owner: Owner) -> io::Result<bool> {
        let now = file.metadata()?;
        let belongs = (now.uid(), now.gid()) == (owner.uid, owner.gid);
        let bits = bits(&now);
        let permitted = now.mode() & bits == owner.mode & bits;
        if belongs && permitted {
            return Ok(false);
        }
        // Nobody gets what he is not to have in between: permissions are taken away before, and given after.
        if !permitted {
            file.set_permissions(Permissions::from_mode(now.mode() & owner.mode & bits))?;
        }
        if !belongs
            && let Err(error) = fchown(file, Some(owner.uid), Some(owner.gid))
            && !self.powerless.swap(true, Ordering::AcqRel)
        {
            tracing::warn!(
                path = %relative.display(),
                uid = owner.uid,
                gid = owner.gid,
                %error,
                "this process cannot give files the owners that they have on the primary; it takes root, or CAP_CHOWN and CAP_FOWNER"
            );
        }
        if !permitted {
            file.set_permissions(Permissions::from_mode(owner.mode & bits))?;
        }
        Ok(true)
    }
}

fn bits(metadata: &Metadata) -> u32 {
    if metadata.is_dir() {
        DIRECTORY_BITS
    } else {
        FILE_BITS
    }
}

/// A database's directories, outermost first, and its main file.
fn paths(name: &DbName) -> Vec<PathBuf> {
    let main = name.file(Side::Database);
    let mut paths: Vec<PathBuf> = main
        .ancestors()
        .filter(|path| !path.as_os_str().is_empty())
        .map(Path::to_owned)
        .collect();
    paths.reverse();
    paths
}

/// The owners of a database's directories, outermost first, and of its main file; `None`: one of them is not there.
pub(crate) fn of(tree: &Tree, name: &DbName) -> Option<Vec<Owner>> {
    let owner = |path: &PathBuf| {
        let found = tree.metadata(path).ok()?;
        Some(Owner {
            uid: found.uid(),
            gid: found.gid(),
            mode: found.mode() & bits(&found),
        })
    };
    paths(name).iter().map(owner).collect()
}

/// Notes what the primary told of a database, and gives what is there its owner. Returns what has changed.
pub(crate) fn take(tree: &Tree, name: &DbName, told: &[Owner]) -> Vec<PathBuf> {
    let paths = paths(name);
    if paths.len() != told.len() {
        return Vec::new();
    }
    let mut changed = Vec::new();
    let mut set = |path: PathBuf, owner| match set_at(tree, &path, owner) {
        Ok(true) => changed.push(path),
        Ok(false) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A WAL that is sealed cannot be given away now, and is made anew before anybody else needs it.
        Err(error) => tracing::debug!(path = %path.display(), %error, "cannot change the owner"),
    };
    for (path, owner) in paths.iter().zip(told) {
        tree.owners().note(path, *owner);
        set(path.clone(), *owner);
    }
    if let Some(owner) = told.last() {
        for side in [Side::Journal, Side::Wal, Side::Shm] {
            set(name.file(side), *owner);
        }
    }
    changed
}

fn set_at(tree: &Tree, relative: &Path, owner: Owner) -> io::Result<bool> {
    let file = open(&tree.place(relative)?)?;
    tree.owners().set(&file, relative, owner)
}

/// Opens a file or a directory, whatever it may be used for.
fn open(place: &Place) -> io::Result<File> {
    place.open(OpenOptions::new().read(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const APP: Owner = Owner {
        uid: 1000,
        gid: 1001,
        mode: 0o600,
    };

    fn tree(dir: &Path, defaults: OwnerDefaults) -> Tree {
        Tree::open(dir, Arc::new(Owners::new(defaults))).unwrap()
    }

    fn name() -> DbName {
        "app/data/private.db".parse().unwrap()
    }

    fn make(tree: &Tree) {
        let path = name().file(Side::Database);
        tree.make_file(&path).unwrap();
    }

    #[test]
    fn what_the_primary_told_holds_for_what_is_made_and_for_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let tree = tree(dir.path(), OwnerDefaults::default());
        let directory = |mode| Owner { mode, ..APP };
        let told = [directory(0o700), directory(0o2750), APP];
        assert!(take(&tree, &name(), &told).is_empty(), "nothing is there");
        make(&tree);
        assert_eq!(of(&tree, &name()).unwrap(), told);
        std::fs::write(dir.path().join("app/data/private.db-wal"), "").unwrap();
        let open = Owner { mode: 0o664, ..APP };
        let changed = take(&tree, &name(), &[directory(0o700), directory(0o2750), open]);
        let expected = ["app/data/private.db", "app/data/private.db-wal"];
        assert_eq!(changed, expected.map(PathBuf::from));
        assert_eq!(of(&tree, &name()).unwrap()[2], open);
        assert!(take(&tree, &name(), &[open]).is_empty(), "not of this path");
    }

    #[test]
    fn what_nobody_told_of_belongs_to_the_owner_of_its_directory_or_to_whom_the_settings_say() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(1000), Some(1001)).unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o775)).unwrap();
        make(&tree(dir.path(), OwnerDefaults::default()));
        let found = of(&tree(dir.path(), OwnerDefaults::default()), &name()).unwrap();
        let owner = |mode| Owner { mode, ..APP };
        assert_eq!(found, [owner(0o775), owner(0o775), owner(0o664)]);

        let dir = tempfile::tempdir().unwrap();
        let defaults = OwnerDefaults {
            uid: Some(7),
            gid: Some(8),
            umask: Some(0o007),
        };
        let tree = tree(dir.path(), defaults);
        make(&tree);
        let owner = |mode| Owner { uid: 7, gid: 8, mode };
        assert_eq!(
            of(&tree, &name()).unwrap(),
            [owner(0o770), owner(0o770), owner(0o660)]
        );
    }

    #[test]
    fn a_symbolic_link_is_given_to_nobody() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let victim = outside.path().join("victim");
        std::fs::write(&victim, "").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join("a.db")).unwrap();
        let tree = tree(dir.path(), OwnerDefaults::default());
        assert!(take(&tree, &"a.db".parse().unwrap(), &[APP]).is_empty());
        assert_ne!(std::fs::metadata(&victim).unwrap().uid(), APP.uid);
    }
}
