//! The network of one cluster: a namespace per station, a private one for the switch, cables between them and the switch thread.
//!
//! Invariants: nothing of it is visible in, or reachable from, the namespace of the caller; everything is gone when the value is dropped
//! (and no process lives in a namespace). Used by the supervisor, and directly by tests of the wires.

mod cable;
mod namespace;
mod offload;

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

pub use namespace::NetNamespace;

use crate::error::{Error, Result};
use crate::station::Station;
use crate::wire::{Controls, Direction, LinkPolicy, PacketSocket, Setting, Switch};

pub struct Network {
    namespaces: Vec<NetNamespace>,
    controls: Arc<Controls>,
    /// Stations whose devices hand over whole segments; see [`offload`].
    without_segmentation: parking_lot::Mutex<BTreeSet<Station>>,
    switch: Option<(UnixStream, JoinHandle<()>)>,
}

impl Network {
    /// Builds the network of a lease server and `nodes` nodes. All chance in it comes from `seed`.
    pub fn build(nodes: usize, seed: u64) -> Result<Self> {
        let middle = NetNamespace::create()?;
        let mut namespaces = Vec::with_capacity(nodes + 1);
        for station in Station::all(nodes) {
            let namespace = NetNamespace::create()?;
            cable::lay(&middle, &namespace, station)?;
            namespaces.push(namespace);
        }
        let controls = Arc::new(Controls::new(namespaces.len()));
        let sockets = middle.run(|| {
            let open = |station: Station| PacketSocket::open(&station.to_string());
            Station::all(nodes).map(open).collect::<std::io::Result<Vec<_>>>()
        })?;
        let sockets = sockets.map_err(Error::system("opening the cables' packet sockets"))?;
        let switch = Switch::new(sockets, Arc::clone(&controls), seed);
        let (ours, theirs) = UnixStream::pair().map_err(Error::system("creating a socket pair"))?;
        let thread = middle.spawn("switch", move || switch.run(&theirs))?;
        let without_segmentation = parking_lot::Mutex::default();
        Ok(Self {
            namespaces,
            controls,
            without_segmentation,
            switch: Some((ours, thread)),
        })
    }

    pub fn stations(&self) -> impl Iterator<Item = Station> {
        Station::all(self.namespaces.len() - 1)
    }

    pub fn namespace(&self, station: Station) -> Result<&NetNamespace> {
        let unknown = || Error::Invalid(format!("this cluster has no {station}"));
        self.namespaces.get(station.index()).ok_or_else(unknown)
    }

    /// Settings in force and counts of frames.
    pub fn controls(&self) -> &Controls {
        &self.controls
    }

    /// Gives each direction the policy; partitions stay as they are.
    pub fn link(&self, directions: &[Direction], policy: LinkPolicy) -> Result<()> {
        self.check(directions)?;
        self.controls.change(|settings| {
            for direction in directions {
                settings.entry(*direction).or_default().policy = policy;
            }
        });
        self.match_segmentation()
    }

    /// Cuts the directions; what is under way in them is lost too.
    pub fn cut(&self, directions: &[Direction]) -> Result<()> {
        self.check(directions)?;
        self.controls.change(|settings| {
            for direction in directions {
                settings.entry(*direction).or_default().cut = true;
            }
        });
        Ok(())
    }

    /// Ends all partitions; with `policies`, makes all links plain wires too.
    pub fn heal(&self, policies: bool) -> Result<()> {
        self.controls.change(|settings| {
            for setting in settings.values_mut() {
                setting.cut = false;
                if policies {
                    *setting = Setting::default();
                }
            }
        });
        self.match_segmentation()
    }

    fn check(&self, directions: &[Direction]) -> Result<()> {
        for direction in directions {
            self.namespace(direction.from)?;
            self.namespace(direction.to)?;
        }
        Ok(())
    }

    fn match_segmentation(&self) -> Result<()> {
        let settings = self.controls.settings();
        let counting = settings
            .iter()
            .filter(|(_, setting)| setting.policy.counts_frames());
        let wanted: BTreeSet<Station> = counting.map(|(direction, _)| direction.from).collect();
        let mut without = self.without_segmentation.lock();
        for &station in wanted.symmetric_difference(&without) {
            let on = !wanted.contains(&station);
            let switched = self
                .namespace(station)?
                .run(|| offload::set_segmentation(cable::DEVICE, on))?;
            switched.map_err(Error::system(format!(
                "switching segmentation offload of {station}"
            )))?;
        }
        *without = wanted;
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.switch.take() {
            drop(stop);
            if thread.join().is_err() {
                tracing::error!("the switch thread panicked");
            }
        }
    }
}
