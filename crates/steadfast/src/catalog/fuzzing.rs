//! The catalog's decoders as `fuzz/` reaches them: bytes in, and what was accepted written again.
//!
//! It decides nothing and is no part of the interface: only the fuzz targets call it. What is accepted must be written
//! in a form that is accepted again. Read next: `wire` (messages), `store::record` (records), `serve` (pieces).

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::engine::{SnapshotMeta, Vote};
use super::machine;
use super::serve::{self, Incoming};
use super::store::record;
use super::wire::{Envelope, Request, Response, SnapshotChunk};

/// What one member asks another.
pub fn request(bytes: &[u8]) -> Option<Vec<u8>> {
    message::<Request>(bytes)
}

/// What a member answers.
pub fn response(bytes: &[u8]) -> Option<Vec<u8>> {
    message::<Response>(bytes)
}

fn message<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<Vec<u8>> {
    let envelope = Envelope::<T>::decode(bytes).ok()?;
    Some(envelope.encode().expect("a message that was read is within the bound").to_vec())
}

/// A payload of the durable log, of the kind that `kind` chooses, behind the checksum that it was written with.
pub fn record(kind: u8, payload: &[u8]) -> Option<Vec<u8>> {
    record::rewrite(kind, payload)
}

/// The image of a whole table as another member sends it, with magic and checksum.
pub fn image(bytes: &[u8]) -> Option<Vec<u8>> {
    machine::rewrite_image(bytes)
}

/// One piece of an image under way.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Who sends it.
    pub from: u64,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Bytes of the whole.
    pub total: u64,
    /// Its bytes.
    pub data: &'a [u8],
}

/// The first image that these pieces complete, in the order in which they came.
pub fn pieces(pieces: &[Piece<'_>]) -> Option<Vec<u8>> {
    let mut incoming: Option<Incoming> = None;
    pieces.iter().find_map(|piece| {
        let chunk = SnapshotChunk {
            vote: Vote::new(1, 1),
            meta: SnapshotMeta::default(),
            offset: piece.offset,
            total: piece.total,
            data: Bytes::copy_from_slice(piece.data),
        };
        let complete = serve::collect(&mut incoming, piece.from, chunk).ok()??;
        Some(complete.bytes)
    })
}
