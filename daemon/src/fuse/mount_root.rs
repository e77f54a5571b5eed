//! To whom the root of a mount belongs, which is the root of the backing tree: to the owner of the directory that it covers, until there is
//! something in it; or to whom the settings say.
//!
//! LiteFS checks no permissions. Where its configuration lets other users in and nobody said who may write, they may here too.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use engine::OwnerDefaults;

/// What a directory has that somebody made and thought no more of.
const ORDINARY: u32 = 0o755;

pub(super) struct Root<'a> {
    /// The backing tree.
    pub(super) files: &'a Path,
    pub(super) owners: OwnerDefaults,
    pub(super) allow_other: bool,
}

impl Root<'_> {
    /// Gives the root its owner and its permissions. `covered`: the mount point, on which nothing is mounted.
    pub(super) fn follow(&self, covered: &Path) -> io::Result<()> {
        let (root, covered) = (File::open(self.files)?, fs::metadata(covered)?);
        let OwnerDefaults { uid, gid, umask } = self.owners;
        let mut mode = umask.map(|umask| 0o777 & !umask);
        let (mut uid, mut gid) = (uid, gid);
        if fs::read_dir(self.files)?.next().is_none() {
            let mut permitted = covered.mode() & 0o7777;
            let is_own = covered.uid() == nix::unistd::geteuid().as_raw();
            if self.allow_other && is_own && uid.is_none() && permitted == ORDINARY {
                permitted = 0o777;
            }
            mode = mode.or(Some(permitted));
            uid = uid.or(Some(covered.uid()));
            gid = gid.or(Some(covered.gid()));
        }
        let now = root.metadata()?;
        if uid.is_some_and(|uid| uid != now.uid()) || gid.is_some_and(|gid| gid != now.gid()) {
            fchown(&root, uid, gid)?;
        }
        match mode {
            Some(mode) if mode != now.mode() & 0o7777 => root.set_permissions(Permissions::from_mode(mode)),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::{TempDir, tempdir};

    fn directory(uid: u32, mode: u32) -> TempDir {
        let dir = tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(uid), Some(uid)).unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        dir
    }

    fn after(files: &Path, covered: &TempDir, owners: OwnerDefaults, allow_other: bool) -> (u32, u32, u32) {
        let root = Root {
            files,
            owners,
            allow_other,
        };
        root.follow(covered.path()).unwrap();
        let found = fs::metadata(files).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    }

    #[test]
    fn a_fresh_root_follows_the_directory_that_it_covers_and_one_that_is_in_use_stays() {
        let files = tempdir().unwrap();
        let none = OwnerDefaults::default();
        let app = directory(1000, 0o700);
        assert_eq!(after(files.path(), &app, none, true), (1000, 1000, 0o700));
        let other = directory(1001, 0o1770);
        assert_eq!(after(files.path(), &other, none, false), (1001, 1001, 0o1770));
        fs::write(files.path().join("a.db"), "").unwrap();
        assert_eq!(after(files.path(), &app, none, true), (1001, 1001, 0o1770));
    }

    #[test]
    fn others_may_write_where_they_are_let_in_and_nobody_said_who_may() {
        let files = tempdir().unwrap();
        let none = OwnerDefaults::default();
        let ordinary = directory(0, 0o755);
        assert_eq!(after(files.path(), &ordinary, none, false), (0, 0, 0o755));
        assert_eq!(after(files.path(), &ordinary, none, true), (0, 0, 0o777));
        let private = directory(0, 0o700);
        assert_eq!(after(files.path(), &private, none, true), (0, 0, 0o700));
    }

    #[test]
    fn settings_hold_whatever_is_there() {
        let files = tempdir().unwrap();
        fs::write(files.path().join("a.db"), "").unwrap();
        let owners = OwnerDefaults {
            uid: Some(7),
            gid: Some(8),
            umask: Some(0o027),
        };
        assert_eq!(
            after(files.path(), &directory(0, 0o755), owners, true),
            (7, 8, 0o750)
        );
    }
}
