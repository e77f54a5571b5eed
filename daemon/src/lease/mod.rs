//! Who is primary.
//!
//! A lease service answers that for the whole cluster: it gives the lease to one node at a time. `elector` is the state
//! machine that competes for it, renews it, and turns having it into the store's role. Back-ends share one conformance
//! test (`conformance`).
//!
//! Invariants:
//! * A node acts as primary only while `Fence` holds, which ends before the service may give the lease away. That goes for
//!   the node, not for a process of it: the next one may go on with the term until the fence that it was left falls.
//! * Each term has an epoch greater than all before it. The service keeps it together with the positions of that term,
//!   so that a node which is behind, empty or on another branch does not become primary unless it is forced to.

mod backoff;
mod clock;
mod consul;
pub mod elector;
mod epoch;
mod failure;
mod fence;
mod kept;
mod repetition;
mod standing;
mod static_lease;
mod types;

#[cfg(test)]
mod conformance;
#[cfg(test)]
pub(crate) mod imitation;

use std::time::Duration;

use futures_util::future::BoxFuture;

pub use backoff::Backoff;
pub use clock::BootTime;
pub use consul::{ConsulLease, ConsulOptions};
pub use failure::{Failure, LeaseError, TlsFailure};
pub use fence::{DeadlineCell, Fence};
pub use repetition::Repetition;
pub use standing::{Standing, standing};
pub use static_lease::StaticLease;
pub use types::{Acquired, ClusterState, Grant, Holder, Recorded, Sighting};

pub type Result<T> = std::result::Result<T, LeaseError>;

/// A lease service. Every call is limited in time.
pub trait Lease: Send + Sync {
    /// `static` or `consul`.
    fn kind(&self) -> &'static str;

    /// Whether a holder can pass the lease on without letting go of it.
    fn hands_over(&self) -> bool;

    /// How long a grant is valid after a renewal was sent.
    fn ttl(&self) -> Duration;

    /// Called before a node starts with nothing of it running yet: what fails then is worth no start at all.
    fn open(&self) -> BoxFuture<'_, Result<()>>;

    /// Who holds the lease.
    fn holder(&self) -> BoxFuture<'_, Result<Sighting>>;

    /// As `holder`, but waits up to `limit` for something newer than `seen`.
    fn changed(&self, seen: &Sighting, limit: Duration) -> BoxFuture<'_, Result<Sighting>>;

    /// Asks for the lease and publishes `holder` as its value.
    fn acquire(&self, holder: &Holder) -> BoxFuture<'_, Result<Acquired>>;

    /// Takes over a lease that its holder passed on, or publishes another value under a lease of our own.
    fn take_over(&self, id: &str, holder: &Holder) -> BoxFuture<'_, Result<Grant>>;

    /// Extends the grant. `LeaseError::Gone` means that it is not ours any more.
    fn renew(&self, grant: &Grant) -> BoxFuture<'_, Result<Grant>>;

    /// Lets go of the lease, so that others can have it at once.
    fn release(&self, grant: &Grant) -> BoxFuture<'_, Result<()>>;

    /// The id of the cluster this lease belongs to.
    fn cluster_id(&self) -> BoxFuture<'_, Result<Option<String>>>;

    /// Sets the cluster id if there is none, atomically; gives the id that is there afterwards.
    fn claim_cluster_id(&self, id: &str) -> BoxFuture<'_, Result<String>>;

    /// What the last primaries recorded.
    fn state(&self) -> BoxFuture<'_, Result<Recorded>>;

    /// Records the state if nobody else did since `version`; gives the new version. `LeaseError::Gone` if somebody did.
    fn record(&self, state: &ClusterState, version: u64) -> BoxFuture<'_, Result<u64>>;
}
