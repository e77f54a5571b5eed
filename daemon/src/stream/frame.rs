//! Frames of the replication stream: `u32 type` and its payload, big-endian.
//!
//! Pure: bytes in, bytes out. Everything that arrives is bounded before anything is allocated for it.

use std::io::{self, Read};

use bytes::{BufMut, BytesMut};
use engine::Owner;
use ltx::{Checksum, Pos, Txid};

/// Longest database name on the wire, that of `engine::DbName`.
pub const MAX_NAME: usize = 1024;
/// Longest lease id; Consul's have 36 characters.
pub const MAX_LEASE_ID: usize = 1024;

const LTX: u32 = 1;
const READY: u32 = 2;
const END: u32 = 3;
const DROP_DB: u32 = 4;
const HANDOFF: u32 = 5;
const HWM: u32 = 6;
const HEARTBEAT: u32 = 7;
/// Ours. Far from LiteFS's numbers, of which there may be more one day.
const ACK: u32 = 0x4c46_0001;
const OWNERS: u32 = 0x4c46_0002;

/// One frame. An `Ltx` frame is followed by a chunked LTX file (`chunk`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A transaction or snapshot of this database follows.
    Ltx { name: String },
    /// The replica has all that there was when it connected.
    Ready,
    /// Clean end of the stream.
    End,
    /// The sender does not know this database. Told by LiteFS, acted upon by nobody.
    DropDb { name: String },
    /// The receiver is to take over this lease.
    Handoff { lease_id: String },
    /// Transactions up to this one are in the backup.
    Hwm { name: String, txid: Txid },
    /// The primary is alive; its clock in milliseconds since the epoch.
    Heartbeat { timestamp_ms: i64 },
    /// Ours, from replica to primary: the database is durably at this position.
    Ack { name: String, position: Pos },
    /// Ours: to whom the directories of the database belong, outermost first, and its main file.
    Owners { name: String, owners: Vec<Owner> },
}

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("unknown frame type {0:#x}")]
    UnknownType(u32),
    #[error("{what} of {len} bytes, {limit} are allowed")]
    TooLong {
        what: &'static str,
        len: u32,
        limit: usize,
    },
    #[error("{0} is not UTF-8")]
    NotText(&'static str),
    #[error("position map of {0} entries, {limit} are allowed", limit = super::position_map::MAX_ENTRIES)]
    TooManyEntries(u32),
    #[error("stream ends inside a frame")]
    Truncated,
    #[error("read stream: {0}")]
    Io(io::Error),
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => FrameError::Truncated,
            _ => FrameError::Io(error),
        }
    }
}

impl Frame {
    /// Appends the frame's bytes.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Frame::Ltx { name } => {
                out.put_u32(LTX);
                // A size that LiteFS writes as zero and nobody reads: the chunks say where the file ends.
                out.put_u64(0);
                put_text(out, name);
            }
            Frame::Ready => out.put_u32(READY),
            Frame::End => out.put_u32(END),
            Frame::DropDb { name } => {
                out.put_u32(DROP_DB);
                put_text(out, name);
            }
            Frame::Handoff { lease_id } => {
                out.put_u32(HANDOFF);
                put_text(out, lease_id);
            }
            Frame::Hwm { name, txid } => {
                out.put_u32(HWM);
                out.put_u64(txid.0);
                put_text(out, name);
            }
            Frame::Heartbeat { timestamp_ms } => {
                out.put_u32(HEARTBEAT);
                out.put_i64(*timestamp_ms);
            }
            Frame::Ack { name, position } => {
                out.put_u32(ACK);
                out.put_u64(position.txid.0);
                out.put_u64(position.post_apply.0);
                put_text(out, name);
            }
            Frame::Owners { name, owners } => {
                out.put_u32(OWNERS);
                put_text(out, name);
                out.put_u32(owners.len() as u32);
                for Owner { uid, gid, mode } in owners {
                    out.put_u32(*uid);
                    out.put_u32(*gid);
                    out.put_u32(*mode);
                }
            }
        }
    }

    /// Reads one frame; nothing if the stream ends before it.
    pub fn read(source: &mut impl Read) -> Result<Option<Frame>, FrameError> {
        let Some(kind) = read_type(source)? else {
            return Ok(None);
        };
        let frame = match kind {
            LTX => {
                read_u64(source)?;
                Frame::Ltx {
                    name: read_name(source)?,
                }
            }
            READY => Frame::Ready,
            END => Frame::End,
            DROP_DB => Frame::DropDb {
                name: read_name(source)?,
            },
            HANDOFF => Frame::Handoff {
                lease_id: read_text(source, "lease id", MAX_LEASE_ID)?,
            },
            HWM => {
                let txid = Txid(read_u64(source)?);
                Frame::Hwm {
                    txid,
                    name: read_name(source)?,
                }
            }
            HEARTBEAT => Frame::Heartbeat {
                timestamp_ms: read_u64(source)? as i64,
            },
            ACK => {
                let position = read_position(source)?;
                Frame::Ack {
                    position,
                    name: read_name(source)?,
                }
            }
            OWNERS => Frame::Owners {
                name: read_name(source)?,
                owners: read_owners(source)?,
            },
            unknown => return Err(FrameError::UnknownType(unknown)),
        };
        Ok(Some(frame))
    }

    /// Takes a whole frame off the front of `buffer`; nothing if it is not all there yet.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let mut rest = &buffer[..];
        match Frame::read(&mut rest) {
            Ok(Some(frame)) => {
                let used = buffer.len() - rest.len();
                bytes::Buf::advance(buffer, used);
                Ok(Some(frame))
            }
            Ok(None) | Err(FrameError::Truncated) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn read_owners(source: &mut impl Read) -> Result<Vec<Owner>, FrameError> {
    let count = read_u32(source)?;
    // A name has no more parts than characters.
    if count as usize > MAX_NAME {
        return Err(FrameError::TooLong {
            what: "list of owners",
            len: count,
            limit: MAX_NAME,
        });
    }
    let mut owners = Vec::new();
    for _ in 0..count {
        owners.push(Owner {
            uid: read_u32(source)?,
            gid: read_u32(source)?,
            mode: read_u32(source)?,
        });
    }
    Ok(owners)
}

pub(super) fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u32(text.len() as u32);
    out.put_slice(text.as_bytes());
}

/// The four bytes a frame begins with. Only before the first of them may a stream end.
fn read_type(source: &mut impl Read) -> Result<Option<u32>, FrameError> {
    let mut bytes = [0; 4];
    let mut filled = 0;
    while filled < bytes.len() {
        match source.read(&mut bytes[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(FrameError::Truncated),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(u32::from_be_bytes(bytes)))
}

pub(super) fn read_u32(source: &mut impl Read) -> Result<u32, FrameError> {
    let mut bytes = [0; 4];
    source.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(source: &mut impl Read) -> Result<u64, FrameError> {
    let mut bytes = [0; 8];
    source.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

pub(super) fn read_position(source: &mut impl Read) -> Result<Pos, FrameError> {
    let txid = Txid(read_u64(source)?);
    Ok(Pos::new(txid, Checksum(read_u64(source)?)))
}

pub(super) fn read_name(source: &mut impl Read) -> Result<String, FrameError> {
    read_text(source, "database name", MAX_NAME)
}

fn read_text(source: &mut impl Read, what: &'static str, limit: usize) -> Result<String, FrameError> {
    let len = read_u32(source)?;
    if len as usize > limit {
        return Err(FrameError::TooLong { what, len, limit });
    }
    let mut bytes = vec![0; len as usize];
    source.read_exact(&mut bytes)?;
    String::from_utf8(bytes).map_err(|_| FrameError::NotText(what))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stream::chunk::{self, ChunkReader};

    fn encoded(frame: &Frame) -> Vec<u8> {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        out.to_vec()
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    /// Bytes that were seen on the wire between nodes of LiteFS 0.5.
    #[test]
    fn frames_have_the_bytes_of_litefs() {
        let vectors = [
            (
                Frame::DropDb {
                    name: "gone1".to_string(),
                },
                "00000004 00000005 676f6e6531",
            ),
            (Frame::Ready, "00000002"),
            (
                Frame::Heartbeat {
                    timestamp_ms: 0x0000_01a1_f7e0_a98b,
                },
                "00000007 000001a1f7e0a98b",
            ),
            (
                Frame::Hwm {
                    name: "b.db".to_string(),
                    txid: Txid(0),
                },
                "00000006 0000000000000000 00000004 622e6462",
            ),
            (Frame::End, "00000003"),
            (
                Frame::Ltx {
                    name: "b.db".to_string(),
                },
                "00000001 0000000000000000 00000004 622e6462",
            ),
            (
                Frame::Handoff {
                    lease_id: "ab".to_string(),
                },
                "00000005 00000002 6162",
            ),
        ];
        for (frame, bytes) in vectors {
            let bytes = hex(bytes);
            assert_eq!(encoded(&frame), bytes, "{frame:?}");
            assert_eq!(Frame::read(&mut &bytes[..]).unwrap(), Some(frame));
        }
    }

    #[test]
    fn a_stream_ends_between_frames_and_nowhere_else() {
        let bytes = encoded(&Frame::DropDb {
            name: "gone1".to_string(),
        });
        assert!(matches!(Frame::read(&mut &bytes[..0]), Ok(None)));
        for end in 1..bytes.len() {
            assert!(
                matches!(Frame::read(&mut &bytes[..end]), Err(FrameError::Truncated)),
                "{end}"
            );
        }
    }

    #[test]
    fn lengths_are_checked_before_anything_is_allocated() {
        let bytes = hex("00000004 ffffffff");
        assert!(matches!(
            Frame::read(&mut &bytes[..]),
            Err(FrameError::TooLong { len: u32::MAX, .. })
        ));
        let bytes = hex("00000008");
        assert!(matches!(
            Frame::read(&mut &bytes[..]),
            Err(FrameError::UnknownType(8))
        ));
        let bytes = hex("00000004 00000002 fffe");
        assert!(matches!(
            Frame::read(&mut &bytes[..]),
            Err(FrameError::NotText(_))
        ));
    }

    #[test]
    fn a_buffer_gives_whole_frames_only() {
        let mut bytes = encoded(&Frame::Ready);
        bytes.extend(encoded(&Frame::End));
        let mut buffer = BytesMut::from(&bytes[..6]);
        assert_eq!(Frame::take(&mut buffer).unwrap(), Some(Frame::Ready));
        assert_eq!(Frame::take(&mut buffer).unwrap(), None);
        buffer.extend_from_slice(&bytes[6..]);
        assert_eq!(Frame::take(&mut buffer).unwrap(), Some(Frame::End));
        assert!(buffer.is_empty());
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let name = "[a-z/.é]{0,40}";
        prop_oneof![
            name.prop_map(|name| Frame::Ltx { name }),
            Just(Frame::Ready),
            Just(Frame::End),
            name.prop_map(|name| Frame::DropDb { name }),
            name.prop_map(|lease_id| Frame::Handoff { lease_id }),
            (name, any::<u64>()).prop_map(|(name, txid)| Frame::Hwm {
                name,
                txid: Txid(txid)
            }),
            any::<i64>().prop_map(|timestamp_ms| Frame::Heartbeat { timestamp_ms }),
            (name, any::<u64>(), any::<u64>()).prop_map(|(name, txid, checksum)| Frame::Ack {
                name,
                position: Pos::new(Txid(txid), Checksum(checksum)),
            }),
            (name, proptest::collection::vec(any::<(u32, u32, u32)>(), 0..5)).prop_map(|(name, owners)| {
                let owner = |(uid, gid, mode)| Owner { uid, gid, mode };
                Frame::Owners {
                    name,
                    owners: owners.into_iter().map(owner).collect(),
                }
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(frames in proptest::collection::vec(any_frame(), 0..20)) {
            let mut out = BytesMut::new();
            frames.iter().for_each(|frame| frame.encode(&mut out));
            let mut rest = &out[..];
            let mut read = Vec::new();
            while let Some(frame) = Frame::read(&mut rest).unwrap() {
                read.push(frame);
            }
            prop_assert_eq!(read, frames);
        }

        /// As a peer that is broken, or worse, would send it.
        #[test]
        fn damaged_streams_give_frames_or_an_error(
            frames in proptest::collection::vec((any_frame(), proptest::collection::vec(any::<u8>(), 0..100)), 1..8),
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut out = BytesMut::new();
            for (frame, body) in &frames {
                frame.encode(&mut out);
                if let Frame::Ltx { .. } = frame {
                    chunk::encode(body, &mut out);
                    chunk::encode_end(&mut out);
                }
            }
            for (at, byte) in damage {
                let at = at.index(out.len());
                out[at] = byte;
            }
            let mut rest = &out[..=cut.index(out.len())];
            while let Ok(Some(frame)) = Frame::read(&mut rest) {
                let mut again = BytesMut::new();
                frame.encode(&mut again);
                prop_assert_eq!(Frame::read(&mut &again[..]).unwrap(), Some(frame.clone()));
                if matches!(frame, Frame::Ltx { .. }) && ChunkReader::new(&mut rest).drain().is_err() {
                    break;
                }
            }
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = &bytes[..];
            while let Ok(Some(_)) = Frame::read(&mut rest) {}
        }
    }
}
