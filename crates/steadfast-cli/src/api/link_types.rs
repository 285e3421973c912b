//! The JSON of links and verdicts; the rest of the API's types are in [`super::types`].
//!
//! A report is the whole or what changed, with the generation to go on from: the answer of a request, of a long poll
//! and of each server-sent event alike. Nodes and networks are named, never numbered.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a node sees of its links, or what changed of that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LinkReport {
    /// The node whose links these are.
    pub node: String,
    /// Up to which change this tells: `since` of the next request.
    pub generation: u64,
    /// Whether this is every link that was asked for, and not only those that changed.
    pub whole: bool,
    /// The links, each to one peer on one network.
    pub links: Vec<Link>,
    /// The peers in general: over whichever network does best.
    pub peers: Vec<General>,
}

/// One link: this node, a peer, a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// The other end.
    pub peer: String,
    /// The network.
    pub network: String,
    /// `up`, `degraded`, `one-way`, `down` or `unknown`.
    pub state: String,
    /// The state that was told before; absent when none was.
    pub from: Option<String>,
    /// Whether this node hears the peer here; absent when that is not known.
    pub heard: Option<bool>,
    /// Whether the peer hears this node here, by its own last word; absent when that is not known.
    pub hears: Option<bool>,
    /// What is wrong, in words.
    pub detail: Option<String>,
    /// Since when it does so.
    pub since_unix_ms: u64,
    /// When something last came on it; absent when nothing ever did.
    pub heard_unix_ms: Option<u64>,
    /// The mean round trip in ms, once one was measured.
    pub round_trip_ms: Option<f64>,
    /// How much round trips deviate from it, in ms.
    pub jitter_ms: f64,
    /// The share of heartbeats that were lost lately, in percent.
    pub loss_percent: f64,
    /// The generation of its last change.
    pub generation: u64,
    /// How many changes before this one were left out because they were not taken in time.
    pub coalesced: u64,
}

/// A peer in general.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct General {
    /// The peer.
    pub peer: String,
    /// `up` if any link is, `degraded` if the best is, `down` otherwise; `unknown` before it was heard.
    pub state: String,
    /// The state that was told before; absent when none was.
    pub from: Option<String>,
    /// Since when.
    pub since_unix_ms: u64,
    /// The generation of its last change.
    pub generation: u64,
}

/// The verdicts that hold, or what changed of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VerdictReport {
    /// The node whose verdicts these are.
    pub node: String,
    /// Up to which change this tells: `since` of the next request.
    pub generation: u64,
    /// Whether this is every verdict that holds, and not only those that changed.
    pub whole: bool,
    /// The verdicts.
    pub verdicts: Vec<Verdict>,
}

/// What one node concludes from everybody's claims.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Verdict {
    /// `process-crashed`, `process-stalled`, `host-dead`, `node-isolated`, `network-down-at-node`, `network-down`,
    /// `link-cut`, `link-degraded` or `split`; `steadfast explain` has a page for each.
    pub class: String,
    /// What failed, in one sentence.
    pub sentence: String,
    /// The nodes that it is about.
    pub nodes: Vec<String>,
    /// The network that it is about.
    pub network: Option<String>,
    /// Since when it has been known here.
    pub since_unix_ms: u64,
    /// The rule by which the node that answers suspects the same itself: `gossip`, `relative`, `timeout`, `kernel`
    /// or `deaf`; absent when it goes by what others say.
    pub rule: Option<String>,
    /// Who accuses.
    pub accusers: Vec<String>,
    /// What each says.
    pub evidence: Vec<Evidence>,
    /// Whether it holds no longer.
    pub over: bool,
    /// The generation of its last change.
    pub generation: u64,
}

/// What one node testifies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Evidence {
    /// Who.
    pub accuser: String,
    /// What, in words.
    pub says: String,
    /// The network that it speaks of.
    pub network: Option<String>,
    /// What the accuser's link does, where it speaks of one.
    pub state: Option<String>,
}

impl LinkReport {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty() && self.peers.is_empty()
    }
}
