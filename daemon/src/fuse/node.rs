//! The inodes the kernel knows, and how each of them is open.
//!
//! Invariants:
//! * A node id is the inode number of the backing file (the root is 1), so numbers are stable across names, renames and restarts.
//! * A node holds an `O_PATH` descriptor from the first lookup until the kernel forgets it, so the backing file system cannot give the
//!   number to another file while the kernel still means this one.
//! * All handles of one inode are open in one mode. The mode is chosen when the first handle opens and stays until the last is released; the
//!   backing id of a passthrough inode lives until FORGET, because RELEASE is asynchronous and a concurrent OPEN must find the same id.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use engine::{DbName, Side};
use nix::fcntl::OFlag;
use nix::sys::stat::FileStat;
use parking_lot::{Mutex, RwLock};

use super::backing;
use super::connection::{BackingFile, Connection};
use super::requests::FileKind;
use crate::ledger::{Ledger, NodeEntry, NodeSlot, Opened};

/// Node id of the root directory, by protocol.
pub(crate) const ROOT: u64 = 1;

/// What the name of an inode makes of it: a file of a database that exists or may come to exist.
pub(crate) type Part = (DbName, Side);

pub(crate) struct Node {
    id: u64,
    fd: OwnedFd,
    /// `S_IFMT` bits: they never change.
    format: u32,
    place: RwLock<Place>,
    opens: Mutex<Opens>,
    directory: OnceLock<File>,
    /// Where the ledger has it; `None`: it had no room, and the next daemon will not know the inode.
    entry: Option<(Arc<Ledger>, NodeSlot)>,
}

struct Place {
    /// Relative to the root, without leading slash; the name by which it was last found.
    path: Vec<u8>,
    /// `None`: not a database file, or no longer reachable by its name.
    part: Option<Part>,
}

/// How the handles of one inode exchange data with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// Through the page cache; READ and WRITE come to the daemon.
    Cached,
    /// The kernel reads and writes the backing file itself.
    Passthrough,
    /// The inode is open in passthrough but this handle is intercepted: READ and WRITE come, mappings are the backing file's.
    Intercepted,
}

#[derive(Default)]
struct Opens {
    handles: usize,
    /// Of these, the ones through which clients write past the daemon.
    writing_past: usize,
    passthrough: bool,
    backing: Option<BackingFile>,
    /// The file changed beside the page cache: what the kernel cached before is worth nothing.
    cache_is_stale: bool,
    birth: Birth,
    finding: Finding,
}

/// How the next daemon finds the inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Finding {
    /// By a name in the backing tree.
    #[default]
    ByName,
    /// Not at all: its last name is gone, or about to go, and nobody has it open. A lookup that led here is out of date: it cannot be opened.
    Nowhere,
    /// As `Nowhere`, but somebody has it open, and the keeper has a descriptor of it.
    Kept,
}

/// Whether a file is being made a database where none may be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Birth {
    /// It was there before its handles, or nobody has it open.
    #[default]
    Past,
    /// Open since it was created.
    Newborn,
    /// As `Newborn`, and it may not become the database that its creator wants to make of it.
    Refused,
    /// Removed for that reason or another; the kernel may not know yet.
    Removed,
}

/// How one handle was admitted.
pub(crate) struct Admission {
    pub(crate) transfer: Transfer,
    /// The kernel's number for the backing file of a passthrough handle.
    pub(crate) backing: Option<u32>,
    pub(crate) keep_cache: bool,
    /// A client writes through it, and the daemon does not hear of that.
    pub(crate) writes_past: bool,
}

/// How a handle from an earlier daemon was admitted again.
pub(crate) struct Readmission {
    /// The keeper is to be given a descriptor of the inode.
    pub(crate) keep: bool,
    pub(crate) writes_past: bool,
}

impl Opens {
    /// Whether an inode that nobody could find is to be kept from now on; true once.
    fn wants_keeping(&mut self) -> bool {
        let wants = self.finding == Finding::Nowhere;
        if wants {
            self.finding = Finding::Kept;
        }
        wants
    }
}

impl Node {
    fn new(id: u64, fd: OwnedFd, format: u32, path: Vec<u8>, part: Option<Part>) -> Node {
        let place = RwLock::new(Place { path, part });
        Node {
            id,
            fd,
            format,
            place,
            opens: Mutex::default(),
            directory: OnceLock::new(),
            entry: None,
        }
    }

    /// Notes for the next daemon how the inode is open, before the kernel is told.
    fn note(&self, opens: &Opens) {
        if let Some((ledger, slot)) = &self.entry {
            let opened = Opened {
                passthrough: opens.passthrough,
                cache_is_stale: opens.cache_is_stale,
                backing: opens.backing.as_ref().map(BackingFile::id),
            };
            ledger.set_opened(*slot, opened);
        }
    }

    /// The inode loses its last name. Returns whether the keeper is to be given a descriptor.
    pub(crate) fn loses_name(&self) -> bool {
        let mut opens = self.opens.lock();
        if opens.finding == Finding::ByName {
            opens.finding = Finding::Nowhere;
        }
        opens.handles > 0 && opens.wants_keeping()
    }

    /// Whether no name leads to the inode any more.
    pub(crate) fn lost_its_name(&self) -> bool {
        backing::stat_fd(self.fd()).is_ok_and(|stat| stat.st_nlink == 0)
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.opens.lock().finding == Finding::Kept
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.format == libc::S_IFDIR
    }

    pub(crate) fn is_regular(&self) -> bool {
        self.format == libc::S_IFREG
    }

    pub(crate) fn path(&self) -> Vec<u8> {
        self.place.read().path.clone()
    }

    pub(crate) fn part(&self) -> Option<Part> {
        self.place.read().part.clone()
    }

    /// Calls `f` with the part without copying the name; for the paths that every WRITE takes.
    pub(crate) fn with_part<R>(&self, f: impl FnOnce(Option<(&DbName, Side)>) -> R) -> R {
        let place = self.place.read();
        f(place.part.as_ref().map(|(name, side)| (name, *side)))
    }

    /// Only by the name: whether a database stands behind it is for the caller to know.
    pub(crate) fn kind(&self) -> FileKind {
        self.with_part(|part| part.map_or(FileKind::Other, |(_, side)| kind_of(side)))
    }

    /// The name is gone; handles that are still open mean an anonymous file from now on.
    pub(crate) fn detach_name(&self) {
        self.place.write().part = None;
    }

    /// A lookup led here. With hard links the name that made the inode part of a database stays the one that counts.
    fn found_at(&self, path: Vec<u8>, part: Option<Part>, links: u64) {
        let mut place = self.place.write();
        let keep = links > 1 && place.part.is_some();
        self.opens.lock().finding = Finding::ByName;
        if !keep && place.path != path {
            *place = Place { path, part };
        } else if place.part.is_none() {
            place.part = part;
        }
    }

    fn moved(&self, path: Vec<u8>, part: Option<Part>) {
        *self.place.write() = Place { path, part };
    }

    /// The directory opened for reading and syncing, once.
    pub(crate) fn directory(&self) -> nix::Result<&File> {
        if let Some(file) = self.directory.get() {
            return Ok(file);
        }
        let file = backing::reopen(self.fd(), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        Ok(self.directory.get_or_init(|| file))
    }

    /// Admits one more handle. `wanted` is how this handle would be open if it were the only one; `register` makes a backing id.
    /// Falls back to the page cache when the kernel refuses a backing id and no other handle is open. `born`: the handle created the file;
    /// `writes`: a client may write through it. `None`: the file is not there any more.
    pub(crate) fn open_handle(
        &self,
        wanted: Transfer,
        (born, writes): (bool, bool),
        register: impl FnOnce() -> io::Result<BackingFile>,
    ) -> Option<Admission> {
        let mut opens = self.opens.lock();
        if opens.finding != Finding::ByName {
            return None;
        }
        match opens.birth {
            Birth::Removed => return None,
            Birth::Past if born => opens.birth = Birth::Newborn,
            Birth::Past | Birth::Newborn | Birth::Refused => {}
        }
        if opens.handles == 0 {
            opens.passthrough = wanted == Transfer::Passthrough;
            if opens.passthrough && opens.backing.is_none() {
                match register() {
                    Ok(backing) => opens.backing = Some(backing),
                    Err(error) => {
                        tracing::warn!(inode = self.id, %error, "no passthrough for this file");
                        opens.passthrough = false;
                    }
                }
            }
        }
        opens.handles += 1;
        let transfer = match (opens.passthrough, wanted) {
            (false, Transfer::Intercepted) => Transfer::Intercepted,
            (false, Transfer::Cached | Transfer::Passthrough) => Transfer::Cached,
            (true, Transfer::Passthrough) => Transfer::Passthrough,
            (true, Transfer::Cached | Transfer::Intercepted) => Transfer::Intercepted,
        };
        let backing = opens
            .backing
            .as_ref()
            .filter(|_| opens.passthrough)
            .map(BackingFile::id);
        let passthrough = opens.passthrough;
        let writes_past = writes && transfer == Transfer::Passthrough;
        opens.writing_past += usize::from(writes_past);
        let keep_cache = !std::mem::replace(&mut opens.cache_is_stale, passthrough);
        self.note(&opens);
        Some(Admission {
            transfer,
            backing,
            keep_cache: keep_cache && transfer == Transfer::Cached,
            writes_past,
        })
    }

    /// A handle that the kernel has from an earlier daemon. `writes`: a client may write through it.
    pub(crate) fn restore_handle(&self, writes: bool) -> Readmission {
        let mut opens = self.opens.lock();
        opens.handles += 1;
        let writes_past = writes && opens.passthrough;
        opens.writing_past += usize::from(writes_past);
        Readmission {
            keep: opens.wants_keeping(),
            writes_past,
        }
    }

    /// One handle less. Returns whether it was the last one of a file that may not become what it was created for.
    pub(crate) fn close_handle(&self, writes_past: bool) -> bool {
        let mut opens = self.opens.lock();
        opens.handles = opens.handles.saturating_sub(1);
        opens.writing_past = opens.writing_past.saturating_sub(usize::from(writes_past));
        if opens.handles > 0 {
            return false;
        }
        if opens.birth == Birth::Newborn {
            opens.birth = Birth::Past;
        }
        opens.birth == Birth::Refused
    }

    /// The file may not become a database; if it was created for that, it is to go.
    pub(crate) fn refuse_birth(&self) {
        let mut opens = self.opens.lock();
        if opens.birth == Birth::Newborn {
            opens.birth = Birth::Refused;
        }
    }

    /// The file is gone although the kernel was not told so: a handle on it would be of no use.
    pub(crate) fn mark_removed(&self) {
        self.opens.lock().birth = Birth::Removed;
    }

    /// Removes the file with `remove` unless somebody has opened it again.
    pub(crate) fn remove_unborn(&self, remove: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let mut opens = self.opens.lock();
        if opens.handles > 0 || opens.birth != Birth::Refused {
            return Ok(());
        }
        opens.birth = Birth::Past;
        remove()?;
        opens.birth = Birth::Removed;
        Ok(())
    }

    pub(crate) fn is_open(&self) -> bool {
        self.opens.lock().handles > 0
    }

    /// Whether a client has it open for writing past the daemon.
    pub(crate) fn is_written_past(&self) -> bool {
        self.opens.lock().writing_past > 0
    }

    /// Whether clients reach the backing file's own page cache, so that nothing needs to be stored or invalidated for them.
    pub(crate) fn is_passthrough(&self) -> bool {
        let opens = self.opens.lock();
        opens.handles > 0 && opens.passthrough
    }
}

pub(crate) fn kind_of(side: Side) -> FileKind {
    match side {
        Side::Database => FileKind::Database,
        Side::Journal => FileKind::Journal,
        Side::Wal => FileKind::Wal,
        Side::Shm => FileKind::Shm,
    }
}

/// The table of all nodes with the kernel's lookup counts.
pub(crate) struct NodeTable {
    ledger: Arc<Ledger>,
    device: u64,
    root: Arc<Node>,
    known: RwLock<HashMap<u64, Known>>,
}

struct Known {
    node: Arc<Node>,
    lookups: u64,
}

impl Known {
    fn count(&mut self, lookups: u64) {
        self.lookups = lookups;
        if let Some((ledger, slot)) = &self.node.entry {
            ledger.set_lookups(*slot, lookups);
        }
    }
}

impl NodeTable {
    pub(crate) fn new(root: OwnedFd, ledger: Arc<Ledger>) -> nix::Result<NodeTable> {
        let device = backing::stat_fd(&root)?.st_dev;
        let root = Arc::new(Node::new(ROOT, root, libc::S_IFDIR, Vec::new(), None));
        Ok(NodeTable {
            ledger,
            device,
            root,
            known: RwLock::default(),
        })
    }

    pub(crate) fn get(&self, id: u64) -> Option<Arc<Node>> {
        if id == ROOT {
            return Some(self.root.clone());
        }
        self.known.read().get(&id).map(|known| known.node.clone())
    }

    /// The node of a backing inode number, if the kernel knows it.
    pub(crate) fn by_inode(&self, inode: u64) -> Option<Arc<Node>> {
        self.known.read().get(&inode).map(|known| known.node.clone())
    }

    pub(crate) fn len(&self) -> usize {
        self.known.read().len()
    }

    /// The nodes that are this file of a database by their name.
    pub(crate) fn by_part(&self, name: &DbName, side: Side) -> Vec<Arc<Node>> {
        let known = self.known.read();
        let is_part = |node: &Node| node.with_part(|part| part == Some((name, side)));
        let nodes = known.values().map(|known| &known.node);
        nodes.filter(|node| is_part(node)).cloned().collect()
    }

    /// Records that the kernel is told about an inode once more. The descriptor pins the inode while the table is consulted, so the number
    /// cannot change hands in between. `None`: the inode is on another device, whose numbers could collide.
    pub(crate) fn remember(
        &self,
        fd: OwnedFd,
        stat: &FileStat,
        path: Vec<u8>,
        part: Option<Part>,
    ) -> Option<Arc<Node>> {
        if stat.st_dev != self.device {
            return None;
        }
        let mut known = self.known.write();
        let entry = known.entry(stat.st_ino).or_insert_with(|| {
            let mut node = Node::new(
                stat.st_ino,
                fd,
                stat.st_mode & libc::S_IFMT,
                path.clone(),
                part.clone(),
            );
            let slot = self.ledger.add_node(stat.st_ino);
            node.entry = slot.map(|slot| (self.ledger.clone(), slot));
            Known {
                node: Arc::new(node),
                lookups: 0,
            }
        });
        entry.count(entry.lookups + 1);
        let node = entry.node.clone();
        drop(known);
        self.ledger.note_entered(stat.st_ino);
        node.found_at(path, part, stat.st_nlink);
        Some(node)
    }

    /// The kernel has forgotten so many lookups. The node, if it knows it no more; closing what it holds are system calls, which are not
    /// made under the lock of the table.
    pub(crate) fn forget(&self, id: u64, lookups: u64) -> Option<Arc<Node>> {
        let mut known = self.known.write();
        let entry = known.get_mut(&id)?;
        entry.count(entry.lookups.saturating_sub(lookups));
        if entry.lookups > 0 {
            return None;
        }
        let gone = known.remove(&id)?;
        if let Some((ledger, slot)) = &gone.node.entry {
            ledger.remove_node(*slot);
        }
        Some(gone.node)
    }

    /// An inode that the kernel knows from an earlier daemon, and where it is now. `part`: what its name makes of it; none if the name is
    /// gone.
    pub(crate) fn restore(
        &self,
        (slot, entry): (NodeSlot, NodeEntry),
        fd: OwnedFd,
        (path, part): (Vec<u8>, Option<Part>),
        finding: Finding,
        connection: &Arc<Connection>,
    ) -> nix::Result<()> {
        let format = backing::stat_fd(&fd)?.st_mode & libc::S_IFMT;
        let mut node = Node::new(entry.id, fd, format, path, part);
        node.entry = Some((self.ledger.clone(), slot));
        node.opens = Mutex::new(Opens {
            passthrough: entry.opened.passthrough,
            backing: entry.opened.backing.map(|id| connection.backed(id)),
            cache_is_stale: entry.opened.cache_is_stale,
            finding,
            ..Opens::default()
        });
        let known = Known {
            node: Arc::new(node),
            lookups: entry.lookups,
        };
        self.known.write().insert(entry.id, known);
        Ok(())
    }

    /// Follows a rename: the node itself and, for a directory, everything known below it.
    pub(crate) fn moved(
        &self,
        inode: u64,
        to: &[u8],
        is_dir: bool,
        classify: impl Fn(&[u8]) -> Option<Part>,
    ) {
        let Some(node) = self.by_inode(inode) else { return };
        let from = node.path();
        node.moved(to.to_vec(), if is_dir { None } else { classify(to) });
        if is_dir {
            self.relocate(|path| replace_prefix(path, &from, to), classify);
        }
    }

    /// Follows an exchange of two names, whatever they are.
    pub(crate) fn swapped(&self, one: &[u8], other: &[u8], classify: impl Fn(&[u8]) -> Option<Part>) {
        let swap =
            |path: &[u8]| replace_prefix(path, one, other).or_else(|| replace_prefix(path, other, one));
        self.relocate(swap, classify);
    }

    fn relocate(&self, place: impl Fn(&[u8]) -> Option<Vec<u8>>, classify: impl Fn(&[u8]) -> Option<Part>) {
        let nodes: Vec<Arc<Node>> = self
            .known
            .read()
            .values()
            .map(|known| known.node.clone())
            .collect();
        for node in nodes {
            if let Some(path) = place(&node.path()) {
                let part = if node.is_regular() { classify(&path) } else { None };
                node.moved(path, part);
            }
        }
    }
}

/// `path` with `from` as whole leading components replaced by `to`.
fn replace_prefix(path: &[u8], from: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    let rest = path.strip_prefix(from)?;
    (rest.is_empty() || rest.starts_with(b"/")).then(|| [to, rest].concat())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;

    use super::*;

    fn table(dir: &Path) -> NodeTable {
        NodeTable::new(
            backing::open_root(dir).unwrap(),
            Arc::new(Ledger::create().unwrap()),
        )
        .unwrap()
    }

    fn find(table: &NodeTable, path: &str) -> Arc<Node> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut dir = table.get(ROOT).unwrap().fd().try_clone_to_owned().unwrap();
        for part in parent.split('/').filter(|part| !part.is_empty()) {
            dir = backing::find(dir.as_fd(), OsStr::new(part)).unwrap();
        }
        let fd = backing::find(dir.as_fd(), OsStr::new(name)).unwrap();
        let stat = backing::stat_fd(&fd).unwrap();
        table.remember(fd, &stat, path.as_bytes().to_vec(), None).unwrap()
    }

    #[test]
    fn a_node_lives_until_every_lookup_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), b"").unwrap();
        let table = table(dir.path());
        let first = find(&table, "a");
        let second = find(&table, "a");
        assert!(Arc::ptr_eq(&first, &second));
        table.forget(first.id(), 1);
        assert!(table.get(first.id()).is_some());
        table.forget(first.id(), 1);
        assert!(table.get(first.id()).is_none());
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn an_inode_number_is_not_reused_while_it_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let table = table(dir.path());
        let path = dir.path().join("a");
        let mut seen = std::collections::HashSet::new();
        for _ in 0..50 {
            std::fs::write(&path, b"").unwrap();
            assert!(
                seen.insert(find(&table, "a").id()),
                "a number came back while the kernel knew it"
            );
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_renamed_directory_takes_what_is_below_with_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("d/e")).unwrap();
        std::fs::write(dir.path().join("d/e/f"), b"").unwrap();
        std::fs::write(dir.path().join("dd"), b"").unwrap();
        let table = table(dir.path());
        let (d, f, dd) = (find(&table, "d"), find(&table, "d/e/f"), find(&table, "dd"));
        table.moved(d.id(), b"x/y", true, |_| None);
        assert_eq!(d.path(), b"x/y");
        assert_eq!(f.path(), b"x/y/e/f");
        assert_eq!(dd.path(), b"dd");
        table.swapped(b"x", b"dd", |_| None);
        assert_eq!((f.path(), dd.path()), (b"dd/y/e/f".to_vec(), b"x".to_vec()));
    }
}
