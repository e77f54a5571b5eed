//! Names of the metrics that the engine counts. Their help texts are with the daemon's.

/// Transactions captured, per database.
pub const COMMIT_TOTAL: &str = "litefs_commit_total";
/// Current transaction ID, per database.
pub const DB_TXID: &str = "litefs_db_txid";
/// Duration of one asynchronous capture of a WAL.
pub const CAPTURE_SECONDS: &str = "litefs_capture_seconds";
