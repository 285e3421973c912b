//! What people are shown: status, nodes, containers, checkpoints.
//!
//! Reads only. Status answers without a quorum, from what this node knows; lists that name rows say so when there is
//! none by being as old as this node's copy.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use steadfast::catalog::{CatalogStatus, EngineKind};
use steadfast::node::{Noticed, Unanswered};
use steadfast_proto::catalog::{ContainerRow, ContainerState, NodeRow, View, ViewReason};
use steadfast_proto::detect::{Opinion, Verdict};
use steadfast_proto::ids::{NetworkId, NodeId};
use steadfast_proto::node::{Event, Phase, Status};
use steadfast_proto::wire::Why;

use super::Agent;
use super::duties;
use super::{holders, survival};
use crate::api::convert::{self, Names, node_name, now_unix_ms};
use crate::api::link_words::Dictionary;
use crate::api::{link_types, link_words, links, types};
use crate::codes::Code;
use crate::failure::Failure;

/// A peer that was not heard for so long is not asked anything for people.
const SILENT_MAX: Duration = Duration::from_secs(1);
/// Most happenings that are shown.
const TIMELINE_SHOWN: usize = 512;

impl Agent {
    /// The same words with the nodes' names in the place of their ids.
    pub(crate) fn with_names(&self, words: &str) -> String {
        let names = self.rows.names();
        names.into_iter().fold(words.to_owned(), |words, (id, name)| words.replace(&id.to_string(), &name))
    }

    /// What the core knows.
    pub(crate) async fn status(&self) -> Result<Status, Failure> {
        self.node.status().await.map_err(|error| Failure::new(unanswered(error), error.to_string()))
    }

    /// How the cluster stands, from here.
    pub(crate) async fn shown_status(&self) -> Result<types::Status, Failure> {
        let status = self.status().await?;
        let engine = self.engine.status();
        let names: Names = status.nodes.iter().map(|(id, row)| (*id, row.name.clone())).collect();
        let Some(cluster) = &status.cluster else {
            return Err(Failure::new(
                Code::NoQuorum,
                "this node has joined and has not received the catalog yet; is any other node running?",
            ));
        };
        let Some(view) = &status.view else {
            return Err(Failure::new(Code::NoQuorum, "this node has not received the list of members yet"));
        };
        let counts = self.node.datagrams().await;
        let counts = counts.map_err(|error| Failure::new(unanswered(error), error.to_string()))?;
        let mut datagrams: BTreeMap<String, u64> =
            counts.rejected.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect();
        datagrams.extend([("opened".to_owned(), counts.opened), ("malformed".to_owned(), counts.malformed)]);
        let standing = survival::standing(&status, &engine, view);
        let has_leader = engine.leader.is_some() || engine.engine == EngineKind::Etcd;
        let quorum = engine.has_quorum && has_leader && standing.voters.spare().is_some();
        Ok(types::Status {
            cluster: types::Cluster {
                id: cluster.id.to_string(),
                name: cluster.name.clone(),
                lease_ms: cluster.lease_ms,
                created_unix_ms: cluster.created_unix_ms,
            },
            node: node_name(&names, status.id),
            node_id: status.id.to_string(),
            incarnation: status.incarnation.0,
            quorum,
            leader: status.leader.map(|leader| node_name(&names, leader)),
            catalog: self.shown_catalog(&engine),
            view: convert::view(view, &names),
            survives: survival::survives(&standing, engine.engine, &status, &names),
            lease_left_ms: millis(status.lease_left),
            peers: self.peers_shown(&status, view, &names),
            containers: self.local_containers(&status),
            timeline: self.timeline(&names, &status),
            verdicts: self.standing_verdicts(view),
            warnings: self.warnings(&status, view, quorum, &engine),
            datagrams,
        })
    }

    /// Who keeps the catalog, and whether it answers.
    fn shown_catalog(&self, engine: &CatalogStatus) -> types::CatalogState {
        types::CatalogState {
            engine: engine.engine.name().to_owned(),
            reachable: engine.has_quorum,
            endpoints: self.engine.etcd().map(|settings| settings.endpoints.clone()).unwrap_or_default(),
            why: engine.failure.clone().or_else(|| engine.unreachable.clone()),
        }
    }

    /// The verdicts that hold, and those by which nodes were removed that are not back; what failed first comes first.
    fn standing_verdicts(&self, view: &View) -> Vec<link_types::Verdict> {
        let mut held = self.board.verdicts_since(None).2;
        held.extend(self.board.verdicts_behind(view.removed.keys().copied()));
        let mut verdicts = links::shown(self, &held);
        verdicts.sort_by_key(|verdict| (verdict.since_unix_ms, verdict.generation));
        verdicts
    }

    fn peers_shown(&self, status: &Status, view: &View, names: &Names) -> Vec<types::Peer> {
        let others = status.nodes.values().filter(|row| row.id != status.id);
        others
            .map(|row| {
                let peer = status.peers.get(&row.id);
                let networks = self.networks.iter().zip(0u16..).map(|((network, _), index)| types::Heard {
                    network: network.clone(),
                    age_ms: peer
                        .and_then(|peer| peer.links.get(&NetworkId(index)))
                        .map(|link| millis(status.now.since(link.heard_at))),
                });
                types::Peer {
                    name: node_name(names, row.id),
                    id: row.id.to_string(),
                    member: view.has(row.id),
                    suspected: peer.is_some_and(|peer| peer.suspected),
                    networks: networks.collect(),
                }
            })
            .collect()
    }

    fn local_containers(&self, status: &Status) -> Vec<types::LocalContainer> {
        let shims = self.containers.as_ref().map(|containers| containers.states()).unwrap_or_default();
        let frozen = frozen_why(status);
        let local = status.local.iter().map(|(id, (epoch, phase))| {
            let name =
                status.containers.get(id).map_or_else(|| id.to_string(), |(_, row)| row.spec.name.clone());
            let (state, why) = match (shims.get(id), phase) {
                (_, Phase::Broken(reason)) => ("failed".to_owned(), Some(reason.clone())),
                (_, Phase::Ended(_)) => ("exited".to_owned(), None),
                (_, Phase::Destroying(_)) => ("being removed".to_owned(), None),
                (Some(state), _) if state == "frozen" => (state.clone(), frozen.clone()),
                (Some(state), _) => (state.clone(), None),
                (None, Phase::Bringing(_)) => ("starting".to_owned(), None),
                (None, Phase::Up | Phase::Ending) => {
                    ("unknown".to_owned(), Some("its shim does not answer".to_owned()))
                }
            };
            types::LocalContainer { name, id: id.to_string(), epoch: epoch.0, state, why }
        });
        local.collect()
    }

    fn warnings(&self, status: &Status, view: &View, quorum: bool, engine: &CatalogStatus) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(why) = &engine.unreachable {
            warnings.push(format!("etcd does not answer: nothing is started or moved until it does ({why})"));
        } else if !quorum {
            warnings.push("there is no majority of the catalog's voters: nothing is started or moved, and containers freeze until it is back".to_owned());
        }
        if !status.lease_live {
            warnings.push(frozen_why(status).unwrap_or_default());
        }
        if let Some(failure) = &engine.failure {
            warnings.push(format!("the catalog on this node is closed: {failure}"));
        }
        if let Some(why) = &self.why_no_containers {
            warnings.push(format!("this node runs no containers: {why}"));
        }
        warnings.extend(self.episodes.failures());
        for network in &status.networks_suspected {
            let network = self.networks.get(usize::from(network.0)).map_or("a network", |(name, _)| name);
            warnings
                .push(format!("nobody is heard on {network} at this node: peers are heard on others only"));
        }
        for (_, row) in status.containers.values() {
            let name = &row.spec.name;
            match &row.state {
                ContainerState::Lost(why) => warnings.push(format!("{name} is lost: {why}")),
                ContainerState::Failed(why) => warnings.push(format!("{name} failed: {why}")),
                ContainerState::Starting | ContainerState::Running | ContainerState::Recovering
                    if !view.has(row.owner) =>
                {
                    warnings.push(format!("the node of {name} is out of the view; it is recovered as soon as its lease is over and a holder of its checkpoint is there"));
                }
                ContainerState::Starting | ContainerState::Running | ContainerState::Recovering => {
                    if row.latest.as_ref().is_some_and(|latest| {
                        row.protecting(latest).filter(|copy| view.has(*copy)).count()
                            < usize::from(latest.wanted)
                    }) {
                        warnings.push(format!(
                            "{name} is under-protected: fewer copies of its last checkpoint are there than wanted"
                        ));
                    }
                }
                ContainerState::Stopped(_) => {}
            }
        }
        warnings
    }

    fn timeline(&self, names: &Names, status: &Status) -> Vec<types::Happening> {
        let (noticed, networks) = (self.node.timeline(), self.network_names());
        let mut shown: Vec<types::Happening> =
            noticed.iter().flat_map(|noticed| happening(noticed, names, &networks, status)).collect();
        let surplus = shown.len().saturating_sub(TIMELINE_SHOWN);
        shown.drain(..surplus);
        shown
    }

    /// Every node that the catalog knows.
    pub(crate) async fn shown_nodes(&self) -> Result<Vec<types::Node>, Failure> {
        let status = self.status().await?;
        let view = status.view.as_ref();
        let mut nodes: Vec<types::Node> =
            status.nodes.values().map(|row| shown_node(row, &status, view)).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(nodes)
    }

    /// Every container, by name.
    pub(crate) fn shown_containers(&self) -> Vec<types::Container> {
        let rows = self.rows.all_stale::<ContainerRow>("container/");
        let mut shown: Vec<types::Container> =
            rows.iter().map(|(row, version)| self.shown(row, *version)).collect();
        shown.sort_by(|a, b| a.name.cmp(&b.name));
        shown
    }

    /// The committed checkpoints of one container or of all; each holder is asked for its copy.
    pub(crate) async fn shown_checkpoints(
        &self,
        name: Option<&str>,
    ) -> Result<Vec<types::Checkpoint>, Failure> {
        let mut rows: Vec<ContainerRow> = match name {
            Some(name) => vec![self.rows.container(name).await?.0],
            None => {
                self.rows.all_stale::<ContainerRow>("container/").into_iter().map(|(row, _)| row).collect()
            }
        };
        rows.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        // Whoever is not heard would only be waited for.
        let peers = self.status().await?.peers;
        let is_heard = |node: &NodeId| {
            peers.get(node).is_none_or(|peer| !peer.suspected && peer.silent <= peer.timeout.max(SILENT_MAX))
        };
        let asked: Vec<NodeId> = rows
            .iter()
            .flat_map(ContainerRow::checkpoints)
            .flat_map(|checkpoint| checkpoint.copies.iter().copied())
            .filter(is_heard)
            .collect();
        let held = holders::ask(self, &asked).await;
        let names = self.rows.names();
        let mut shown = Vec::new();
        for row in &rows {
            for checkpoint in row.checkpoints() {
                let mut one = convert::checkpoint(row, checkpoint, &names);
                one.copies = checkpoint
                    .copies
                    .iter()
                    .map(|copy| types::Copy {
                        node: node_name(&names, *copy),
                        state: match held.get(copy) {
                            Some(Some(held)) if held.contains(&checkpoint.manifest) => "held",
                            Some(Some(_)) => "gone",
                            Some(None) | None => "unknown",
                        }
                        .to_owned(),
                    })
                    .collect();
                let holds = |node: &NodeId| {
                    let held = held.get(node).and_then(Option::as_ref);
                    held.is_some_and(|held| held.contains(&checkpoint.manifest))
                };
                let whole = row.protecting(checkpoint).filter(holds).count();
                let possible = one.copies.iter().filter(|copy| copy.state != "gone").count();
                one.protection = match (possible, whole) {
                    (0, _) => "lost",
                    (_, whole) if whole >= usize::from(checkpoint.wanted) => "protected",
                    _ => "under-protected",
                }
                .to_owned();
                shown.push(one);
            }
        }
        Ok(shown)
    }
}

/// The code for a question that the node left unanswered.
pub(super) fn unanswered(why: Unanswered) -> Code {
    match why {
        Unanswered::Stopped => Code::PeerUnreachable,
        Unanswered::Busy => Code::NodeBusy,
    }
}

fn shown_node(row: &NodeRow, status: &Status, view: Option<&View>) -> types::Node {
    let suspected = status.peers.get(&row.id).is_some_and(|peer| peer.suspected);
    let probation = duties::probation(status, row.id).filter(|_| !view.is_some_and(|view| view.has(row.id)));
    let state = match view {
        Some(view) if view.has(row.id) && suspected => "suspected",
        Some(view) if view.has(row.id) && status.draining.contains_key(&row.id) => "draining",
        Some(view) if view.has(row.id) => "member",
        Some(view) => not_a_member(row.id, view, status, probation.as_ref()),
        None => "joining",
    };
    let containers = status.containers.values().map(|(_, container)| container);
    types::Node {
        name: row.name.clone(),
        id: row.id.to_string(),
        state: state.to_owned(),
        this: row.id == status.id,
        addresses: row
            .addresses
            .iter()
            .map(|(network, address)| (network.clone(), address.to_string()))
            .collect(),
        domain: row.domain.clone(),
        memory_bytes: row.memory_bytes,
        containers: containers
            .filter(|container| container.owner == row.id && container.is_active())
            .map(|container| container.spec.name.clone())
            .collect(),
        criu: row.criu.clone(),
        probation,
    }
}

/// What a node is that is no member.
fn not_a_member(
    node: NodeId,
    view: &View,
    status: &Status,
    probation: Option<&types::Probation>,
) -> &'static str {
    match probation {
        Some(probation) if probation.eliminated.is_some() => "eliminated",
        Some(probation) if probation.ready => "ready",
        Some(_) => "probation",
        None if status.draining.get(&node).is_some_and(|drain| drain.leave) => "left",
        None if view.removed.contains_key(&node) => "removed",
        None => "joining",
    }
}

fn frozen_why(status: &Status) -> Option<String> {
    let why = if !status.synced {
        "this node has not heard from a majority since it started"
    } else if !status.view.as_ref().is_some_and(|view| view.has(status.id)) {
        "this node was removed from the view and has not been admitted again"
    } else if status.lease_live {
        "its lease has not reached it yet"
    } else if status.isolated {
        "this node hears nobody, so its lease has lapsed"
    } else {
        "this node's lease has lapsed: too few of the others echo it"
    };
    Some(why.to_owned())
}

/// What an event means to people; some mean several things.
fn happening(
    noticed: &Noticed,
    names: &Names,
    networks: &[String],
    status: &Status,
) -> Vec<types::Happening> {
    let called = Dictionary { names, networks, boot_unix_ms: 0 };
    // A u64 of milliseconds since 1970 fits an f64 exactly.
    #[allow(clippy::cast_precision_loss, reason = "below 2^53 for 280,000 years")]
    let at = noticed.unix_ms as f64;
    let container_name = |id| status.containers.get(id).map(|(_, row)| row.spec.name.clone());
    let one =
        |what: &str, node: Option<NodeId>, container: Option<String>, detail: String| types::Happening {
            at_unix_ms: at,
            what: what.to_owned(),
            node: node.map(|node| node_name(names, node)),
            container,
            detail,
        };
    match &noticed.event {
        Event::Opinion(opinion) => opinion_happening(opinion, &called, &one),
        Event::Installed(view) => {
            let shown = convert::view(view, names);
            let (what, about) = installed(view);
            about
                .into_iter()
                .map(|node| one(what, Some(node), None, format!("view {}: {}", shown.id, shown.reason)))
                .collect()
        }
        Event::LeaseLapsed => {
            vec![one("lease_lapsed", Some(status.id), None, "containers here freeze".to_owned())]
        }
        Event::LeaseRenewed => {
            vec![one("lease_renewed", Some(status.id), None, "containers here may run".to_owned())]
        }
        Event::Fenced(node) => {
            vec![one("fence_over", Some(*node), None, "it certainly holds no lease any more".to_owned())]
        }
        Event::Moved { row, .. } => {
            let shown = convert::container(row, 0, names, None, now_unix_ms());
            vec![one(
                &shown.state,
                Some(row.owner),
                Some(shown.name),
                format!(
                    "epoch {}{}",
                    row.epoch.0,
                    shown.reason.map(|reason| format!(", {reason}")).unwrap_or_default()
                ),
            )]
        }
        Event::Committed { container, checkpoint } => {
            vec![one(
                "checkpoint",
                None,
                container_name(container),
                format!(
                    "number {} of {} bytes, {} copies",
                    checkpoint.number,
                    checkpoint.bytes,
                    checkpoint.copies.len()
                ),
            )]
        }
        Event::CheckpointFailed { container, reason } => {
            vec![one("checkpoint_failed", None, container_name(container), reason.clone())]
        }
        Event::Answer(..) => Vec::new(),
    }
}

/// What a new view did, and to whom.
fn installed(view: &View) -> (&'static str, Vec<NodeId>) {
    match &view.reason {
        ViewReason::Removed(removed) => ("removed", removed.keys().copied().collect()),
        ViewReason::Admitted(node) => ("admitted", vec![*node]),
        ViewReason::Founded => ("founded", vec![view.proposer]),
        ViewReason::Grantor(node) => ("grantor", vec![*node]),
        ViewReason::NoGrantor(node) => ("no_grantor", vec![*node]),
        ViewReason::Replaced { old, new } => ("replaced", vec![*old, *new]),
        ViewReason::Left(node) => ("left", vec![*node]),
    }
}

/// Makes a happening: what, about which node and container, detail.
type Telling<'a> = dyn Fn(&str, Option<NodeId>, Option<String>, String) -> types::Happening + 'a;

fn opinion_happening(opinion: &Opinion, called: &Dictionary<'_>, one: &Telling<'_>) -> Vec<types::Happening> {
    match opinion {
        Opinion::Suspected { peer, why, rule, silent, limit, fresh: _ } => {
            let detail = format!(
                "{}, by the rule {}: silent for {} ms of {} ms",
                why_words(*why),
                link_words::rule(*rule),
                millis(*silent),
                millis(*limit)
            );
            let suspected = one("suspected", Some(*peer), None, detail);
            let mut heard = one("last_heard", Some(*peer), None, "its last heartbeat".to_owned());
            heard.at_unix_ms -= silent.as_secs_f64() * 1000.0;
            vec![heard, suspected]
        }
        Opinion::Cleared(peer) => {
            vec![one("heard_again", Some(*peer), None, "it is not suspected any more".to_owned())]
        }
        Opinion::Link { peer, network, from: _, to } => {
            let detail = format!("{}: {}", called.network(*network), link_words::state(*to));
            vec![one("link", Some(*peer), None, detail)]
        }
        Opinion::NetworkSuspected { network, or_link } => {
            let doubt = if *or_link { ", or only the link to the one peer there is" } else { "" };
            let detail = format!("nobody is heard on {}{doubt}", called.network(*network));
            vec![one("network_suspected", None, None, detail)]
        }
        Opinion::NetworkCleared(network) => vec![one(
            "network_cleared",
            None,
            None,
            format!("{} carries heartbeats again", called.network(*network)),
        )],
        Opinion::Isolated => vec![one("isolated", None, None, "nobody is heard, or hears us".to_owned())],
        Opinion::Reconnected => vec![one("reconnected", None, None, "somebody is heard again".to_owned())],
        Opinion::Verdict(verdict) => verdict_happening("verdict", verdict, called, one),
        Opinion::Over(verdict) => verdict_happening("verdict_over", verdict, called, one),
    }
}

fn verdict_happening(
    what: &str,
    verdict: &Verdict,
    called: &Dictionary<'_>,
    one: &Telling<'_>,
) -> Vec<types::Happening> {
    let accusers: BTreeSet<NodeId> = verdict.evidence.iter().map(|(id, _)| *id).collect();
    let accusers: Vec<String> = accusers.into_iter().map(|id| called.node(id)).collect();
    let mut detail = link_words::words(verdict.class).to_owned();
    if !accusers.is_empty() {
        detail.push_str(&format!(", by {}", accusers.join(", ")));
    }
    let nodes = link_words::nodes_of(&verdict.subject);
    if nodes.is_empty() {
        return vec![one(what, None, None, detail)];
    }
    nodes.into_iter().map(|node| one(what, Some(node), None, detail.clone())).collect()
}

fn why_words(why: Why) -> &'static str {
    match why {
        Why::Silent => "nothing comes",
        Why::Stalled => "its machine answers and its agent does not",
        Why::Crashed => "its machine says that its agent is gone",
        Why::Left => "it said goodbye",
        Why::Deaf => "it hears nothing",
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
