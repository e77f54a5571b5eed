//! What the owner of a [`crate::Store`] decides.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::disk::{Disk, OsDisk};
use crate::owners::OwnerDefaults;

/// When a COMMIT may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// When SQLite's own `synchronous` promise holds.
    #[default]
    Follow,
    /// When the record of the transaction is durable, whatever `synchronous` says.
    Commit,
}

/// Who may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// This node holds the lease.
    Primary {
        /// Which term it is; grows with each change of the primary.
        epoch: u64,
    },
    /// Transactions come from the primary.
    Replica,
}

impl Role {
    /// Whether clients of this node may write.
    pub fn is_primary(self) -> bool {
        matches!(self, Role::Primary { .. })
    }
}

/// Options of a [`crate::Store`].
#[derive(Clone)]
pub struct StoreOptions {
    /// See [`Durability`].
    pub durability: Durability,
    /// Whether log records are LZ4-compressed.
    pub compress: bool,
    /// Size at which a log segment is closed, in bytes.
    pub segment_bytes: u64,
    /// Milliseconds since the epoch.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// Where logs and tables are kept.
    pub disk: Arc<dyn Disk>,
    /// Identifies this process in the records that it makes.
    pub node_id: u64,
    /// Whether a start makes the WAL that it takes out of the mount immutable, and a demotion one that it cannot fence, so that clients
    /// get errors instead of commits that nobody sees. What a start took is there until the next flush; `rm` refuses it until then.
    pub seal: bool,
    /// What files get that nobody else gives an owner.
    pub owners: OwnerDefaults,
    /// Told of each new role, so that a process that takes over from this one can know it: of a time as primary after it has begun, and of
    /// its end before.
    pub on_role: Option<Arc<dyn Fn(Role) + Send + Sync>>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            durability: Durability::default(),
            compress: true,
            segment_bytes: 64 << 20,
            clock: Arc::new(wall_clock),
            disk: Arc::new(OsDisk),
            node_id: rand::random(),
            seal: false,
            owners: OwnerDefaults::default(),
            on_role: None,
        }
    }
}

fn wall_clock() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
