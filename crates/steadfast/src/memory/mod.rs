//! Checkpoint memory: the memory that nodes lend to each other, and checkpoints in it.
//!
//! It decides where the chunks of a checkpoint lie and whether they are all there; it never decides that
//! a checkpoint counts (the catalog's compare-and-set does) and never captures a program. In reading
//! order: `key` and `manifest` (what a checkpoint is), `pool` (chunks on this node's tmpfs), `wire` and
//! `service` (what peers ask), `ship` and `fetch` (whole checkpoints out and back).

mod fetch;
mod key;
mod manifest;
mod pool;
mod service;
mod ship;
mod tree;
mod wire;

pub use fetch::{FetchError, FetchRequest, Fetched, fetch};
pub use key::{ContainerKey, OpenChunkError};
pub use manifest::{
    Attribute, CHUNK_BYTES, ChunkRef, Entry, EntryKind, FILES_MAX, MANIFEST_BYTES_MAX, Manifest,
    ManifestError,
};
pub use pool::{
    CheckpointId, Damage, Freed, GRANT_LEASE, GrantRefused, Granted, Live, OpenError, Pool, PutError,
    SealError, SealedCheckpoint, Token, Usage,
};
pub use service::{SERVICE, register};
pub use ship::{Candidate, ShipError, ShipRequest, Shipped, ship};
pub use tree::TreeError;
pub use wire::{Message, WireError, decode_request, decode_response};
