//! Who takes part in a cluster's network: the nodes n1, n2, … and the lease server, with their fixed addresses.
//!
//! Every cluster uses the same addresses: its namespaces are its own, so two clusters never meet. Everything else (wires, supervisor,
//! command line) names a participant by [`Station`].

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The largest cluster: host parts 1..=200 are nodes, 254 is the lease server.
pub const MAX_NODES: usize = 200;

const NETWORK: [u8; 3] = [10, 77, 0];
const LEASE_HOST: u8 = 254;
const API_PORT: u16 = 20202;
const LEASE_PORT: u16 = 8500;

/// A participant of the cluster network. `Display` and `FromStr` use `n1`, `n2`, … and `lease`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Station(u8);

impl Station {
    /// The lease server.
    pub const LEASE: Self = Self(0);

    /// Node number `number`, counted from 1.
    pub fn node(number: usize) -> Result<Self, Error> {
        match u8::try_from(number) {
            Ok(host) if host >= 1 && number <= MAX_NODES => Ok(Self(host)),
            _ => Err(Error::Invalid(format!(
                "node numbers go from 1 to {MAX_NODES}, not {number}"
            ))),
        }
    }

    /// The lease server and `nodes` nodes.
    pub fn all(nodes: usize) -> impl Iterator<Item = Self> {
        (0..=nodes.min(MAX_NODES))
            .filter_map(|number| u8::try_from(number).ok())
            .map(Self)
    }

    pub fn is_node(self) -> bool {
        self != Self::LEASE
    }

    /// Position in tables of stations: 0 is the lease server, 1.. are the nodes.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    pub(crate) fn from_index(index: usize) -> Option<Self> {
        u8::try_from(index)
            .ok()
            .filter(|&host| usize::from(host) <= MAX_NODES)
            .map(Self)
    }

    pub fn ip(self) -> Ipv4Addr {
        let host = if self.is_node() { self.0 } else { LEASE_HOST };
        Ipv4Addr::new(NETWORK[0], NETWORK[1], NETWORK[2], host)
    }

    pub(crate) fn from_ip(ip: Ipv4Addr) -> Option<Self> {
        let [a, b, c, host] = ip.octets();
        match host {
            _ if [a, b, c] != NETWORK => None,
            LEASE_HOST => Some(Self::LEASE),
            0 => None,
            host => Self::from_index(usize::from(host)),
        }
    }

    /// Locally administered; the last byte is the station's index, so that the switch needs no table.
    pub fn mac(self) -> [u8; 6] {
        [0x02, b'l', b'f', b's', 0, self.0]
    }

    pub(crate) fn from_mac(mac: &[u8]) -> Option<Self> {
        match mac {
            [0x02, b'l', b'f', b's', 0, index] => Self::from_index(usize::from(*index)),
            _ => None,
        }
    }

    /// Where the station's HTTP service is inside the cluster network.
    pub fn service(self) -> SocketAddr {
        let port = if self.is_node() { API_PORT } else { LEASE_PORT };
        SocketAddr::from((self.ip(), port))
    }

    /// The same service by the loopback device of the station's own namespace: works however the wires are cut.
    pub(crate) fn local_service(self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.service().port()))
    }
}

impl fmt::Display for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.pad("lease"),
            number => f.pad(&format!("n{number}")),
        }
    }
}

impl FromStr for Station {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "lease" {
            return Ok(Self::LEASE);
        }
        let number = text.strip_prefix('n').unwrap_or(text).parse().ok();
        number.map(Self::node).unwrap_or_else(|| {
            Err(Error::Invalid(format!(
                "{text:?} is neither a node (n1, n2, …) nor \"lease\""
            )))
        })
    }
}

impl TryFrom<String> for Station {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Station> for String {
    fn from(station: Station) -> Self {
        station.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_addresses_and_back() {
        for station in Station::all(MAX_NODES) {
            assert_eq!(station.to_string().parse::<Station>().unwrap(), station);
            assert_eq!(Station::from_ip(station.ip()), Some(station));
            assert_eq!(Station::from_mac(&station.mac()), Some(station));
        }
        assert_eq!("3".parse::<Station>().unwrap(), Station::node(3).unwrap());
        for wrong in ["n0", "n201", "x", "", "n-1"] {
            assert!(wrong.parse::<Station>().is_err(), "{wrong:?}");
        }
    }
}
