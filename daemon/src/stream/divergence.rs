//! Saves transactions that only this node has, before a snapshot of the primary replaces them.
//!
//! A former primary that comes back may hold commits that never reached anybody. The last transaction that both nodes
//! have is found by comparing logs; what follows it here is archived.

use std::collections::BTreeMap;

use engine::{Database, DbName, Store};
use litefs_api::Client;
use ltx::{Checksum, Pos, Txid};

/// Transactions compared per request.
const WINDOW: u64 = 4096;

/// What came of the search for a common transaction.
#[derive(Debug, PartialEq, Eq)]
enum Common {
    /// Both nodes have this one, and nothing else is known to be common after it.
    At(Txid),
    /// The primary's log cannot tell: it does not reach back far enough, or the primary runs LiteFS, which keeps no
    /// history to ask for.
    Unknown,
}

/// Archives what the snapshot at `snapshot` would make unreachable. Blocking; `runtime` is for the primary's answers.
pub(super) fn save_tail(
    store: &Store,
    name: &DbName,
    primary: &Client,
    runtime: &tokio::runtime::Handle,
) -> Result<(), engine::Error> {
    let Some(db) = store.database(name) else {
        return Ok(());
    };
    let local = db.received();
    if local.is_zero() {
        return Ok(());
    }
    let after = match last_common(&db, local, primary, runtime)? {
        Common::At(common) if common == local.txid => return Ok(()),
        Common::At(common) => common,
        // What cannot be proved to be elsewhere is kept.
        Common::Unknown => Txid::ZERO,
    };
    let archive = store.archive_tail(name, after)?;
    if let Some(path) = archive {
        tracing::warn!(
            db = %name, common = %after, %local, primary = primary.base(), archive = %path.display(),
            "this node had transactions that the primary does not have; they were archived"
        );
    }
    Ok(())
}

/// Walks back from the newest local transaction until the primary's log agrees.
fn last_common(
    db: &Database,
    local: Pos,
    primary: &Client,
    runtime: &tokio::runtime::Handle,
) -> Result<Common, engine::Error> {
    let mut high = local.txid.0;
    loop {
        let low = high.saturating_sub(WINDOW - 1).max(1);
        let ours = checksums(db, low, high)?;
        let Some(first) = ours.keys().next().copied() else {
            return Ok(Common::Unknown);
        };
        let answer =
            runtime.block_on(primary.history(db.name().as_str(), litefs_api::Txid(low), WINDOW as usize));
        let theirs = match answer {
            Ok(history) => history,
            Err(error) => {
                tracing::warn!(db = %db.name(), %error, "the primary does not tell its history");
                return Ok(Common::Unknown);
            }
        };
        let theirs: BTreeMap<u64, u64> = theirs
            .entries
            .iter()
            .map(|entry| (entry.txid.0, entry.checksum.0))
            .chain([(theirs.position.txid.0, theirs.position.checksum.0)])
            .collect();
        if let Some(common) = newest_equal(&ours, &theirs) {
            return Ok(Common::At(Txid(common)));
        }
        if theirs.range(low..=high).next().is_none() || low == 1 || first > low {
            return Ok(Common::Unknown);
        }
        high = low - 1;
    }
}

/// Checksums of the local log for transactions `low..=high`.
fn checksums(db: &Database, low: u64, high: u64) -> Result<BTreeMap<u64, Checksum>, engine::Error> {
    let mut found = BTreeMap::new();
    for record in db.records(Txid(low)) {
        let info = record?.info;
        if info.max.0 > high {
            break;
        }
        found.insert(info.max.0, info.post);
    }
    Ok(found)
}

fn newest_equal(ours: &BTreeMap<u64, Checksum>, theirs: &BTreeMap<u64, u64>) -> Option<u64> {
    ours.iter()
        .rev()
        .find(|(txid, checksum)| theirs.get(txid) == Some(&checksum.0))
        .map(|(txid, _)| *txid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_equal_checksum_is_the_branch_point() {
        let ours = BTreeMap::from([
            (1, Checksum(10)),
            (2, Checksum(20)),
            (3, Checksum(30)),
            (4, Checksum(40)),
        ]);
        assert_eq!(
            newest_equal(&ours, &BTreeMap::from([(1, 10), (2, 20), (3, 31), (4, 41)])),
            Some(2)
        );
        assert_eq!(newest_equal(&ours, &BTreeMap::from([(3, 31)])), None);
        assert_eq!(newest_equal(&ours, &BTreeMap::from([(4, 40), (5, 50)])), Some(4));
    }
}
