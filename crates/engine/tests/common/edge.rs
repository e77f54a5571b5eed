//! The daemon's end of the mount of [`super::vfs`]: plays the kernel edge for clients in other processes, and dies on
//! command at any request.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use engine::{Database, Error, Side, Store};

/// A request that the kernel sends.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    CreateJournal,
    Write,
    Truncate,
    Sync,
    Close,
    Unlink,
    WalOpened,
    ShmReplaced,
}

const OPS: [Op; 8] = [
    Op::CreateJournal,
    Op::Write,
    Op::Truncate,
    Op::Sync,
    Op::Close,
    Op::Unlink,
    Op::WalOpened,
    Op::ShmReplaced,
];

pub struct Request {
    pub op: Op,
    pub path: String,
    pub offset: u64,
    pub data: Vec<u8>,
    /// An earlier daemon was asked, and may have done it.
    pub again: bool,
}

impl Request {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.op as u8, u8::from(self.again)];
        bytes.extend((self.path.len() as u32).to_le_bytes());
        bytes.extend(self.path.as_bytes());
        bytes.extend(self.offset.to_le_bytes());
        bytes.extend((self.data.len() as u32).to_le_bytes());
        bytes.extend(&self.data);
        bytes
    }

    fn read(stream: &mut UnixStream) -> io::Result<Request> {
        let mut op = [0; 2];
        stream.read_exact(&mut op)?;
        let path = read_bytes(stream)?;
        let mut offset = [0; 8];
        stream.read_exact(&mut offset)?;
        Ok(Request {
            op: OPS[usize::from(op[0])],
            path: String::from_utf8(path).unwrap(),
            offset: u64::from_le_bytes(offset),
            data: read_bytes(stream)?,
            again: op[1] != 0,
        })
    }
}

fn read_bytes(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let mut bytes = vec![0; u32::from_le_bytes(len) as usize];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The moment of death relative to the fatal request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The request is never looked at.
    Before,
    /// The engine has done its part; the operation on the file is not done where there is one, else all is done.
    During,
    /// All is done, and nobody hears of it.
    After,
    /// As [`Moment::After`], and what was noted for a successor is from before.
    Unnoted,
}

pub struct Edge {
    store: Arc<Store>,
    socket: PathBuf,
    requests: AtomicU64,
    dead: AtomicBool,
    death: Mutex<Option<(u64, Moment)>>,
    log: Mutex<Vec<String>>,
    kills: AtomicBool,
    streams: Mutex<Vec<UnixStream>>,
    told: Mutex<Option<Sender<()>>>,
    /// The scratch of the first database before the fatal request.
    pub noted: Mutex<Option<Vec<u8>>>,
}

/// Answer to a client that is to die on the spot.
pub const DIE: i32 = 9999;

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        write!(f, "{:?} {name} {}+{}", self.op, self.offset, self.data.len())
    }
}

impl Edge {
    pub fn serve(store: Arc<Store>, socket: PathBuf) -> Arc<Edge> {
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let edge = Arc::new(Edge {
            store,
            socket,
            requests: AtomicU64::new(0),
            dead: AtomicBool::new(false),
            death: Mutex::new(None),
            log: Mutex::new(Vec::new()),
            kills: AtomicBool::new(false),
            streams: Mutex::default(),
            told: Mutex::default(),
            noted: Mutex::default(),
        });
        let accepting = edge.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                accepting
                    .streams
                    .lock()
                    .unwrap()
                    .push(stream.try_clone().unwrap());
                if accepting.is_dead() {
                    return;
                }
                let edge = accepting.clone();
                std::thread::spawn(move || edge.converse(stream));
            }
        });
        edge
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// The daemon dies at the request with that number, counted from now on.
    pub fn die_at(&self, request: u64, moment: Moment) {
        *self.death.lock().unwrap() = Some((self.requests() + request, moment));
    }

    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// The next client that syncs a WAL or writes the end of a frame dies right after.
    pub fn kill_next_committer(&self) {
        self.kills.store(true, Ordering::SeqCst);
    }

    /// The daemon dies no more.
    pub fn spare(&self) {
        *self.death.lock().unwrap() = None;
    }

    /// Tells when the daemon dies.
    pub fn tell(&self, told: Sender<()>) {
        *self.told.lock().unwrap() = Some(told);
    }

    /// Answers nothing any more.
    pub fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
        self.hang_up();
    }

    fn hang_up(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    fn dies(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.hang_up();
        if let Some(told) = self.told.lock().unwrap().take() {
            let _ = told.send(());
        }
    }

    /// The last requests, for messages of tests that fail.
    pub fn history(&self) -> Vec<String> {
        let log = self.log.lock().unwrap();
        log[log.len().saturating_sub(30)..].to_vec()
    }

    fn converse(&self, mut stream: UnixStream) {
        while let Ok(request) = Request::read(&mut stream) {
            let number = self.requests.fetch_add(1, Ordering::SeqCst);
            let death = self.death.lock().unwrap().filter(|(at, _)| *at == number);
            let moment = death.map(|(_, moment)| moment);
            if self.is_dead() || moment == Some(Moment::Before) {
                return self.dies();
            }
            if moment == Some(Moment::Unnoted) {
                let home = super::homes(self.store.dir()).pop();
                *self.noted.lock().unwrap() = home.and_then(|home| std::fs::read(home.join("scratch")).ok());
            }
            let outcome = self.perform(&request, moment == Some(Moment::During));
            let errno = outcome.as_ref().err().map_or(0, Error::errno);
            self.log.lock().unwrap().push(format!("{request:?} -> {errno}"));
            if moment.is_some() || self.is_dead() {
                return self.dies();
            }
            let ends_commit = match request.op {
                Op::Sync => request.path.ends_with("-wal"),
                Op::Write => request.path.ends_with("-wal") && request.data.len() >= 512,
                _ => false,
            };
            let errno = match ends_commit && self.kills.swap(false, Ordering::SeqCst) {
                true => DIE,
                false => errno,
            };
            if stream.write_all(&errno.to_le_bytes()).is_err() {
                return;
            }
        }
    }

    fn perform(&self, request: &Request, spare_the_file: bool) -> Result<(), Error> {
        let path = Path::new(&request.path);
        let relative = path.strip_prefix(self.store.files_dir()).unwrap();
        let (name, side) = self
            .store
            .classify(relative.to_str().unwrap().as_bytes())
            .unwrap();
        let mut db = self.store.database(&name);
        let creates = request.offset == 0 && request.data.starts_with(b"SQLite format 3\0");
        if db.is_none() && request.op == Op::Write && side == Side::Database && creates {
            db = Some(self.store.attach(&name)?);
        }
        let mut op = || {
            if spare_the_file {
                return Err(io::Error::from_raw_os_error(libc::ENOTCONN));
            }
            match request.op {
                Op::CreateJournal => OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(path)
                    .map(drop),
                _ => match std::fs::remove_file(path) {
                    Err(error) if request.again && error.kind() == io::ErrorKind::NotFound => Ok(()),
                    removed => removed,
                },
            }
        };
        match db {
            Some(db) => perform(&db, side, request, &mut op),
            None => perform_ordinary(request, &mut op).map_err(ordinary),
        }
    }
}

fn ordinary(source: io::Error) -> Error {
    Error::Io {
        op: "ordinary",
        path: PathBuf::new(),
        source,
    }
}

fn open(path: &str) -> Result<File, Error> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.map_err(ordinary)
}

fn perform(
    db: &Database,
    side: Side,
    request: &Request,
    op: &mut dyn FnMut() -> io::Result<()>,
) -> Result<(), Error> {
    let Request {
        path, offset, data, ..
    } = request;
    match (request.op, side) {
        (Op::CreateJournal, _) if Path::new(path).exists() => Ok(()),
        (Op::CreateJournal, _) => db.create_journal(op),
        (Op::Write, Side::Database) => db.write_database(&open(path)?, *offset, data),
        (Op::Write, Side::Journal) => db.write_journal(&open(path)?, *offset, data),
        (Op::Write, Side::Wal) => db.write_wal(&open(path)?, *offset, data),
        (Op::Truncate, Side::Database) => db.truncate_database(&open(path)?, *offset),
        (Op::Truncate, Side::Journal) => db.truncate_journal(&open(path)?, *offset),
        (Op::Truncate, Side::Wal) => db.truncate_wal(&open(path)?, *offset),
        (Op::Sync, Side::Database) => db.sync_database(&open(path)?, true),
        (Op::Sync, Side::Journal) => db.sync_journal(&open(path)?, true),
        (Op::Sync, Side::Wal) => db.sync_wal(&open(path)?, true),
        (Op::Close, _) => {
            db.close_database();
            Ok(())
        }
        (Op::Unlink, _) if !request.again && !Path::new(path).exists() => {
            Err(ordinary(io::Error::from_raw_os_error(libc::ENOENT)))
        }
        (Op::Unlink, Side::Journal) => db.unlink_journal(op),
        (Op::Unlink, _) => db.unlink_wal(op),
        (Op::WalOpened, _) => {
            db.wal_opened();
            Ok(())
        }
        (Op::ShmReplaced, _) => {
            db.shm_replaced();
            Ok(())
        }
        (op, Side::Shm) => panic!("{op:?} of a wal-index is no request"),
    }
}

fn perform_ordinary(request: &Request, op: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let open = || OpenOptions::new().read(true).write(true).open(&request.path);
    match request.op {
        Op::CreateJournal | Op::Unlink => op(),
        Op::Write => open()?.write_all_at(&request.data, request.offset),
        Op::Truncate => open()?.set_len(request.offset),
        Op::Sync | Op::Close | Op::WalOpened | Op::ShmReplaced => Ok(()),
    }
}
