//! All databases of a data directory, and the role of this node towards them.

use std::collections::{BTreeMap, HashSet};
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ltx::{Pos, Txid};
use parking_lot::{Mutex, RwLock};
use sqlite_format::header::has_magic;

use crate::damaged::Damaged;
use crate::database::Database;
use crate::database::backing::create_like;
use crate::disk::probe::Probe;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::kernel::{Direct, Kernel};
use crate::layout;
use crate::local;
use crate::log::RetainPolicy;
use crate::name::{DbName, Side};
use crate::options::{Durability, Role, StoreOptions};
use crate::owners::{self, Owner, Owners};
use crate::repeats::Repeats;
use crate::shared::Shared;
pub use crate::shared::Watcher;
use crate::tree::Tree;
use crate::writers::access::Input;

/// How long a change of the role waits for clients in the middle of something.
const ROLE_PATIENCE: Duration = Duration::from_secs(5);
/// A table is flushed when so many transactions are behind its last flush.
const TABLE_LAG: u64 = 1000;
/// Transactions that are read in well below a millisecond.
const SHORT_LAG: u64 = 20;
/// Pause between two looks at the tables.
const TABLE_LOOK: Duration = Duration::from_secs(1);

/// The databases of a data directory.
pub struct Store {
    shared: Arc<Shared>,
    databases: RwLock<BTreeMap<DbName, Arc<Database>>>,
    damaged: Damaged,
    /// Homes of databases whose creation failed.
    unborn: Mutex<BTreeMap<DbName, PathBuf>>,
    cluster_id: Mutex<Option<String>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    opening: Opening,
}

/// What a store finds when it opens.
#[derive(Debug, Clone, Copy)]
enum Opening {
    /// Nobody uses the files.
    Unused,
    /// Clients of a process that died go on.
    InUse(Role),
}

impl Opening {
    fn role(self) -> Role {
        match self {
            Opening::Unused => Role::Replica,
            Opening::InUse(role) => role,
        }
    }

    fn open(self, shared: &Arc<Shared>, name: DbName, home: PathBuf) -> Opened {
        let began = Instant::now();
        let open = match self {
            Opening::Unused => Database::open,
            Opening::InUse(_) => Database::open_in_use,
        };
        let database = open(shared.clone(), name.clone(), home.clone());
        Opened {
            name,
            home,
            took: began.elapsed(),
            database,
        }
    }
}

/// What came of opening a database.
struct Opened {
    name: DbName,
    home: PathBuf,
    took: Duration,
    database: Result<Arc<Database>>,
}

/// Opens databases, several at a time: clients wait for the last one.
fn open_all(shared: &Arc<Shared>, homes: Vec<(DbName, PathBuf)>, opening: Opening) -> Vec<Opened> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let helpers = workers.min(homes.len()).saturating_sub(1);
    let (homes, opened) = (Mutex::new(homes.into_iter()), Mutex::new(Vec::new()));
    let next = || homes.lock().next();
    let work = || {
        while let Some((name, home)) = next() {
            let one = opening.open(shared, name, home);
            opened.lock().push(one);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..helpers {
            // Without a helper it takes longer.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    opened.into_inner()
}

/// What of the logs may go.
#[derive(Debug, Clone, Default)]
pub struct Retention {
    /// Records older than this may go; `None` keeps all.
    pub max_age: Option<Duration>,
    /// While a log is larger than this, its oldest records may go; `None` keeps all.
    pub max_bytes: Option<u64>,
    /// First record that somebody still needs, per database.
    pub needed: BTreeMap<DbName, Txid>,
    /// While a log is larger than this, its oldest records go whoever needs them.
    pub hard_cap_bytes: Option<u64>,
}

impl Store {
    /// Opens a data directory that nobody uses, creating it if need be. A database that cannot be opened is left out, see
    /// [`Store::damaged`].
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Arc<Store>> {
        Store::open_for(dir, options, Opening::Unused)
    }

    /// Opens a data directory whose mount outlived the process that served it: clients hold its files and locks, and go on committing
    /// where they need no request. Nothing of SQLite's files is changed. The node is what `role` says from the start; a node that was the
    /// primary comes back as one, and is demoted with [`Store::set_role`] if it lost its lease.
    ///
    /// Then [`Store::start`], before the first request is answered.
    pub fn resume(dir: &Path, options: StoreOptions, role: Role) -> Result<Arc<Store>> {
        Store::open_for(dir, options, Opening::InUse(role))
    }

    fn open_for(dir: &Path, options: StoreOptions, opening: Opening) -> Result<Arc<Store>> {
        let disk = options.disk.clone();
        layout::refuse_original(&*disk, dir)?;
        let files = layout::files(dir);
        disk.create_dir_all("store.mkdir", &files)?;
        disk.create_dir_all("store.mkdir", &layout::databases(dir))?;
        let cluster_path = dir.join("clusterid");
        let cluster_id = match disk.exists("store.stat", &cluster_path)? {
            true => Some(layout::read_text(&*disk, &cluster_path)?.trim().to_owned()),
            false => None,
        };
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            kernel: RwLock::new(Arc::new(Direct::new(&files))),
            files: Tree::open(&files, Arc::new(Owners::new(options.owners)))
                .map_err(Error::io("store.open", &files))?,
            options,
            events: Default::default(),
            changes: Default::default(),
            failures: Default::default(),
            settler: Default::default(),
            repeats: Default::default(),
            checkpointer: Default::default(),
            role: RwLock::new(opening.role()),
            primary: AtomicBool::new(opening.role().is_primary()),
            closed: Default::default(),
            closing: Default::default(),
        });
        layout::remove_unborn(&*disk, dir)?;
        let (mut databases, damaged) = (BTreeMap::new(), Damaged::default());
        for opened in open_all(&shared, layout::homes(&*disk, dir)?, opening) {
            match opened.database {
                Ok(db) => drop(databases.insert(opened.name, db)),
                Err(error) => damaged.add(opened.name, opened.home, &error, opened.took),
            }
        }
        Ok(Arc::new(Store {
            shared,
            databases: RwLock::new(databases),
            damaged,
            unborn: Mutex::default(),
            cluster_id: Mutex::new(cluster_id.filter(|id| !id.is_empty())),
            threads: Mutex::new(Vec::new()),
            opening,
        }))
    }

    /// Begins to work with the mount, once it exists. Waits for no request to it.
    ///
    /// After [`Store::resume`] it is called before the first request is answered: only with the kernel is known where commits show, and
    /// which locks the dead process left. What has to wait for the mount follows on a thread of its own.
    pub fn start(self: &Arc<Self>, kernel: Arc<dyn Kernel>) -> Result<()> {
        *self.shared.kernel.write() = kernel;
        match self.opening {
            Opening::Unused => {}
            Opening::InUse(_) => self.take_over()?,
        }
        let weak = Arc::downgrade(self);
        let shared = self.shared.clone();
        self.spawn("litefs-settle", move || {
            shared
                .settler
                .run(|name| weak.upgrade().and_then(|store| store.database(name)));
        })?;
        let shared = self.shared.clone();
        self.spawn("litefs-ckpt", move || shared.checkpointer.run(|| shared.kernel()))?;
        let weak = Arc::downgrade(self);
        let shared = self.shared.clone();
        self.spawn("litefs-flush", move || {
            let mut probe = Probe::new();
            while shared.wait_closed(TABLE_LOOK) {
                let Some(store) = weak.upgrade() else { return };
                store.open_again();
                if probe.finds_read_only(&*shared.options.disk, &shared.dir) {
                    store.turned_read_only();
                }
                let databases = store.databases();
                drop(store);
                for db in databases {
                    if let Err(error) = db.flush_if_behind(TABLE_LAG)
                        && let Some(unlogged) = shared.repeats.note("flush", db.name(), &error)
                    {
                        tracing::warn!(db = %db.name(), %error, unlogged, "cannot flush the checksum table");
                    }
                    if let Err(error) = verify(&shared, &db)
                        && let Some(unlogged) = shared.repeats.note("verify", db.name(), &error)
                    {
                        tracing::warn!(db = %db.name(), %error, unlogged, "cannot verify the database");
                    }
                }
            }
        })
    }

    /// Takes the locks over that the dead process held, then does what it left undone.
    fn take_over(self: &Arc<Self>) -> Result<()> {
        let databases = self.databases();
        for db in &databases {
            db.adopt_locks()?;
            self.shared.settler.watch(db.name());
        }
        let weak = Arc::downgrade(self);
        self.spawn("litefs-resume", move || {
            for db in databases {
                if let Err(error) = db.finish_takeover() {
                    tracing::error!(db = %db.name(), %error, "cannot finish what the process before left undone");
                }
            }
            if let Some(store) = weak.upgrade().filter(|store| store.shared.is_primary()) {
                store.attach_files(store.files_dir(), &mut Vec::new());
            }
        })
    }

    /// Opens databases again for which there was no room.
    fn open_again(&self) {
        for (name, home) in self.damaged.due() {
            let opened = self.opening.open(&self.shared, name.clone(), home.clone());
            match opened.database {
                Ok(db) => {
                    if let Err(error) = self.admit(db) {
                        tracing::error!(db = %name, %error, "cannot finish what was left undone");
                    }
                    tracing::info!(db = %name, "there was room to open the database");
                }
                Err(error) => self.damaged.add(name, home, &error, opened.took),
            }
        }
    }

    /// No client can commit any more, whatever it is told where it writes past this process.
    fn turned_read_only(&self) {
        for db in self.databases() {
            db.health.disk_failed("its file system has become read-only");
        }
    }

    /// A database that was opened after the start. From here on clients may open its files.
    fn admit(&self, db: Arc<Database>) -> Result<()> {
        let name = db.name().clone();
        // Nobody is in the way.
        let applied = db.apply_pending(Instant::now() + ROLE_PATIENCE);
        {
            // No change of the role in between.
            let mut databases = self.databases.write();
            databases.insert(name.clone(), db.clone());
            let (primary, wrote) = (self.shared.is_primary() && !db.hinders_promotion(), false);
            db.enter_noting(&mut db.state.lock(), Input::Opened { primary, wrote });
        }
        let finished = match self.opening {
            Opening::Unused => Ok(()),
            Opening::InUse(_) => db.adopt_locks().and_then(|()| db.finish_takeover()),
        };
        let kernel = self.shared.kernel();
        for side in Side::ALL {
            kernel.invalidate(&name, side, None);
            kernel.invalidate_entry(&name, side);
        }
        self.damaged.remove(&name);
        self.shared.settler.watch(&name);
        if !self.shared.is_primary() && !db.is_caught_up() {
            db.start_worker();
        }
        applied.and(finished)
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        let thread = spawned.map_err(Error::io("thread.spawn", name))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// The backing tree of a data directory, which may not be open.
    pub fn files_below(dir: &Path) -> PathBuf {
        layout::files(dir)
    }

    /// The backing tree that the mount mirrors.
    pub fn files_dir(&self) -> &Path {
        self.shared.files.path()
    }

    /// Identifies this process in the records that it makes.
    pub fn node_id(&self) -> u64 {
        self.shared.options.node_id
    }

    /// Whether writes to WALs must be intercepted wherever that is not so anyway: a commit may not return before its
    /// record is durable.
    pub fn intercepts_wal(&self) -> bool {
        self.shared.options.durability == Durability::Commit
    }

    /// A database by name.
    pub fn database(&self, name: &DbName) -> Option<Arc<Database>> {
        self.databases.read().get(name).cloned()
    }

    /// All databases by name, dropped ones included.
    pub fn databases(&self) -> Vec<Arc<Database>> {
        self.databases.read().values().cloned().collect()
    }

    /// Databases that could not be opened, with the reasons. Their files are there, and must not be written.
    pub fn damaged(&self) -> Vec<(DbName, String)> {
        self.damaged.list()
    }

    /// Whether the name is one of these.
    pub fn is_damaged(&self, name: &DbName) -> bool {
        self.damaged.contains(name)
    }

    /// Whether it is one for which there was no room when it was to be opened. Its files may not be read: what its WAL holds may be missing
    /// in them.
    pub fn waits_for_room(&self, name: &DbName) -> bool {
        self.damaged.waits(name)
    }

    /// Positions after all that clients have committed so far was captured.
    pub fn positions(&self) -> Result<BTreeMap<DbName, Pos>> {
        self.databases()
            .into_iter()
            .map(|db| Ok((db.name().clone(), db.drain()?)))
            .collect()
    }

    /// Positions of the last records in the logs: where replication goes on.
    pub fn received(&self) -> BTreeMap<DbName, Pos> {
        self.databases()
            .into_iter()
            .map(|db| (db.name().clone(), db.received()))
            .collect()
    }

    /// Events from now on. A subscriber that falls far behind finds its channel closed.
    pub fn subscribe(&self) -> Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Calls the watcher, until it is dropped, whenever a database has a new position. It is called under locks of the
    /// engine: it must only note the name and wake somebody up.
    pub fn watch(&self, watcher: &Watcher) {
        self.shared.changes.watch(watcher);
    }

    /// As [`Store::watch`], for databases that a failure of the disk has closed for writing.
    pub fn watch_failures(&self, watcher: &Watcher) {
        self.shared.failures.watch(watcher);
    }

    /// What is logged of failures that repeat.
    pub fn repeats(&self) -> &Repeats {
        &self.shared.repeats
    }

    /// Databases that a failure of the disk has closed for writing, until the process starts again.
    pub fn closed_databases(&self) -> Vec<DbName> {
        let databases = self.databases.read();
        let closed = databases.values().filter(|db| db.is_closed());
        closed.map(|db| db.name().clone()).collect()
    }

    /// The role of this node.
    pub fn role(&self) -> Role {
        *self.shared.role.read()
    }

    /// The cluster that the data belongs to, if that is known.
    pub fn cluster_id(&self) -> Option<String> {
        self.cluster_id.lock().clone()
    }

    /// Ties the data to a cluster, durably.
    pub fn set_cluster_id(&self, id: &str) -> Result<()> {
        let mut known = self.cluster_id.lock();
        layout::write_text(
            &*self.shared.options.disk,
            &self.shared.dir.join("clusterid"),
            &format!("{id}\n"),
        )?;
        *known = Some(id.to_owned());
        Ok(())
    }

    /// Which file of which database a path relative to the mount is.
    pub fn classify(&self, relative: &[u8]) -> Option<(DbName, Side)> {
        DbName::classify(relative)
    }

    /// Creates a side file of a database in the backing tree unless it exists, with the main file's owner and mode.
    pub fn create_side_file(&self, name: &DbName, side: Side) -> io::Result<()> {
        create_like(&self.shared.files, &name.file(side), &name.file(Side::Database))
    }

    /// The owners of the directories that a database is in, outermost first, and of its main file; `None`: it has none.
    pub fn owners(&self, name: &DbName) -> Option<Vec<Owner>> {
        owners::of(&self.shared.files, name)
    }

    /// A number that grows with each change that [`Store::owner_changed`] tells of.
    pub fn owner_changes(&self) -> u64 {
        self.shared.files.owners().changes()
    }

    /// A client changed owner, group or permissions of a file or directory: the databases there are to be looked at.
    pub fn owner_changed(&self, relative: &Path) {
        self.shared.files.owners().changed();
        for db in self.databases() {
            if db.name().file(Side::Database).starts_with(relative) {
                self.shared.changes.notify(db.name());
            }
        }
    }

    /// Gives a database the owners that it has on the primary, as [`Store::owners`] tells them there, now or when it comes.
    pub fn take_owners(&self, name: &DbName, told: &[Owner]) {
        for changed in owners::take(&self.shared.files, name, told) {
            self.shared.kernel().invalidate_attributes(&changed);
        }
    }

    /// Begins to replicate a file that has become a database. What it holds becomes the first transaction.
    pub fn attach(&self, name: &DbName) -> Result<Arc<Database>> {
        if let Some(db) = self.database(name) {
            return Ok(db);
        }
        if !self.shared.is_primary() {
            return Err(Error::ReadOnly(name.clone()));
        }
        let db = self.create(name)?;
        db.expect_content();
        Ok(db)
    }

    /// A database whose content does not come from a file of that name.
    fn create_from_elsewhere(&self, name: &DbName) -> Result<Arc<Database>> {
        if self.database(name).is_none() && !self.damaged.contains(name) {
            local::make_room(&self.shared, name)?;
        }
        self.create(name)
    }

    fn create(&self, name: &DbName) -> Result<Arc<Database>> {
        self.damaged.make_room(&self.shared, name)?;
        let mut databases = self.databases.write();
        if let Some(db) = databases.get(name) {
            return Ok(db.clone());
        }
        let mut unborn = self.unborn.lock();
        // One home for all attempts: a name must not have two of them at the next start.
        let home = unborn
            .entry(name.clone())
            .or_insert_with(|| layout::new_home(&self.shared.dir));
        layout::make_home(&*self.shared.options.disk, &self.shared.dir, home, name)?;
        let db = Database::create(self.shared.clone(), name.clone(), home.clone())?;
        unborn.remove(name);
        databases.insert(name.clone(), db.clone());
        Ok(db)
    }

    /// Removes a file of the backing tree with `op` unless it is a database by then, and tells the kernel.
    pub fn discard_file(&self, name: &DbName, op: crate::FileOp<'_>) -> io::Result<()> {
        {
            let databases = self.databases.read();
            if databases.contains_key(name) {
                return Ok(());
            }
            op()?;
        }
        self.shared.kernel().invalidate_entry(name, Side::Database);
        Ok(())
    }

    /// Has the kernel forget what it knows of a file, name and content.
    pub fn forget_side_file(&self, name: &DbName, side: Side) {
        let kernel = self.shared.kernel();
        kernel.invalidate(name, side, None);
        kernel.invalidate_entry(name, side);
    }

    /// A file got another name. The old name's database is dropped, the new one's replaced.
    pub fn rename(&self, from: &DbName, to: &DbName, op: crate::FileOp<'_>) -> Result<()> {
        let (old, new) = (self.database(from), self.database(to));
        if !self.shared.is_primary() && (old.is_some() || new.is_some()) {
            return Err(Error::ReadOnly(from.clone()));
        }
        if let Some(old) = &old {
            old.drain()?;
        }
        op().map_err(Error::io("database.rename", self.files_dir().join(from.as_str())))?;
        if let Some(old) = &old {
            old.moved_away()?;
        }
        if let Some(new) = &new {
            new.forget_locks();
        }
        if self.is_database_file(&to.file(Side::Database)) {
            self.attach(to)?.expect_content();
        }
        Ok(())
    }

    fn is_database_file(&self, relative: &Path) -> bool {
        let mut head = [0; 16];
        self.shared
            .files
            .open_file(relative, OpenOptions::new().read(true))
            .and_then(|mut file| file.read_exact(&mut head))
            .is_ok()
            && has_magic(&head)
    }

    /// A replica takes a record from the primary: see [`Database::received`] and [`Database::position`].
    pub fn receive(&self, name: &DbName, ltx: &mut dyn Read) -> Result<Pos> {
        if self.shared.is_primary() {
            return Err(Error::Invalid(format!("{name}: a primary does not take records")));
        }
        self.create_from_elsewhere(name)?.receive(ltx)
    }

    /// Sets aside the records behind `after`, which the primary does not have. Returns where they are, if there were any.
    pub fn archive_tail(&self, name: &DbName, after: Txid) -> Result<Option<PathBuf>> {
        match self.database(name) {
            Some(db) => db.archive_tail(after),
            None => Ok(None),
        }
    }

    /// Replaces or creates a database with the content of a SQLite file. Only on the primary.
    pub fn import(&self, name: &DbName, body: &mut dyn Read) -> Result<Pos> {
        if !self.shared.is_primary() {
            return Err(Error::ReadOnly(name.clone()));
        }
        let image = crate::import::Image::spool(&self.shared.dir, body)?;
        self.create_from_elsewhere(name)?.import(&image)
    }

    /// Removes a database as `unlink` on the mount would. Only on the primary.
    pub fn drop_database(&self, name: &DbName) -> Result<Pos> {
        let db = self
            .database(name)
            .ok_or_else(|| Error::NotFound(name.to_string()))?;
        if !self.shared.is_primary() {
            return Err(Error::ReadOnly(name.clone()));
        }
        let files = self.shared.files.clone();
        db.unlink_database(&mut || {
            for side in Side::ALL {
                match files.remove_file(&name.file(side)) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    Ok(()) | Err(_) => {}
                }
            }
            Ok(())
        })?;
        let kernel = self.shared.kernel();
        for side in Side::ALL {
            kernel.invalidate_entry(name, side);
        }
        Ok(db.position())
    }

    /// Changes the role. Becoming the primary first applies all that was received; becoming a replica first fences
    /// writers and captures what they committed.
    pub fn set_role(&self, role: Role) -> Result<()> {
        let before = self.role();
        let tell = |role| {
            if let Some(tell) = &self.shared.options.on_role {
                tell(role);
            }
        };
        if !role.is_primary() {
            tell(role);
        }
        let changed = self.change_role(before, role);
        if changed.is_ok() && role.is_primary() {
            tell(role);
        }
        changed
    }

    fn change_role(&self, before: Role, role: Role) -> Result<()> {
        match (before.is_primary(), role.is_primary()) {
            (false, true) => self.promote(role),
            (true, false) => self.demote(role),
            (true, true) | (false, false) => {
                *self.shared.role.write() = role;
                Ok(())
            }
        }
    }

    fn promote(&self, role: Role) -> Result<()> {
        let deadline = Instant::now() + ROLE_PATIENCE;
        for db in self.databases() {
            match db.apply_pending(deadline) {
                Ok(()) => {}
                // It needs a snapshot from a node that has it; that is no reason to refuse all the others.
                Err(error @ Error::Quarantined { .. }) => {
                    tracing::error!(db = %db.name(), %error, "becoming primary without this database");
                }
                // It would take no writes anyway, until the daemon starts again.
                Err(error) if db.is_closed() => {
                    tracing::error!(db = %db.name(), %error, "becoming primary without this database");
                }
                // The database stays behind its log until its clients let go; its records are not lost.
                Err(error) => return Err(error),
            }
        }
        let databases = self.databases();
        {
            // A record that arrives in between is refused, or applied by another attempt.
            let _turns: Vec<_> = databases.iter().map(|db| db.backlog.receiving.lock()).collect();
            if let Some(db) = databases.iter().find(|db| db.hinders_promotion()) {
                return Err(db.busy("records that arrived at the last moment"));
            }
            let known = self.databases.read();
            let listed: HashSet<_> = databases.iter().map(Arc::as_ptr).collect();
            if let Some(db) = known.values().find(|db| !listed.contains(&Arc::as_ptr(db))) {
                return Err(db.busy("its creation at the last moment"));
            }
            for db in &databases {
                db.enter_noting(&mut db.state.lock(), Input::Promoting);
            }
            *self.shared.role.write() = role;
            self.shared.primary.store(true, Ordering::Release);
        }
        for db in databases {
            db.let_write();
        }
        self.attach_files(self.files_dir(), &mut Vec::new());
        Ok(())
    }

    fn demote(&self, role: Role) -> Result<()> {
        {
            let known = self.databases.read();
            for db in known.values() {
                db.enter(Input::Demoted);
            }
            *self.shared.role.write() = role;
            self.shared.primary.store(false, Ordering::Release);
        }
        let deadline = Instant::now() + ROLE_PATIENCE;
        let mut outcome = Ok(());
        for db in self.databases() {
            if let Err(error) = db.fence(deadline) {
                // That one cannot be fenced is no reason to leave all others to their writers.
                tracing::error!(db = %db.name(), %error, "cannot fence the writers of the database");
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }

    /// Attaches databases that were put into the backing tree while nobody looked.
    fn attach_files(&self, dir: &Path, prefix: &mut Vec<u8>) {
        let Ok(entries) = std::fs::read_dir(dir) else {
            return;
        };
        for entry in entries.flatten() {
            let len = prefix.len();
            if len > 0 {
                prefix.push(b'/');
            }
            prefix.extend_from_slice(entry.file_name().as_bytes());
            match (entry.file_type(), DbName::classify(prefix)) {
                (Ok(kind), _) if kind.is_dir() => self.attach_files(&entry.path(), prefix),
                (Ok(kind), Some((name, Side::Database)))
                    if kind.is_file()
                        && self.database(&name).is_none()
                        && !self.damaged.contains(&name)
                        && self.is_database_file(&name.file(Side::Database)) =>
                {
                    if let Err(error) = self.attach(&name) {
                        tracing::warn!(db = %name, %error, "cannot replicate a file that looks like a database");
                    }
                }
                (Ok(_) | Err(_), _) => {}
            }
            prefix.truncate(len);
        }
    }

    /// Housekeeping, to be called now and then: lets go of old records.
    pub fn maintain(&self, retention: &Retention) {
        for db in self.databases() {
            if let Err(error) = db.maintain(retention)
                && let Some(unlogged) = self.shared.repeats.note("housekeeping", db.name(), &error)
            {
                tracing::warn!(db = %db.name(), %error, unlogged, "housekeeping failed");
            }
        }
    }

    /// Makes checksum tables durable, so that a process which takes over has little of the log to read while clients wait for it.
    pub fn flush_tables(&self) {
        for db in self.databases() {
            if let Err(error) = db.flush_if_behind(SHORT_LAG) {
                tracing::warn!(db = %db.name(), %error, "cannot flush the checksum table");
            }
        }
    }

    /// Ends the threads and nothing else: for tests of what a killed process leaves behind.
    #[doc(hidden)]
    pub fn abandon(&self) {
        self.shared.close();
        self.shared.settler.close();
        self.shared.checkpointer.close();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }

    /// A clean stop while clients may still be there: captures, flushes, and lets the next start know. Fences and seals stay, and the
    /// process may end with them. To be called on a replica; a primary is demoted first, so that nobody commits afterwards.
    pub fn flush(&self) -> Result<()> {
        self.abandon();
        self.for_each("cannot close the database in order", Database::stop)
    }

    /// A clean stop after the last client closed its files: as [`Store::flush`], then fences and seals go.
    pub fn close(&self) -> Result<()> {
        let flushed = self.flush();
        flushed.and(self.for_each("cannot let go of the database", Database::release))
    }

    fn for_each(&self, failure: &'static str, act: impl Fn(&Database) -> Result<()>) -> Result<()> {
        let mut outcome = Ok(());
        for db in self.databases() {
            if let Err(error) = act(&db) {
                tracing::error!(db = %db.name(), %error, "{failure}");
                outcome = Err(error);
            }
        }
        outcome
    }
}

/// Compares what a power loss has left in doubt.
fn verify(shared: &Shared, db: &Database) -> Result<()> {
    while !shared.is_closed() && db.verify_turn()? {
        // Those who wait for the mutex come first.
        std::thread::yield_now();
    }
    Ok(())
}

/// The policy for one database.
pub(crate) fn retain_policy(retention: &Retention, name: &DbName, table: Txid) -> RetainPolicy {
    let needed = retention.needed.get(name).copied();
    // What the table was last flushed at and what follows is needed to bring it up to date after a crash.
    let keep_from = needed.map_or(table, |needed| needed.min(table));
    RetainPolicy {
        max_age_ms: retention.max_age.map(|age| age.as_millis() as u64),
        max_bytes: retention.max_bytes,
        keep_from: Some(keep_from),
        hard_cap_bytes: retention.hard_cap_bytes,
    }
}
