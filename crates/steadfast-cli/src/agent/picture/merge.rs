//! What changed from one picture to the next, as a JSON merge patch (RFC 7386), and sharing what did not.
//!
//! Pure. A patch says nothing of what is the same, and `null` of what is gone; so a picture never holds `null` itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::Picture;

/// The merge patch that makes `new` of `old`.
pub(super) fn change(old: &Picture, new: &Picture) -> Map<String, Value> {
    let nothing = BTreeMap::new();
    let mut sections = Map::new();
    for name in old.keys().chain(new.keys().filter(|name| !old.contains_key(*name))) {
        let (before, after) = (old.get(name).unwrap_or(&nothing), new.get(name).unwrap_or(&nothing));
        let mut items = Map::new();
        for (key, item) in after {
            match before.get(key) {
                Some(known) if Arc::ptr_eq(known, item) => {}
                Some(known) => {
                    if let Some(patch) = patch(known, item) {
                        items.insert(key.clone(), patch);
                    }
                }
                None => {
                    items.insert(key.clone(), Value::clone(item));
                }
            }
        }
        items.extend(
            before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), Value::Null)),
        );
        // A section that is new is told even when it is empty.
        if !items.is_empty() || !old.contains_key(name) {
            sections.insert((*name).to_owned(), Value::Object(items));
        }
    }
    sections
}

/// The merge patch that makes `new` of `old`; `None` when they are the same.
fn patch(old: &Value, new: &Value) -> Option<Value> {
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        return (old != new).then(|| new.clone());
    };
    let mut fields = Map::new();
    for (key, value) in after {
        match before.get(key) {
            Some(known) => fields.extend(patch(known, value).map(|patch| (key.clone(), patch))),
            None => {
                fields.insert(key.clone(), value.clone());
            }
        }
    }
    fields
        .extend(before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), Value::Null)));
    (!fields.is_empty()).then_some(Value::Object(fields))
}

/// `new` with the very items of `old` wherever they are equal.
pub(super) fn shared(old: &Picture, mut new: Picture) -> Picture {
    for (name, items) in &mut new {
        let Some(known) = old.get(name) else { continue };
        for (key, item) in items {
            if let Some(before) = known.get(key)
                && before == item
            {
                *item = Arc::clone(before);
            }
        }
    }
    new
}

/// The value without the fields that are `null`, at any depth: absent and `null` are the same to a merge patch.
pub(super) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key, without_nulls(value)))
                .collect(),
        ),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => value,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn picture(value: Value) -> Picture {
        let Value::Object(sections) = value else { panic!("sections") };
        let names = ["a", "b", "c"];
        let sections = sections.into_iter().map(|(name, items)| {
            let Value::Object(items) = items else { panic!("items") };
            let name = *names.iter().find(|known| **known == name).unwrap();
            (name, items.into_iter().map(|(key, item)| (key, Arc::new(item))).collect())
        });
        sections.collect()
    }

    /// RFC 7386, section 2, as the page applies it.
    fn apply(target: Value, patch: &Value) -> Value {
        let Value::Object(patch) = patch else { return patch.clone() };
        let mut fields = if let Value::Object(fields) = target { fields } else { Map::new() };
        for (key, value) in patch {
            if value.is_null() {
                fields.remove(key);
            } else {
                let before = fields.remove(key).unwrap_or(Value::Null);
                fields.insert(key.clone(), apply(before, value));
            }
        }
        Value::Object(fields)
    }

    #[test]
    fn a_change_applied_to_the_old_makes_the_new() {
        let states = [
            json!({}),
            json!({"a": {"x": 1, "y": {"p": 1, "q": [1, 2]}}, "b": {}}),
            json!({"a": {"x": 2, "y": {"p": 1, "q": [2]}}, "b": {"z": "s"}}),
            json!({"a": {"y": {"r": {"s": true}}}, "b": {"z": {"t": 1}}}),
            json!({"a": {}, "b": {"z": 5}, "c": {"w": {"v": {}}}}),
        ];
        for old in &states {
            for new in &states {
                let expected = {
                    // Sections are never taken away, only emptied.
                    let mut sections = new.clone();
                    for name in old.as_object().unwrap().keys() {
                        sections.as_object_mut().unwrap().entry(name).or_insert(json!({}));
                    }
                    sections
                };
                let change = change(&picture(old.clone()), &picture(new.clone()));
                assert_eq!(apply(old.clone(), &Value::Object(change)), expected, "{old} to {new}");
            }
        }
    }

    #[test]
    fn a_change_is_small_and_what_is_the_same_is_shared() {
        let old = picture(json!({"a": {"x": {"p": 1, "q": 2}, "y": 3}}));
        let new = shared(&old, picture(json!({"a": {"x": {"p": 1, "q": 5}, "y": 3}})));
        assert!(Arc::ptr_eq(&old["a"]["y"], &new["a"]["y"]));
        assert_eq!(Value::Object(change(&old, &new)), json!({"a": {"x": {"q": 5}}}));
        assert!(change(&old, &old).is_empty());
    }

    #[test]
    fn nothing_in_a_picture_is_null() {
        let value = without_nulls(json!({"a": null, "b": {"c": null, "d": 1}, "e": [null]}));
        assert_eq!(value, json!({"b": {"d": 1}, "e": [null]}));
    }
}
