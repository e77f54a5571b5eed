//! Open files, by the numbers that the kernel knows them by.

use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::{HANDLES, HANDLES_USED, Ledger, NEXT_HANDLE, SLOT_WORDS, SLOTS};

// Words of a slot. The number comes last.
const NUMBER: usize = 0;
const NODE: usize = 1;
const FLAGS: usize = 2;
const PROCESS: usize = 3;

const WRITABLE: u64 = 1;
const WROTE: u64 = 2;
/// Opened for the daemon itself, by its opener.
const OURS: u64 = 4;

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HandleSlot(u32);

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HandleEntry {
    pub(crate) number: u64,
    /// Id of its node.
    pub(crate) node: u64,
    pub(crate) writable: bool,
    /// Written outside any transaction since the last look.
    pub(crate) wrote: bool,
    /// Opened by the opener, for the daemon to lock through.
    pub(crate) ours: bool,
    /// The process that opened it.
    pub(crate) process: u32,
}

/// Slots below the highest used one that are free again.
#[derive(Debug, Default)]
pub(super) struct FreeSlots(Mutex<Vec<u32>>);

impl FreeSlots {
    /// A free slot: one that was given back, or the next one; `None` if there is none.
    pub(super) fn take(&self, ledger: &Ledger, used: usize) -> Option<u32> {
        if let Some(slot) = self.0.lock().pop() {
            return Some(slot);
        }
        let next = ledger.word(used).fetch_add(1, Ordering::AcqRel);
        if next < SLOTS as u64 {
            return u32::try_from(next).ok();
        }
        ledger.word(used).fetch_sub(1, Ordering::AcqRel);
        None
    }

    pub(super) fn give_back(&self, slot: u32) {
        self.0.lock().push(slot);
    }

    /// Begins with these, each of which is given out once.
    pub(super) fn fill(&self, slots: Vec<u32>) {
        *self.0.lock() = slots;
    }
}

impl Ledger {
    /// The next number for a handle: no process that serves the connection uses one twice.
    pub(crate) fn next_handle(&self) -> u64 {
        self.word(NEXT_HANDLE).fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Notes an open file, before the kernel is told; `None`: no room.
    pub(crate) fn add_handle(&self, entry: &HandleEntry) -> Option<HandleSlot> {
        let slot = HandleSlot(self.free_handles.take(self, HANDLES_USED)?);
        self.put(slot.word(NODE), entry.node);
        self.put(slot.word(FLAGS), flags(entry));
        self.put(slot.word(PROCESS), u64::from(entry.process));
        self.put(slot.word(NUMBER), entry.number);
        Some(slot)
    }

    pub(crate) fn remove_handle(&self, slot: HandleSlot) {
        self.put(slot.word(NUMBER), 0);
        self.free_handles.give_back(slot.0);
    }

    /// Notes whether something was written that nobody has looked at.
    pub(crate) fn set_wrote(&self, slot: HandleSlot, wrote: bool) {
        let word = self.word(slot.word(FLAGS));
        match wrote {
            true => word.fetch_or(WROTE, Ordering::AcqRel),
            false => word.fetch_and(!WROTE, Ordering::AcqRel),
        };
    }

    /// All open files, for whoever takes over.
    pub(crate) fn handles(&self) -> impl Iterator<Item = (HandleSlot, HandleEntry)> + '_ {
        self.handle_slots()
            .filter_map(|slot| Some((slot, self.handle(slot)?)))
    }

    /// Files that clients have open, not counting the daemon's own.
    pub(crate) fn client_handles(&self) -> impl Iterator<Item = HandleEntry> + '_ {
        self.handles().map(|(_, entry)| entry).filter(|entry| !entry.ours)
    }

    /// Slots that were given back, or never filled.
    pub(super) fn free_handle_slots(&self) -> Vec<u32> {
        let free = self.handle_slots().filter(|slot| self.handle(*slot).is_none());
        free.map(|slot| slot.0).collect()
    }

    fn handle_slots(&self) -> impl Iterator<Item = HandleSlot> + use<> {
        (0..self.get(HANDLES_USED).min(SLOTS as u64) as u32).map(HandleSlot)
    }

    fn handle(&self, slot: HandleSlot) -> Option<HandleEntry> {
        let number = self.get(slot.word(NUMBER));
        let flags = self.get(slot.word(FLAGS));
        (number != 0).then(|| HandleEntry {
            number,
            node: self.get(slot.word(NODE)),
            writable: flags & WRITABLE != 0,
            wrote: flags & WROTE != 0,
            ours: flags & OURS != 0,
            process: self.get(slot.word(PROCESS)) as u32,
        })
    }
}

fn flags(entry: &HandleEntry) -> u64 {
    [
        (entry.writable, WRITABLE),
        (entry.wrote, WROTE),
        (entry.ours, OURS),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .fold(0, |flags, (_, flag)| flags | flag)
}

impl HandleSlot {
    fn word(self, word: usize) -> usize {
        HANDLES + self.0 as usize * SLOT_WORDS + word
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::again;
    use super::*;

    fn entry(ledger: &Ledger, ours: bool) -> HandleEntry {
        HandleEntry {
            number: ledger.next_handle(),
            node: 42,
            writable: true,
            wrote: false,
            ours,
            process: 7,
        }
    }

    #[test]
    fn the_next_process_finds_what_is_open_and_gives_other_numbers() {
        let ledger = Ledger::create().unwrap();
        let (one, two, three) = (entry(&ledger, false), entry(&ledger, true), entry(&ledger, false));
        let slots: Vec<HandleSlot> = [one, two, three]
            .iter()
            .map(|entry| ledger.add_handle(entry).unwrap())
            .collect();
        ledger.remove_handle(slots[0]);
        ledger.set_wrote(slots[2], true);
        let next = again(&ledger);
        for _ in 0..2 {
            let found: Vec<HandleEntry> = next.handles().map(|(_, entry)| entry).collect();
            assert_eq!(found, [two, HandleEntry { wrote: true, ..three }]);
        }
        assert_eq!(next.client_handles().count(), 1);
        let four = entry(&next, false);
        assert!(four.number > three.number);
        assert_eq!(
            next.add_handle(&four),
            Some(slots[0]),
            "a free slot is used again"
        );
        assert_ne!(next.add_handle(&four), Some(slots[0]), "and once");
    }
}
