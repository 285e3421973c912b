//! The filters of waits: `amount>20 and currency=EUR`, over the fields of an event's payload.
//!
//! It is the language of [`crate::events::filter`], so that people learn one. A payload that is a JSON object has its fields,
//! nested ones as in `address.city`; any other JSON has the one field `value`; what is no JSON has none. It must stay a pure
//! function: an instance that is recovered must find the same event that it would have found before.

use steadfast_proto::episode::{Event, Match};

use crate::events::filter::Filter;

pub use crate::events::filter::FilterError;

/// Whether an event's payload satisfies the filter of a match; what `steadfast_proto::episode::Filter` holds.
pub fn matches(one: &Match, event: &Event) -> bool {
    let Some(text) = &one.filter else { return true };
    // What can't be read was refused when it was asked for, by this version or another: it waits in vain, visibly.
    let Ok(filter) = text.parse::<Filter>() else { return false };
    let payload =
        serde_json::from_slice(&event.payload).unwrap_or(serde_json::Value::Object(serde_json::Map::new()));
    filter.matches_json(&payload)
}

/// Refuses a filter that can't be read.
///
/// # Errors
/// What is wrong, and before which byte.
pub fn check(text: &str) -> Result<(), FilterError> {
    text.parse::<Filter>().map(drop)
}

#[cfg(test)]
mod tests {
    use steadfast_proto::episode::EventId;

    use super::*;

    fn is_met(filter: &str, payload: &str) -> bool {
        check(filter).expect(filter);
        let event = Event {
            id: EventId::Notice(1),
            kind: "paid".into(),
            source: None,
            correlation: None,
            payload: payload.as_bytes().into(),
        };
        matches(&Match { filter: Some(filter.into()), ..Match::default() }, &event)
    }

    #[test]
    fn a_filter_is_held_against_the_fields_of_the_payload() {
        let payload = r#"{"amount": 25.5, "currency": "EUR", "size_bytes": 2048, "paid": true, "count": 18446744073709551615,
            "note": null, "list": [1], "a.b": 1, "a": {"b": 2, "c": {"d": "deep"}}}"#;
        for (filter, expected) in [
            ("", true),
            ("amount > 20 and currency = EUR", true),
            ("amount > 20 and currency = USD", false),
            ("currency in (USD, EUR)", true),
            ("currency ~ E*", true),
            ("size_bytes >= 2KiB", true),
            ("size_bytes > 2KiB", false),
            ("paid = true", true),
            ("not paid = true", false),
            ("count = 18446744073709551615", true),
            ("count > 5", true),
            ("note = null", false),
            ("list = 1", false),
            ("a.b = 1", true),
            ("a.c.d = deep", true),
            ("a.c = deep", false),
            ("a.c.d.e = deep", false),
            ("absent != 1", false),
            ("value = 1", false),
        ] {
            assert_eq!(is_met(filter, payload), expected, "{filter}");
        }
    }

    #[test]
    fn a_payload_that_is_no_object_has_a_value_and_one_that_is_no_json_has_nothing() {
        for (filter, payload, expected) in [
            ("value > 20", "25", true),
            ("value = hello", "\"hello\"", true),
            ("value = true", "true", true),
            ("other = 25", "25", false),
            ("value = 25", "[25]", false),
            ("value = hello", "hello", false),
            ("value = hello", "", false),
            ("not value = hello", "\u{1}", true),
        ] {
            assert_eq!(is_met(filter, payload), expected, "{filter} {payload}");
        }
    }

    #[test]
    fn a_filter_that_can_not_be_read_is_refused_with_the_place_and_meets_nothing() {
        let error = check("amount > and currency = EUR").expect_err("it lacks a value");
        assert_eq!(error.at(), "amount > ".len());
        assert!(error.to_string().contains("a value after"), "{error}");
        let event = Event {
            id: EventId::Notice(1),
            kind: "a".into(),
            source: None,
            correlation: None,
            payload: b"{}".as_slice().into(),
        };
        assert!(!matches(&Match { filter: Some("(".into()), ..Match::default() }, &event));
        assert!(matches(&Match::default(), &event));
    }

    #[test]
    fn a_payload_nested_deeper_than_anybody_writes_is_no_json() {
        let deep = "[".repeat(100_000);
        assert!(!is_met("value = 1", &deep));
        assert!(!is_met("a.a.a = 1", &format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200))));
    }
}
