//! The body of a stream request: every database the replica knows, and where it is.

use std::collections::BTreeMap;
use std::io::Read;

use bytes::{Buf, BufMut, BytesMut};
use ltx::Pos;

use super::frame::{FrameError, put_text, read_name, read_position, read_u32};

/// More databases than this in a request are an attack or a bug.
pub const MAX_ENTRIES: usize = 1_000_000;

/// Position per database name.
pub type PositionMap = BTreeMap<String, Pos>;

/// Appends the map's bytes, sorted by name.
pub fn encode(map: &PositionMap, out: &mut BytesMut) {
    out.put_u32(map.len() as u32);
    for (name, position) in map {
        put_text(out, name);
        out.put_u64(position.txid.0);
        out.put_u64(position.post_apply.0);
    }
}

/// Reads a map. Memory grows with what arrives, not with what the count promises.
pub fn read(source: &mut impl Read) -> Result<PositionMap, FrameError> {
    let count = read_u32(source)?;
    if count as usize > MAX_ENTRIES {
        return Err(FrameError::TooManyEntries(count));
    }
    let mut map = PositionMap::new();
    for _ in 0..count {
        let name = read_name(source)?;
        map.insert(name, read_position(source)?);
    }
    Ok(map)
}

/// Takes a whole map off the front of `buffer`; nothing if it is not all there yet.
pub fn take(buffer: &mut BytesMut) -> Result<Option<PositionMap>, FrameError> {
    let mut rest = &buffer[..];
    match read(&mut rest) {
        Ok(map) => {
            let used = buffer.len() - rest.len();
            buffer.advance(used);
            Ok(Some(map))
        }
        Err(FrameError::Truncated) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use ltx::{Checksum, Txid};

    use super::*;

    fn example() -> PositionMap {
        PositionMap::from([(
            "gone1".to_string(),
            Pos::new(Txid(7), Checksum(0x8000_0000_0000_0001)),
        )])
    }

    #[test]
    fn a_map_has_the_bytes_of_litefs() {
        let mut out = BytesMut::new();
        encode(&example(), &mut out);
        let expected = b"\0\0\0\x01\0\0\0\x05gone1\0\0\0\0\0\0\0\x07\x80\0\0\0\0\0\0\x01";
        assert_eq!(&out[..], expected);
        assert_eq!(read(&mut &out[..]).unwrap(), example());
    }

    #[test]
    fn a_map_is_taken_when_it_is_whole_and_leaves_what_follows() {
        let mut whole = BytesMut::new();
        encode(&example(), &mut whole);
        for end in 0..whole.len() {
            assert!(take(&mut BytesMut::from(&whole[..end])).unwrap().is_none());
        }
        whole.extend_from_slice(b"next");
        assert_eq!(take(&mut whole).unwrap(), Some(example()));
        assert_eq!(&whole[..], b"next");
    }

    #[test]
    fn hostile_maps_are_refused() {
        assert!(matches!(
            read(&mut &b"\xff\xff\xff\xff"[..]),
            Err(FrameError::TooManyEntries(_))
        ));
        assert!(matches!(
            read(&mut &b"\0\0\0\x01\xff\xff\xff\xff"[..]),
            Err(FrameError::TooLong { .. })
        ));
        assert!(matches!(
            read(&mut &b"\0\0\0\x02"[..]),
            Err(FrameError::Truncated)
        ));
    }
}
