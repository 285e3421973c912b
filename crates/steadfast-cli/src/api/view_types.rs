//! The JSON of views as they are kept, and of what the cluster survives now.
//!
//! Part of the HTTP API like [`super::types`], with the same rules: names for nodes, milliseconds since 1970 for times.
//! What each field says is decided by the core and the catalog; read `views` for the paths.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A committed view, as it is kept when others have followed it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ViewRecord {
    /// Its number; the next view has the next one.
    pub id: u64,
    /// Its members.
    pub members: Vec<Member>,
    /// The nodes whose echoes make a lease, by name.
    pub grantors: Vec<String>,
    /// What changed: `founded`, `admitted`, `removed` or `grantor`.
    pub change: String,
    /// The nodes that it changed.
    pub nodes: Vec<ChangedNode>,
    /// The node that proposed it, by name.
    pub proposer: String,
    /// Why, in words.
    pub reason: String,
    /// When it was proposed, by the wall clock of the node that proposed it: two views of two proposers may be out of
    /// order by what their clocks differ; their numbers never are.
    pub proposed_unix_ms: u64,
}

/// A member of a view.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// Its name.
    pub node: String,
    /// The incarnation that was admitted.
    pub incarnation: u64,
}

/// A node that a view changed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChangedNode {
    /// Its name.
    pub node: String,
    /// The incarnation in which it is a member; absent when it was removed.
    pub incarnation: Option<u64>,
    /// What it was found to be when it was removed, as in a verdict: `host-dead`, `process-crashed`, ...
    pub class: Option<String>,
    /// Who accused it, by name.
    pub accusers: Vec<String>,
}

/// What the cluster survives right now, as the node that answers sees it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Survives {
    /// How many nodes, whichever they are, may fail at once without the majority of the catalog's voters or of the
    /// grantors of leases being lost.
    pub nodes: u32,
    /// How many hosts, whichever they are, may fail at once without that, and without a container losing every copy of its
    /// newest checkpoint.
    pub hosts: u32,
    /// How many of the widest failure domains, whichever they are, may fail at once; absent where none is named. A host
    /// that names none counts as one of its own.
    pub widest_domains: Option<u32>,
    /// Every failure domain that is named, and whether its loss is survived.
    pub domains: Vec<SurvivesDomain>,
    /// The same in words, with what limits it.
    pub sentence: String,
}

/// Whether the loss of one failure domain is survived.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SurvivesDomain {
    /// Its path, widest first.
    pub domain: Vec<String>,
    /// The hosts in it that are there, by name.
    pub hosts: Vec<String>,
    /// Whether the cluster survives its loss.
    pub survived: bool,
    /// What would be lost with it.
    pub why: Option<String>,
}
