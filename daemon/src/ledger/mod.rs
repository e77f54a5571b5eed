//! What a daemon leaves to the next one: shared memory in which everything stands that the kernel believes of a mount.
//!
//! The mount outlives its daemon. The kernel goes on using the node ids, handles and backing ids that a dead daemon gave it, and does not
//! tell anybody what they were. So the daemon notes them here, in anonymous memory that the keeper holds, *before* it answers the request
//! that makes the kernel believe them. Noting something is a few stores: no system call, no copy.
//!
//! * [`nodes`]: inodes that the kernel knows, with their lookup counts and backing ids; * [`handles`]: open files;
//! * [`ongoing`]: the request that each serving thread is at, so that one that is delivered again is not done twice;
//! * [`names`]: numbers of the virtual files; here: the connection's first exchange (INIT), and the time as primary.
//!
//! Invariant: a slot counts from the moment its first word is stored until that word is zero again; that store comes last in an entry and
//! first in a removal. A process may be killed between any two stores.

mod handles;
mod names;
mod nodes;
mod ongoing;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};

pub(crate) use handles::{HandleEntry, HandleSlot};
pub(crate) use nodes::{NodeEntry, NodeSlot, Opened};
pub(crate) use ongoing::Past;

/// "LFSledg" and the number of the layout below, which changes with every change of it.
const MAGIC: u64 = 0x4c46_536c_6564_6701;
const WORD: usize = 8;

// The first page, in words.
const NODE_ID: usize = 1;
const EPOCH: usize = 2;
const DEADLINE: usize = 3;
const NEXT_HANDLE: usize = 4;
const MODE: usize = 5;
const DEVICE: usize = 6;
const NODES_USED: usize = 7;
const HANDLES_USED: usize = 8;
const NAMES_USED: usize = 9;
const INIT_LENGTH: usize = 10;
const INIT: usize = 11;
const INIT_WORDS: usize = 32;
const IN_ORDER: usize = INIT + INIT_WORDS;
const ONGOING: usize = 64;
const THREADS: usize = 64;
const ONGOING_WORDS: usize = 4;
const PAST: usize = ONGOING + THREADS * ONGOING_WORDS;
const PAST_RECORDS: usize = (NODES - PAST) / ONGOING_WORDS;

// Behind it, in words.
const NODES: usize = 512;
/// More than the most descriptors that Linux lets one process have.
const SLOTS: usize = 1 << 20;
const SLOT_WORDS: usize = 4;
const HANDLES: usize = NODES + SLOTS * SLOT_WORDS;
const NAMES: usize = HANDLES + SLOTS * SLOT_WORDS;
const NAME_SLOTS: usize = 1 << 15;
/// A kind, a length and a database's name.
const NAME_WORDS: usize = 2 + 1024 / WORD;
/// In bytes; memory is used for what is written only.
const SIZE: usize = (NAMES + NAME_SLOTS * NAME_WORDS) * WORD;

/// How `-wal`, `-shm` and `-journal` are served on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Passthrough,
    Intercepted,
}

/// The shared memory, mapped.
#[derive(Debug)]
pub struct Ledger {
    map: MmapRaw,
    file: File,
    free_handles: handles::FreeSlots,
    free_nodes: handles::FreeSlots,
    threads: AtomicU64,
}

impl Ledger {
    /// Makes an empty one.
    pub fn create() -> io::Result<Ledger> {
        let file = File::from(memfd_create(c"litefs-ledger", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(SIZE as u64)?;
        let ledger = Ledger::map(file)?;
        ledger.word(0).store(MAGIC, Ordering::Release);
        Ok(ledger)
    }

    /// Opens what another process left.
    ///
    /// # Errors
    /// `InvalidData` if it has another layout: it was written by a version that this one cannot follow.
    pub fn open(file: File) -> io::Result<Ledger> {
        if file.metadata()?.len() != SIZE as u64 {
            return Err(other_layout());
        }
        let ledger = Ledger::map(file)?;
        if ledger.get(0) != MAGIC {
            return Err(other_layout());
        }
        ledger.free_handles.fill(ledger.free_handle_slots());
        ledger.free_nodes.fill(ledger.free_node_slots());
        Ok(ledger)
    }

    fn map(file: File) -> io::Result<Ledger> {
        let map = MmapOptions::new().len(SIZE).map_raw(&file)?;
        let ledger = Ledger {
            map,
            file,
            free_handles: Default::default(),
            free_nodes: Default::default(),
            threads: AtomicU64::new(0),
        };
        Ok(ledger)
    }

    /// The descriptor, to be passed on.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < SIZE / WORD, "a word of the ledger");
        // SAFETY: the mapping has `SIZE` bytes, is page-aligned and lives as long as `self`; the file is never truncated, and every process
        // that maps it uses atomic operations only.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(index)) }
    }

    fn get(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    fn put(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::Release);
    }

    /// Whether a connection was begun.
    #[cfg(test)]
    pub(crate) fn has_connection(&self) -> bool {
        self.get(INIT_LENGTH) > 0
    }

    /// The kernel's first request of the connection, word for word.
    pub(crate) fn init_request(&self) -> Vec<u8> {
        let length = usize::try_from(self.get(INIT_LENGTH))
            .unwrap_or(usize::MAX)
            .min(INIT_WORDS * WORD);
        let words = (0..length.div_ceil(WORD)).map(|i| self.get(INIT + i).to_ne_bytes());
        let mut bytes: Vec<u8> = words.flatten().collect();
        bytes.truncate(length);
        bytes
    }

    /// Notes the kernel's first request; from here on the connection can be taken over.
    ///
    /// # Errors
    /// `InvalidInput` if it is longer than any kernel's so far.
    pub(crate) fn begin_connection(&self, request: &[u8], mode: Mode, device: u64) -> io::Result<()> {
        if request.len() > INIT_WORDS * WORD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the kernel's INIT is too long",
            ));
        }
        for (i, bytes) in request.chunks(WORD).enumerate() {
            let mut word = [0; WORD];
            word[..bytes.len()].copy_from_slice(bytes);
            self.put(INIT + i, u64::from_ne_bytes(word));
        }
        self.put(
            MODE,
            match mode {
                Mode::Passthrough => 1,
                Mode::Intercepted => 2,
            },
        );
        self.put(DEVICE, device);
        self.put(INIT_LENGTH, request.len() as u64);
        Ok(())
    }

    pub(crate) fn mode(&self) -> Mode {
        match self.get(MODE) {
            1 => Mode::Passthrough,
            _ => Mode::Intercepted,
        }
    }

    /// Device number of the mounted file system.
    pub(crate) fn device(&self) -> u64 {
        self.get(DEVICE)
    }

    /// Identifies the node to its cluster, over all daemons that have this ledger. 0: not chosen yet.
    pub(crate) fn node_id(&self) -> u64 {
        self.get(NODE_ID)
    }

    pub(crate) fn set_node_id(&self, id: u64) {
        self.put(NODE_ID, id);
    }

    /// The term of the deadline below.
    pub(crate) fn epoch(&self) -> u64 {
        self.get(EPOCH)
    }

    pub(crate) fn set_epoch(&self, epoch: u64) {
        self.put(EPOCH, epoch);
    }

    /// Notes that this process ends for the sake of the next one, with nothing that a start would have to look into.
    pub(crate) fn leave_in_order(&self) {
        self.put(IN_ORDER, 1);
    }

    /// Whether the process before ended like that. True once: what this process does is its own.
    pub(crate) fn take_order(&self) -> bool {
        self.word(IN_ORDER).swap(0, Ordering::AcqRel) != 0
    }

    /// Until when clients may write here, in nanoseconds of the clock that counts suspended time too (`CLOCK_BOOTTIME`); 0: not at all.
    pub fn deadline(&self) -> &AtomicU64 {
        self.word(DEADLINE)
    }
}

impl AsFd for Ledger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor()
    }
}

fn other_layout() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the running mount was made by another version, which this one cannot take over",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the next process opens it.
    pub(super) fn again(ledger: &Ledger) -> Ledger {
        Ledger::open(File::from(ledger.descriptor().try_clone_to_owned().unwrap())).unwrap()
    }

    #[test]
    fn the_next_process_finds_the_connection_and_the_time_as_primary() {
        let ledger = Ledger::create().unwrap();
        assert!(!again(&ledger).has_connection());
        let request: Vec<u8> = (0..104).collect();
        ledger.begin_connection(&request, Mode::Passthrough, 77).unwrap();
        ledger.set_node_id(5);
        ledger.set_epoch(3);
        ledger.deadline().store(9, Ordering::Release);
        let next = again(&ledger);
        assert!(next.has_connection());
        assert_eq!(next.init_request(), request);
        assert_eq!((next.mode(), next.device()), (Mode::Passthrough, 77));
        assert_eq!((next.node_id(), next.epoch()), (5, 3));
        assert_eq!(next.deadline().load(Ordering::Acquire), 9);
        assert!(!next.take_order());
        ledger.leave_in_order();
        assert!(next.take_order() && !ledger.take_order());
        assert!(ledger.begin_connection(&[0; 257], Mode::Intercepted, 0).is_err());
    }

    #[test]
    fn memory_of_another_layout_is_refused() {
        let ledger = Ledger::create().unwrap();
        ledger.put(0, MAGIC + 1);
        let file = File::from(ledger.descriptor().try_clone_to_owned().unwrap());
        assert_eq!(Ledger::open(file).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let short = File::from(memfd_create(c"short", MFdFlags::MFD_CLOEXEC).unwrap());
        assert!(Ledger::open(short).is_err());
    }
}
