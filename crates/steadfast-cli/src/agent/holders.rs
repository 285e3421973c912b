//! Who holds which whole checkpoint: asked of the nodes themselves, for people and for nothing else.
//!
//! Answers what this node's checkpoint memory holds, and asks others. What may be freed is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use steadfast::net::rpc::{Class, Services};
use steadfast_proto::ids::{Digest, NodeId};

use super::Agent;
use super::memory::Memory;

/// The RPC service that says which manifests are held whole.
const SERVICE_HELD: u8 = 19;
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers other nodes.
pub(crate) fn offer(services: &Services, memory: &Memory) {
    let memory = memory.clone();
    services.register(SERVICE_HELD, move |_, _| {
        let memory = memory.clone();
        Box::pin(async move {
            let held = memory.held().await;
            Ok(held.into_iter().flat_map(|digest| digest.0).collect::<Vec<u8>>().into())
        })
    });
}

/// Asks these nodes what they hold; `None` for one that does not answer.
pub(crate) async fn ask(agent: &Agent, nodes: &[NodeId]) -> BTreeMap<NodeId, Option<BTreeSet<Digest>>> {
    let nodes: BTreeSet<NodeId> = nodes.iter().copied().collect();
    let asked = nodes.into_iter().map(|node| async move {
        if node == agent.id {
            return (node, Some(agent.memory.held().await));
        }
        let answer = agent.peers.call(node, Class::Control, SERVICE_HELD, Bytes::new(), ASK_TIMEOUT).await;
        (node, answer.ok().map(|bytes| decode(&bytes)))
    });
    futures_util::future::join_all(asked).await.into_iter().collect()
}

pub(super) fn decode(bytes: &[u8]) -> BTreeSet<Digest> {
    bytes.chunks_exact(32).filter_map(|chunk| chunk.try_into().ok().map(Digest)).collect()
}
