//! Prints what one file costs: `cargo run --release -p ltx --example speed`.

use std::hint::black_box;
use std::io::{self, Write};
use std::time::Instant;

use ltx::{
    Checksum, Decoder, DecoderBuffers, Encoder, EncoderBuffers, Error, Header, PageSize, Pgno, Txid,
    page_checksum,
};

const PAGE: usize = 4096;

fn main() -> Result<(), Error> {
    let pages = [("zeros", vec![0; PAGE]), ("rows", rows()), ("random", random())];
    report("page_checksum", "rows", || {
        black_box(page_checksum(Pgno::FIRST, black_box(&pages[1].1)));
        Ok(0)
    })?;
    for (name, page) in &pages {
        one_page(name, page)?;
    }
    many_pages(&pages[1].1)
}

/// One-page transactions, as a busy daemon makes them.
fn one_page(name: &str, page: &[u8]) -> Result<(), Error> {
    let mut buffers = EncoderBuffers::new();
    for compressed in [false, true] {
        let mode = if compressed { "lz4" } else { "raw" };
        let mut file = Vec::new();
        report(&format!("encode one page, {mode}"), name, || {
            file.clear();
            let mut encoder = Encoder::with_buffers(&mut file, header(compressed), &mut buffers)?;
            encoder.encode_page(Pgno::FIRST, black_box(page))?;
            encoder.finish(Checksum::EMPTY_DATABASE)?;
            Ok(file.len())
        })?;
        report(&format!("encode one page, {mode}, new buffers"), name, || {
            let mut encoder = Encoder::new(io::sink(), header(compressed))?;
            encoder.encode_page(Pgno::FIRST, black_box(page))?;
            encoder.finish(Checksum::EMPTY_DATABASE)?;
            Ok(0)
        })?;
        let mut buffers = DecoderBuffers::new();
        let mut out = vec![0; PAGE];
        report(&format!("decode one page, {mode}"), name, || {
            let mut decoder = Decoder::with_buffers(black_box(&file[..]), &mut buffers)?;
            while decoder.next_page(&mut out)?.is_some() {}
            decoder.finish()?;
            Ok(file.len())
        })?;
    }
    Ok(())
}

/// A 16 MiB transaction.
fn many_pages(page: &[u8]) -> Result<(), Error> {
    let count = 4096;
    for compressed in [false, true] {
        let mode = if compressed { "lz4" } else { "raw" };
        let mut file = Vec::new();
        let mut buffers = EncoderBuffers::new();
        report(&format!("encode {count} pages, {mode}"), "rows", || {
            file.clear();
            let mut encoder = Encoder::with_buffers(
                &mut file,
                Header {
                    commit: count,
                    ..header(compressed)
                },
                &mut buffers,
            )?;
            for pgno in Pgno::up_to(count) {
                encoder.encode_page(pgno, page)?;
            }
            encoder.finish(Checksum::EMPTY_DATABASE)?;
            Ok(file.len())
        })?;
        let mut out = vec![0; PAGE];
        report(&format!("decode {count} pages, {mode}"), "rows", || {
            let mut decoder = Decoder::new(&file[..])?;
            while decoder.next_page(&mut out)?.is_some() {}
            decoder.finish()?;
            Ok(file.len())
        })?;
    }
    Ok(())
}

/// Best of several rounds, in nanoseconds per call.
fn report(what: &str, content: &str, mut call: impl FnMut() -> Result<usize, Error>) -> Result<(), Error> {
    let once = Instant::now();
    let mut size = call()?;
    let calls = (20_000_000 / once.elapsed().as_nanos().max(1)).clamp(1, 100_000) as u32;
    let mut best = f64::MAX;
    for _ in 0..15 {
        let start = Instant::now();
        for _ in 0..calls {
            size = call()?;
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(calls));
    }
    writeln!(
        io::stdout(),
        "{what:36} {content:8} {best:12.0} ns {size:10} bytes"
    )
    .map_err(|source| Error::Io {
        operation: "print",
        source,
    })
}

fn header(compressed: bool) -> Header {
    Header {
        compressed,
        page_size: PageSize::DEFAULT,
        commit: 10,
        min_txid: Txid(2),
        max_txid: Txid(2),
        timestamp: 1,
        pre_apply: Checksum::EMPTY_DATABASE,
        wal: None,
        node_id: 1,
    }
}

/// Something like a page full of table rows.
fn rows() -> Vec<u8> {
    let mut page = Vec::new();
    for row in 0u32.. {
        if page.len() >= PAGE {
            break;
        }
        let hash = row.wrapping_mul(2_654_435_761);
        page.extend_from_slice(format!("\u{5}\u{1}user-{row}@example.com{hash:08x}").as_bytes());
    }
    page.truncate(PAGE);
    page
}

fn random() -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..PAGE).map(|_| next()).collect()
}
