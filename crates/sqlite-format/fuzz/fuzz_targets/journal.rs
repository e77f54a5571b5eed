//! Any bytes as a rollback journal or database header: parsing never panics, records lie within the file.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run journal` in `crates/sqlite-format`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sqlite_format::DatabaseHeader;
use sqlite_format::journal::{JournalHeader, records};

fuzz_target!(|bytes: &[u8]| {
    let _ = DatabaseHeader::parse(bytes);
    let Ok(header) = JournalHeader::parse(bytes) else {
        return;
    };
    assert_eq!(header.encode(), bytes[..28]);
    let records = records(bytes).expect("the header is valid");
    let mut count = 0;
    for record in records {
        assert_eq!(record.page.len(), header.page_size.bytes());
        count += 1;
    }
    assert!(count * header.record_size() <= bytes.len());
});
