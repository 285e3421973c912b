//! How an event looks on a terminal: time, node, type, fields, in columns that only ever grow wider.
//!
//! It decides the words and never what is shown. A text from outside is printed without what moves a cursor. JSON lines
//! are the events of [`super::cloud`], one each.

use std::time::{Duration, UNIX_EPOCH};

use steadfast_proto::events::Value;

use super::cloud::CloudEvent;
use super::kinds::{self, Unit};
use super::{Delivery, EventView, shown, topic_text};
use crate::units::{human_duration, human_size};

/// How wide the columns of node and type begin, in characters.
const NODE_WIDTH_MIN: usize = 8;
const TYPE_WIDTH_MIN: usize = 18;
/// How wide they grow at most; what is longer sticks out.
const WIDTH_MAX: usize = 32;
/// The longest text of one field that is shown, in characters.
const FIELD_CHARS_MAX: usize = 200;

/// Prints events one below the other, aligned.
#[derive(Clone, Debug)]
pub struct Printer {
    node_width: usize,
    type_width: usize,
}

impl Default for Printer {
    fn default() -> Printer {
        Printer { node_width: NODE_WIDTH_MIN, type_width: TYPE_WIDTH_MIN }
    }
}

impl Printer {
    /// What stands above the first line.
    pub fn head(&self) -> String {
        self.columns("TIME (UTC)             ", "NODE", "TYPE", "FIELDS")
    }

    /// One line, without its end.
    pub fn line(&mut self, delivery: &Delivery) -> String {
        let node = plain(&delivery.source().node);
        let (kind, fields) = match delivery {
            Delivery::Event(event) => (event.kind.to_string(), fields(event)),
            Delivery::Gap(lost) => {
                let which = if lost.from == lost.to {
                    format!("event {}", lost.from)
                } else {
                    format!("events {} to {}", lost.from, lost.to)
                };
                let of = plain(&topic_text(&lost.source.topic));
                ("gap".to_owned(), format!("missed {which} of {of}: {}", plain(&lost.reason)))
            }
            Delivery::Restarted { .. } => {
                let words = "its events begin anew: the agent was started again";
                ("source restarted".to_owned(), words.to_owned())
            }
            Delivery::Down { .. } => ("source down".to_owned(), "the node is no member any more".to_owned()),
            Delivery::Refused { source, reason, .. } => {
                let of = plain(&topic_text(&source.topic));
                ("source refused".to_owned(), format!("{of} refused by {node}: {}", plain(reason)))
            }
        };
        self.node_width = self.node_width.max(node.chars().count().min(WIDTH_MAX));
        self.type_width = self.type_width.max(kind.chars().count().min(WIDTH_MAX));
        self.columns(&time(delivery.at_unix_us()), &node, &kind, &fields)
    }

    fn columns(&self, time: &str, node: &str, kind: &str, fields: &str) -> String {
        let (node_width, type_width) = (self.node_width, self.type_width);
        format!("{time}  {node:node_width$}  {kind:type_width$}  {fields}").trim_end().to_owned()
    }
}

/// One event as a line of JSON, without its end.
pub fn json_line(event: &CloudEvent) -> String {
    serde_json::to_string(event).expect("texts and numbers can be written as JSON")
}

/// `2026-01-31 12:00:00.123`
fn time(at_unix_us: u64) -> String {
    // Later than what can be written is as wrong as the year 9999.
    let at = UNIX_EPOCH + Duration::from_micros(at_unix_us.min(253_402_300_799_999_999));
    humantime::format_rfc3339_millis(at).to_string().replace('T', " ").replace('Z', "")
}

/// The fields in the table's order, then whatever else there is.
fn fields(event: &EventView) -> String {
    let kind = event.kind.as_str();
    let known = kinds::find(kind).map(|kind| kind.fields).unwrap_or_default();
    let first = known.iter().filter_map(|field| event.fields.get_key_value(field.name));
    let is_known = |name: &str| known.iter().any(|field| field.name == name);
    let rest = event.fields.iter().filter(|(name, _)| !is_known(name));
    let all: Vec<String> = first
        .chain(rest)
        .map(|(name, value)| format!("{}={}", plain(name), field(kind, name, value)))
        .collect();
    all.join(" ")
}

fn field(kind: &str, name: &str, value: &Value) -> String {
    match (value, kinds::unit(kind, name)) {
        (Value::Integer(bytes), Unit::Bytes) if *bytes >= 0 => {
            human_size(bytes.unsigned_abs()).replace(' ', "")
        }
        (Value::Integer(ms), Unit::Milliseconds) if ms.unsigned_abs() >= 1_000 => {
            let sign = if *ms < 0 { "-" } else { "" };
            format!("{sign}{}", human_duration(Duration::from_millis(ms.unsigned_abs())).replace(' ', ""))
        }
        (Value::Integer(ms), Unit::Milliseconds) => format!("{ms}ms"),
        (Value::Integer(percent), Unit::Percent) => format!("{percent}%"),
        (Value::Number(percent), Unit::Percent) => format!("{}%", (percent * 10.0).round() / 10.0),
        (Value::Text(text), _) => quoted(text),
        (Value::Integer(_) | Value::Number(_) | Value::Flag(_), _) => shown(value),
    }
}

/// In quotes where a reader could not see its end.
fn quoted(text: &str) -> String {
    let shown = plain(text);
    let cut: String = shown.chars().take(FIELD_CHARS_MAX).collect();
    let cut = if cut.len() < shown.len() { format!("{cut}…") } else { cut };
    let is_one_word =
        !cut.is_empty() && !cut.contains(|letter: char| letter.is_whitespace() || "\"=".contains(letter));
    if is_one_word { cut } else { format!("\"{}\"", cut.replace('"', "\\\"")) }
}

/// Without characters that do something to a terminal.
fn plain(text: &str) -> String {
    let is_safe = |letter: char| {
        !letter.is_control()
            && !matches!(letter, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|letter| if is_safe(letter) { letter } else { '\u{fffd}' }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Lost;
    use super::super::cloud::tests::{event, source};
    use super::*;

    #[test]
    fn events_stand_below_each_other_with_units() {
        let mut printer = Printer::default();
        let usage = event(
            "disk.usage",
            1,
            &[
                ("used_bytes", Value::Integer(3 << 30)),
                ("percent", Value::Number(91.26)),
                ("path", Value::Text("/var/my files".into())),
            ],
        );
        let step =
            event("clock.step", 1, &[("by_ms", Value::Integer(-61_500)), ("zebra", Value::Flag(true))]);
        let lost =
            Lost { source: source("disk.usage"), from: 3, to: 5, reason: "suppressed".into(), at_unix_us: 0 };
        let refused = Delivery::Refused {
            source: source("file.change"),
            sequence: 1,
            reason: "/srv is not on this node".into(),
            at_unix_us: 0,
        };
        let lines = [
            printer.head(),
            printer.line(&Delivery::Event(usage)),
            printer.line(&Delivery::Event(step)),
            printer.line(&Delivery::Gap(lost)),
            printer.line(&Delivery::Down { source: source("container.moved"), at_unix_us: 0 }),
            printer.line(&refused),
        ];
        assert_eq!(
            lines.join("\n"),
            "TIME (UTC)               NODE      TYPE                FIELDS\n\
             2026-01-31 12:00:00.123  alpha     disk.usage          percent=91.3% path=\"/var/my files\" used_bytes=3.0GiB\n\
             2026-01-31 12:00:00.123  alpha     clock.step          by_ms=-61s zebra=true\n\
             1970-01-01 00:00:00.000  alpha     gap                 missed events 3 to 5 of disk.usage: suppressed\n\
             1970-01-01 00:00:00.000  alpha     source down         the node is no member any more\n\
             1970-01-01 00:00:00.000  alpha     source refused      file.change refused by alpha: /srv is not on this node"
        );
    }

    #[test]
    fn a_text_from_outside_moves_no_cursor_and_ends() {
        let text = Value::Text(format!("\u{1b}[2J{}", "x".repeat(5_000)));
        let line = Printer::default().line(&Delivery::Event(event("user.x", 1, &[("note", text)])));
        assert!(!line.contains('\u{1b}') && line.ends_with('…') && line.chars().count() < 300, "{line}");
    }

    #[test]
    fn a_longer_name_widens_the_column_for_what_follows() {
        let mut printer = Printer::default();
        let mut wide = event("checkpoint.committed", 1, &[]);
        wide.source.node = "a-node-with-a-long-name".into();
        let wide = printer.line(&Delivery::Event(wide));
        let narrow = printer.line(&Delivery::Event(event("disk.usage", 2, &[])));
        assert_eq!(wide.find("checkpoint"), narrow.find("disk"));
    }
}
