//! The bytes of a call on a connection: a fixed header with its own checksum, then the body.
//!
//! It decides whether a header is one of ours and how many bytes follow it. It never looks into a body:
//! TLS has checked that already. Read next: `connection`.
//!
//! Layout, little endian, 24 bytes: magic 4, version 1, kind 1, service 1, traced 1, call 8, length 4,
//! CRC-32C of the 20 bytes before 4. Where a request is traced (1; otherwise 0) the 25 bytes of its trace
//! context stand between header and body; the length does not count them.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Body;
use super::trace::{TRACE_BYTES, Trace};
use crate::buffers::Buffers;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 24;
/// Largest body.
pub const BODY_BYTES_MAX: usize = 16 << 20;

const MAGIC: [u8; 4] = *b"SFrp";
const VERSION: u8 = 1;
/// Frames up to this size are gathered, so that many small calls leave in one TLS record.
const GATHER_BYTES: usize = 16 << 10;
/// Larger bodies are read into buffers of their own.
const SMALL_BYTES: usize = 64 << 10;
/// How long a silent connection keeps the buffers of large bodies.
const IDLE: Duration = Duration::from_secs(2);

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call.
    Request,
    /// Its answer.
    Response,
    /// The peer did not carry the call out; the body says why.
    Failure,
    /// Asks for a pong.
    Ping,
    /// Shows that the path and the peer live.
    Pong,
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Failure => 3,
            Self::Ping => 4,
            Self::Pong => 5,
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Failure,
            4 => Self::Ping,
            5 => Self::Pong,
            _ => return None,
        })
    }
}

/// What stands in front of every body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Which service is called.
    pub service: u8,
    /// The number of the call on its connection; an answer repeats it.
    pub call: u64,
    /// Bytes of the body.
    pub length: u32,
    /// Whether a trace context stands before the body.
    pub is_traced: bool,
}

/// Why bytes are not a frame. The connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not our protocol, or another version.
    #[error("the peer speaks another protocol or version")]
    Protocol,
    /// The checksum of the header does not agree.
    #[error("a frame's header is damaged")]
    Checksum,
    /// A kind of frame that this version does not know.
    #[error("a frame of unknown kind {found}")]
    Kind {
        /// The number found.
        found: u8,
    },
    /// The body is over the limit.
    #[error("a frame of {found} bytes, at most {BODY_BYTES_MAX} are allowed")]
    TooLarge {
        /// Bytes announced.
        found: u32,
    },
    /// The connection ended, perhaps within a frame.
    #[error("the connection ended")]
    Ended,
}

/// Reads a header; never panics, allocates nothing.
///
/// # Errors
/// Says why the bytes are not a header.
pub fn decode_header(bytes: &[u8; HEADER_BYTES]) -> Result<Header, FrameError> {
    let [m0, m1, m2, m3, version, kind, service, traced, rest @ ..] = *bytes;
    if [m0, m1, m2, m3] != MAGIC || version != VERSION || traced > 1 {
        return Err(FrameError::Protocol);
    }
    let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, c0, c1, c2, c3] = rest;
    let checked = bytes.first_chunk::<20>().expect("20 is below 24");
    if crc32c::crc32c(checked) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(FrameError::Checksum);
    }
    let kind = Kind::from_number(kind).ok_or(FrameError::Kind { found: kind })?;
    let is_traced = traced == 1;
    if is_traced && kind != Kind::Request {
        return Err(FrameError::Protocol);
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    if length as usize > BODY_BYTES_MAX {
        return Err(FrameError::TooLarge { found: length });
    }
    Ok(Header { kind, service, call: u64::from_le_bytes([a, b, c, d, e, f, g, h]), length, is_traced })
}

pub(super) fn encode_header(header: &Header) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = VERSION;
    bytes[5] = header.kind.number();
    bytes[6] = header.service;
    bytes[7] = u8::from(header.is_traced);
    bytes[8..16].copy_from_slice(&header.call.to_le_bytes());
    bytes[16..20].copy_from_slice(&header.length.to_le_bytes());
    let sum = crc32c::crc32c(&bytes[..20]);
    bytes[20..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// A frame that waits to be written.
#[derive(Debug)]
pub(super) struct Frame {
    header: Header,
    trace: Option<Trace>,
    body: Body,
}

impl Frame {
    /// Makes a frame; the caller has checked the length of `body`.
    pub(super) fn new(kind: Kind, service: u8, call: u64, body: Body) -> Self {
        let length = u32::try_from(body.len()).expect("callers bound bodies to 16 MiB");
        Self { header: Header { kind, service, call, length, is_traced: false }, trace: None, body }
    }

    /// The same as part of a traced operation; only requests are.
    pub(super) fn traced(mut self, trace: Option<Trace>) -> Self {
        self.header.is_traced = trace.is_some();
        self.trace = trace;
        self
    }

    pub(super) const fn kind(&self) -> Kind {
        self.header.kind
    }
}

/// Takes frames off a connection.
#[derive(Debug)]
pub(super) struct FrameReader<R> {
    reader: R,
    /// What was read and not taken yet: headers and small frames.
    buffer: BytesMut,
    /// Where large bodies go.
    large: Buffers,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, buffer: BytesMut::new(), large: Buffers::default() }
    }

    /// The next frame. After a dropped call the connection can't be used any more.
    pub(super) async fn next(&mut self) -> Result<(Header, Option<Trace>, Bytes), FrameError> {
        if !self.large.is_empty() {
            // An idle connection keeps no memory.
            let waited = tokio::time::timeout(IDLE, self.fill(HEADER_BYTES)).await;
            if waited.is_err() {
                self.large.clear();
            }
        }
        self.fill(HEADER_BYTES).await?;
        let bytes = self.buffer.split_to(HEADER_BYTES);
        let header = decode_header(bytes.first_chunk().expect("24 bytes were split off"))?;
        let trace = if header.is_traced { self.trace().await? } else { None };
        let length = header.length as usize;
        if length > SMALL_BYTES {
            return Ok((header, trace, self.large_body(length).await?));
        }
        self.fill(length).await?;
        Ok((header, trace, self.buffer.split_to(length).freeze()))
    }

    /// A context that can't be read counts as none.
    async fn trace(&mut self) -> Result<Option<Trace>, FrameError> {
        self.fill(TRACE_BYTES).await?;
        let bytes = self.buffer.split_to(TRACE_BYTES);
        Ok(bytes.first_chunk().and_then(Trace::from_bytes))
    }

    /// Reads a body straight to where it will stay.
    async fn large_body(&mut self, length: usize) -> Result<Bytes, FrameError> {
        let mut body = self.large.take(length);
        let here = self.buffer.len().min(length);
        body.extend_from_slice(&self.buffer.split_to(here));
        while body.len() < length {
            let missing = u64::try_from(length - body.len()).expect("at most 16 MiB");
            match (&mut self.reader).take(missing).read_buf(&mut body).await {
                Ok(0) | Err(_) => return Err(FrameError::Ended),
                Ok(_) => {}
            }
        }
        Ok(self.large.share(body))
    }

    async fn fill(&mut self, length: usize) -> Result<(), FrameError> {
        while self.buffer.len() < length {
            let missing = length - self.buffer.len();
            self.buffer.reserve(missing.max(4096));
            match self.reader.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return Err(FrameError::Ended),
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

/// The entry for fuzzing: every frame up to the first that is refused, and why that one is.
#[doc(hidden)]
pub async fn read_frames<R: AsyncRead + Unpin>(reader: R) -> (Vec<(Header, Bytes)>, FrameError) {
    let (mut reader, mut frames) = (FrameReader::new(reader), Vec::new());
    loop {
        match reader.next().await {
            Ok((header, _, body)) => frames.push((header, body)),
            Err(error) => return (frames, error),
        }
    }
}

/// Puts frames on a connection; small ones are gathered until `flush`.
#[derive(Debug)]
pub(super) struct FrameWriter<W> {
    writer: W,
    gathered: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub(super) fn new(writer: W) -> Self {
        Self { writer, gathered: Vec::new() }
    }

    pub(super) async fn write(&mut self, frame: &Frame) -> std::io::Result<()> {
        self.gathered.extend_from_slice(&encode_header(&frame.header));
        if let Some(trace) = frame.trace {
            self.gathered.extend_from_slice(&trace.to_bytes());
        }
        for part in [&frame.body.head, &frame.body.bulk] {
            if part.len() + self.gathered.len() <= GATHER_BYTES {
                self.gathered.extend_from_slice(part);
                continue;
            }
            self.writer.write_all(&self.gathered).await?;
            self.gathered.clear();
            self.writer.write_all(part).await?;
        }
        Ok(())
    }

    pub(super) async fn flush(&mut self) -> std::io::Result<()> {
        if !self.gathered.is_empty() {
            self.writer.write_all(&self.gathered).await?;
            self.gathered.clear();
        }
        self.writer.flush().await
    }

    pub(super) async fn close(&mut self) {
        // The connection is going away in any case; a failure to say so changes nothing.
        let _ = self.writer.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn headers_come_back() {
        for kind in [Kind::Request, Kind::Response, Kind::Failure, Kind::Ping, Kind::Pong] {
            let length = 16 << 20;
            let header = Header { kind, service: 7, call: u64::MAX - 3, length, is_traced: false };
            assert_eq!(decode_header(&encode_header(&header)), Ok(header));
            let traced = Header { is_traced: true, ..header };
            let only_requests = if kind == Kind::Request { Ok(traced) } else { Err(FrameError::Protocol) };
            assert_eq!(decode_header(&encode_header(&traced)), only_requests);
        }
        let length = (16 << 20) + 1;
        let header = Header { kind: Kind::Ping, service: 0, call: 0, length, is_traced: false };
        let error = decode_header(&encode_header(&header));
        assert_eq!(error, Err(FrameError::TooLarge { found: (16 << 20) + 1 }));
    }

    #[tokio::test]
    async fn a_trace_context_travels_before_its_body_and_nothing_else_does() {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse::<Trace>().unwrap();
        let mut wire = FrameWriter::new(Vec::new());
        let large = Bytes::from(vec![7; SMALL_BYTES + 1]);
        for (trace, body) in
            [(None, "plain".into()), (Some(trace), "traced".into()), (Some(trace), large.clone())]
        {
            let body = Body::from(body);
            wire.write(&Frame::new(Kind::Request, 1, 2, body).traced(trace)).await.unwrap();
        }
        wire.flush().await.unwrap();
        let mut frames = FrameReader::new(wire.writer.as_slice());
        let mut next = async || frames.next().await.map(|(_, trace, body)| (trace, body));
        assert_eq!(next().await, Ok((None, "plain".into())));
        assert_eq!(next().await, Ok((Some(trace), "traced".into())));
        assert_eq!(next().await, Ok((Some(trace), large)));
        assert_eq!(next().await, Err(FrameError::Ended));
    }

    proptest! {
        #[test]
        fn a_damaged_header_is_refused(at in 0..HEADER_BYTES, bit in 0u8..8) {
            let header = Header { kind: Kind::Request, service: 1, call: 2, length: 3, is_traced: false };
            let mut bytes = encode_header(&header);
            bytes[at] ^= 1 << bit;
            prop_assert!(decode_header(&bytes).is_err());
        }

        #[test]
        fn garbage_headers_never_panic(bytes in any::<[u8; HEADER_BYTES]>()) {
            prop_assert!(decode_header(&bytes).is_err());
        }
    }
}
