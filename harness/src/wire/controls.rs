//! The knobs and meters of the wires: written by whoever commands the cluster, read by the switch thread.
//!
//! The switch looks at the generation on every round and copies the table only when it changed, so turning no knob costs nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::policy::LinkPolicy;
use crate::station::Station;

/// One direction between two stations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Direction {
    pub from: Station,
    pub to: Station,
}

impl Direction {
    pub fn new(from: Station, to: Station) -> Self {
        Self { from, to }
    }

    pub fn reversed(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
        }
    }
}

/// What a direction is told to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    pub policy: LinkPolicy,
    pub cut: bool,
}

/// What became of the frames of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    pub forwarded: u64,
    pub dropped: u64,
    pub duplicated: u64,
}

#[derive(Debug, Default)]
struct Meter {
    forwarded: AtomicU64,
    dropped: AtomicU64,
    duplicated: AtomicU64,
}

#[derive(Debug)]
pub struct Controls {
    stations: usize,
    settings: Mutex<BTreeMap<Direction, Setting>>,
    generation: AtomicU64,
    meters: Vec<Meter>,
}

impl Controls {
    pub(crate) fn new(stations: usize) -> Self {
        Self {
            stations,
            settings: Mutex::default(),
            generation: AtomicU64::new(0),
            meters: std::iter::repeat_with(Meter::default)
                .take(stations * stations)
                .collect(),
        }
    }

    pub(crate) fn stations(&self) -> usize {
        self.stations
    }

    pub(crate) fn slot(&self, direction: Direction) -> usize {
        direction.from.index() * self.stations + direction.to.index()
    }

    /// Changes settings as one step: the switch never sees half of a partition.
    pub(crate) fn change(&self, edit: impl FnOnce(&mut BTreeMap<Direction, Setting>)) {
        let mut settings = self.settings.lock();
        edit(&mut settings);
        settings.retain(|_, setting| *setting != Setting::default());
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The directions that differ from a plain wire.
    pub fn settings(&self) -> BTreeMap<Direction, Setting> {
        self.settings.lock().clone()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub fn traffic(&self, direction: Direction) -> Traffic {
        let meter = &self.meters[self.slot(direction)];
        Traffic {
            forwarded: meter.forwarded.load(Ordering::Relaxed),
            dropped: meter.dropped.load(Ordering::Relaxed),
            duplicated: meter.duplicated.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn count_forwarded(&self, slot: usize) {
        self.meters[slot].forwarded.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_dropped(&self, slot: usize) {
        self.meters[slot].dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_duplicated(&self, slot: usize) {
        self.meters[slot].duplicated.fetch_add(1, Ordering::Relaxed);
    }
}
