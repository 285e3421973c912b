//! The JSON of process groups.
//!
//! Part of the HTTP API like [`super::types`], with the same rules. A row itself is opaque: programs take it from
//! one answer and hand its successor in; `docs/protocols/groups.md` has the rules for successors.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A process group, as the catalog has it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The number of its view.
    pub view: u64,
    /// How often the view's row was renewed; a swap compares both.
    pub renewal: u64,
    /// The full members in order of rank; the first leads.
    pub members: Vec<GroupMember>,
    /// How many full members it should have.
    pub mirrors: u32,
    /// The number of the last record of the view before.
    pub cut: u64,
    /// Why the view was proposed, as one word: `founded`, `added`, `replaced` or `failed`.
    pub change: String,
    /// Why, for people.
    pub reason: String,
    /// Full members that failed: their node was removed from the cluster.
    pub failed: Vec<GroupMember>,
    /// The processes that wait for a place.
    pub standbys: Vec<GroupMember>,
    /// What an operator asked of it.
    pub request: Option<GroupRequest>,
    /// The row as opaque hexadecimal text.
    pub row: String,
}

/// A process of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupMember {
    /// The node, by name; its id where it is no node of this cluster.
    pub node: String,
    /// The node's id.
    pub id: String,
    /// The process's life.
    pub incarnation: u64,
}

/// What an operator asked of a group.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GroupRequest {
    /// Whose place.
    pub old: GroupMember,
    /// Who takes it.
    pub new: GroupMember,
    /// `asked`, or `withdrawn`: it is over without success.
    pub state: String,
    /// When it was asked, in milliseconds since 1970.
    pub asked_unix_ms: u64,
}

/// Asks for a group's row to be swapped, or, without `expected`, to be founded.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SwapGroup {
    /// What the row must have; absent: there must be none.
    #[serde(default)]
    pub expected: Option<GroupKey>,
    /// The row to write, as opaque hexadecimal text.
    pub next: String,
}

/// What a swap compares.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupKey {
    /// The number of the view.
    pub view: u64,
    /// The renewal.
    pub renewal: u64,
}

/// What became of a swap.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SwappedGroup {
    /// `swapped`: the row is as asked; `refused`: it was another one than expected; `unknown`: it may or may not have been
    /// written, so ask again.
    pub outcome: String,
    /// The row that is there, unless that is unknown.
    pub row: Option<String>,
}

/// Asks for a member to be replaced by a process that waits. Each is written NODE or NODE/INCARNATION.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceMember {
    /// Whose place.
    pub old: String,
    /// Who takes it.
    pub new: String,
}

/// Says that a process waits for a place; to be repeated, or it counts as gone after a few seconds.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WaitForPlace {
    /// The node's id.
    pub id: String,
    /// The process's life.
    pub incarnation: u64,
}

/// What is asked of a process that waits.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PlaceOffer {
    /// Whether it is a full member.
    pub full: bool,
    /// Whose place it is to take.
    pub replaces: Option<GroupMember>,
    /// Whether it was named and is not wanted any more: only its next incarnation can be named.
    pub withdrawn: bool,
}
