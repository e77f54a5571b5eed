//! A LiteFS cluster on one machine, with faults on demand.

pub mod error;
pub mod lease;
pub mod net;
pub mod station;
pub mod wire;

pub use error::{Error, Result};
pub use station::Station;
