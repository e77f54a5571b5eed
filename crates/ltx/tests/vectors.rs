//! Files of the reference: minimal ones made by an independent implementation, and files of LiteFS.

use ltx::{
    Checksum, Decoder, Encoder, Error, Header, HeaderError, PageSize, Pgno, Txid, compact, decode_database,
    verify,
};

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap() as u8;
    digits
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

fn header(txid: u64, commit: u32, timestamp: i64, pre_apply: u64, node_id: u64) -> Header {
    Header {
        compressed: false,
        page_size: PageSize::new(512).unwrap(),
        commit,
        min_txid: Txid(txid),
        max_txid: Txid(txid),
        timestamp,
        pre_apply: Checksum(pre_apply),
        wal: None,
        node_id,
    }
}

fn encode(header: Header, pages: &[(u32, Vec<u8>)], post_apply: u64) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (pgno, page) in pages {
        encoder.encode_page(Pgno::new(*pgno).unwrap(), page).unwrap();
    }
    encoder.finish(Checksum(post_apply)).unwrap().0
}

fn b1() -> Vec<u8> {
    let mut bytes = unhex(
        "4c545831 00000000 00000200 00000001 0000000000000001 0000000000000001 00000000000003e8 0000000000000000",
    );
    bytes.resize(100, 0);
    bytes.extend(unhex("00000001"));
    bytes.resize(616, 0);
    bytes.extend(unhex("00000000 efb1f44fecd99000 dbece68dd67b2a32"));
    bytes
}

fn b2() -> Vec<u8> {
    let mut bytes = unhex(
        "4c545831 00000000 00000200 00000002 0000000000000002 0000000000000002 00000000000007d0 efb1f44fecd99000
         0000000000000000 0000000000000000 00000000 00000000 00000000000000ab",
    );
    bytes.resize(100, 0);
    bytes.extend(unhex("00000002"));
    bytes.resize(616, 1);
    bytes.extend(unhex("00000000 8b87423eeeeeeeee 9ea770f1fbc0dfd2"));
    bytes
}

fn b3() -> Vec<u8> {
    unhex(
        "4c54583100000000000002000000000000000000000000030000000000000003
         0000000000000bb88b87423eeeeeeeee00000000000000000000000000000000
         000000000000000000000000000000ab00000000000000000000000000000000
         00000000000000008000000000000000d423727f26cdb081",
    )
}

fn c1() -> Vec<u8> {
    unhex(
        "4c54583100000001000004000000000000000000000000040000000000000004
         000001a1f7e0b44fcdc755311bd666ad00000000000000000000000000000000
         0000000000000000711f2d563525ee3300000000000000000000000000000000
         0000000004224d186440a704000080000000000000000069d9d6088000000000
         000000c0d0e05f62b2a260",
    )
}

#[test]
fn b1_snapshot() {
    assert_eq!(
        encode(
            header(1, 1, 1000, 0, 0),
            &[(1, vec![0; 512])],
            0xefb1_f44f_ecd9_9000
        ),
        b1()
    );
    let summary = verify(&b1()[..]).unwrap();
    assert!(summary.header.is_snapshot());
    assert_eq!(summary.pages, 1);
    assert_eq!(
        summary.post_apply_pos().to_string(),
        "0000000000000001/efb1f44fecd99000"
    );
    let mut database = Vec::new();
    decode_database(&b1()[..], &mut database).unwrap();
    assert_eq!(database, vec![0; 512]);
}

#[test]
fn b2_follow_up() {
    let pre_apply = 0xefb1_f44f_ecd9_9000;
    let bytes = encode(
        header(2, 2, 2000, pre_apply, 0xab),
        &[(2, vec![1; 512])],
        0x8b87_423e_eeee_eeee,
    );
    assert_eq!(bytes, b2());
    let summary = verify(&b2()[..]).unwrap();
    assert!(
        summary
            .header
            .follows(verify(&b1()[..]).unwrap().post_apply_pos())
    );
    assert!(matches!(
        decode_database(&b2()[..], Vec::new()),
        Err(Error::NotSnapshot { .. })
    ));
}

#[test]
fn b3_deletion() {
    let bytes = encode(
        header(3, 0, 3000, 0x8b87_423e_eeee_eeee, 0xab),
        &[],
        Checksum::FLAG,
    );
    assert_eq!(bytes, b3());
    let summary = verify(&b3()[..]).unwrap();
    assert!(summary.header.is_deletion());
    assert!(
        summary
            .header
            .follows(verify(&b2()[..]).unwrap().post_apply_pos())
    );
}

#[test]
fn b1_to_b3_compact_to_what_their_sequence_leaves() {
    let (first_two, summary) = compact([&b1()[..], &b2()[..]], Vec::new(), Default::default()).unwrap();
    assert_eq!(
        summary.post_apply_pos().to_string(),
        "0000000000000002/8b87423eeeeeeeee"
    );
    let mut database = Vec::new();
    decode_database(&first_two[..], &mut database).unwrap();
    assert_eq!(database, [vec![0; 512], vec![1; 512]].concat());

    let (all, summary) = compact([&b1()[..], &b2()[..], &b3()[..]], Vec::new(), Default::default()).unwrap();
    assert_eq!(summary, verify(&all[..]).unwrap());
    assert_eq!((summary.pages, summary.header.commit), (0, 0));
}

#[test]
fn c1_compressed_deletion_by_litefs() {
    let summary = verify(&c1()[..]).unwrap();
    let header = summary.header;
    assert!(header.compressed && header.is_deletion());
    assert_eq!(header.page_size.get(), 1024);
    assert_eq!((header.min_txid, header.max_txid), (Txid(4), Txid(4)));
    assert_eq!(header.timestamp, 0x01a1_f7e0_b44f);
    assert_eq!(header.pre_apply.to_string(), "cdc755311bd666ad");
    assert_eq!(header.node_id, 0x711f_2d56_3525_ee33);
    assert_eq!(encode(header, &[], Checksum::FLAG), c1());
}

#[test]
fn a_decoder_takes_exactly_its_file_from_a_stream() {
    let stream = [b1(), c1(), b2(), b3()].concat();
    let mut rest = &stream[..];
    for expected in [b1(), c1(), b2(), b3()] {
        let before = rest.len();
        Decoder::new(&mut rest).unwrap().finish().unwrap();
        assert_eq!(before - rest.len(), expected.len());
    }
    assert!(rest.is_empty());
    assert!(matches!(verify(&stream[..]), Err(Error::TrailingBytes)));
}

/// A file of the next version of the format has flags of its own or, like this one, pages that are not ours.
#[test]
fn c3_version_3_is_refused() {
    let mut bytes = unhex(
        "4c54583100000000000002000000000200000000000000010000000000000001
         000001a1f7f09f5f000000000000000000000000000000000000000000000000
         0000000000000000000000000000000000000000000000000000000000000000
         000000000000000100010000006ef30d53514c69746520666f726d6174203300
         02020101004020200000000204000402005301000000040c000410000f02000d
         ff0002002e63010d0000000101df0001df2f000d0f0200ff3ff0121f0106170f
         012f7461626c65747402435245415445205441424c45207428782900000002
         000100000021cf0d0000000101fc0001fc00000200ffd2000200c00000000000
         0000000201020900000000000001647802dc012b000000000000000008a767ba
         648af02638d5af18e722f0f2ab",
    );
    assert!(verify(&bytes[..]).unwrap_err().is_corruption());
    bytes[7] = 2;
    assert!(matches!(
        verify(&bytes[..]),
        Err(Error::Header(HeaderError::Flags(2)))
    ));
}
