//! Faults on purpose, for canaries: builds that do one thing wrong, so that a test can show that it would notice.
//!
//! Only with the feature `canary`, which no shipped program has. `LITEFS_CANARY=<fault>:<n>` lets the first n - 1 operations of
//! its kind pass and makes the n-th go wrong, once; without the variable everything is right. Called by the steps that it breaks.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

const VARIABLE: &str = "LITEFS_CANARY";

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A write to a main file is acknowledged and not done.
    DropWrite,
    /// A write to a WAL; only where they are intercepted.
    DropWalWrite,
    /// A truncation of a main file is acknowledged and not done.
    LoseTruncate,
    /// Every lock is granted, whoever holds it, always.
    GrantLocks,
    /// A page that changed is left out of its transaction.
    LosePage,
    /// A page of a transaction from elsewhere is not written to the main file, nor is any after it: the next transaction may write it again.
    LoseAppliedPage,
    /// The files of a database that was removed elsewhere stay.
    KeepRemoved,
    /// A database without fault is not replicated, always.
    Quarantine,
}

struct Armed {
    fault: Fault,
    left: AtomicU64,
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| {
        let text = std::env::var(VARIABLE).ok()?;
        let (name, nth) = text.split_once(':').unwrap_or((&text, "1"));
        let fault = match name {
            "drop-write" => Fault::DropWrite,
            "drop-wal-write" => Fault::DropWalWrite,
            "lose-truncate" => Fault::LoseTruncate,
            "grant-locks" => Fault::GrantLocks,
            "lose-page" => Fault::LosePage,
            "lose-applied-page" => Fault::LoseAppliedPage,
            "keep-removed" => Fault::KeepRemoved,
            "quarantine" => Fault::Quarantine,
            other => panic!("{VARIABLE}: unknown fault {other}"),
        };
        let nth = nth
            .parse()
            .unwrap_or_else(|_| panic!("{VARIABLE}: not a number: {nth}"));
        Some(Armed {
            fault,
            left: AtomicU64::new(nth),
        })
    });
    armed.as_ref()
}

/// Counts an operation of the fault's kind. Returns the number of operations up to the one that goes wrong, with both: 1 is the one, 0 comes
/// after it.
fn count_down(fault: Fault) -> Option<u64> {
    let armed = armed().filter(|armed| armed.fault == fault)?;
    let next = |left: u64| Some(left.saturating_sub(1));
    let left = armed
        .left
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, next)
        .ok()?;
    if left == 1 {
        tracing::warn!(?fault, "canary");
    }
    Some(left)
}

/// Whether this operation is the one that goes wrong.
pub fn strikes(fault: Fault) -> bool {
    count_down(fault) == Some(1)
}

/// Whether the fault has begun with this operation or an earlier one of its kind.
pub fn has_struck(fault: Fault) -> bool {
    count_down(fault).is_some_and(|left| left <= 1)
}

/// Whether the fault is asked for, for one that lasts.
pub fn lasts(fault: Fault) -> bool {
    armed().is_some_and(|armed| armed.fault == fault)
}
