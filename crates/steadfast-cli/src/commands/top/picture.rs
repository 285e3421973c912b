//! The picture of the cluster as the agent's stream tells it: merge patches (RFC 7386) taken over item by item.
//!
//! It reads only what is shown; whatever a newer agent tells beyond that is left alone, and an item that can't be read is left
//! out. It concludes nothing: read `judge` for what is wrong.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::api::page_types::PictureChange;

/// How each node hears each other one: by peer, then by network.
pub(super) type Peers = BTreeMap<String, BTreeMap<String, Link>>;

/// What is known of the cluster.
#[derive(Debug, Default)]
pub(super) struct Picture {
    pub(super) about: About,
    pub(super) standing: Standing,
    pub(super) catalog: Catalog,
    pub(super) verdicts: Vec<Verdict>,
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) links: BTreeMap<String, Peers>,
    /// By number.
    pub(super) views: BTreeMap<u64, View>,
    pub(super) containers: BTreeMap<String, Container>,
    raw: BTreeMap<String, Map<String, Value>>,
}

/// Who tells, and of what.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct About {
    pub(super) node: String,
    pub(super) cluster: String,
    pub(super) networks: Vec<String>,
    pub(super) trouble: Option<String>,
}

/// How the cluster stands.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Standing {
    pub(super) quorum: bool,
    pub(super) view: Option<u64>,
    pub(super) members: Vec<String>,
    pub(super) survives: Option<Survives>,
    pub(super) warnings: Vec<String>,
}

/// What failure is survived.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Survives {
    pub(super) nodes: u32,
}

/// Who keeps the catalog.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Catalog {
    pub(super) engine: String,
    pub(super) quorum: bool,
    pub(super) leader: Option<String>,
}

/// What failed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Verdict {
    pub(super) class: String,
    pub(super) sentence: String,
    pub(super) nodes: Vec<String>,
}

/// A node.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) this: bool,
    pub(super) addresses: BTreeMap<String, String>,
    pub(super) memory_bytes: u64,
    pub(super) containers: Vec<String>,
    pub(super) probation: Option<Probation>,
}

/// How a candidate stands.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Probation {
    pub(super) eliminated: Option<Eliminated>,
}

/// Why a candidate was not admitted.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Eliminated {
    pub(super) measured: String,
}

/// How one node hears another on one network.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Link {
    pub(super) state: String,
    pub(super) detail: Option<String>,
    pub(super) since_unix_ms: u64,
    pub(super) round_trip_ms: Option<f64>,
    pub(super) loss_percent: f64,
}

/// An agreed list of members.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct View {
    pub(super) id: u64,
    pub(super) members: Vec<Member>,
    pub(super) change: String,
    pub(super) proposer: String,
    pub(super) reason: String,
    pub(super) proposed_unix_ms: u64,
}

/// A member of a view.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Member {
    pub(super) node: String,
}

/// A container.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) state: String,
    pub(super) reason: Option<String>,
    pub(super) owner_in_view: bool,
    pub(super) latest: Option<Checkpoint>,
    pub(super) copies_wanted: u32,
}

/// Its newest committed checkpoint.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Checkpoint {
    pub(super) number: u64,
    pub(super) taken_unix_ms: u64,
    pub(super) bytes: u64,
    pub(super) copies: Vec<Held>,
}

/// One copy of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Held {
    pub(super) node: String,
}

impl Picture {
    /// Takes over what the stream told.
    pub(super) fn take(&mut self, told: PictureChange) {
        if told.whole {
            *self = Picture::default();
        }
        for (section, patch) in told.change {
            let Value::Object(patch) = patch else { continue };
            let items = self.raw.entry(section.clone()).or_default();
            let keys: Vec<String> = patch.keys().cloned().collect();
            merge(items, patch);
            match section.as_str() {
                "about" => self.about = section_of(items),
                "standing" => self.standing = section_of(items),
                "catalog" => self.catalog = section_of(items),
                "verdicts" => self.verdicts = items.get("list").and_then(read).unwrap_or_default(),
                "nodes" => take_items(items, keys, &mut self.nodes),
                "links" => take_items(items, keys, &mut self.links),
                "views" => take_items(items, keys, &mut self.views),
                "containers" => take_items(items, keys, &mut self.containers),
                // Of a newer agent.
                _ => {
                    self.raw.remove(&section);
                }
            }
        }
    }
}

/// RFC 7386, section 2.
fn merge(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(&key);
            }
            Value::Object(patch) => {
                let before = target.entry(key).or_insert_with(|| Value::Object(Map::new()));
                if !before.is_object() {
                    *before = Value::Object(Map::new());
                }
                if let Value::Object(fields) = before {
                    merge(fields, patch);
                }
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                target.insert(key, value);
            }
        }
    }
}

fn section_of<T: DeserializeOwned + Default>(items: &Map<String, Value>) -> T {
    read(&Value::Object(items.clone())).unwrap_or_default()
}

fn take_items<K: std::str::FromStr + Ord, T: DeserializeOwned>(
    items: &Map<String, Value>,
    keys: Vec<String>,
    into: &mut BTreeMap<K, T>,
) {
    for name in keys {
        let Ok(key) = name.parse() else { continue };
        match items.get(&name).and_then(read) {
            Some(item) => into.insert(key, item),
            None => into.remove(&key),
        };
    }
}

fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}

/// A picture for tests, of sections as the stream tells them.
#[cfg(test)]
pub(super) fn picture_of(sections: Value) -> Picture {
    let mut picture = Picture::default();
    picture.take(told(true, sections));
    picture
}

#[cfg(test)]
pub(super) fn told(whole: bool, change: Value) -> PictureChange {
    let Value::Object(change) = change else { panic!("sections") };
    PictureChange { whole, at_unix_ms: 0, change }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patches_change_add_and_take_away_items() {
        let mut picture = picture_of(json!({
            "nodes": {"alpha": {"name": "alpha", "state": "member"}, "beta": {"name": "beta", "state": "member"}},
            "links": {"alpha": {"beta": {"net0": {"state": "up", "round_trip_ms": 0.2}}}},
            "views": {"1": {"id": 1, "reason": "founded"}},
            "verdicts": {},
            "weather": {"sun": {"shines": true}},
        }));
        picture.take(told(
            false,
            json!({
                "nodes": {"beta": {"state": "removed"}, "gamma": {"name": "gamma"}, "alpha": null},
                "links": {"alpha": {"beta": {"net0": {"state": "down", "round_trip_ms": null}}}},
                "views": {"2": {"id": 2}},
                "verdicts": {"list": [{"class": "host-dead", "nodes": ["beta"]}]},
            }),
        ));
        assert_eq!(picture.nodes.keys().collect::<Vec<_>>(), ["beta", "gamma"]);
        assert_eq!(
            (picture.nodes["beta"].name.as_str(), picture.nodes["beta"].state.as_str()),
            ("beta", "removed")
        );
        let link = &picture.links["alpha"]["beta"]["net0"];
        assert_eq!((link.state.as_str(), link.round_trip_ms), ("down", None));
        assert_eq!(picture.views.keys().collect::<Vec<_>>(), [&1, &2]);
        assert_eq!(picture.verdicts[0].class, "host-dead");
    }

    #[test]
    fn a_whole_picture_forgets_the_one_before_and_an_item_that_cannot_be_read_is_left_out() {
        let mut picture = picture_of(json!({"nodes": {"alpha": {"name": "alpha"}}}));
        picture.take(told(
            true,
            json!({"nodes": {"beta": {"name": 5}, "gamma": {"name": "gamma"}}, "views": {"x": {}}}),
        ));
        assert_eq!(picture.nodes.keys().collect::<Vec<_>>(), ["gamma"]);
        assert!(picture.views.is_empty());
    }
}
