//! Any bytes: decoding ends with a typed error, or what was decoded can be encoded again.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run decode -- -max_len=20000 -rss_limit_mb=512` in `crates/ltx`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ltx::{Decoder, Encoder, Error, Header, Pgno, compact, verify};

fuzz_target!(|bytes: &[u8]| {
    // Checksums nobody guesses stand in the way of the pages: try without them as well.
    let _ = pages(bytes);
    let Ok(summary) = verify(bytes) else { return };
    let (header, pages) = pages(bytes).expect("a verified file can be decoded");
    assert_eq!(pages.len(), summary.pages as usize);
    let mut encoder = Encoder::new(Vec::new(), header).expect("a decoded header is valid");
    for (pgno, page) in &pages {
        encoder.encode_page(*pgno, page).expect("decoded pages are valid");
    }
    let (again, _) = encoder
        .finish(summary.trailer.post_apply)
        .expect("a decoded trailer is valid");
    assert_eq!(
        verify(&again[..]).expect("an encoded file is valid").header,
        summary.header
    );
    compact([bytes], Vec::new(), Default::default()).expect("a file can be compacted alone");
});

type Pages = Vec<(Pgno, Vec<u8>)>;

fn pages(bytes: &[u8]) -> Result<(Header, Pages), Error> {
    let mut decoder = Decoder::new(bytes)?;
    let mut page = vec![0; decoder.header().page_size.bytes()];
    let mut pages = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page)? {
        pages.push((pgno, page.clone()));
    }
    Ok((decoder.header().clone(), pages))
}
