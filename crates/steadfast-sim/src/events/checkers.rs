//! EV1-EV5 of `docs/protocols/events.md`: what each consumer is given, and what each node is at.
//!
//! Must never look into a node but through what it shows to everybody.

use std::collections::BTreeMap;
use std::fmt;

use steadfast_proto::events::{Delivery, Event, Listener, Message, Position, Status, Topic, Value};
use steadfast_proto::ids::{Incarnation, NodeId};

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its id.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} does not hold: {}", self.invariant, self.what)
    }
}

fn broken<T>(invariant: &'static str, what: String) -> Result<T, Violation> {
    Err(Violation { invariant, what })
}

/// EV1 and EV2: a producer is active exactly while somebody is registered, and the listener steps back.
pub(super) fn check_node(node: NodeId, status: &Status) -> Result<(), Violation> {
    for topic in &status.topics {
        let has_own = topic.consumers > 0 || !topic.replicated.is_empty();
        if topic.active != (has_own || topic.listener == Listener::Registered) {
            return broken("EV1", format!("{node:?} {topic:?}"));
        }
        if topic.listener == Listener::Registered && has_own {
            return broken("EV2", format!("{node:?} {topic:?}"));
        }
        if topic.listener == Listener::Off && !topic.selective.is_empty() {
            return broken("EV1", format!("{node:?} {topic:?}"));
        }
    }
    Ok(())
}

/// EV4: nobody speaks to another node of a topic in which everybody's interest is local.
pub(super) fn check_message(local: &Topic, message: &Message) -> Result<(), Violation> {
    match message {
        Message::Register { topic, .. } if topic == local => broken("EV4", format!("{message:?}")),
        Message::Notify { parts } => {
            let items = parts.iter().flat_map(|part| &part.items);
            let is_local = |item: &steadfast_proto::events::Item| match item {
                steadfast_proto::events::Item::Event { what, .. } => {
                    what.fields.get("topic") == Some(&Value::Text(local.to_string()))
                }
                steadfast_proto::events::Item::Gap { .. } => false,
            };
            if items.into_iter().any(is_local) { broken("EV4", format!("{message:?}")) } else { Ok(()) }
        }
        Message::Register { .. }
        | Message::Registered { .. }
        | Message::Refused { .. }
        | Message::Deregister { .. }
        | Message::Progress { .. }
        | Message::Unknown { .. }
        | Message::Join { .. }
        | Message::Replicate { .. } => Ok(()),
    }
}

/// What one consumer was told.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// Per node, the last number, and what the world counted with it where the last thing was an event.
    places: BTreeMap<NodeId, (Position, Option<i64>)>,
}

impl Told {
    /// A consumer that goes on where another ended.
    pub(super) fn resumed(places: &BTreeMap<NodeId, Position>) -> Told {
        Told { places: places.iter().map(|(node, position)| (*node, (*position, None))).collect() }
    }

    /// Where it is.
    pub(super) fn positions(&self) -> BTreeMap<NodeId, Position> {
        self.places.iter().map(|(node, (position, _))| (*node, *position)).collect()
    }

    /// EV3 and EV5, and that an event says where it happened.
    pub(super) fn check(&mut self, delivery: &Delivery) -> Result<(), Violation> {
        let life = delivery.source().life;
        let known = self.places.get(&life.node).copied();
        let (from, to, count) = match delivery {
            Delivery::Event(event) => (event.seq, event.seq, Some(counted(event)?)),
            Delivery::Gap(gap) => (gap.from, gap.to, None),
            Delivery::SourceRestarted(_) => {
                if known.is_some_and(|(last, _)| last.incarnation >= life.incarnation) {
                    return broken("EV3", format!("{delivery:?} after {known:?}"));
                }
                let begin = Position { incarnation: life.incarnation, seq: 0 };
                self.places.insert(life.node, (begin, None));
                return Ok(());
            }
            Delivery::SourceDown(_) | Delivery::SourceRefused(..) => return Ok(()),
        };
        if let Some((last, last_count)) = known {
            if last.incarnation != life.incarnation {
                return broken("EV5", format!("{delivery:?} after {last:?} without a restart"));
            }
            if from <= last.seq {
                return broken("EV3", format!("{delivery:?} after {last:?}"));
            }
            if from > last.seq + 1 {
                return broken("EV5", format!("{delivery:?} after {last:?}"));
            }
            // What the world counted while the producer was active has no hole either.
            if let (Some(before), Some(count)) = (last_count, count)
                && count != before + 1
            {
                return broken("EV5", format!("happening {count} after {before}: {delivery:?}"));
            }
        }
        let last = Position { incarnation: life.incarnation, seq: to };
        self.places.insert(life.node, (last, count));
        Ok(())
    }

    /// At the end: it is where its source is.
    pub(super) fn check_end(
        &self,
        node: NodeId,
        incarnation: Incarnation,
        next_seq: u64,
    ) -> Result<(), Violation> {
        let Some((last, _)) = self.places.get(&node) else { return Ok(()) };
        if last.incarnation == incarnation && last.seq + 1 == next_seq {
            return Ok(());
        }
        broken("EV5", format!("at rest it was told of {node} up to {last:?}, which is before {next_seq}"))
    }
}

/// The number that the world gave to what happened, if it happened where the event says.
fn counted(event: &Event) -> Result<i64, Violation> {
    let life = event.source.life;
    let place = format!("{}/{}", life.node, life.incarnation);
    match (event.what.fields.get("place"), event.what.fields.get("count")) {
        (Some(Value::Text(said)), Some(Value::Integer(count))) if *said == place => Ok(*count),
        _ => broken("LOOP", format!("{} says {:?}", event.id(), event.what.fields)),
    }
}
