//! Chunked bodies: `u16 length` and bytes, again and again; length 0 ends the body.

use std::io::{self, Read};

use bytes::{BufMut, BytesMut};

/// Longest chunk the length field can tell.
pub const MAX_CHUNK: usize = u16::MAX as usize;

/// Appends `data` as chunks.
pub fn encode(data: &[u8], out: &mut BytesMut) {
    for chunk in data.chunks(MAX_CHUNK) {
        out.put_u16(chunk.len() as u16);
        out.put_slice(chunk);
    }
}

/// Appends the end of a body.
pub fn encode_end(out: &mut BytesMut) {
    out.put_u16(0);
}

/// Reads the body that begins at `source`; ends where the body ends, so that what follows can be read from `source`.
#[derive(Debug)]
pub struct ChunkReader<'a, R> {
    source: &'a mut R,
    left: usize,
    ended: bool,
}

impl<'a, R: Read> ChunkReader<'a, R> {
    pub fn new(source: &'a mut R) -> Self {
        ChunkReader {
            source,
            left: 0,
            ended: false,
        }
    }

    /// Reads on to the end of the body and throws the bytes away; tells how many there were.
    pub fn drain(mut self) -> io::Result<u64> {
        io::copy(&mut self, &mut io::sink())
    }
}

impl<R: Read> Read for ChunkReader<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if self.left == 0 && !self.ended {
            let mut len = [0; 2];
            self.source.read_exact(&mut len)?;
            self.left = usize::from(u16::from_be_bytes(len));
            self.ended = self.left == 0;
        }
        if self.ended {
            return Ok(0);
        }
        let wanted = out.len().min(self.left);
        let n = self.source.read(&mut out[..wanted])?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "stream ends inside a chunk",
            ));
        }
        self.left -= n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_body_ends_at_its_end_and_not_at_the_streams() {
        let mut out = BytesMut::new();
        encode(&[7; 139], &mut out);
        encode_end(&mut out);
        assert_eq!(&out[..2], &[0, 0x8b]);
        assert_eq!(out.len(), 2 + 139 + 2);
        out.extend_from_slice(b"next");
        let mut source = &out[..];
        let mut body = Vec::new();
        ChunkReader::new(&mut source).read_to_end(&mut body).unwrap();
        assert_eq!(body, [7; 139]);
        assert_eq!(source, b"next");
    }

    #[test]
    fn a_body_without_its_end_is_an_error() {
        for bytes in [&b""[..], b"\0", b"\0\x02a", b"\0\x01a", b"\0\x01a\0"] {
            let mut source = bytes;
            let error = ChunkReader::new(&mut source).drain().expect_err("truncated");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    proptest! {
        #[test]
        fn any_cut_into_chunks_gives_the_same_body(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..10)) {
            let mut out = BytesMut::new();
            pieces.iter().for_each(|piece| encode(piece, &mut out));
            encode_end(&mut out);
            let mut body = Vec::new();
            ChunkReader::new(&mut &out[..]).read_to_end(&mut body).unwrap();
            prop_assert_eq!(body, pieces.concat());
        }

        #[test]
        fn long_bodies_are_cut(len in 60_000usize..200_000) {
            let data = vec![5; len];
            let mut out = BytesMut::new();
            encode(&data, &mut out);
            encode_end(&mut out);
            let mut body = Vec::new();
            ChunkReader::new(&mut &out[..]).read_to_end(&mut body).unwrap();
            prop_assert_eq!(body.len(), len);
        }
    }
}
