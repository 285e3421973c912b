//! What can be registered for, and what a producer reports: topics, fields and occurrences (PROTOCOLS 4.3).
//!
//! A topic is an event type with the fields that say what is watched, as `process.exit` with `pid=812`. It is what a
//! consumer registers for, what a producer is active for, and what has one sequence of events on each node. Must never
//! know what any type means: the producers and the filter language do.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest name of an event type or a field, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// How many fields a topic may fix, and how many an event may have.
pub const FIELDS_MAX: usize = 32;
/// The longest text in a field, in bytes.
pub const TEXT_BYTES_MAX: usize = 4_096;

/// The name of an event type, as `disk.usage`: lower-case words with digits, `_` and `-`, joined by dots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventType(Arc<str>);

/// A text that names no event type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is no event type; write lower-case words joined by dots, such as disk.usage, at most {NAME_BYTES_MAX} bytes"
)]
pub struct InvalidType {
    given: String,
}

impl EventType {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EventType {
    type Err = InvalidType;

    fn from_str(text: &str) -> Result<Self, InvalidType> {
        let is_word = |word: &str| {
            word.starts_with(|first: char| first.is_ascii_lowercase())
                && word.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
        };
        if text.len() > NAME_BYTES_MAX || !text.split('.').all(is_word) {
            return Err(InvalidType { given: text.chars().take(NAME_BYTES_MAX).collect() });
        }
        Ok(EventType(text.into()))
    }
}

impl TryFrom<String> for EventType {
    type Error = InvalidType;

    fn try_from(text: String) -> Result<Self, InvalidType> {
        text.parse()
    }
}

impl From<EventType> for String {
    fn from(kind: EventType) -> String {
        kind.0.as_ref().to_owned()
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// Yes or no.
    Flag(bool),
    /// A count, a size in bytes, a time in milliseconds: the field's name says which.
    Integer(i64),
    /// A share or a rate.
    Number(f64),
    /// Anything else.
    Text(String),
}

/// An event's fields by name.
pub type Fields = BTreeMap<String, Value>;

/// An event type, and what of it: all of it where nothing is fixed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Topic {
    /// The type.
    pub kind: EventType,
    /// Fields that are fixed, each with its text: `path` is `/var`.
    pub about: BTreeMap<String, String>,
}

impl From<EventType> for Topic {
    fn from(kind: EventType) -> Self {
        Topic { kind, about: BTreeMap::new() }
    }
}

/// `process.exit[pid=812]`.
impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if self.about.is_empty() {
            return Ok(());
        }
        let about: Vec<String> = self.about.iter().map(|(name, text)| format!("{name}={text}")).collect();
        write!(f, "[{}]", about.join(","))
    }
}

/// Something that a producer saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Occurrence {
    /// When, in microseconds since 1970 by the node's clock.
    pub at_unix_us: u64,
    /// What is known of it.
    pub fields: Fields,
}
