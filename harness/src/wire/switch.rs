//! The thread that all frames of a cluster pass: takes each from its sender's cable, asks the link for its fate, puts it on the
//! receiver's cable. Started by [`crate::net::Network`].
//!
//! Invariants: a frame goes to the station its destination address names and to nobody else; broadcasts other than ARP go nowhere;
//! a frame that is under way when its link is cut does not arrive.

use std::collections::BinaryHeap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::arp;
use super::controls::{Controls, Direction};
use super::link::{Departures, Link};
use super::packet::{LARGEST, PREFIX, PacketSocket};
use crate::station::Station;

/// Frames taken from one cable before the next has its turn.
const TURN: usize = 64;

pub(crate) struct Switch {
    sockets: Vec<PacketSocket>,
    links: Vec<Link>,
    under_way: BinaryHeap<Frame>,
    sequence: u64,
    controls: Arc<Controls>,
    generation: u64,
    buffer: Vec<u8>,
}

struct Frame {
    at: Instant,
    sequence: u64,
    direction: Direction,
    bytes: Box<[u8]>,
}

impl Switch {
    /// `sockets[i]` is the cable of station `i`.
    pub(crate) fn new(sockets: Vec<PacketSocket>, controls: Arc<Controls>, seed: u64) -> Self {
        let now = Instant::now();
        let slots = u64::try_from(sockets.len() * sockets.len()).expect("at most 201 stations");
        Self {
            links: (0..slots)
                .map(|slot| Link::new(seed.wrapping_add(slot << 32), now))
                .collect(),
            sockets,
            under_way: BinaryHeap::new(),
            sequence: 0,
            generation: controls.generation(),
            controls,
            buffer: vec![0; LARGEST],
        }
    }

    /// Forwards until the other end of `stop` is closed.
    pub(crate) fn run(mut self, stop: &UnixStream) {
        // The default slack of 50 us would be added to every delay.
        if let Err(errno) = nix::sys::prctl::set_timerslack(1) {
            tracing::debug!(%errno, "timer slack stays at its default");
        }
        let mut ready = Vec::with_capacity(self.sockets.len());
        loop {
            if !self.wait(stop, &mut ready) {
                return;
            }
            self.refresh();
            for &station in &ready {
                self.drain(station);
            }
            self.deliver_due();
        }
    }

    /// Waits for frames or for the next departure; false means stop.
    fn wait(&self, stop: &UnixStream, ready: &mut Vec<Station>) -> bool {
        let mut fds: Vec<PollFd<'_>> = self
            .sockets
            .iter()
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
            .collect();
        fds.push(PollFd::new(stop.as_fd(), PollFlags::POLLIN));
        let timeout = self
            .under_way
            .peek()
            .map(|frame| TimeSpec::from_duration(frame.at.saturating_duration_since(Instant::now())));
        ready.clear();
        match ppoll(&mut fds, timeout, None) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => return true,
            Err(errno) => {
                tracing::error!(%errno, "the switch cannot poll its cables");
                return false;
            }
        }
        let (stop, cables) = fds.split_last().expect("the stop descriptor is always polled");
        ready.extend(
            cables
                .iter()
                .enumerate()
                .filter(|(_, fd)| fd.any().unwrap_or(false))
                .filter_map(|(index, _)| Station::from_index(index)),
        );
        !stop.any().unwrap_or(true)
    }

    fn refresh(&mut self) {
        let generation = self.controls.generation();
        if generation == self.generation {
            return;
        }
        self.generation = generation;
        let settings = self.controls.settings();
        for from in Station::all(self.sockets.len() - 1) {
            for to in Station::all(self.sockets.len() - 1) {
                let direction = Direction { from, to };
                let setting = settings.get(&direction).copied().unwrap_or_default();
                self.links[self.controls.slot(direction)].set(setting.policy, setting.cut);
            }
        }
    }

    fn drain(&mut self, from: Station) {
        for _ in 0..TURN {
            let mut buffer = std::mem::take(&mut self.buffer);
            let received = self.sockets[from.index()].receive(&mut buffer);
            if let Ok(Some(length)) = received {
                self.forward(from, &buffer[..length]);
            }
            self.buffer = buffer;
            match received {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%from, %error, "receiving a frame");
                    return;
                }
            }
        }
    }

    fn forward(&mut self, from: Station, prefixed: &[u8]) {
        let Some(frame) = prefixed.get(PREFIX..) else {
            return;
        };
        if arp::is_arp(frame) {
            return self.answer(from, frame);
        }
        let to = frame.get(..6).and_then(Station::from_mac);
        let Some(to) = to.filter(|to| to.index() < self.sockets.len() && *to != from) else {
            return;
        };
        let direction = Direction { from, to };
        let slot = self.controls.slot(direction);
        let now = Instant::now();
        match self.links[slot].admit(now, frame.len()) {
            Departures { first: None, .. } => self.controls.count_dropped(slot),
            Departures {
                first: Some(first),
                second,
            } => {
                self.depart(direction, now, first, prefixed);
                if let Some(second) = second {
                    self.controls.count_duplicated(slot);
                    self.depart(direction, now, second, prefixed);
                }
            }
        }
    }

    fn depart(&mut self, direction: Direction, now: Instant, at: Instant, prefixed: &[u8]) {
        if at <= now {
            return self.deliver(direction, prefixed);
        }
        self.sequence += 1;
        self.under_way.push(Frame {
            at,
            sequence: self.sequence,
            direction,
            bytes: prefixed.into(),
        });
    }

    fn answer(&self, from: Station, frame: &[u8]) {
        let Some(reply) = arp::reply(frame, self.controls.stations()) else {
            return;
        };
        let mut prefixed = vec![0; PREFIX];
        prefixed.extend(reply);
        self.send(from, &prefixed);
    }

    fn deliver_due(&mut self) {
        let now = Instant::now();
        while self.under_way.peek().is_some_and(|frame| frame.at <= now) {
            let Some(frame) = self.under_way.pop() else { return };
            self.deliver(frame.direction, &frame.bytes);
        }
    }

    fn deliver(&self, direction: Direction, prefixed: &[u8]) {
        let slot = self.controls.slot(direction);
        if self.links[slot].is_cut() {
            return self.controls.count_dropped(slot);
        }
        self.send(direction.to, prefixed);
        self.controls.count_forwarded(slot);
    }

    fn send(&self, to: Station, prefixed: &[u8]) {
        if let Err(error) = self.sockets[to.index()].send(prefixed) {
            tracing::warn!(%to, %error, bytes = prefixed.len(), "sending a frame");
        }
    }
}

impl PartialEq for Frame {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Frame {}

impl PartialOrd for Frame {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Frame {
    /// The heap gives out its greatest element: the earliest frame, and of equals the first admitted.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}
