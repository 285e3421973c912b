//! User-defined events: what somebody may emit, from `steadfast events emit user.backup files=3 ok=true`.
//!
//! It decides which types and fields are possible, and under which topics an event is told. It must never let a field
//! hide what every event has, nor let somebody emit what only a producer can know.

use steadfast_proto::events::{EventType, FIELDS_MAX, Fields, NAME_BYTES_MAX, TEXT_BYTES_MAX, Topic, Value};

use super::event::USER_TYPE_FIELD;
use super::filter::ATTRIBUTES;
use super::{USER_ANY, kinds};

/// An event that can't be emitted; nothing was told to anybody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmitError {
    /// The type belongs to a producer.
    #[error(
        "{0} is told by the nodes themselves; a type of your own begins with \"user.\", as user.backup.done"
    )]
    Reserved(String),
    /// The type is none.
    #[error(transparent)]
    Unknown(#[from] kinds::UnknownType),
    /// A field is not of the form name=value.
    #[error("{0:?} is no field; write name=value, as files=3")]
    NoField(String),
    /// A field's name can't be written in a filter.
    #[error(
        "{0:?} is no field's name; at most {NAME_BYTES_MAX} small letters, digits, \"_\" and \"-\" are possible, a letter first"
    )]
    BadName(String),
    /// Every event has this beside its fields.
    #[error("no field can be named {0:?}: every event has that already")]
    Taken(String),
    /// A field stands there twice.
    #[error("the field {0:?} is given twice")]
    Twice(String),
    /// There are too many fields.
    #[error("{0} fields are given; at most {FIELDS_MAX} are possible, one of them is the type")]
    TooMany(usize),
    /// A text is too long.
    #[error("the value of {name:?} has {bytes} bytes; at most {TEXT_BYTES_MAX} are possible")]
    TooLong {
        /// Which field.
        name: String,
        /// How long it is.
        bytes: usize,
    },
}

/// The type under this name, if anybody may emit it.
pub fn kind(name: &str) -> Result<EventType, EmitError> {
    if !kinds::is_user(name) && kinds::find(name).is_some() {
        return Err(EmitError::Reserved(name.to_owned()));
    }
    Ok(kinds::parse(name)?)
}

/// Fields from `name=value` words: `true` and `false` are flags, what reads as a number is one, the rest is text.
pub fn fields<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Fields, EmitError> {
    let mut fields = Fields::new();
    for word in words {
        let (name, text) = word.split_once('=').ok_or_else(|| EmitError::NoField(word.to_owned()))?;
        if fields.insert(name.to_owned(), value(text)).is_some() {
            return Err(EmitError::Twice(name.to_owned()));
        }
    }
    check(&fields)?;
    Ok(fields)
}

/// Refuses fields that no event can have.
pub fn check(fields: &Fields) -> Result<(), EmitError> {
    // One is kept free for the type, under the topic of all user types.
    if fields.len() >= FIELDS_MAX {
        return Err(EmitError::TooMany(fields.len()));
    }
    for (name, value) in fields {
        let is_name = name.starts_with(|first: char| first.is_ascii_lowercase())
            && name.len() <= NAME_BYTES_MAX
            && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        if !is_name || ["and", "or", "not", "in"].contains(&name.as_str()) {
            return Err(EmitError::BadName(name.chars().take(NAME_BYTES_MAX).collect()));
        }
        if ATTRIBUTES.contains(&name.as_str()) {
            return Err(EmitError::Taken(name.clone()));
        }
        if let Value::Text(text) = value
            && text.len() > TEXT_BYTES_MAX
        {
            return Err(EmitError::TooLong { name: name.clone(), bytes: text.len() });
        }
    }
    Ok(())
}

/// Under which topics an emitted event is told, each with the fields it has there: its own type's, and that of all user
/// types. A filter never asks for both, so that nobody hears it twice.
pub fn topics(kind: &EventType, fields: &Fields) -> [(Topic, Fields); 2] {
    let every = USER_ANY.parse::<EventType>().expect("it is one lower-case word");
    let mut with_type = fields.clone();
    with_type.insert(USER_TYPE_FIELD.to_owned(), Value::Text(kind.to_string()));
    [(Topic::from(kind.clone()), fields.clone()), (Topic::from(every), with_type)]
}

fn value(text: &str) -> Value {
    // Rust also reads `inf`, `nan` and `1e5`, which people mean as texts.
    let is_numeric = text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'.'));
    match text {
        "true" => Value::Flag(true),
        "false" => Value::Flag(false),
        _ if !is_numeric => Value::Text(text.to_owned()),
        _ => match (text.parse(), text.parse()) {
            (Ok(integer), _) => Value::Integer(integer),
            (Err(_), Ok(number)) => Value::Number(number),
            (Err(_), Err(_)) => Value::Text(text.to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::cloud::tests::source;
    use super::super::{EventView, topic_text};
    use super::*;

    #[test]
    fn words_become_fields_of_their_sort() {
        let found =
            fields(["files=3", "rate=1.5", "ok=true", "host=10.0.0.1", "note=a=b", "none=", "big=inf"])
                .unwrap();
        let expected = [
            ("files", Value::Integer(3)),
            ("rate", Value::Number(1.5)),
            ("ok", Value::Flag(true)),
            ("host", Value::Text("10.0.0.1".into())),
            ("note", Value::Text("a=b".into())),
            ("none", Value::Text(String::new())),
            ("big", Value::Text("inf".into())),
        ];
        assert_eq!(found, expected.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
    }

    #[test]
    fn what_can_not_be_emitted_is_refused_with_the_word() {
        let refusal = |words: &[&str]| fields(words.iter().copied()).unwrap_err().to_string();
        assert!(refusal(&["files"]).contains("name=value"));
        assert!(refusal(&["Files=3"]).contains("small letters"));
        assert!(refusal(&["and=3"]).contains("no field's name"));
        assert!(refusal(&["node=x"]).contains("has that already"));
        assert!(refusal(&["a=1", "a=2"]).contains("twice"));
        assert!(refusal(&[&format!("a={}", "x".repeat(5_000))]).contains("5000 bytes"));
        let many: Vec<String> = (0..32).map(|number| format!("a{number}=1")).collect();
        assert!(fields(many.iter().map(String::as_str)).unwrap_err().to_string().contains("32 fields"));
        assert!(kind("disk.usage").unwrap_err().to_string().contains("user."));
        assert!(kind("user").is_err() && kind("backup").is_err() && kind("user.backup").is_ok());
    }

    #[test]
    fn an_emitted_event_is_the_same_under_both_topics() {
        let kind = kind("user.backup").unwrap();
        let given = fields(["files=3"]).unwrap();
        for (topic, fields) in topics(&kind, &given) {
            let event = EventView::new(source(&topic_text(&topic)), 1, 0, fields);
            assert_eq!((&event.kind, &event.fields), (&kind, &given));
        }
    }
}
