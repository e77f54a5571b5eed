//! Whatever a peer sends, the frame reader gives a frame or an error.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use litefs::stream::chunk::ChunkReader;
use litefs::stream::frame::Frame;
use litefs::stream::position_map;

fuzz_target!(|data: &[u8]| {
    let _ = position_map::read(&mut &data[..]);
    let mut stream = data;
    while let Ok(Some(frame)) = Frame::read(&mut stream) {
        let mut encoded = BytesMut::new();
        frame.encode(&mut encoded);
        assert_eq!(Frame::read(&mut &encoded[..]).unwrap(), Some(frame.clone()));
        if matches!(frame, Frame::Ltx { .. }) && ChunkReader::new(&mut stream).drain().is_err() {
            break;
        }
    }
});
