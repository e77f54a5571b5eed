//! Inodes that the kernel knows, by node id.

use std::sync::atomic::Ordering;

use super::{Ledger, NODES, NODES_USED, SLOT_WORDS, SLOTS};

// Words of a slot. The id comes last.
const ID: usize = 0;
const LOOKUPS: usize = 1;
const OPENED: usize = 2;

const PASSTHROUGH: u64 = 1;
const STALE_CACHE: u64 = 2;
const BACKED: u64 = 4;
const BACKING_SHIFT: u32 = 32;

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeSlot(u32);

/// How the handles of an inode are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Opened {
    /// All of them are passed through.
    pub(crate) passthrough: bool,
    /// What the kernel has cached of the file is worth nothing.
    pub(crate) cache_is_stale: bool,
    /// The kernel's number for the backing file.
    pub(crate) backing: Option<u32>,
}

/// An inode that the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeEntry {
    pub(crate) id: u64,
    /// How often the kernel was told of it and has not forgotten it since.
    pub(crate) lookups: u64,
    pub(crate) opened: Opened,
}

impl Ledger {
    /// Notes an inode, before the kernel is told of it; `None`: no room.
    pub(crate) fn add_node(&self, id: u64) -> Option<NodeSlot> {
        let slot = NodeSlot(self.free_nodes.take(self, NODES_USED)?);
        self.put(slot.word(LOOKUPS), 0);
        self.put(slot.word(OPENED), 0);
        self.put(slot.word(ID), id);
        Some(slot)
    }

    pub(crate) fn remove_node(&self, slot: NodeSlot) {
        self.put(slot.word(ID), 0);
        self.free_nodes.give_back(slot.0);
    }

    pub(crate) fn set_lookups(&self, slot: NodeSlot, lookups: u64) {
        self.put(slot.word(LOOKUPS), lookups);
    }

    pub(crate) fn set_opened(&self, slot: NodeSlot, opened: Opened) {
        let flags = [
            (opened.passthrough, PASSTHROUGH),
            (opened.cache_is_stale, STALE_CACHE),
        ];
        let flags = flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag);
        let backing = opened
            .backing
            .map_or(0, |backing| BACKED | u64::from(backing) << BACKING_SHIFT);
        self.put(slot.word(OPENED), flags.fold(backing, |word, flag| word | flag));
    }

    /// All inodes, for whoever takes over.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (NodeSlot, NodeEntry)> + '_ {
        self.node_slots()
            .filter_map(|slot| Some((slot, self.node_entry(slot)?)))
    }

    /// Slots that were given back, or never filled.
    pub(super) fn free_node_slots(&self) -> Vec<u32> {
        let free = self.node_slots().filter(|slot| self.node_entry(*slot).is_none());
        free.map(|slot| slot.0).collect()
    }

    fn node_slots(&self) -> impl Iterator<Item = NodeSlot> + use<> {
        (0..self.get(NODES_USED).min(SLOTS as u64) as u32).map(NodeSlot)
    }

    fn node_entry(&self, slot: NodeSlot) -> Option<NodeEntry> {
        let id = self.get(slot.word(ID));
        let opened = self.word(slot.word(OPENED)).load(Ordering::Acquire);
        (id != 0).then(|| NodeEntry {
            id,
            lookups: self.get(slot.word(LOOKUPS)),
            opened: Opened {
                passthrough: opened & PASSTHROUGH != 0,
                cache_is_stale: opened & STALE_CACHE != 0,
                backing: (opened & BACKED != 0).then_some((opened >> BACKING_SHIFT) as u32),
            },
        })
    }
}

impl NodeSlot {
    fn word(self, word: usize) -> usize {
        NODES + self.0 as usize * SLOT_WORDS + word
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::again;
    use super::*;

    #[test]
    fn the_next_process_finds_the_inodes_and_how_they_are_open() {
        let ledger = Ledger::create().unwrap();
        let (one, two) = (ledger.add_node(12).unwrap(), ledger.add_node(13).unwrap());
        ledger.set_lookups(two, 4);
        let opened = Opened {
            passthrough: true,
            cache_is_stale: true,
            backing: Some(9),
        };
        ledger.set_opened(two, opened);
        ledger.remove_node(one);
        let next = again(&ledger);
        let entry = NodeEntry {
            id: 13,
            lookups: 4,
            opened,
        };
        for _ in 0..2 {
            assert_eq!(next.nodes().collect::<Vec<_>>(), [(two, entry)]);
        }
        assert_eq!(next.add_node(14), Some(one), "a free slot is used again");
        assert_ne!(next.add_node(15), Some(one), "and once");
        ledger.set_opened(
            two,
            Opened {
                backing: None,
                ..opened
            },
        );
        assert_eq!(again(&ledger).nodes().nth(1).unwrap().1.opened.backing, None);
    }
}
