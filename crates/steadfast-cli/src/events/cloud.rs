//! Events as JSON: CloudEvents 1.0, and back.
//!
//! It decides which attribute holds what; everything outside sees events in this form alone. Beside events it has words for
//! gaps, restarted sources and sources that are gone, so that a stream of JSON loses nothing silently. It must never
//! decide what an event's fields are. What comes back is checked: [`CloudEvent::delivery`] refuses what it did not write.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use steadfast_proto::events::{EventType, FIELDS_MAX, Fields, TEXT_BYTES_MAX, Topic, Value};
use steadfast_proto::ids::{Incarnation, NodeId};
use utoipa::ToSchema;

use super::event::{MESSAGE_FIELD, about_text, parse_about, parse_topic};
use super::{Delivery, EventView, Lost, Source, USER_ANY, topic_text};

/// The version of the specification that this is.
const SPEC_VERSION: &str = "1.0";
/// What every type begins with here.
pub const TYPE_PREFIX: &str = "steadfast.";
/// The type of a gap, after the prefix.
pub const GAP: &str = "gap";
/// The type of a source that was started again, after the prefix.
pub const RESTARTED: &str = "source.restarted";
/// The type of a source that is gone, after the prefix.
pub const DOWN: &str = "source.down";
/// The type of a source that refuses a registration, after the prefix.
pub const REFUSED: &str = "source.refused";
/// The content type of one event.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// One event in the JSON form of CloudEvents 1.0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CloudEvent {
    /// The version of CloudEvents: `1.0`.
    pub specversion: String,
    /// `NODE-UUID/incarnation/topic/sequence`, never the same for two events; or the id of the message of an episode whose
    /// effect it is, the same where that effect was repeated after a crash.
    pub id: String,
    /// `NODE-UUID/incarnation/topic/sequence`, where the id is something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// `/clusters/NAME/nodes/NODE`.
    pub source: String,
    /// `steadfast.` and the event's type.
    #[serde(rename = "type")]
    pub kind: String,
    /// When it happened, by RFC 3339 with microseconds.
    pub time: String,
    /// What was registered for, where that is not all of the type: `path=/var`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What `data` is: `application/json`.
    pub datacontenttype: String,
    /// The event's fields.
    #[schema(value_type = Object)]
    pub data: Map<String, Json>,
    /// Its place among the events of this source, incarnation, type and subject, with zeros in front, so that texts
    /// have the order of the numbers.
    pub sequence: String,
    /// Which start of the node's agent.
    pub incarnation: String,
}

/// A CloudEvent that is none of ours; nothing was taken from it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{attribute} of the event is {found:?}; {right}")]
pub struct ForeignEvent {
    attribute: &'static str,
    found: String,
    right: &'static str,
}

impl CloudEvent {
    /// What a consumer in this cluster was handed, as JSON.
    pub fn new(cluster: &str, delivery: &Delivery) -> CloudEvent {
        let source = delivery.source();
        let (kind, last, sequence, data) = match delivery {
            Delivery::Event(event) => {
                (event.kind.to_string(), event.sequence.to_string(), event.sequence, json(&event.fields))
            }
            Delivery::Gap(lost) => {
                let mut data = about_source(source);
                data.insert("from".into(), lost.from.into());
                data.insert("to".into(), lost.to.into());
                data.insert("reason".into(), lost.reason.as_str().into());
                (GAP.to_owned(), format!("gap-{}-{}", lost.from, lost.to), lost.to, data)
            }
            // It holds for all of the node's sources; the id has one of them.
            Delivery::Restarted { source: _, at_unix_us } => {
                (RESTARTED.to_owned(), format!("restarted-{at_unix_us}"), 0, Map::new())
            }
            Delivery::Down { source: _, at_unix_us } => {
                (DOWN.to_owned(), format!("down-{at_unix_us}"), 0, Map::new())
            }
            Delivery::Refused { source, sequence, reason, at_unix_us } => {
                let mut data = about_source(source);
                data.insert("reason".into(), reason.as_str().into());
                (REFUSED.to_owned(), format!("refused-{at_unix_us}"), *sequence, data)
            }
        };
        let mut data = data;
        let (id, origin) = match data.remove(MESSAGE_FIELD) {
            Some(Json::String(message)) => (message, Some(source.id(&last))),
            Some(_) | None => (source.id(&last), None),
        };
        CloudEvent {
            specversion: SPEC_VERSION.to_owned(),
            id,
            origin,
            source: format!("/clusters/{}/nodes/{}", path_segment(cluster), path_segment(&source.node)),
            kind: format!("{TYPE_PREFIX}{kind}"),
            time: time(delivery.at_unix_us()),
            subject: Some(about_text(&source.topic.about)).filter(|subject| !subject.is_empty()),
            datacontenttype: "application/json".to_owned(),
            data,
            sequence: format!("{sequence:020}"),
            incarnation: source.incarnation.to_string(),
        }
    }

    /// The type without what every type begins with.
    pub fn short_type(&self) -> &str {
        self.kind.strip_prefix(TYPE_PREFIX).unwrap_or(&self.kind)
    }

    /// The cluster's name and the node's, from `source`.
    pub fn cluster_and_node(&self) -> Result<(&str, &str), ForeignEvent> {
        let found = self.source.strip_prefix("/clusters/").and_then(|rest| rest.split_once("/nodes/"));
        found
            .filter(|(cluster, node)| {
                ![cluster, node].into_iter().any(|part| part.is_empty() || part.contains('/'))
            })
            .ok_or_else(|| self.foreign("source", &self.source, "it has the form /clusters/NAME/nodes/NODE"))
    }

    /// What this was written from.
    pub fn delivery(&self) -> Result<Delivery, ForeignEvent> {
        if self.specversion != SPEC_VERSION {
            return Err(self.foreign("specversion", &self.specversion, "only 1.0 is understood"));
        }
        let (source, last) = self.source()?;
        let at_unix_us = unix_us(&self.time)
            .ok_or_else(|| self.foreign("time", &self.time, "it is a time as 2026-01-31T12:00:00.000000Z"))?;
        match self.short_type() {
            GAP if last.starts_with("gap-") => self.gap(source, at_unix_us).map(Delivery::Gap),
            RESTARTED if last.starts_with("restarted-") => Ok(Delivery::Restarted { source, at_unix_us }),
            DOWN if last.starts_with("down-") => Ok(Delivery::Down { source, at_unix_us }),
            REFUSED if last.starts_with("refused-") => self.refused(source, at_unix_us),
            _ => self.event(source, last, at_unix_us).map(Delivery::Event),
        }
    }

    /// The source, and the last part of the id.
    fn source(&self) -> Result<(Source, &str), ForeignEvent> {
        let (attribute, id) = match &self.origin {
            Some(origin) => ("origin", origin),
            None => ("id", &self.id),
        };
        let wrong = || self.foreign(attribute, id, "it has the form NODE-UUID/incarnation/topic/sequence");
        let (node_id, rest) = id.split_once('/').ok_or_else(wrong)?;
        let (incarnation, rest) = rest.split_once('/').ok_or_else(wrong)?;
        let (topic, last) = rest.rsplit_once('/').ok_or_else(wrong)?;
        let (_, node) = self.cluster_and_node()?;
        let topic = parse_topic(topic).ok_or_else(wrong)?;
        if incarnation != self.incarnation {
            return Err(self.foreign("incarnation", &self.incarnation, "it is the one in the id"));
        }
        let subject = parse_about(self.subject.as_deref().unwrap_or_default());
        if subject.as_ref() != Some(&topic.about) {
            let subject = self.subject.as_deref().unwrap_or_default();
            return Err(self.foreign("subject", subject, "it is the topic's part in brackets in the id"));
        }
        let source = Source {
            node: node.to_owned(),
            node_id: NodeId::from_str(node_id).map_err(|_| wrong())?,
            incarnation: Incarnation(incarnation.parse().map_err(|_| wrong())?),
            topic,
        };
        Ok((source, last))
    }

    fn event(&self, source: Source, last: &str, at_unix_us: u64) -> Result<EventView, ForeignEvent> {
        let wrong = || self.foreign("sequence", &self.sequence, "it is the number at the end of the id");
        let sequence: u64 = self.sequence.parse().map_err(|_| wrong())?;
        if last.parse() != Ok(sequence) {
            return Err(wrong());
        }
        let kind: EventType =
            self.kind.strip_prefix(TYPE_PREFIX).and_then(|kind| kind.parse().ok()).ok_or_else(|| {
                self.foreign("type", &self.kind, "it is an event type after \"steadfast.\"")
            })?;
        let is_of_topic = kind == source.topic.kind || source.topic.kind.as_str() == USER_ANY;
        if !is_of_topic {
            return Err(self.foreign("type", &self.kind, "it is the type in the id"));
        }
        Ok(EventView { source, kind, sequence, at_unix_us, fields: self.fields()? })
    }

    fn fields(&self) -> Result<Fields, ForeignEvent> {
        if self.data.len() > FIELDS_MAX {
            return Err(self.foreign(
                "data",
                &format!("{} fields", self.data.len()),
                "at most 32 are possible",
            ));
        }
        let field = |(name, json): (&String, &Json)| Some((name.clone(), value(json)?));
        let mut fields: Option<Fields> = self.data.iter().map(field).collect();
        if let (Some(fields), Some(_)) = (&mut fields, &self.origin) {
            fields.insert(MESSAGE_FIELD.to_owned(), Value::Text(self.id.clone()));
        }
        fields.ok_or_else(|| {
            self.foreign(
                "data",
                &Json::Object(self.data.clone()).to_string(),
                "it holds texts, numbers, true and false",
            )
        })
    }

    fn gap(&self, source: Source, at_unix_us: u64) -> Result<Lost, ForeignEvent> {
        let number = |name: &str| self.data.get(name).and_then(Json::as_u64);
        let reason = self.data.get("reason").and_then(Json::as_str);
        let (Some(from), Some(to), Some(reason)) = (number("from"), number("to"), reason) else {
            let found = Json::Object(self.data.clone()).to_string();
            return Err(self.foreign("data", &found, "a gap has from, to and reason"));
        };
        Ok(Lost { source, from, to, reason: reason.to_owned(), at_unix_us })
    }

    fn refused(&self, source: Source, at_unix_us: u64) -> Result<Delivery, ForeignEvent> {
        let sequence = self.sequence.parse().map_err(|_| {
            self.foreign("sequence", &self.sequence, "it is the place of the refusal in the sequence, or 0")
        })?;
        let Some(reason) = self.data.get("reason").and_then(Json::as_str) else {
            let found = Json::Object(self.data.clone()).to_string();
            return Err(self.foreign("data", &found, "a refusal has a reason"));
        };
        Ok(Delivery::Refused { source, sequence, reason: reason.to_owned(), at_unix_us })
    }

    fn foreign(&self, attribute: &'static str, found: &str, right: &'static str) -> ForeignEvent {
        ForeignEvent { attribute, found: found.chars().take(200).collect(), right }
    }
}

/// What a word about a source says: of which type it is.
fn about_source(source: &Source) -> Map<String, Json> {
    let of = |topic: &Topic| Json::from(topic_text(topic));
    Map::from_iter([("of".to_owned(), of(&source.topic))])
}

/// An event's fields as JSON; a number that JSON has no word for becomes a text.
pub fn json(fields: &Fields) -> Map<String, Json> {
    let json = |value: &Value| match value {
        Value::Flag(flag) => Json::Bool(*flag),
        Value::Integer(integer) => Json::from(*integer),
        Value::Number(number) => {
            serde_json::Number::from_f64(*number).map_or_else(|| Json::from(number.to_string()), Json::Number)
        }
        Value::Text(text) => Json::from(text.as_str()),
    };
    fields.iter().map(|(name, value)| (name.clone(), json(value))).collect()
}

/// The value that a field's JSON is; `None` for lists, objects, null, and texts that are too long.
pub fn value(json: &Json) -> Option<Value> {
    match json {
        Json::Bool(flag) => Some(Value::Flag(*flag)),
        Json::Number(number) => {
            number.as_i64().map(Value::Integer).or_else(|| number.as_f64().map(Value::Number))
        }
        Json::String(text) if text.len() <= TEXT_BYTES_MAX => Some(Value::Text(text.clone())),
        Json::String(_) | Json::Null | Json::Array(_) | Json::Object(_) => None,
    }
}

/// `2026-01-31T12:00:00.000000Z`; the last time that can be written for whatever is later.
pub fn time(at_unix_us: u64) -> String {
    // The end of the year 9999, which the form ends with.
    const LAST_UNIX_US: u64 = 253_402_300_799_999_999;
    let at = UNIX_EPOCH + Duration::from_micros(at_unix_us.min(LAST_UNIX_US));
    humantime::format_rfc3339_micros(at).to_string()
}

fn unix_us(time: &str) -> Option<u64> {
    let at: SystemTime = humantime::parse_rfc3339(time).ok()?;
    u64::try_from(at.duration_since(UNIX_EPOCH).ok()?.as_micros()).ok()
}

/// A name as a part of a path; names are host names, so that this changes none.
fn path_segment(name: &str) -> String {
    crate::api::client::segment(name)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn source(topic: &str) -> Source {
        Source {
            node: "alpha".into(),
            node_id: NodeId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            incarnation: Incarnation(3),
            topic: parse_topic(topic).unwrap(),
        }
    }

    pub(crate) fn event(topic: &str, sequence: u64, fields: &[(&str, Value)]) -> EventView {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        EventView::new(source(topic), sequence, 1_769_860_800_123_456, fields)
    }

    /// The rules of CloudEvents 1.0 and its JSON format, read from the specification and not from the code above.
    pub(crate) fn check_against_the_specification(json: &Json) {
        let object = json.as_object().expect("an event is an object");
        let text = |name: &str| object.get(name).and_then(Json::as_str);
        assert_eq!(text("specversion"), Some("1.0"));
        for required in ["id", "source", "type"] {
            assert!(text(required).is_some_and(|text| !text.is_empty()), "{required} is required");
        }
        for (name, value) in object {
            let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
            assert!(is_name && name.len() <= 20, "{name} is no attribute's name");
            assert!(name == "data" || value.is_string(), "{name} is no text");
            if let Some(text) = value.as_str() {
                assert!(!text.is_empty() && !text.chars().any(char::is_control), "{name} holds {text:?}");
            }
        }
        for reference in ["id", "source"] {
            assert!(text(reference).unwrap().bytes().all(|byte| byte.is_ascii_graphic()), "{reference}");
        }
        let time = text("time").unwrap();
        assert!(time.len() == 27 && time.ends_with('Z') && humantime::parse_rfc3339(time).is_ok(), "{time}");
        assert_eq!(text("datacontenttype"), Some("application/json"));
        assert!(object.get("data").is_some_and(Json::is_object) && !object.contains_key("data_base64"));
    }

    fn there_and_back(delivery: &Delivery) -> CloudEvent {
        let written = CloudEvent::new("prod", delivery);
        let text = serde_json::to_string(&written).unwrap();
        check_against_the_specification(&serde_json::from_str(&text).unwrap());
        let read: CloudEvent = serde_json::from_str(&text).unwrap();
        assert_eq!(read, written);
        assert_eq!(&read.delivery().unwrap(), delivery);
        written
    }

    #[test]
    fn every_delivery_is_a_cloud_event_and_is_read_back() {
        let fields = [
            ("percent", Value::Number(91.5)),
            ("whole", Value::Number(91.0)),
            ("used_bytes", Value::Integer(-5)),
            ("full", Value::Flag(true)),
            ("path", Value::Text("/var/\"x\"\n".into())),
        ];
        let usage = there_and_back(&Delivery::Event(event("disk.usage[path=/var/l%20g]", 7, &fields)));
        assert_eq!(usage.id, "01234567-89ab-cdef-0123-456789abcdef/3/disk.usage[path=/var/l%20g]/7");
        assert_eq!(usage.source, "/clusters/prod/nodes/alpha");
        assert_eq!(usage.kind, "steadfast.disk.usage");
        assert_eq!(usage.time, "2026-01-31T12:00:00.123456Z");
        assert_eq!(usage.subject.as_deref(), Some("path=/var/l%20g"));
        assert_eq!(usage.sequence, "00000000000000000007");

        let lost = Lost {
            source: source("disk.usage"),
            from: 3,
            to: 5,
            reason: "buffer full".into(),
            at_unix_us: 1,
        };
        let gap = there_and_back(&Delivery::Gap(lost));
        assert_eq!(gap.kind, "steadfast.gap");
        assert_eq!(
            Json::Object(gap.data),
            serde_json::json!({"of": "disk.usage", "from": 3, "to": 5, "reason": "buffer full"})
        );
        let (source, at_unix_us) = (source("container.moved[container=web]"), 1_769_860_800_000_000);
        there_and_back(&Delivery::Restarted { source: source.clone(), at_unix_us });
        there_and_back(&Delivery::Down { source: source.clone(), at_unix_us });
        let reason = "/nowhere: there is no such file or folder".to_owned();
        there_and_back(&Delivery::Refused { source, sequence: 7, reason, at_unix_us });
    }

    #[test]
    fn an_event_of_every_user_type_keeps_its_own() {
        let kind: EventType = "user.backup".parse().unwrap();
        let fields: Fields = [("files".to_owned(), Value::Integer(3))].into();
        let [_, (topic, fields)] = crate::events::emit::topics(&kind, &fields);
        assert_eq!(topic_text(&topic), USER_ANY);
        let event = EventView::new(source(USER_ANY), 1, 0, fields);
        let written = there_and_back(&Delivery::Event(event));
        assert_eq!((written.kind.as_str(), written.data.len()), ("steadfast.user.backup", 1));
    }

    #[test]
    fn an_effect_of_an_episode_has_the_id_of_its_message() {
        let fields = [("files", Value::Integer(3)), (MESSAGE_FIELD, Value::Text("m-1".into()))];
        let written = there_and_back(&Delivery::Event(event("user.backup", 4, &fields)));
        assert_eq!((written.id.as_str(), written.data.len()), ("m-1", 1));
        assert_eq!(written.origin.as_deref(), Some("01234567-89ab-cdef-0123-456789abcdef/3/user.backup/4"));
    }

    #[test]
    fn what_json_has_no_number_for_is_a_text() {
        let fields: Fields = [("rate".to_owned(), Value::Number(f64::NAN))].into();
        assert_eq!(Json::Object(json(&fields)), serde_json::json!({"rate": "NaN"}));
    }

    #[test]
    fn a_foreign_event_is_refused_with_the_attribute() {
        let ours = CloudEvent::new("prod", &Delivery::Event(event("disk.usage[path=/var]", 7, &[])));
        let change = |change: fn(&mut CloudEvent)| {
            let mut event = ours.clone();
            change(&mut event);
            event.delivery().unwrap_err().to_string()
        };
        assert!(change(|event| event.specversion = "0.3".into()).starts_with("specversion"));
        assert!(change(|event| event.id = "7".into()).starts_with("id"));
        assert!(change(|event| event.source = "/clusters/prod".into()).starts_with("source"));
        assert!(change(|event| event.time = "yesterday".into()).starts_with("time"));
        assert!(change(|event| event.sequence = "8".into()).starts_with("sequence"));
        assert!(change(|event| event.incarnation = "4".into()).starts_with("incarnation"));
        assert!(change(|event| event.subject = None).starts_with("subject"));
        assert!(change(|event| event.kind = "steadfast.file.change".into()).starts_with("type"));
        assert!(
            change(|event| drop(event.data.insert("list".into(), Json::Array(Vec::new()))))
                .starts_with("data")
        );
    }
}
