//! Which events concern one container: its own, those of its node's links and networks, and what users say of it.
//!
//! It decides what the program inside may hear, whatever its filter asks for; it must never let through another
//! container's, nor what watches the machine. Read `api::own` for the socket through which it is asked.

use steadfast_proto::events::{EventType, Value};
use steadfast_proto::ids::NodeId;

use crate::events::Delivery;
use crate::events::kinds;

/// The types whose events name their container.
const OF_CONTAINERS: [&str; 2] = ["container.", "checkpoint."];
/// The types that tell of paths between nodes, each node for itself.
const OF_NODE: [&str; 2] = ["link.state", "network.state"];

/// A container that follows events.
#[derive(Clone, Debug)]
pub(super) struct Own {
    /// Its name.
    pub(super) container: String,
    /// The node that it is on.
    pub(super) node: NodeId,
}

impl Own {
    /// Whether a type can be heard at all.
    pub(super) fn may_hear(&self, kind: &EventType) -> bool {
        names_container(kind.as_str()) || OF_NODE.contains(&kind.as_str())
    }

    /// Whether this concerns it.
    pub(super) fn concerns(&self, delivery: &Delivery) -> bool {
        let source = delivery.source();
        match delivery {
            Delivery::Event(event) if names_container(event.kind.as_str()) => {
                matches!(event.fields.get("container"), Some(Value::Text(name)) if *name == self.container)
            }
            Delivery::Event(event) => OF_NODE.contains(&event.kind.as_str()) && source.node_id == self.node,
            Delivery::Gap(_) | Delivery::Refused { .. } => self.may_hear(&source.topic.kind),
            Delivery::Restarted { .. } | Delivery::Down { .. } => source.node_id == self.node,
        }
    }
}

fn names_container(kind: &str) -> bool {
    kinds::is_user(kind)
        || kind == crate::events::USER_ANY
        || OF_CONTAINERS.iter().any(|start| kind.starts_with(start))
}

#[cfg(test)]
mod tests {
    use steadfast_proto::events::{Fields, Topic};
    use steadfast_proto::ids::Incarnation;

    use super::*;
    use crate::events::{EventView, Source};

    #[test]
    fn a_container_hears_of_itself_and_of_its_node() {
        let own = Own { container: "web".to_owned(), node: NodeId(1) };
        let heard = |kind: &str, node: u128, container: Option<&str>| {
            let topic = Topic::from(kind.parse::<EventType>().unwrap());
            let source =
                Source { node: "n".into(), node_id: NodeId(node), incarnation: Incarnation(1), topic };
            let fields: Fields = container
                .map(|name| ("container".to_owned(), Value::Text(name.to_owned())))
                .into_iter()
                .collect();
            own.concerns(&Delivery::Event(EventView::new(source, 1, 0, fields)))
        };
        for kind in ["container.restored", "checkpoint.committed", "user.note"] {
            assert!(heard(kind, 2, Some("web")), "{kind}");
            assert!(!heard(kind, 1, Some("other")) && !heard(kind, 1, None), "{kind}");
        }
        for kind in ["link.state", "network.state"] {
            assert!(heard(kind, 1, None) && !heard(kind, 2, None), "{kind}");
        }
        for kind in ["process.exit", "kernel.oom", "audit.change", "view.installed", "disk.usage"] {
            assert!(!heard(kind, 1, Some("web")), "{kind}");
        }
    }

    #[test]
    fn every_type_that_names_a_container_is_decided_on() {
        let own = Own { container: "web".to_owned(), node: NodeId(1) };
        let heard: Vec<&str> = kinds::all()
            .iter()
            .map(|kind| kind.name)
            .filter(|name| own.may_hear(&name.parse().unwrap()))
            .collect();
        let expected = [
            "link.state",
            "network.state",
            "container.started",
            "container.stopped",
            "container.moved",
            "container.restored",
            "container.failed",
            "container.frozen",
            "checkpoint.committed",
            "checkpoint.lost",
            "user",
        ];
        assert_eq!(heard, expected);
    }
}
