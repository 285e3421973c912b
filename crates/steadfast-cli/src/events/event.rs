//! One event as everybody sees it, and what stands in a stream beside events: gaps, restarts, sources that are gone.
//!
//! It decides the text form of topics and ids, which must be read back unharmed whatever a path or a command holds. It
//! must never know a type's meaning. Read [`super::cloud`] for the JSON made of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use steadfast_proto::events::{EventType, Fields, Topic, Value};
use steadfast_proto::ids::{Incarnation, NodeId};

/// The topic of every user-defined event: what is emitted as `user.backup` is also an event of this topic, with its
/// type in the field [`EventView`] takes it from. A topic names one type, so that `user.*` needs one of its own.
pub const USER_ANY: &str = "user";
/// The field in which an event of [`USER_ANY`] carries its type.
pub(crate) const USER_TYPE_FIELD: &str = "type";

/// The field in which an event carries the id of the message that it is an effect of; nobody can emit a field of that name.
pub(crate) const MESSAGE_FIELD: &str = "_message";

/// Where a sequence of events comes from: there is one per node, incarnation and topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The node's name.
    pub node: String,
    /// The node's persistent id.
    pub node_id: NodeId,
    /// Which start of its agent.
    pub incarnation: Incarnation,
    /// What was registered for.
    pub topic: Topic,
}

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct EventView {
    /// Where it comes from.
    pub source: Source,
    /// Its type: that of the topic, or what an event of [`USER_ANY`] says.
    pub kind: EventType,
    /// Its place in the source's sequence.
    pub sequence: u64,
    /// When it happened, in microseconds since 1970 by the node's clock.
    pub at_unix_us: u64,
    /// What is known of it.
    pub fields: Fields,
}

/// Events that a consumer missed: the numbers `from` to `to`, both included, of one source.
#[derive(Clone, Debug, PartialEq)]
pub struct Lost {
    /// Whose events.
    pub source: Source,
    /// The first that is missing.
    pub from: u64,
    /// The last that is missing.
    pub to: u64,
    /// Why, in words.
    pub reason: String,
    /// When this became known, in microseconds since 1970.
    pub at_unix_us: u64,
}

/// What a consumer is handed.
#[derive(Clone, Debug, PartialEq)]
pub enum Delivery {
    /// An event.
    Event(EventView),
    /// Events that were missed.
    Gap(Lost),
    /// The source's agent was started again: its sequence begins anew under this incarnation.
    Restarted {
        /// The new source.
        source: Source,
        /// When this became known, in microseconds since 1970.
        at_unix_us: u64,
    },
    /// The source's node has left the cluster or was removed.
    Down {
        /// The source that is gone.
        source: Source,
        /// When this became known, in microseconds since 1970.
        at_unix_us: u64,
    },
    /// The source's node can't watch this, or takes no more registrations.
    Refused {
        /// The source that refuses.
        source: Source,
        /// The number that this takes in its sequence; 0 where it takes none.
        sequence: u64,
        /// Why, in words.
        reason: String,
        /// When this became known, in microseconds since 1970.
        at_unix_us: u64,
    },
}

impl EventView {
    /// An event of this source; one of [`USER_ANY`] gets the type that it carries.
    pub fn new(source: Source, sequence: u64, at_unix_us: u64, mut fields: Fields) -> Self {
        let mut kind = source.topic.kind.clone();
        if kind.as_str() == USER_ANY
            && let Some(Value::Text(named)) = fields.get(USER_TYPE_FIELD)
            && let Ok(named) = named.parse()
        {
            kind = named;
            fields.remove(USER_TYPE_FIELD);
        }
        Self { source, kind, sequence, at_unix_us, fields }
    }

    /// `NODE-UUID/incarnation/topic/sequence`: never the same for two events.
    pub fn id(&self) -> String {
        self.source.id(&self.sequence.to_string())
    }
}

impl Source {
    /// What an id begins with, and `last`.
    pub(super) fn id(&self, last: &str) -> String {
        format!("{}/{}/{}/{last}", self.node_id, self.incarnation, topic_text(&self.topic))
    }
}

impl Delivery {
    /// Whose word it is.
    pub fn source(&self) -> &Source {
        match self {
            Delivery::Event(event) => &event.source,
            Delivery::Gap(lost) => &lost.source,
            Delivery::Restarted { source, .. }
            | Delivery::Down { source, .. }
            | Delivery::Refused { source, .. } => source,
        }
    }

    /// When it happened or became known, in microseconds since 1970.
    pub fn at_unix_us(&self) -> u64 {
        match self {
            Delivery::Event(event) => event.at_unix_us,
            Delivery::Gap(lost) => lost.at_unix_us,
            Delivery::Restarted { at_unix_us, .. }
            | Delivery::Down { at_unix_us, .. }
            | Delivery::Refused { at_unix_us, .. } => *at_unix_us,
        }
    }
}

/// A field's value in its one text form, in which a topic fixes it and a filter compares it.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Flag(flag) => flag.to_string(),
        Value::Integer(integer) => integer.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Text(text) => text.clone(),
    }
}

/// `process.exit[pid=12,command=a%2Cb]`: as a topic prints itself, with `%XX` for what would end a part of it.
pub fn topic_text(topic: &Topic) -> String {
    if topic.about.is_empty() {
        return topic.kind.to_string();
    }
    format!("{}[{}]", topic.kind, about_text(&topic.about))
}

/// What [`topic_text`] wrote; `None` for anything else.
pub fn parse_topic(text: &str) -> Option<Topic> {
    let Some(opened) = text.strip_suffix(']') else {
        return Some(Topic::from(text.parse::<EventType>().ok()?));
    };
    let (kind, about) = opened.split_once('[')?;
    let about = parse_about(about)?;
    if about.is_empty() {
        return None;
    }
    Some(Topic { kind: kind.parse().ok()?, about })
}

/// The fixed fields of a topic: `pid=12,command=a%2Cb`.
pub(super) fn about_text(about: &BTreeMap<String, String>) -> String {
    let parts: Vec<String> =
        about.iter().map(|(name, text)| format!("{}={}", escaped(name), escaped(text))).collect();
    parts.join(",")
}

/// What [`about_text`] wrote.
pub(super) fn parse_about(text: &str) -> Option<BTreeMap<String, String>> {
    let mut about = BTreeMap::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=')?;
        about.insert(unescaped(name)?, unescaped(value)?);
    }
    Some(about)
}

/// `%XX` for bytes that are neither printable ASCII nor free of a meaning here.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !b"%,=[]\"\\<>^`{|}".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a text cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [*rest.next()?, *rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_read_back_whatever_its_fields_hold() {
        for value in ["12", "/var/log", "a,b=c]", "50%", "näh\n", "", "[x]"] {
            let topic = Topic {
                kind: "process.exit".parse().unwrap(),
                about: [("command".to_owned(), value.to_owned()), ("pid".to_owned(), "1".to_owned())].into(),
            };
            assert_eq!(parse_topic(&topic_text(&topic)), Some(topic), "{value:?}");
        }
        let plain = Topic::from("disk.usage".parse::<EventType>().unwrap());
        assert_eq!(parse_topic(&topic_text(&plain)), Some(plain));
        for wrong in
            ["", "Disk", "disk.usage[", "disk.usage[]", "disk.usage[path]", "disk.usage[path=%G0]", "a]"]
        {
            assert_eq!(parse_topic(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn an_event_of_every_user_type_has_the_type_it_was_emitted_as() {
        let source = Source {
            node: "alpha".into(),
            node_id: NodeId(7),
            incarnation: Incarnation(2),
            topic: Topic::from(USER_ANY.parse::<EventType>().unwrap()),
        };
        let fields: Fields =
            [("type".to_owned(), Value::Text("user.backup".into())), ("size".to_owned(), Value::Integer(5))]
                .into();
        let event = EventView::new(source, 9, 0, fields);
        assert_eq!(event.kind.as_str(), "user.backup");
        assert_eq!(event.fields.keys().collect::<Vec<_>>(), ["size"]);
        assert!(event.id().ends_with("/2/user/9"), "{}", event.id());
    }
}
