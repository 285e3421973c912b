//! `/metrics`: what a node measures, in the format of OpenMetrics, for Prometheus.
//!
//! Each scrape looks anew at what the API shows anyhow, so nothing is counted twice and nothing runs between two
//! scrapes. A node tells of itself, its links and the containers that it owns; what every node knows alike carries no
//! node's name, so any one of them may be asked. Names and units go by Prometheus' conventions: base units, `_total`
//! for what only grows. `packaging/grafana.json` draws them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use steadfast::memory::Usage;

use super::link_types::LinkReport;
use super::types::{Container, Node, Status};
use super::{link_words, links};
use crate::agent::Agent;
use crate::codes::Code;
use crate::failure::Failure;
use crate::verdicts;

/// What the page is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The states that nodes are counted by; one that is not among them is counted by its own name.
const NODE_STATES: [&str; 4] = ["member", "suspected", "ready", "removed"];

/// Everything that the page is made of.
#[derive(Clone, Debug)]
struct Seen {
    status: Status,
    nodes: Vec<Node>,
    links: LinkReport,
    containers: Vec<Container>,
    memory: Option<Usage>,
}

pub(super) async fn metrics(State(agent): State<Arc<Agent>>) -> Result<Response, Failure> {
    let seen = Seen {
        status: agent.shown_status().await?,
        nodes: agent.shown_nodes().await?,
        links: links::all_links(&agent),
        containers: agent.shown_containers(),
        memory: agent.memory.usage().await,
    };
    let page = seen.page().map_err(|error| Failure::new(Code::Internal, format!("the metrics: {error}")))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], page).into_response())
}

type Labels = Vec<(&'static str, String)>;

/// The page as it grows.
#[derive(Default)]
struct Page {
    registry: Registry,
}

impl Page {
    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        match unit {
            Some(unit) => self.registry.register_with_unit(name, help, unit, family),
            None => self.registry.register(name, help, family),
        }
    }

    fn one(&mut self, name: &str, help: &str, unit: Option<Unit>, value: f64) {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        match unit {
            Some(unit) => self.registry.register_with_unit(name, help, unit, gauge),
            None => self.registry.register(name, help, gauge),
        }
    }

    fn counter(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.registry.register(name, help, family);
    }
}

impl Seen {
    fn page(&self) -> Result<String, std::fmt::Error> {
        let mut page = Page { registry: Registry::with_prefix("steadfast") };
        self.add_cluster(&mut page);
        self.add_node(&mut page);
        self.add_links(&mut page);
        self.add_containers(&mut page);
        let mut text = String::new();
        encode(&mut text, &page.registry)?;
        Ok(text)
    }

    fn add_cluster(&self, page: &mut Page) {
        let status = &self.status;
        page.one("quorum", "Whether a majority of the catalog's voters answers", None, yes(status.quorum));
        page.one(
            "catalog_reachable",
            "Whether the catalog answers this node",
            None,
            yes(status.catalog.reachable),
        );
        page.one("view_number", "The number of the agreed list of members", None, count(status.view.id));
        page.one("view_members", "How many members it has", None, number(status.view.members.len()));
        let mut states: BTreeMap<&str, usize> = NODE_STATES.iter().map(|state| (*state, 0)).collect();
        for node in &self.nodes {
            *states.entry(&node.state).or_default() += 1;
        }
        let states =
            states.into_iter().map(|(state, many)| (vec![("state", state.to_owned())], number(many)));
        page.gauge("nodes", "Nodes that the cluster knows, by state", None, states);
        let mut classes: BTreeMap<&str, usize> = verdicts::PAGES.iter().map(|page| (page.name, 0)).collect();
        for verdict in status.verdicts.iter().filter(|verdict| !verdict.over) {
            *classes.entry(&verdict.class).or_default() += 1;
        }
        let classes =
            classes.into_iter().map(|(class, many)| (vec![("class", class.to_owned())], number(many)));
        page.gauge("verdicts", "Verdicts that hold on this node, by class", None, classes);
        let mut states: BTreeMap<&str, usize> = BTreeMap::new();
        for container in &self.containers {
            *states.entry(&container.state).or_default() += 1;
        }
        let states =
            states.into_iter().map(|(state, many)| (vec![("state", state.to_owned())], number(many)));
        page.gauge("containers", "Containers of the cluster, by state", None, states);
    }

    fn add_node(&self, page: &mut Page) {
        let status = &self.status;
        let info = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("cluster", status.cluster.name.clone()),
            ("node", status.node.clone()),
            ("node_id", status.node_id.clone()),
            ("catalog", status.catalog.engine.clone()),
        ];
        page.gauge("node_info", "The node that answers", None, [(info, 1.0)]);
        page.one(
            "node_starts",
            "How often this node's agent was started: its incarnation",
            None,
            count(status.incarnation),
        );
        page.one(
            "lease_left",
            "How much longer this node may run containers without a renewal",
            Some(Unit::Seconds),
            seconds(count(status.lease_left_ms)),
        );
        page.one("warnings", "What `steadfast status` warns of", None, number(status.warnings.len()));
        let outcomes =
            status.datagrams.iter().map(|(outcome, many)| (vec![("outcome", outcome.clone())], *many));
        page.counter(
            "datagrams",
            "Datagrams that reached this node's heartbeat sockets, by what became of them",
            outcomes,
        );
        let Some(memory) = &self.memory else { return };
        let kind = |kind: &str, bytes: u64| (vec![("kind", kind.to_owned())], count(bytes));
        let kinds = [
            kind("lent", memory.budget),
            kind("used", memory.used),
            kind("reserved", memory.reserved),
            kind("free", memory.free),
        ];
        page.gauge("checkpoint_memory", "Checkpoint memory of this node", Some(Unit::Bytes), kinds);
    }

    fn add_links(&self, page: &mut Page) {
        let ends =
            |peer: &str, network: &str| vec![("peer", peer.to_owned()), ("network", network.to_owned())];
        let links = &self.links.links;
        let states = links.iter().flat_map(|link| {
            link_words::STATES.iter().map(move |state| {
                let mut labels = ends(&link.peer, &link.network);
                labels.push(("state", (*state).to_owned()));
                (labels, yes(link.state == *state))
            })
        });
        page.gauge("link_state", "1 for the state that a link of this node is in", None, states);
        let round_trips = links
            .iter()
            .filter_map(|link| Some((ends(&link.peer, &link.network), seconds(link.round_trip_ms?))));
        page.gauge("link_round_trip", "The mean round trip on a link", Some(Unit::Seconds), round_trips);
        let jitter = links.iter().map(|link| (ends(&link.peer, &link.network), seconds(link.jitter_ms)));
        page.gauge(
            "link_jitter",
            "How much round trips deviate from their mean",
            Some(Unit::Seconds),
            jitter,
        );
        let loss = links.iter().map(|link| (ends(&link.peer, &link.network), link.loss_percent / 100.0));
        page.gauge(
            "link_loss",
            "The share of heartbeats lost lately on a link",
            Some(Unit::Other("ratio".to_owned())),
            loss,
        );
        let suspected =
            self.status.peers.iter().map(|peer| (vec![("peer", peer.name.clone())], yes(peer.suspected)));
        page.gauge("peer_suspected", "Whether this node suspects another", None, suspected);
    }

    /// Of the containers that this node owns: each is told of once in the cluster.
    fn add_containers(&self, page: &mut Page) {
        let own: Vec<&Container> =
            self.containers.iter().filter(|container| container.node == self.status.node).collect();
        let named = |container: &Container| vec![("container", container.name.clone())];
        let states = own.iter().map(|container| {
            let mut labels = named(container);
            labels.push(("state", container.state.clone()));
            (labels, 1.0)
        });
        page.gauge("container_state", "The state of a container of this node", None, states);
        let epochs = own.iter().map(|container| (named(container), count(container.epoch)));
        page.gauge("container_epoch", "How often a container was started or restored", None, epochs);
        let risks = own
            .iter()
            .filter_map(|container| Some((named(container), seconds(count(container.at_risk_ms?)))));
        page.gauge(
            "container_at_risk",
            "How much work of a container would be lost with its node: the age of its newest checkpoint",
            Some(Unit::Seconds),
            risks,
        );
        let copies = own.iter().map(|container| (named(container), f64::from(container.copies)));
        page.gauge(
            "container_copies",
            "Copies of a container's newest checkpoint on other nodes",
            None,
            copies,
        );
        let wanted = own.iter().map(|container| (named(container), f64::from(container.copies_wanted)));
        page.gauge("container_copies_wanted", "Copies that are asked for", None, wanted);
        let latest =
            || own.iter().filter_map(|container| Some((named(container), container.latest.as_ref()?)));
        let bytes = latest().map(|(labels, latest)| (labels, count(latest.bytes)));
        page.gauge(
            "checkpoint_size",
            "The size of a container's newest checkpoint",
            Some(Unit::Bytes),
            bytes,
        );
        let frozen = latest().map(|(labels, latest)| (labels, seconds(latest.frozen_ms)));
        page.gauge(
            "checkpoint_frozen",
            "How long the program was held still for it",
            Some(Unit::Seconds),
            frozen,
        );
    }
}

fn yes(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn seconds(ms: f64) -> f64 {
    ms / 1_000.0
}

// Metrics are 64-bit floats: counts above 2^53 lose their last digits, as in every system of this kind.
#[allow(clippy::cast_precision_loss, reason = "a metric is a float")]
fn count(value: u64) -> f64 {
    value as f64
}

#[allow(clippy::cast_precision_loss, reason = "a metric is a float")]
fn number(value: usize) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;

    fn seen() -> Seen {
        let mut status = json!({
            "cluster": {"id": "c", "name": "demo", "lease_ms": 1000, "created_unix_ms": 1},
            "node": "alpha", "node_id": "a", "incarnation": 7, "quorum": true, "leader": "beta",
            "catalog": {"engine": "embedded", "reachable": true, "endpoints": [], "why": null},
            "view": {"id": 12, "members": ["alpha", "beta"], "proposer": "alpha", "reason": "x"},
            "lease_left_ms": 940,
            "peers": [{"name": "beta", "id": "b", "member": true, "suspected": true, "networks": []}],
            "containers": [], "timeline": [], "warnings": ["one"],
            "datagrams": {"opened": 1000, "replayed": 3}
        });
        status["survives"] =
            json!({"nodes": 1, "hosts": 1, "widest_domains": null, "domains": [], "sentence": "any 1 host"});
        let node = json!({"name": "alpha", "id": "a", "state": "member", "this": true, "addresses": {}, "domain": [],
            "memory_bytes": 1, "containers": ["web\"1"], "criu": "4.2"});
        let link = json!({"peer": "beta", "network": "front", "state": "degraded", "from": null, "heard": true,
            "hears": true, "detail": null, "since_unix_ms": 1, "heard_unix_ms": 2, "round_trip_ms": 0.25,
            "jitter_ms": 0.02, "loss_percent": 12.5, "generation": 4, "coalesced": 0});
        let checkpoint = json!({"container": "web\"1", "number": 3, "epoch": 2, "role": "latest", "taken_unix_ms": 5,
            "bytes": 4096, "frozen_ms": 8.0, "copies": [], "copies_wanted": 2, "protection": "protected",
            "manifest": "m"});
        let container = |name: &str, node: &str| {
            json!({"name": name, "id": "i", "node": node, "state": "running",
            "reason": null, "owner_in_view": true, "epoch": 2, "changed_unix_ms": 1, "latest": checkpoint,
            "at_risk_since_unix_ms": 1, "at_risk_ms": 1500, "copies": 1, "copies_wanted": 2, "spec": {},
            "revision": 9})
        };
        Seen {
            status: serde_json::from_value(status).unwrap(),
            nodes: vec![serde_json::from_value(node).unwrap()],
            links: LinkReport {
                node: "alpha".into(),
                generation: 4,
                whole: true,
                links: vec![serde_json::from_value(link).unwrap()],
                peers: Vec::new(),
            },
            containers: vec![
                serde_json::from_value(container("web\"1", "alpha")).unwrap(),
                serde_json::from_value(container("other", "beta")).unwrap(),
            ],
            memory: Some(Usage { budget: 100, used: 30, reserved: 10, free: 60, chunks: 2 }),
        }
    }

    #[test]
    fn the_page_tells_of_this_node_in_base_units() {
        let page = seen().page().unwrap();
        for line in [
            "steadfast_view_number 12.0",
            "steadfast_nodes{state=\"member\"} 1.0",
            "steadfast_nodes{state=\"suspected\"} 0.0",
            "steadfast_lease_left_seconds 0.94",
            "steadfast_datagrams_total{outcome=\"replayed\"} 3",
            "steadfast_checkpoint_memory_bytes{kind=\"free\"} 60.0",
            "steadfast_link_round_trip_seconds{peer=\"beta\",network=\"front\"} 0.00025",
            "steadfast_link_loss_ratio{peer=\"beta\",network=\"front\"} 0.125",
            "steadfast_link_state{peer=\"beta\",network=\"front\",state=\"degraded\"} 1.0",
            "steadfast_link_state{peer=\"beta\",network=\"front\",state=\"up\"} 0.0",
            "steadfast_container_at_risk_seconds{container=\"web\\\"1\"} 1.5",
            "steadfast_checkpoint_frozen_seconds{container=\"web\\\"1\"} 0.008",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
        assert!(!page.contains("container=\"other\""), "its owner tells of it");
        assert!(page.ends_with("# EOF\n"));
    }

    #[test]
    fn every_metric_has_help_and_a_type_and_its_unit_in_its_name() {
        let page = seen().page().unwrap();
        let mut told = BTreeSet::new();
        for line in page.lines().filter(|line| *line != "# EOF") {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["#", "HELP", name, first, ..] => {
                    assert!(first.starts_with(char::is_uppercase) || first.starts_with('1'), "{line}");
                    assert!(told.insert((*name).to_owned()), "{name} twice");
                }
                ["#", "TYPE", name, kind] => {
                    assert!(told.contains(*name) && ["gauge", "counter"].contains(kind))
                }
                ["#", "UNIT", name, unit] => assert!(name.ends_with(&format!("_{unit}")), "{line}"),
                _ => {
                    let name = line.split(['{', ' ']).next().unwrap().trim_end_matches("_total");
                    assert!(told.contains(name), "{line} comes without help");
                }
            }
        }
    }

    #[test]
    fn the_dashboard_asks_for_metrics_that_exist() {
        let page = seen().page().unwrap();
        let known: BTreeSet<&str> = page.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
        let dashboard: Value =
            serde_json::from_str(include_str!("../../../../packaging/grafana.json")).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        assert!(panels.len() >= 8);
        let mut asked = 0;
        for target in panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten() {
            let expression = target["expr"].as_str().unwrap();
            let is_word = |character: char| character.is_ascii_alphanumeric() || character == '_';
            for word in expression.split(|character| !is_word(character)) {
                if word.starts_with("steadfast_") {
                    assert!(known.contains(word), "{word} of the dashboard is no metric");
                    asked += 1;
                }
            }
        }
        assert!(asked >= 12, "{asked}");
    }
}
