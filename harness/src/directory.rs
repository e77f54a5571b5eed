//! Where clusters keep their state: one directory per cluster below a common root.
//!
//! ```text
//! <root>/<cluster>/cluster.json       what the cluster is made of
//! <root>/<cluster>/control.sock       the supervisor's ear, while it runs
//! <root>/<cluster>/lock               held by the supervisor for as long as it lives
//! <root>/<cluster>/supervisor.log
//! <root>/<cluster>/lease/             state and log of the lease server
//! <root>/<cluster>/nodes/n1/{data,mnt,litefs.yml,log}
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::error::{Error, Result};
use crate::spec::ClusterSpec;
use crate::station::Station;

/// The directory below which clusters live: `LITEFS_DEV_DIR`, or `litefs-dev` in the user's state directory.
pub fn root() -> Result<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(root) = set("LITEFS_DEV_DIR") {
        return std::path::absolute(&root).map_err(Error::file("resolving", &root));
    }
    if let Some(state) = set("XDG_STATE_HOME") {
        return Ok(state.join("litefs-dev"));
    }
    let home = set("HOME").ok_or_else(|| {
        Error::refused(
            "no place for the cluster's state",
            "set LITEFS_DEV_DIR, XDG_STATE_HOME or HOME",
        )
    })?;
    Ok(home.join(".local/state/litefs-dev"))
}

/// The directory of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterDirectory(PathBuf);

impl ClusterDirectory {
    /// The directory of cluster `name`, which need not exist.
    pub fn of(root: &Path, name: &str) -> Result<Self> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.starts_with('.') || name.len() > 64 || !name.chars().all(allowed) {
            let hint = "use letters, digits, '-', '_' and '.', at most 64, not starting with '.'";
            return Err(Error::refused(
                format!("{name:?} cannot be a cluster's name"),
                hint,
            ));
        }
        Ok(Self(root.join(name)))
    }

    /// The directory at `path`, which must be free of symbolic links so that it can be found in the mount table.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        path.canonicalize()
            .map(Self)
            .map_err(Error::file("resolving", path))
    }

    /// The clusters below `root`, by name.
    pub fn all(root: &Path) -> Result<Vec<Self>> {
        let entries = match std::fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::file("listing", root)(error)),
        };
        let mut found: Vec<_> = entries
            .filter_map(|entry| Some(Self(entry.ok()?.path())))
            .filter(Self::exists)
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn exists(&self) -> bool {
        self.spec_file().is_file()
    }

    pub fn name(&self) -> String {
        self.0
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    fn spec_file(&self) -> PathBuf {
        self.0.join("cluster.json")
    }

    pub fn spec(&self) -> Result<ClusterSpec> {
        let file = self.spec_file();
        let bytes = std::fs::read(&file).map_err(Error::file("reading", &file))?;
        serde_json::from_slice(&bytes).map_err(|error| Error::file("reading", &file)(error.into()))
    }

    pub(crate) fn save_spec(&self, spec: &ClusterSpec) -> Result<()> {
        let (file, temporary) = (self.spec_file(), self.0.join("cluster.json.tmp"));
        let bytes =
            serde_json::to_vec_pretty(spec).map_err(|error| Error::file("writing", &file)(error.into()))?;
        std::fs::write(&temporary, bytes).map_err(Error::file("writing", &temporary))?;
        std::fs::rename(&temporary, &file).map_err(Error::file("writing", &file))
    }

    /// Directory of a node or of the lease server.
    pub fn station(&self, station: Station) -> PathBuf {
        if station.is_node() {
            self.0.join("nodes").join(station.to_string())
        } else {
            self.0.join("lease")
        }
    }

    pub fn mount(&self, node: Station) -> PathBuf {
        self.station(node).join("mnt")
    }

    pub fn data(&self, node: Station) -> PathBuf {
        self.station(node).join("data")
    }

    pub fn config(&self, node: Station) -> PathBuf {
        self.station(node).join("litefs.yml")
    }

    pub fn log(&self, station: Station) -> PathBuf {
        self.station(station).join("log")
    }

    pub(crate) fn lease_state(&self) -> PathBuf {
        self.station(Station::LEASE).join("state.json")
    }

    pub fn supervisor_log(&self) -> PathBuf {
        self.0.join("supervisor.log")
    }

    /// Takes the lock that tells that a supervisor lives; `None` if one does.
    pub(crate) fn lock(&self) -> Result<Option<File>> {
        let (path, file) = self.lock_file()?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => {
                // For people who must end a supervisor that does not answer.
                let written = file
                    .set_len(0)
                    .and_then(|()| writeln!(&file, "{}", std::process::id()));
                written.map_err(Error::file("writing", &path))?;
                Ok(Some(file))
            }
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(errno) => Err(Error::file("locking", &path)(errno.into())),
        }
    }

    /// Whether a supervisor lives. A process id that was used again cannot deceive, and asking cannot keep a supervisor from starting.
    pub fn is_running(&self) -> Result<bool> {
        if !self.0.is_dir() {
            return Ok(false);
        }
        let (path, file) = self.lock_file()?;
        let mut lock = whole_file(libc::F_WRLCK);
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))
            .map_err(|errno| Error::file("asking for the lock of", &path)(errno.into()))?;
        Ok(i32::from(lock.l_type) != libc::F_UNLCK)
    }

    /// The process that last took the lock.
    pub(crate) fn supervisor_pid(&self) -> Option<i32> {
        std::fs::read_to_string(self.0.join("lock"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    fn lock_file(&self) -> Result<(PathBuf, File)> {
        let path = self.0.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .read(true)
            .open(&path);
        let file = file.map_err(Error::file("opening", &path))?;
        Ok((path, file))
    }

    pub(crate) fn listen(&self) -> Result<UnixListener> {
        let path = self.0.join("control.sock");
        let _ = std::fs::remove_file(&path);
        self.by_short_path(|short| UnixListener::bind(short))
            .map_err(Error::file("listening on", &path))
    }

    pub(crate) fn connect(&self) -> Result<UnixStream> {
        let path = self.0.join("control.sock");
        self.by_short_path(|short| UnixStream::connect(short))
            .map_err(Error::file("connecting to", &path))
    }

    /// A socket's path holds 107 bytes; through a descriptor of its directory it is short wherever the cluster lives.
    fn by_short_path<T>(&self, work: impl FnOnce(&Path) -> std::io::Result<T>) -> std::io::Result<T> {
        let directory = File::open(&self.0)?;
        work(&PathBuf::from(format!(
            "/proc/self/fd/{}/control.sock",
            directory.as_raw_fd()
        )))
    }
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_the_root() {
        for wrong in ["", ".", "..", "a/b", ".hidden", "a b", "ä"] {
            assert!(ClusterDirectory::of(Path::new("/r"), wrong).is_err(), "{wrong:?}");
        }
        let directory = ClusterDirectory::of(Path::new("/r"), "my-cluster_1.2").unwrap();
        assert_eq!(directory.path(), Path::new("/r/my-cluster_1.2"));
    }

    #[test]
    fn the_lock_tells_whether_a_supervisor_lives() {
        let root = tempfile::tempdir().unwrap();
        let directory = ClusterDirectory::at(root.path()).unwrap();
        assert!(!directory.is_running().unwrap());
        let lock = directory.lock().unwrap();
        assert!(lock.is_some() && directory.is_running().unwrap());
        drop(lock);
        assert!(!directory.is_running().unwrap());
    }

    #[test]
    fn the_control_socket_works_below_a_long_path() {
        let root = tempfile::tempdir().unwrap();
        let long = root.path().join("x".repeat(200));
        std::fs::create_dir(&long).unwrap();
        let directory = ClusterDirectory::at(&long).unwrap();
        let listener = directory.listen().unwrap();
        directory.connect().unwrap();
        listener.accept().unwrap();
    }
}
