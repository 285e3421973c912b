//! What agents and their helpers tell each other outside of the catalog, as `fuzz/` reaches it: bytes in, and what was
//! accepted written again.
//!
//! It decides nothing and is no part of the interface: only the fuzz targets call it. Read next: `join`, `catalog`,
//! `state`, `memory`, `holders`.

use serde::{Serialize, de::DeserializeOwned};

use super::catalog::AdmitRequest;
use super::join::{JoinReply, JoinRequest};
use super::memory::Meta;
use super::{holders, state};

/// A joiner's request.
pub fn join_request(body: &[u8]) -> Option<Vec<u8>> {
    json::<JoinRequest>(body)
}

/// What the inviter answers.
pub fn join_reply(body: &[u8]) -> Option<Vec<u8>> {
    json::<JoinReply>(body)
}

/// A request for admission to the catalog's engine.
pub fn admit_request(body: &[u8]) -> Option<Vec<u8>> {
    json::<AdmitRequest>(body)
}

/// What the agent keeps beside its membership.
pub fn state(bytes: &[u8]) -> Option<Vec<u8>> {
    json::<state::State>(bytes)
}

/// What travels with an image.
pub fn meta(bytes: &[u8]) -> Option<Vec<u8>> {
    json::<Meta>(bytes)
}

/// How many whole checkpoints a node says that it holds.
pub fn held(bytes: &[u8]) -> usize {
    holders::decode(bytes).len()
}

fn json<T: Serialize + DeserializeOwned>(text: &[u8]) -> Option<Vec<u8>> {
    let value: T = serde_json::from_slice(text).ok()?;
    Some(serde_json::to_vec(&value).expect("these types hold nothing that JSON cannot"))
}
