//! Answers ARP requests in the name of the station that is asked for.
//!
//! The switch answers itself, whatever the links do: stations behave as if routed to each other, so a partition is silence (as
//! between data centres) and not "no route to host" (as on a desk), and a delayed link does not delay the first packet twice.

use std::net::Ipv4Addr;

use crate::station::Station;

const ETHERNET: usize = 14;
const LENGTH: usize = ETHERNET + 28;
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
/// Hardware Ethernet, protocol IPv4, address lengths 6 and 4, operation request.
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];

pub(crate) fn is_arp(frame: &[u8]) -> bool {
    frame.get(12..ETHERNET) == Some(&ETHERTYPE_ARP)
}

/// The reply to `frame` if it is a request for the address of one of `stations` stations.
pub(crate) fn reply(frame: &[u8], stations: usize) -> Option<[u8; LENGTH]> {
    let request = frame.get(ETHERNET..LENGTH)?;
    if !is_arp(frame) || request[..8] != REQUEST {
        return None;
    }
    let (sender, target) = (&request[8..18], &request[24..28]);
    let asked = Ipv4Addr::new(target[0], target[1], target[2], target[3]);
    let station = Station::from_ip(asked).filter(|station| station.index() < stations)?;

    let mut reply = [0; LENGTH];
    reply[..6].copy_from_slice(&sender[..6]);
    reply[6..12].copy_from_slice(&station.mac());
    reply[12..14].copy_from_slice(&ETHERTYPE_ARP);
    reply[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    reply[22..28].copy_from_slice(&station.mac());
    reply[28..32].copy_from_slice(target);
    reply[32..42].copy_from_slice(sender);
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(from: Station, to: Ipv4Addr) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(from.mac());
        frame.extend(ETHERTYPE_ARP);
        frame.extend(REQUEST);
        frame.extend(from.mac());
        frame.extend(from.ip().octets());
        frame.extend([0; 6]);
        frame.extend(to.octets());
        frame
    }

    #[test]
    fn a_known_address_is_answered_by_its_owners_mac() {
        let (n1, n2) = (Station::node(1).unwrap(), Station::node(2).unwrap());
        let reply = reply(&request(n1, n2.ip()), 3).unwrap();
        assert_eq!(reply[..6], n1.mac());
        assert_eq!(reply[22..28], n2.mac());
        assert_eq!(reply[28..32], n2.ip().octets());
        assert_eq!(reply[32..38], n1.mac());
    }

    #[test]
    fn strangers_and_short_frames_are_not_answered() {
        let n1 = Station::node(1).unwrap();
        assert!(reply(&request(n1, Ipv4Addr::new(10, 77, 0, 9)), 3).is_none());
        assert!(reply(&request(n1, Ipv4Addr::new(8, 8, 8, 8)), 3).is_none());
        assert!(reply(&request(n1, n1.ip())[..30], 3).is_none());
    }
}
