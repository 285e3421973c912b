//! The cluster's own producers: what this node's core noticed, as events.
//!
//! What the catalog agreed on (views, containers, checkpoints) every node tells its own consumers from its own copy, so
//! it travels nowhere and can't be lost on the way; what is one node's opinion (suspicions, links, networks, its own
//! lease) that node tells. It decides nothing and never asks anything: a fact is told from the one that went before.

use std::collections::BTreeMap;

use steadfast_proto::catalog::{CheckpointRef, ContainerRow, ContainerState, Exit, View, ViewReason};
use steadfast_proto::detect::{Opinion, Subject, Verdict};
use steadfast_proto::events::{Fields, Value};
use steadfast_proto::ids::{ContainerId, NodeId};
use steadfast_proto::node::Event;

use crate::api::convert::{Names, node_name, view_reason};
use crate::api::link_words::{self, Dictionary};

/// A type and its fields.
pub(super) type Told = (&'static str, Fields);

/// What was told last, from which the next is told.
#[derive(Debug, Default)]
pub(super) struct Teller {
    view: Option<View>,
    containers: BTreeMap<ContainerId, Known>,
}

#[derive(Clone, Debug)]
struct Known {
    name: String,
    owner: NodeId,
    state: ContainerState,
    /// Who had it when it last ran.
    ran_on: Option<NodeId>,
}

impl Teller {
    /// The events that `event`, which this node noticed at `unix_ms`, is; `own` is this node.
    pub(super) fn tell(
        &mut self,
        own: NodeId,
        unix_ms: u64,
        event: &Event,
        words: &Dictionary<'_>,
    ) -> Vec<Told> {
        match event {
            Event::Opinion(opinion) => opinion_told(opinion, words),
            Event::Installed(view) => self.view_told(view, words.names),
            Event::Moved { container, row } => {
                self.container_told(*container, row, unix_ms, words.names).into_iter().collect()
            }
            Event::Committed { container, checkpoint } => {
                self.checkpoint_told(*container, checkpoint).into_iter().collect()
            }
            Event::LeaseLapsed => self.frozen_told(own),
            Event::LeaseRenewed | Event::Fenced(_) | Event::CheckpointFailed { .. } | Event::Answer(..) => {
                Vec::new()
            }
        }
    }

    fn view_told(&mut self, view: &View, names: &Names) -> Vec<Told> {
        let before = self.view.replace(view.clone());
        let number = integer(view.id.0);
        let mut told = vec![(
            "view.installed",
            fields([
                ("node", text(node_name(names, view.proposer))),
                ("view", number.clone()),
                ("members", count(view.members.len())),
                ("change", text(view_reason(&view.reason, names, |_| None))),
            ]),
        )];
        // What the first view says that this node hears of is no news.
        let Some(before) = before else { return told };
        let about = |node: NodeId, more: Vec<(&'static str, Value)>| {
            let name = text(node_name(names, node));
            let mut all = vec![("node", name.clone()), ("member", name), ("view", number.clone())];
            all.extend(more);
            fields(all)
        };
        for (node, incarnation) in &view.members {
            if before.members.get(node) != Some(incarnation) {
                told.push(("node.joined", about(*node, Vec::new())));
            }
        }
        for node in before.members.keys().filter(|node| !view.has(**node)) {
            let left = match &view.reason {
                ViewReason::Left(leaver) => leaver == node,
                ViewReason::Replaced { .. }
                | ViewReason::Founded
                | ViewReason::Admitted(_)
                | ViewReason::Removed(_)
                | ViewReason::Grantor(_)
                | ViewReason::NoGrantor(_) => false,
            };
            if left {
                told.push(("node.left", about(*node, Vec::new())));
            } else {
                let reason = text(view_reason(&view.reason, names, |_| None));
                told.push(("node.removed", about(*node, vec![("reason", reason)])));
            }
        }
        told
    }

    fn container_told(
        &mut self,
        id: ContainerId,
        row: &ContainerRow,
        unix_ms: u64,
        names: &Names,
    ) -> Option<Told> {
        let before = self.containers.get(&id).cloned();
        let runs = row.state == ContainerState::Running;
        let ran_on = if runs { Some(row.owner) } else { before.as_ref().and_then(|known| known.ran_on) };
        let known = Known { name: row.spec.name.clone(), owner: row.owner, state: row.state.clone(), ran_on };
        self.containers.insert(id, known);
        let mut all = vec![
            ("node", text(node_name(names, row.owner))),
            ("container", text(&row.spec.name)),
            ("epoch", integer(row.epoch.0)),
        ];
        // What was so when this node started to listen is no news.
        let before = before?;
        let kind = match &row.state {
            ContainerState::Running if before.state == ContainerState::Starting => "container.started",
            ContainerState::Running if before.state == ContainerState::Recovering => {
                if let Some(from) = before.ran_on {
                    all.push(("from", text(node_name(names, from))));
                }
                all.push(("to", text(node_name(names, row.owner))));
                if let Some(checkpoint) = row.restore_from().filter(|_| row.after_loss) {
                    all.push(("checkpoint", text(checkpoint.number)));
                    all.push(("age_ms", integer(unix_ms.saturating_sub(checkpoint.taken_unix_ms))));
                }
                if row.after_loss { "container.restored" } else { "container.moved" }
            }
            ContainerState::Stopped(exit) if before.state != row.state => {
                match exit {
                    Exit::Code(code) => all.push(("status", Value::Integer(i64::from(*code)))),
                    Exit::Signal(signal) => all.push(("signal", Value::Integer(i64::from(*signal)))),
                    Exit::Never => {}
                }
                "container.stopped"
            }
            ContainerState::Failed(reason) | ContainerState::Lost(reason) if before.state != row.state => {
                all.push(("reason", text(reason)));
                if matches!(row.state, ContainerState::Lost(_)) {
                    "checkpoint.lost"
                } else {
                    "container.failed"
                }
            }
            ContainerState::Running
            | ContainerState::Starting
            | ContainerState::Recovering
            | ContainerState::Stopped(_)
            | ContainerState::Failed(_)
            | ContainerState::Lost(_) => return None,
        };
        Some((kind, fields(all)))
    }

    fn checkpoint_told(&self, id: ContainerId, checkpoint: &CheckpointRef) -> Option<Told> {
        let known = self.containers.get(&id)?;
        let all = [
            ("container", text(&known.name)),
            ("checkpoint", text(checkpoint.number)),
            ("size_bytes", integer(checkpoint.bytes)),
            ("copies", count(checkpoint.copies.len())),
            ("copies_wanted", Value::Integer(i64::from(checkpoint.wanted))),
            ("frozen_ms", integer(checkpoint.frozen_us / 1_000)),
        ];
        Some(("checkpoint.committed", fields(all)))
    }

    /// What this node's lapsed lease stops.
    fn frozen_told(&self, own: NodeId) -> Vec<Told> {
        let here = self
            .containers
            .values()
            .filter(|known| known.owner == own && known.state == ContainerState::Running);
        here.map(|known| {
            let reason = text("the lease of its node has lapsed: a majority of the grantors is not heard");
            ("container.frozen", fields([("container", text(&known.name)), ("reason", reason)]))
        })
        .collect()
    }
}

fn opinion_told(opinion: &Opinion, words: &Dictionary<'_>) -> Vec<Told> {
    match opinion {
        Opinion::Link { peer, network, from, to, .. } => {
            let (before, now) = (link_words::state(*from), link_words::state(*to));
            if before == now {
                return Vec::new();
            }
            let all = [
                ("peer", text(words.node(*peer))),
                ("network", text(words.network(*network))),
                ("state", text(now)),
                ("from", text(before)),
            ];
            vec![("link.state", fields(all))]
        }
        Opinion::Verdict(verdict) => verdict_told(verdict, false, words),
        Opinion::Over(verdict) => verdict_told(verdict, true, words),
        Opinion::Suspected { .. }
        | Opinion::Cleared(_)
        | Opinion::NetworkSuspected { .. }
        | Opinion::NetworkCleared(_)
        | Opinion::Isolated
        | Opinion::Reconnected => Vec::new(),
    }
}

fn verdict_told(verdict: &Verdict, over: bool, words: &Dictionary<'_>) -> Vec<Told> {
    let shown = words.verdict(verdict, None, over, 0);
    let class = text(&shown.class);
    if let Subject::Network(network) = &verdict.subject {
        let state = text(if over { "up" } else { "down" });
        let all = [
            ("network", text(words.network(*network))),
            ("state", state),
            ("class", class),
            ("reason", text(&shown.sentence)),
        ];
        return vec![("network.state", fields(all))];
    }
    // A link tells for itself.
    if matches!(verdict.subject, Subject::Link { .. }) {
        return Vec::new();
    }
    let about = link_words::nodes_of(&verdict.subject).into_iter().map(|node| {
        let mut all = vec![("member", text(words.node(node))), ("class", class.clone())];
        if !over {
            all.push(("evidence", text(&shown.sentence)));
        }
        (if over { "node.cleared" } else { "node.suspected" }, fields(all))
    });
    about.collect()
}

fn fields(all: impl IntoIterator<Item = (&'static str, Value)>) -> Fields {
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn text(value: impl ToString) -> Value {
    Value::Text(value.to_string())
}

fn integer(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

fn count(value: usize) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}
