//! The mount is a POSIX file system: what works on a plain directory works here, with the same errors. Needs root and /dev/fuse.

mod mount_support;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, UNIX_EPOCH};

use mount_support::{MODES, Rig};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

#[test]
fn daemon_process() {
    mount_support::serve_if_daemon();
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn rw(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Runs one story on a mount of each mode.
fn in_both_modes(story: impl Fn(&mut Rig)) {
    for mode in MODES {
        let mut rig = Rig::start(mode);
        story(&mut rig);
        rig.stop();
    }
}

#[test]
fn an_inode_number_is_the_backing_files_and_survives_a_rename() {
    in_both_modes(|rig| {
        let (a, b) = (rig.path("a"), rig.path("b"));
        let mut file = rw(&a);
        file.write_all(b"text").unwrap();
        let inode = fs::metadata(&a).unwrap().ino();
        assert_eq!(inode, fs::metadata(rig.backing("a")).unwrap().ino());
        fs::rename(&a, &b).unwrap();
        assert_eq!(fs::metadata(&b).unwrap().ino(), inode);
        assert_eq!(file.metadata().unwrap().ino(), inode);
        file.write_all(b" more").unwrap();
        assert_eq!(fs::read(&b).unwrap(), b"text more");
        assert_eq!(errno(fs::metadata(&a)), libc::ENOENT);
    });
}

#[test]
fn an_unlinked_file_lives_while_it_is_open_and_its_name_is_free() {
    in_both_modes(|rig| {
        for name in ["file", "x.db", "x.db-wal", "x.db-journal", "x.db-shm"] {
            let path = rig.path(name);
            let mut old = rw(&path);
            old.write_all(b"old").unwrap();
            let inode = old.metadata().unwrap().ino();
            fs::remove_file(&path).unwrap();
            assert_eq!(old.metadata().unwrap().nlink(), 0, "{name}");
            fs::write(&path, b"new").unwrap();
            assert_ne!(
                fs::metadata(&path).unwrap().ino(),
                inode,
                "{name}: number reused while known"
            );
            old.write_all(b" text").unwrap();
            let mut text = String::new();
            old.seek(SeekFrom::Start(0)).unwrap();
            old.read_to_string(&mut text).unwrap();
            assert_eq!(text, "old text", "{name}");
            assert_eq!(fs::read(&path).unwrap(), b"new", "{name}");
        }
    });
}

#[test]
fn directories_with_their_errors() {
    in_both_modes(|rig| {
        let deep = rig.path("d/e/f");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), b"1").unwrap();
        // A directory may have the name of a part of a database.
        fs::create_dir(rig.path("test.db-wal")).unwrap();
        fs::create_dir(rig.path("test.db")).unwrap();
        fs::remove_dir(rig.path("test.db-wal")).unwrap();
        assert_eq!(errno(fs::remove_dir(rig.path("d"))), libc::ENOTEMPTY);
        assert_eq!(errno(fs::remove_file(rig.path("d"))), libc::EISDIR);
        assert_eq!(
            errno(File::options().write(true).open(rig.path("d"))),
            libc::EISDIR
        );
        assert_eq!(errno(fs::create_dir(rig.path("d"))), libc::EEXIST);
        assert_eq!(errno(fs::metadata(deep.join("file/x"))), libc::ENOTDIR);
        assert_eq!(errno(fs::rename(rig.path("d"), rig.path("d/e/x"))), libc::EINVAL);
        assert_eq!(
            errno(File::create(rig.path(&"n".repeat(256)))),
            libc::ENAMETOOLONG
        );
        fs::rename(rig.path("d/e"), rig.path("moved")).unwrap();
        assert_eq!(fs::read(rig.path("moved/f/file")).unwrap(), b"1");
        assert_eq!(names(&rig.path("moved")), ["f"]);
        assert_eq!(names(&rig.mount()), [".lag", "d", "moved", "test.db"]);
        fs::remove_dir_all(rig.path("moved")).unwrap();
    });
}

#[test]
fn a_large_directory_is_listed_completely_while_it_changes() {
    in_both_modes(|rig| {
        let dir = rig.path("many");
        fs::create_dir(&dir).unwrap();
        for i in 0..2000 {
            File::create(dir.join(format!("file-with-a-longish-name-{i:05}"))).unwrap();
        }
        assert_eq!(names(&dir).len(), 2000);
        for (index, entry) in fs::read_dir(&dir).unwrap().enumerate() {
            if index % 2 == 0 {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
        assert_eq!(names(&dir).len(), 1000);
        assert_eq!(names(&rig.mount()), [".lag", "many"]);
    });
}

#[test]
fn any_bytes_are_a_name() {
    in_both_modes(|rig| {
        for name in [
            &b"\xff\xfe.db"[..],
            b"a b'c\"",
            b"new\nline",
            b"http:test.db?x&y",
            b"-wal",
            b"x (deleted)",
        ] {
            let path = rig.mount().join(OsStr::from_bytes(name));
            fs::write(&path, name).unwrap();
            assert_eq!(fs::read(&path).unwrap(), name);
            fs::remove_file(&path).unwrap();
        }
    });
}

#[test]
fn symlinks_lead_where_they_say_and_loops_end() {
    in_both_modes(|rig| {
        fs::write(rig.path("target"), b"x").unwrap();
        symlink("target", rig.path("relative")).unwrap();
        symlink(rig.path("target"), rig.path("absolute")).unwrap();
        symlink("relative", rig.path("chain")).unwrap();
        symlink("loop2", rig.path("loop1")).unwrap();
        symlink("loop1", rig.path("loop2")).unwrap();
        symlink("/etc/hostname", rig.path("out")).unwrap();
        for name in ["relative", "absolute", "chain"] {
            assert_eq!(fs::read(rig.path(name)).unwrap(), b"x", "{name}");
        }
        assert_eq!(fs::read_link(rig.path("relative")).unwrap(), Path::new("target"));
        assert_eq!(errno(File::open(rig.path("loop1"))), libc::ELOOP);
        let no_follow = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(rig.path("chain"));
        assert_eq!(errno(no_follow), libc::ELOOP);
        assert!(fs::symlink_metadata(rig.path("out")).unwrap().is_symlink());
    });
}

#[test]
fn hard_links_and_rename_flags() {
    in_both_modes(|rig| {
        let (a, b, c) = (rig.path("a"), rig.path("b"), rig.path("c"));
        fs::write(&a, b"a").unwrap();
        fs::hard_link(&a, &b).unwrap();
        assert_eq!(fs::metadata(&a).unwrap().nlink(), 2);
        assert_eq!(fs::metadata(&a).unwrap().ino(), fs::metadata(&b).unwrap().ino());
        fs::remove_file(&a).unwrap();
        assert_eq!(
            (fs::read(&b).unwrap(), fs::metadata(&b).unwrap().nlink()),
            (b"a".to_vec(), 1)
        );
        fs::write(&c, b"c").unwrap();
        let refused = renameat2(AT_FDCWD, &b, AT_FDCWD, &c, RenameFlags::RENAME_NOREPLACE);
        assert_eq!(refused, Err(nix::errno::Errno::EEXIST));
        renameat2(AT_FDCWD, &b, AT_FDCWD, &c, RenameFlags::RENAME_EXCHANGE).unwrap();
        assert_eq!(
            (fs::read(&b).unwrap(), fs::read(&c).unwrap()),
            (b"c".to_vec(), b"a".to_vec())
        );
        fs::rename(&b, &c).unwrap();
        assert_eq!(fs::read(&c).unwrap(), b"c");
        assert_eq!(errno(fs::metadata(&b)), libc::ENOENT);
    });
}

#[test]
fn mode_owner_and_times_are_kept() {
    in_both_modes(|rig| {
        let path = rig.path("f");
        fs::write(&path, b"x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o4751);
        std::os::unix::fs::chown(&path, Some(1234), Some(5678)).unwrap();
        let stat = fs::metadata(&path).unwrap();
        assert_eq!((stat.uid(), stat.gid()), (1234, 5678));
        assert_eq!(
            stat.mode() & 0o7777,
            0o751,
            "chown takes the set-user-id bit away"
        );
        let times = fs::FileTimes::new()
            .set_accessed(UNIX_EPOCH + Duration::new(1_000_000, 5))
            .set_modified(UNIX_EPOCH - Duration::new(10, 250));
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_times(times)
            .unwrap();
        let stat = fs::metadata(&path).unwrap();
        assert_eq!((stat.atime(), stat.atime_nsec()), (1_000_000, 5));
        assert_eq!((stat.mtime(), stat.mtime_nsec()), (-11, 999_999_750));
    });
}

#[test]
fn permissions_are_the_kernels_business_and_new_files_belong_to_their_creator() {
    in_both_modes(|rig| {
        fs::write(rig.path("secret"), b"x").unwrap();
        fs::set_permissions(rig.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(rig.path("public")).unwrap();
        fs::set_permissions(rig.path("public"), fs::Permissions::from_mode(0o777)).unwrap();
        // The directories above a temporary directory are closed to others; what counts here is the mount.
        let script = "cat secret 2>/dev/null && exit 1; umask 027; echo hi > public/mine && mkdir public/dir";
        let status = Command::new("sh")
            .args(["-c", script])
            .current_dir(rig.mount())
            .uid(65534)
            .gid(65534)
            .status()
            .unwrap();
        assert!(status.success());
        let mine = fs::metadata(rig.path("public/mine")).unwrap();
        assert_eq!(
            (mine.uid(), mine.gid(), mine.mode() & 0o7777),
            (65534, 65534, 0o640)
        );
        let dir = fs::metadata(rig.path("public/dir")).unwrap();
        assert_eq!((dir.uid(), dir.gid(), dir.mode() & 0o7777), (65534, 65534, 0o750));
    });
}

#[test]
fn sparse_files_beyond_four_gibibytes() {
    in_both_modes(|rig| {
        let file = rw(&rig.path("sparse.db"));
        file.set_len(5_242_909_696).unwrap();
        file.write_all_at(b"end", 5_242_909_696).unwrap();
        let mut buffer = [0; 5];
        file.read_exact_at(&mut buffer, 5_242_909_694).unwrap();
        assert_eq!(&buffer, b"\0\0end");
        let stat = file.metadata().unwrap();
        assert_eq!(stat.len(), 5_242_909_699);
        assert!(stat.blocks() < 1000, "{} blocks", stat.blocks());
    });
}

#[test]
fn truncation_appending_and_overwriting() {
    in_both_modes(|rig| {
        for name in ["file", "y.db", "y.db-wal", "y.db-journal"] {
            let path = rig.path(name);
            fs::write(&path, b"a long first version").unwrap();
            fs::write(&path, b"short").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"short", "{name}");
            let mut end = File::options().append(true).open(&path).unwrap();
            let mut other = File::options().append(true).open(&path).unwrap();
            end.write_all(b" one").unwrap();
            other.write_all(b" two").unwrap();
            end.write_all(b" three").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"short one two three", "{name}");
            end.set_len(5).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().len(), 5, "{name}");
            assert_eq!(
                errno(File::options().write(true).create_new(true).open(&path)),
                libc::EEXIST
            );
        }
    });
}

#[test]
fn mappings_and_writes_see_each_other() {
    in_both_modes(|rig| {
        for name in ["m.db", "m.db-shm"] {
            let path = rig.path(name);
            let (one, two) = (rw(&path), rw(&path));
            one.set_len(8192).unwrap();
            // SAFETY: the file is not truncated while it is mapped.
            let (mut first, second) = unsafe {
                (
                    memmap2::MmapMut::map_mut(&one).unwrap(),
                    memmap2::Mmap::map(&two).unwrap(),
                )
            };
            two.write_all_at(b"written", 4096).unwrap();
            assert_eq!(&first[4096..4103], b"written", "{name}");
            first[..6].copy_from_slice(b"mapped");
            assert_eq!(&second[..6], b"mapped", "{name}");
            let mut buffer = [0; 6];
            two.read_exact_at(&mut buffer, 0).unwrap();
            assert_eq!(&buffer, b"mapped", "{name}");
            first.flush().unwrap();
            assert_eq!(&fs::read(rig.backing(name)).unwrap()[..6], b"mapped", "{name}");
        }
    });
}

#[test]
fn virtual_files_tell_role_lag_and_position() {
    in_both_modes(|rig| {
        assert_eq!(fs::read_to_string(rig.path(".lag")).unwrap(), "+000000000\n");
        assert_eq!(errno(fs::metadata(rig.path(".primary"))), libc::ENOENT);
        assert_eq!(names(&rig.mount()), [".lag"]);
        rig.ask("primary node-1");
        assert_eq!(fs::read_to_string(rig.path(".primary")).unwrap(), "node-1\n");
        assert_eq!(names(&rig.mount()), [".lag", ".primary"]);
        assert_eq!(errno(fs::metadata(rig.path("p.db-pos"))), libc::ENOENT);
        let db = rusqlite::Connection::open(rig.path("p.db")).unwrap();
        db.execute_batch("CREATE TABLE t(x)").unwrap();
        let position = fs::read_to_string(rig.path("p.db-pos")).unwrap();
        assert!(
            position.starts_with("0000000000000001/") && position.len() == 34,
            "{position:?}"
        );
        db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        let position = fs::read_to_string(rig.path("p.db-pos")).unwrap();
        assert!(position.starts_with("0000000000000002/"), "{position:?}");
        assert_eq!(
            errno(File::options().write(true).open(rig.path("p.db-pos"))),
            libc::EACCES
        );
        assert!(
            File::options()
                .read(true)
                .write(true)
                .open(rig.path("p.db-lock"))
                .is_ok()
        );
        assert_eq!(names(&rig.mount()), [".lag", ".primary", "p.db"]);
        rig.ask("role replica");
        let halt = File::options().read(true).write(true).open(rig.path("p.db-lock"));
        assert_eq!(errno(halt), libc::EOPNOTSUPP);
    });
}

#[test]
fn a_stop_does_not_wait_for_clients_and_leaves_strangers_alone() {
    in_both_modes(|rig| {
        let mut file = rw(&rig.path("open"));
        file.write_all(b"x").unwrap();
        let started = Instant::now();
        assert_eq!(rig.ask("stop"), "stopped");
        assert!(
            started.elapsed() < Duration::from_secs(8),
            "{:?}",
            started.elapsed()
        );
        assert!(
            fs::read_dir(rig.mount()).unwrap().next().is_none(),
            "the mount point is an empty directory"
        );
        drop(file);
        rig.restart();
        assert_eq!(fs::read(rig.path("open")).unwrap(), b"x");
    });
}

/// Xorshift: the same story from the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    /// One of few names, so that the threads meet; some of them database names.
    fn path(&mut self, root: &Path) -> PathBuf {
        const NAMES: [&str; 7] = ["a", "b", "c.db", "c.db-wal", "c.db-shm", "c.db-journal", "d"];
        let mut path = root.to_owned();
        for _ in 0..=self.roll(3) {
            path.push(NAMES[self.roll(NAMES.len() as u64) as usize]);
        }
        path
    }
}

fn one_operation(dice: &mut Dice, root: &Path) -> io::Result<()> {
    let (path, other) = (dice.path(root), dice.path(root));
    match dice.roll(10) {
        0 | 1 => fs::write(&path, b"text"),
        2 => fs::create_dir(&path),
        3 => fs::rename(&path, &other),
        4 => fs::remove_file(&path),
        5 => fs::remove_dir(&path),
        6 => fs::read_dir(&path).map(|entries| assert!(entries.count() < 100)),
        7 => fs::read(&path).map(drop),
        8 => fs::hard_link(&path, &other),
        _ => fs::metadata(&path).map(drop),
    }
}

/// Path, kind, inode number and content of everything below.
fn inventory(root: &Path, below: &Path, found: &mut Vec<(PathBuf, bool, u64, Vec<u8>)>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        if path == Path::new(".lag") {
            continue;
        }
        let stat = entry.metadata().unwrap();
        let content = if stat.is_file() {
            fs::read(entry.path()).unwrap()
        } else {
            Vec::new()
        };
        found.push((path.clone(), stat.is_dir(), stat.ino(), content));
        if stat.is_dir() {
            inventory(root, &path, found);
        }
    }
    found.sort();
}

#[test]
fn the_tree_is_the_backing_tree_after_any_operations_from_all_sides() {
    let expected = [
        libc::ENOENT,
        libc::EEXIST,
        libc::ENOTEMPTY,
        libc::ENOTDIR,
        libc::EISDIR,
        libc::EINVAL,
        libc::EPERM,
    ];
    in_both_modes(|rig| {
        let root = rig.mount();
        std::thread::scope(|scope| {
            for seed in 1..=4u64 {
                let root = &root;
                scope.spawn(move || {
                    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                    for _ in 0..1500 {
                        if let Err(error) = one_operation(&mut dice, root) {
                            let errno = error.raw_os_error().unwrap();
                            assert!(expected.contains(&errno), "seed {seed}: {error}");
                        }
                    }
                });
            }
        });
        let (mut seen, mut kept) = (Vec::new(), Vec::new());
        inventory(&root, Path::new(""), &mut seen);
        inventory(&rig.backing(""), Path::new(""), &mut kept);
        assert_eq!(seen, kept);
    });
}
