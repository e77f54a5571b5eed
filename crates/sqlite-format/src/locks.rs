//! The bytes of the database file that SQLite locks in rollback mode and, as SHARED, in WAL mode.
//!
//! SQLite's own tests may move them (`sqlite3_test_control(SQLITE_TESTCTRL_PENDING_BYTE)`): they are facts
//! about unmodified clients, and nothing the mount serves may depend on them.

/// First of the lock bytes; a writer that waits for readers to leave holds it, so that no new ones enter.
pub const PENDING_BYTE: u64 = 0x4000_0000;
/// Held by the one connection that intends to write.
pub const RESERVED_BYTE: u64 = PENDING_BYTE + 1;
/// First byte of the range readers hold shared and a committing writer holds exclusively.
pub const SHARED_FIRST: u64 = PENDING_BYTE + 2;
/// Length of the SHARED range.
pub const SHARED_SIZE: u64 = 510;
