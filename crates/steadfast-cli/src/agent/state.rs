//! What the agent itself keeps beside its membership: how to find the cluster again.
//!
//! Written by `init` and `join`, kept current by the running agent. It is only a hint (the catalog's rows are the
//! truth), except for `founder`, which says that this node still has to make the catalog.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use steadfast::identity::{Identity, IdentityError, Membership};
use steadfast_proto::ids::NodeId;

use crate::codes::Code;
use crate::failure::Failure;

/// Most nodes that are remembered.
const HINTS_MAX: usize = 64;

/// The opaque part of the membership file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// What the catalog is to be made with, on the node that founded the cluster.
    pub(crate) founder: Option<Founder>,
    /// Other nodes, to be asked for admission to the catalog.
    pub(crate) hints: Vec<Hint>,
    /// The epoch of the cluster key with which this node's certificate was renewed last.
    #[serde(default)]
    pub(crate) certificate_epoch: u32,
    /// The epoch of the cluster key that sealed when this node joined; 0 for the first.
    #[serde(default)]
    pub(crate) sealing_epoch: u32,
}

/// The settings of a new cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Founder {
    pub(crate) lease_ms: u32,
    pub(crate) created_unix_ms: u64,
}

/// Where another node was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hint {
    pub(crate) node: String,
    pub(crate) engine_id: u64,
    pub(crate) addresses: Vec<SocketAddr>,
}

impl State {
    /// What the membership file says; a form that can't be read is none, for it is only a hint.
    pub(crate) fn of(membership: &Membership) -> State {
        serde_json::from_slice(&membership.extra).unwrap_or_default()
    }

    /// As bytes for the membership file.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, Failure> {
        let bounded = State {
            founder: self.founder.clone(),
            hints: self.hints.iter().take(HINTS_MAX).cloned().collect(),
            certificate_epoch: self.certificate_epoch,
            sealing_epoch: self.sealing_epoch,
        };
        serde_json::to_vec(&bounded).map_err(|error| {
            Failure::new(Code::Internal, format!("the agent's state can't be written: {error}"))
        })
    }
}

/// A node's number in the catalog's engine: drawn from its id, so that nobody has to hand it out.
pub(crate) fn engine_id(node: NodeId) -> u64 {
    let bytes = node.0.to_le_bytes();
    let (low, high) = bytes.split_at(8);
    let half = |half: &[u8]| half.iter().rev().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
    (half(low) ^ half(high)).max(1)
}

/// Opens the data folder, counting one more start.
pub(crate) fn open(data: &std::path::Path) -> Result<Identity, Failure> {
    Identity::open_for_start(data).map_err(|error| identity_failure(&error))
}

/// An error of the data folder as people see it.
pub(crate) fn identity_failure(error: &IdentityError) -> Failure {
    let code = match error {
        IdentityError::Locked { .. } => Code::StateInUse,
        IdentityError::Corrupt { .. } => Code::StateCorrupt,
        IdentityError::StillMember { .. } => Code::AlreadyMember,
        IdentityError::Io { .. } => Code::DiskFailed,
        IdentityError::TooLarge { .. } => Code::Internal,
    };
    Failure::new(code, error.to_string())
}

/// Refuses a data folder that belongs to a cluster already.
pub(crate) fn refuse_member(identity: &Identity) -> Result<(), Failure> {
    let Some(membership) = identity.membership() else { return Ok(()) };
    Err(Failure::new(
        Code::AlreadyMember,
        format!(
            "{} belongs to {} of cluster {} already; start the agent with it, or give this node another `data` folder",
            identity.directory().display(),
            membership.node_name,
            membership.cluster_name,
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_numbers_are_never_zero_and_differ() {
        assert_eq!(engine_id(NodeId(0)), 1);
        assert_ne!(engine_id(NodeId(1 << 64)), engine_id(NodeId(2)));
    }
}
