//! The place in a stream of events from which it can be resumed, as a short text.
//!
//! A stream has as many sequences as there are sources, so its place is a number for each. Nodes and topics are written as
//! the first bytes of their hashes: a cursor is only ever read where the same filter names the topics, and the nodes are
//! those of one cluster. What can't be read is refused; what is not in it begins from now on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use steadfast_proto::events::{Delivery, Position, Topic};
use steadfast_proto::ids::{Incarnation, NodeId};

/// The longest text that is read.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// The last place of each sequence that a stream brought.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    places: BTreeMap<u32, BTreeMap<NodeId, (u64, u64)>>,
    /// When the newest event happened, in microseconds since 1970; 0 before the first.
    newest_unix_us: u64,
}

impl Cursor {
    /// Takes note of what was brought. What all nodes agreed on is brought by one node at a time: `is_agreed`.
    pub(super) fn note(&mut self, delivery: &Delivery, is_agreed: bool) {
        let source = delivery.source();
        let seq = match delivery {
            Delivery::Event(event) => event.seq,
            Delivery::Gap(gap) => gap.to,
            Delivery::SourceRestarted(_) => 0,
            Delivery::SourceDown(_) | Delivery::SourceRefused(..) => return,
        };
        let place = (source.life.incarnation.0, seq);
        if let Delivery::Event(event) = delivery {
            self.newest_unix_us = self.newest_unix_us.max(event.what.at_unix_us);
        }
        let topic = self.places.entry(short(&source.topic)).or_default();
        if is_agreed {
            topic.retain(|node, _| *node == source.life.node);
        }
        let known = topic.entry(source.life.node).or_insert(place);
        *known = place.max(*known);
    }

    /// The places in a topic's sequences.
    pub(super) fn positions(&self, topic: &Topic) -> BTreeMap<NodeId, Position> {
        let places = self.places.get(&short(topic)).into_iter().flatten();
        places
            .map(|(node, (incarnation, seq))| {
                (*node, Position { incarnation: Incarnation(*incarnation), seq: *seq })
            })
            .collect()
    }

    /// When the newest event happened that was brought, in microseconds since 1970.
    pub(super) fn newest_unix_us(&self) -> Option<u64> {
        Some(self.newest_unix_us).filter(|unix_us| *unix_us > 0)
    }

    /// The text of it.
    pub(crate) fn text(&self) -> String {
        let bytes = postcard::to_allocvec(self).unwrap_or_default();
        data_encoding::BASE64URL_NOPAD.encode(&bytes)
    }

    /// What [`Cursor::text`] wrote; `None` for anything else.
    pub(crate) fn parse(text: &str) -> Option<Cursor> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let bytes = data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        let (cursor, rest) = postcard::take_from_bytes(&bytes).ok()?;
        rest.is_empty().then_some(cursor)
    }
}

fn short(topic: &Topic) -> u32 {
    let hash = blake3::hash(topic.to_string().as_bytes());
    let first = hash.as_bytes().first_chunk::<4>();
    first.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use steadfast_proto::events::{Event, EventType, Fields, Gap, GapReason, Life, Occurrence, Source};

    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_knows_the_last_of_each_sequence() {
        let topic = |name: &str| Arc::new(Topic::from(name.parse::<EventType>().unwrap()));
        let source = |name: &str, incarnation| {
            let life = Life { node: NodeId(7), incarnation: Incarnation(incarnation) };
            Arc::new(Source { life, topic: topic(name) })
        };
        let event = |source: Arc<Source>, seq| {
            let what = Arc::new(Occurrence { at_unix_us: 1, fields: Fields::new() });
            Delivery::Event(Event { source, seq, what })
        };
        let mut cursor = Cursor::default();
        cursor.note(&event(source("user.a", 1), 3), false);
        let gap = Gap { source: source("user.a", 1), from: 4, to: 9, reason: GapReason::Overrun };
        cursor.note(&Delivery::Gap(gap), false);
        cursor.note(&event(source("user.b", 1), 5), false);
        cursor.note(&Delivery::SourceRestarted(source("user.b", 2)), false);
        let read = Cursor::parse(&cursor.text()).unwrap();
        assert_eq!(read, cursor);
        let place = |name: &str| read.positions(&topic(name)).get(&NodeId(7)).copied();
        assert_eq!(place("user.a"), Some(Position { incarnation: Incarnation(1), seq: 9 }));
        assert_eq!(place("user.b"), Some(Position { incarnation: Incarnation(2), seq: 0 }));
        assert_eq!(place("user.c"), None);
        for wrong in ["!", "AAAA-", "zz", &cursor.text()[1..]] {
            assert_ne!(Cursor::parse(wrong).as_ref(), Some(&cursor), "{wrong}");
        }
    }

    #[test]
    fn what_all_agreed_on_has_a_place_on_the_node_that_brought_it_last() {
        let topic = Arc::new(Topic::from("view.installed".parse::<EventType>().unwrap()));
        let event = |node, at_unix_us| {
            let life = Life { node: NodeId(node), incarnation: Incarnation(1) };
            let what = Arc::new(Occurrence { at_unix_us, fields: Fields::new() });
            Delivery::Event(Event {
                source: Arc::new(Source { life, topic: Arc::clone(&topic) }),
                seq: 4,
                what,
            })
        };
        let mut cursor = Cursor::default();
        assert_eq!(cursor.newest_unix_us(), None);
        cursor.note(&event(7, 50), true);
        cursor.note(&event(8, 60), true);
        cursor.note(&event(8, 55), true);
        let read = Cursor::parse(&cursor.text()).unwrap();
        assert_eq!(read.positions(&topic).into_keys().collect::<Vec<_>>(), [NodeId(8)]);
        assert_eq!(read.newest_unix_us(), Some(60));
    }
}
