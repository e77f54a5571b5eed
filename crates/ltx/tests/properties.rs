//! What must hold for all files, and for everything that is none.

mod forge;

use std::collections::BTreeMap;
use std::io::Read;

use forge::{all_frames, file, header, page, rolling_checksum};
use ltx::{
    Checksum, CompactOptions, Decoder, DecoderBuffers, Encoder, EncoderBuffers, Error, Header, Lz4Error,
    PageSize, Pgno, Summary, Txid, WalRange, compact, decode_database, page_checksum, verify,
};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

type Content = BTreeMap<u32, Vec<u8>>;

fn encode(header: &Header, pages: &Content, post_apply: Checksum, buffers: &mut EncoderBuffers) -> Vec<u8> {
    let mut encoder = Encoder::with_buffers(Vec::new(), header.clone(), buffers).unwrap();
    for (pgno, page) in pages {
        encoder.encode_page(Pgno::new(*pgno).unwrap(), page).unwrap();
    }
    encoder.finish(post_apply).unwrap().0
}

fn decode(file: impl Read, buffers: &mut DecoderBuffers) -> Result<(Summary, Content), Error> {
    let mut decoder = Decoder::with_buffers(file, buffers)?;
    let header = decoder.header().clone();
    let mut page = vec![0; header.page_size.bytes()];
    let mut content = Content::new();
    while let Some(pgno) = decoder.next_page(&mut page)? {
        content.insert(pgno.get(), page.clone());
    }
    let pages = decoder.pages();
    let trailer = decoder.finish()?;
    Ok((
        Summary {
            header,
            trailer,
            pages,
        },
        content,
    ))
}

fn any_page_size() -> impl Strategy<Value = PageSize> {
    (9u32..=16).prop_map(|shift| PageSize::new(1 << shift).unwrap())
}

/// Pages that are zero, repetitive or random.
fn any_page(size: usize) -> impl Strategy<Value = Vec<u8>> {
    let random = move |seed: u64| {
        let mut state = seed | 1;
        let mut next = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..size).map(move |_| next()).collect::<Vec<u8>>()
    };
    prop_oneof![
        Just(vec![0; size]),
        any::<u32>().prop_map(move |seed| page(seed, size)),
        any::<u64>().prop_map(random)
    ]
}

prop_compose! {
    fn any_header()(
        compressed: bool, page_size in any_page_size(), commit in 1..40u32, min in 2..1000u64, more in 0..1000u64,
        timestamp: i64, pre_apply: u64, node_id: u64,
        wal in proptest::option::of((1..=i64::MAX as u64, 1..=i64::MAX as u64, any::<[u32; 2]>())),
    ) -> Header {
        Header {
            compressed, page_size, commit, min_txid: Txid(min), max_txid: Txid(min + more), timestamp,
            pre_apply: Checksum(pre_apply | Checksum::FLAG),
            wal: wal.map(|(offset, size, salt)| WalRange { offset, size, salt }),
            node_id,
        }
    }
}

fn any_file() -> impl Strategy<Value = (Header, Content, Checksum)> {
    any_header().prop_flat_map(|header| {
        let pages = btree_set(1..=header.commit, 0..8).prop_flat_map({
            let size = header.page_size.bytes();
            move |numbers| {
                let count = numbers.len();
                vec(any_page(size), count).prop_map(move |pages| numbers.iter().copied().zip(pages).collect())
            }
        });
        (
            Just(header),
            pages,
            any::<u64>().prop_map(|sum| Checksum(sum | Checksum::FLAG)),
        )
    })
}

/// Hands out its content in pieces of odd sizes.
struct Trickle<'a>(&'a [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.1 = self.1 % 13 + 1;
        let length = out.len().min(self.1);
        self.0.read(&mut out[..length])
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_encoded_is_decoded((header, content, post_apply) in any_file()) {
        let mut buffers = EncoderBuffers::new();
        let file = encode(&header, &content, post_apply, &mut buffers);
        prop_assert_eq!(&encode(&header, &content, post_apply, &mut buffers), &file, "buffers leave no trace");
        let mut buffers = DecoderBuffers::new();
        for _ in 0..2 {
            let (summary, decoded) = decode(Trickle(&file, 0), &mut buffers).unwrap();
            prop_assert_eq!(&summary.header, &header);
            prop_assert_eq!(summary.trailer.post_apply, post_apply);
            prop_assert_eq!(&decoded, &content);
        }
        prop_assert!(verify(&file[..]).is_ok());
    }

    #[test]
    fn compression_changes_neither_content_nor_length_of_the_raw_form((header, content, post_apply) in any_file()) {
        let mut buffers = EncoderBuffers::new();
        let raw = encode(&Header { compressed: false, ..header.clone() }, &content, post_apply, &mut buffers);
        prop_assert_eq!(raw.len(), 100 + content.len() * (4 + header.page_size.bytes()) + 4 + 16);
        let forged: Vec<_> = content.clone().into_iter().collect();
        let raw_header = Header { compressed: false, ..header }.encode();
        prop_assert_eq!(raw, file(&raw_header, &forged, post_apply.0, None));
    }

    #[test]
    fn frames_of_every_shape_are_read((header, content, post_apply) in any_file()) {
        let header = Header { compressed: true, ..header };
        let forged: Vec<_> = content.clone().into_iter().collect();
        let mut buffers = DecoderBuffers::new();
        for frame in all_frames() {
            let bytes = file(&header.encode(), &forged, post_apply.0, Some(frame.clone()));
            let mut rest = &bytes[..];
            let (_, decoded) = decode(&mut rest, &mut buffers).unwrap_or_else(|error| panic!("{frame:?}: {error}"));
            prop_assert_eq!(&decoded, &content);
            prop_assert!(rest.is_empty());
        }
    }

    /// Damage is noticed, unless it is in the compression and leaves the content as it was.
    #[test]
    fn a_flipped_bit_is_noticed((header, content, post_apply) in any_file(), at: prop::sample::Index, bit in 0..8u8) {
        let mut file = encode(&header, &content, post_apply, &mut EncoderBuffers::new());
        let at = at.index(file.len());
        file[at] ^= 1 << bit;
        match decode(&file[..], &mut DecoderBuffers::new()) {
            Err(error) => prop_assert!(error.is_corruption(), "{}", error),
            Ok((summary, decoded)) => {
                prop_assert!(header.compressed && at >= 100);
                prop_assert_eq!((summary.header, decoded), (header, content));
            }
        }
    }

    #[test]
    fn a_truncated_file_is_noticed((header, content, post_apply) in any_file(), at: prop::sample::Index) {
        let file = encode(&header, &content, post_apply, &mut EncoderBuffers::new());
        let at = at.index(file.len());
        let error = decode(&file[..at], &mut DecoderBuffers::new()).unwrap_err();
        prop_assert!(matches!(error, Error::Truncated(_)), "{}", error);
    }

    #[test]
    fn garbage_is_an_error(garbage in vec(any::<u8>(), 0..2000), compressed: bool) {
        prop_assert!(verify(&garbage[..]).is_err());
        let mut behind_a_header = Header { compressed, ..header(2, 2, 9) }.encode().to_vec();
        behind_a_header.extend(&garbage);
        prop_assert!(verify(&behind_a_header[..]).is_err());
        if compressed {
            behind_a_header.truncate(100);
            behind_a_header.extend([0x04, 0x22, 0x4d, 0x18, 0x64, 0x40, 0xa7]);
            behind_a_header.extend(&garbage);
            prop_assert!(verify(&behind_a_header[..]).is_err());
        }
    }
}

/// Every cut of one file, among them those at the borders of LZ4 blocks, where a frame decoder sees a clean end.
#[test]
fn every_truncation_is_noticed() {
    for compressed in [false, true] {
        let header = Header {
            compressed,
            ..header(2, 2, 9)
        };
        let content = (1..=9).map(|pgno| (pgno, page(pgno, 512))).collect();
        let file = encode(
            &header,
            &content,
            Checksum::EMPTY_DATABASE,
            &mut EncoderBuffers::new(),
        );
        for length in 0..file.len() {
            let error = verify(&file[..length]).unwrap_err();
            assert!(matches!(error, Error::Truncated(_)), "{length}: {error}");
        }
    }
}

#[test]
fn a_frame_must_end_with_the_pages() {
    let content: Vec<(u32, Vec<u8>)> = vec![(1, page(1, 512))];
    let header = Header {
        compressed: true,
        ..header(2, 2, 9)
    };
    let whole = file(
        &header.encode(),
        &content,
        Checksum::FLAG,
        Some(all_frames()[0].clone()),
    );
    let mut body = [&1u32.to_be_bytes()[..], &content[0].1, &[0; 4]].concat();
    let with_body = |body: &[u8]| {
        let trailer = &whole[whole.len() - 16..];
        [&whole[..100], &forge::lz4(all_frames()[0].clone(), body), trailer].concat()
    };
    assert_eq!(with_body(&body), whole);
    body.push(0);
    assert!(matches!(
        verify(&with_body(&body)[..]),
        Err(Error::Lz4(Lz4Error::EndsLate))
    ));
    body.truncate(body.len() - 2);
    assert!(matches!(
        verify(&with_body(&body)[..]),
        Err(Error::Lz4(Lz4Error::EndsEarly))
    ));
}

/// The database after a sequence of files, by the definition of what applying means.
fn apply(database: &mut Content, file: &[u8]) {
    let (summary, pages) = decode(file, &mut DecoderBuffers::new()).unwrap();
    let commit = summary.header.commit;
    database.extend(pages);
    database.retain(|pgno, _| *pgno <= commit);
    let sum = database
        .iter()
        .fold(Checksum::EMPTY_DATABASE, |sum, (pgno, page)| {
            sum.xor(page_checksum(Pgno::new(*pgno).unwrap(), page))
        });
    assert_eq!(sum, summary.trailer.post_apply);
}

/// Transactions: new size, and seeds of the pages they write besides those that are new.
fn any_transactions() -> impl Strategy<Value = Vec<(u32, BTreeMap<u32, u32>)>> {
    let pages = prop::collection::btree_map(1..12u32, any::<u32>(), 0..6);
    vec((0..12u32, pages), 1..8)
}

/// The files of `transactions`, and the database after them.
fn history(min: u64, transactions: &[(u32, BTreeMap<u32, u32>)], database: &mut Content) -> Vec<Vec<u8>> {
    let mut sum = rolling_checksum(database.iter().map(|(pgno, page)| (*pgno, &page[..])));
    let mut files = Vec::new();
    for (txid, (commit, seeds)) in (min..).zip(transactions) {
        let is_new = |pgno: &u32| txid == 1 || !database.contains_key(pgno);
        let mut pages: Content = (1..=*commit)
            .filter(is_new)
            .map(|pgno| (pgno, page(txid as u32 ^ pgno, 512)))
            .collect();
        pages.extend(
            seeds
                .iter()
                .filter(|(pgno, _)| *pgno <= commit)
                .map(|(pgno, seed)| (*pgno, page(*seed, 512))),
        );
        let pre_apply = if txid == 1 { Checksum::NONE } else { Checksum(sum) };
        let header = Header {
            pre_apply,
            ..header(txid, txid, *commit)
        };
        database.extend(pages.clone());
        database.retain(|pgno, _| pgno <= commit);
        sum = rolling_checksum(database.iter().map(|(pgno, page)| (*pgno, &page[..])));
        files.push(encode(&header, &pages, Checksum(sum), &mut EncoderBuffers::new()));
    }
    files
}

proptest! {
    #[test]
    fn a_compacted_file_does_what_its_inputs_do(
        snapshot: bool, base in 0..12u32, transactions in any_transactions(), compressed: bool,
    ) {
        let base: Content = if snapshot { 0..0 } else { 1..base + 1 }.map(|pgno| (pgno, page(pgno, 512))).collect();
        let mut end = base.clone();
        let files = history(if snapshot { 1 } else { 5 }, &transactions, &mut end);
        let mut sequential = base.clone();
        files.iter().for_each(|file| apply(&mut sequential, file));
        prop_assert_eq!(&sequential, &end);

        let options = CompactOptions { compressed, node_id: 3 };
        let (file, summary) = compact(files.iter().map(|file| &file[..]), Vec::new(), options).unwrap();
        prop_assert_eq!(&verify(&file[..]).unwrap(), &summary);
        let mut compacted = base;
        apply(&mut compacted, &file);
        prop_assert_eq!(&compacted, &end);
        if snapshot {
            let mut database = Vec::new();
            decode_database(&file[..], &mut database).unwrap();
            prop_assert_eq!(database, end.into_values().collect::<Vec<_>>().concat());
        }
    }
}
