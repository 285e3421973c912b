//! What stands in a picture, section by section, from what the API shows elsewhere.
//!
//! It leaves out what changes all the time and means nothing to people (ages, counts of datagrams), and rounds what is
//! measured, so that a quiet cluster makes no changes. Words are made by `report`, `views` and the API's `convert`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value, json};
use steadfast_proto::links::Interest;

use super::super::Agent;
use super::super::views::Wanted;
use super::Picture;
use super::merge::without_nulls;
use super::others::Others;
use crate::api::link_types::Link;
use crate::api::link_words::Dictionary;
use crate::api::{convert, types};

/// The newest views that are shown.
const VIEWS_SHOWN: usize = 64;

/// Fields of a node that would make a change each second.
const PASSING_OF_NODES: [&str; 1] = ["seconds"];

type Items = BTreeMap<String, Arc<Value>>;

/// The picture as of now. Without a majority it is what this node knows; what it does not know is said under `about`.
pub(super) async fn picture(agent: &Agent, others: &mut Others) -> Picture {
    let mut picture = Picture::new();
    let mut about = Items::new();
    put(&mut about, "node", &agent.node_name(agent.id));
    put(&mut about, "version", &env!("CARGO_PKG_VERSION"));
    put(&mut about, "networks", &agent.network_names());
    match agent.shown_status().await {
        Ok(status) => {
            put(&mut about, "cluster", &status.cluster.name);
            put(&mut about, "lease_ms", &status.cluster.lease_ms);
            picture.insert("standing", standing(&status));
            picture.insert("catalog", catalog(&status));
            picture.insert("verdicts", one("list", &status.verdicts));
        }
        Err(failure) => put(&mut about, "trouble", &failure.message),
    }
    picture.insert("about", about);
    let nodes = agent.shown_nodes().await.unwrap_or_default();
    others.follow(agent, &nodes);
    picture.insert("links", links(agent, others));
    picture.insert("nodes", nodes.iter().map(|node| (node.name.clone(), shown_node(node))).collect());
    picture.insert("views", views(agent));
    picture.insert("containers", containers(agent));
    picture
}

fn standing(status: &types::Status) -> Items {
    let mut items = Items::new();
    put(&mut items, "quorum", &status.quorum);
    put(&mut items, "view", &status.view.id);
    put(&mut items, "members", &status.view.members);
    put(&mut items, "survives", &status.survives);
    put(&mut items, "warnings", &status.warnings);
    // How long it lasts changes all the time; whether it does is what counts.
    put(&mut items, "lease_live", &(status.lease_left_ms > 0));
    items
}

fn catalog(status: &types::Status) -> Items {
    let mut items = Items::new();
    put(&mut items, "engine", &status.catalog.engine);
    put(&mut items, "reachable", &status.catalog.reachable);
    put(&mut items, "endpoints", &status.catalog.endpoints);
    put(&mut items, "why", &status.catalog.why);
    put(&mut items, "leader", &status.leader);
    put(&mut items, "quorum", &status.quorum);
    items
}

fn shown_node(node: &types::Node) -> Arc<Value> {
    let mut value = item(node);
    if let Some(Value::Object(probation)) = value.get_mut("probation") {
        probation.retain(|key, _| !PASSING_OF_NODES.contains(&key.as_str()));
    }
    Arc::new(value)
}

fn views(agent: &Agent) -> Items {
    let names = agent.rows.names();
    let kept = agent.kept_views(Wanted::Newest(VIEWS_SHOWN)).unwrap_or_default();
    let shown = kept.iter().map(|record| convert::view_record(record, &names));
    shown.map(|record| (record.id.to_string(), Arc::new(item(&record)))).collect()
}

fn containers(agent: &Agent) -> Items {
    let shown = agent.shown_containers().into_iter().map(|mut container| {
        // Its instant is there too, and does not change by itself.
        container.at_risk_ms = None;
        (container.name.clone(), Arc::new(item(&container)))
    });
    shown.collect()
}

/// The links of every node that tells them, by node.
fn links(agent: &Agent, others: &mut Others) -> Items {
    let (names, networks) = (agent.rows.names(), agent.network_names());
    let words = Dictionary { names: &names, networks: &networks, boot_unix_ms: agent.board.boot_unix_ms() };
    let report = agent.board.links_since(&Interest::default(), None);
    others.own_links(report.changes.iter().filter_map(|change| words.link(change)));
    let mut items = others.links();
    items.insert(words.node(agent.id), Arc::new(shown_links(others.own().values())));
    items
}

/// A node's links by peer and network.
pub(super) fn shown_links<'a>(links: impl Iterator<Item = &'a Link>) -> Value {
    let mut peers: Map<String, Value> = Map::new();
    for link in links {
        let peer = peers.entry(link.peer.clone()).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(networks) = peer {
            networks.insert(link.network.clone(), shown_link(link));
        }
    }
    Value::Object(peers)
}

fn shown_link(link: &Link) -> Value {
    without_nulls(json!({
        "state": link.state,
        "detail": link.detail,
        "since_unix_ms": rounded_instant(link.since_unix_ms),
        "round_trip_ms": link.round_trip_ms.map(two_digits),
        "jitter_ms": two_digits(link.jitter_ms),
        "loss_percent": link.loss_percent.round(),
    }))
}

/// The clock of boot and that of people drift against each other, so that the last digits of an instant waver.
fn rounded_instant(unix_ms: u64) -> u64 {
    unix_ms / 1000 * 1000
}

/// Two digits that count: 0.24, 1.3, 18.
fn two_digits(figure: f64) -> f64 {
    if !figure.is_finite() || figure <= 0.0 {
        return 0.0;
    }
    let factor = 10f64.powf(1.0 - figure.log10().floor());
    (figure * factor).round() / factor
}

fn one<T: Serialize>(key: &str, value: &T) -> Items {
    let mut items = Items::new();
    put(&mut items, key, value);
    items
}

/// Adds an item unless there is nothing to say.
fn put<T: Serialize + ?Sized>(items: &mut Items, key: &str, value: &T) {
    let value = item(value);
    if !value.is_null() {
        items.insert(key.to_owned(), Arc::new(value));
    }
}

fn item<T: Serialize + ?Sized>(value: &T) -> Value {
    without_nulls(serde_json::to_value(value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_two_digits() {
        let rounded = [0.2449, 1.26, 18.4, 184.0, 0.0, f64::NAN].map(two_digits);
        assert_eq!(rounded, [0.24, 1.3, 18.0, 180.0, 0.0, 0.0]);
    }
}
