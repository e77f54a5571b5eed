//! The wires between the stations of a cluster, in our own code: latency, jitter, loss, duplication, reordering, bandwidth and
//! partitions, per direction and from a seed. (The kernels we meet have no `netem`.)
//!
//! [`policy`] says what a direction does, [`link`] decides the fate of each frame, [`switch`] carries it out between raw sockets,
//! [`controls`] is how the rest of the program reaches the switch thread. [`crate::net`] lays the cables.

mod arp;
mod controls;
mod link;
mod packet;
mod policy;
mod switch;

pub use controls::{Controls, Direction, Setting, Traffic};
pub use link::BACKLOG;
pub(crate) use packet::PacketSocket;
pub use policy::{LinkPolicy, Rate, Share};
pub(crate) use switch::Switch;
