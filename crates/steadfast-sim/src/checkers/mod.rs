//! The checkers: one property each, fed with facts, always on.
//!
//! A fact is something that truly happened in the world; no checker asks a node what it believes. The ids are those
//! of `docs/protocols`. The first violation ends the run.

mod deposed;
mod liveness;
mod never_two;
mod network;
mod no_lost_checkpoint;
mod no_step_back;
mod one_list;
mod view_history;

use std::collections::BTreeMap;

use steadfast_proto::catalog::{ContainerRow, View, ViewRecord};
use steadfast_proto::ids::{ContainerId, Digest, Epoch, NodeId, ViewId};

use crate::scenario::Scenario;

pub(crate) use liveness::{stays, unsettled};

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its id.
    pub invariant: &'static str,
    /// When, in nanoseconds of world time.
    pub at: u64,
    /// What was seen.
    pub seen: String,
}

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Fact<'a> {
    /// An agent's core installed a view.
    Installed { node: NodeId, life: u64, view: &'a View },
    /// A view was committed.
    View { view: &'a View },
    /// A proposal committed a view on so many views as its basis, and this is kept of all of them since.
    Kept { view: &'a View, bases: usize, records: &'a BTreeMap<ViewId, ViewRecord> },
    /// A container's row was committed, or removed.
    Row { id: ContainerId, before: Option<&'a ContainerRow>, after: Option<&'a ContainerRow>, by_user: bool },
    /// What a container on a host does now.
    Copy {
        host: usize,
        container: ContainerId,
        epoch: Epoch,
        running: bool,
        heard: bool,
        excused: bool,
        value: u64,
    },
    /// A host has a container no more.
    CopyGone { host: usize, container: ContainerId },
    /// A manifest holds this state.
    Captured { manifest: Digest, value: u64 },
    /// A node's memory has all of a manifest.
    Sealed { node: NodeId, manifest: Digest },
    /// A node freed a manifest.
    Freed { node: NodeId, manifest: Digest },
    /// A host lost its memory.
    MemoryGone { node: NodeId },
}

/// A property of the whole run.
trait Checker: std::fmt::Debug {
    /// Takes note of a fact.
    ///
    /// # Errors
    /// What was seen, when it breaks the property.
    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String>;
}

/// All checkers of one run.
#[derive(Debug)]
pub(crate) struct Checkers {
    all: Vec<(&'static str, Box<dyn Checker>)>,
    violation: Option<Violation>,
}

impl Checkers {
    pub(crate) fn new(scenario: &Scenario) -> Checkers {
        let mut all: Vec<(&'static str, Box<dyn Checker>)> = vec![
            ("ONE-LIST", Box::<one_list::OneList>::default()),
            ("VIEW-HISTORY", Box::<view_history::ViewHistory>::default()),
            ("NEVER-TWO", Box::<never_two::NeverTwo>::default()),
            ("NO-STEP-BACK", Box::<no_step_back::NoStepBack>::default()),
            ("NO-LOST-CHECKPOINT", Box::<no_lost_checkpoint::NoLostCheckpoint>::default()),
            ("DEPOSED-COMMITS-NOTHING", Box::<deposed::DeposedCommitsNothing>::default()),
        ];
        if scenario.networks_only {
            all.push(("NETWORK-IS-NOT-PROCESS", Box::new(network::NetworkIsNotProcess)));
        }
        Checkers { all, violation: None }
    }

    pub(crate) fn observe(&mut self, at: u64, fact: &Fact<'_>) {
        for (invariant, checker) in &mut self.all {
            if let Err(seen) = checker.observe(fact) {
                self.violation.get_or_insert(Violation { invariant, at, seen });
            }
        }
    }

    pub(crate) fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }
}
