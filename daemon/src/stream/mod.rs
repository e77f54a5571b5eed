//! Replication between nodes: one endless HTTP/2 exchange per replica.
//!
//! The replica sends its positions; the primary answers with frames: transactions, snapshots, heartbeats. `serve` is the
//! primary's end (sixth link of a transaction's life), `follow` the replica's (seventh). The bytes are those of LiteFS
//! 0.5 both ways; between our own nodes the replica also acknowledges (`features`).

mod acks;
mod body;
mod catch_up;
mod dirty;
mod divergence;
mod replicas;
mod sink;

pub mod chunk;
pub mod features;
pub mod follow;
pub mod frame;
pub mod position_map;
pub mod serve;

pub use replicas::{Abilities, Order, Replica, Replicas};
pub use sink::Body;
