//! `effect/event`: an event of somebody's own type, told through this node's hub, with the message's id as its id.
//!
//! ```json
//! {"type": "user.order.shipped", "fields": {"order": "17", "parcels": 2}}
//! ```
//! It is done when the hub has it. Whoever sees an event twice after a crash sees the same id and the same source.

use std::collections::BTreeMap;

use serde::Deserialize;
use steadfast::events::hub::Hub;
use steadfast_proto::events::{EventType, FIELDS_MAX, Fields, Value};
use steadfast_proto::exchange::{Blob, Text};

use super::{Ended, form, reply, reply_kind};
use crate::events::event::MESSAGE_FIELD;
use crate::events::{cloud, emit, kinds};

const EXAMPLE: &str = r#"{"type": "user.order.shipped", "fields": {"order": "17"}}"#;

/// An event that is to be told.
#[derive(Debug)]
pub(crate) struct Order {
    kind: EventType,
    fields: Fields,
    reply: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    fields: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    reply: Option<String>,
}

impl Order {
    pub(super) fn read(payload: &Blob) -> Result<Order, String> {
        let form: Form = form(payload, EXAMPLE)?;
        let kind = emit::kind(&form.kind).map_err(|error| format!("type: {error}"))?;
        if !kinds::is_user(kind.as_str()) {
            return Err(format!(
                "type: {kind} is told by the nodes themselves; a type of your own begins with \"user.\""
            ));
        }
        let mut fields = Fields::new();
        for (name, given) in &form.fields {
            let value = cloud::value(given).ok_or_else(|| {
                format!(
                    "fields: {name:?} is {given}; a text of up to 4 KiB, a number, true or false is possible"
                )
            })?;
            fields.insert(name.clone(), value);
        }
        emit::check(&fields).map_err(|error| format!("fields: {error}"))?;
        // Two are kept free: the id, and the type under the topic of all user types.
        if fields.len() + 2 > FIELDS_MAX {
            return Err(format!("fields: there are {}; {} are possible", fields.len(), FIELDS_MAX - 2));
        }
        Ok(Order { kind, fields, reply: reply_kind(form.reply.as_deref())? })
    }

    pub(super) fn carry_out(&self, hub: &Hub, id: &str) -> Ended {
        let mut fields = self.fields.clone();
        fields.insert(MESSAGE_FIELD.to_owned(), Value::Text(id.to_owned()));
        hub.emit_all(&emit::topics(&self.kind, &fields).map(|(topic, fields)| (topic.kind, fields)));
        Ended::Done(reply(self.reply.as_ref(), &serde_json::json!({"id": id})))
    }
}
