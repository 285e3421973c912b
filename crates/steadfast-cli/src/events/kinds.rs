//! Every event type: what it says, its fields and their units, what a registration fixes, and how it is spread.
//!
//! One table (`table`) from which filters are checked, events are printed and `docs/reference/events.md` is generated (a
//! test fails when it is stale). It must never watch anything: what a row promises, `steadfast::events` keeps.

mod table;

use std::fmt::Write as _;

use steadfast_proto::events::EventType;

use crate::events::USER_ANY;
use crate::failure::did_you_mean;

/// What a number in a field counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nothing but itself.
    Count,
    /// Hundredths.
    Percent,
    /// Bytes.
    Bytes,
    /// Milliseconds.
    Milliseconds,
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// A text.
    Text,
    /// A number.
    Number(Unit),
}

/// Whether a registration fixes a field, so that only that one thing is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// It can't.
    Never,
    /// It may.
    May,
    /// It must: all of them can't be watched.
    Must,
}

/// A field of an event type.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub holds: Holds,
    /// Whether a registration fixes it.
    pub about: About,
    /// What it means.
    pub meaning: &'static str,
}

/// What a type's events are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reports {
    /// A level: who registers late is told the present one at once.
    Level,
    /// Something that happened.
    Edge,
}

/// How the events of a type are spread (PROTOCOLS 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// A: a registration goes to every node, and each sends its events to all.
    All,
    /// B: only the nodes that are asked send, and only to who asked.
    Selective,
    /// Neither: what the nodes agreed on each tells its own consumers, from its own copy of the catalog.
    Agreed,
}

/// Whether a filter that names no type at all includes a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Included {
    /// Always.
    Always,
    /// Only when the filter selects types: there are too many of these events on a busy machine.
    WhenAsked,
}

/// One event type.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// What it says, in one sentence.
    pub sentence: &'static str,
    /// A level or something that happened.
    pub reports: Reports,
    /// How its events are spread.
    pub variant: Variant,
    /// Whether a filter without a type includes it.
    pub included: Included,
    /// How many events of one topic one node sends at most, each second; the rest is counted and told as a gap.
    pub per_second_max: u32,
    /// Its fields, the most telling first.
    pub fields: &'static [Field],
}

/// A name that is no event type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no event type is named {given:?}{hint}; `docs/reference/events.md` lists all, and your own begin with \"user.\""
)]
pub struct UnknownType {
    given: String,
    hint: String,
}

/// Every built-in type, ordered by name within its family, and last the one of all user-defined types.
pub fn all() -> &'static [Kind] {
    table::KINDS
}

/// The row of a type; that of [`USER_ANY`] for every `user.ANYTHING`.
pub fn find(name: &str) -> Option<&'static Kind> {
    let name = if is_user(name) { USER_ANY } else { name };
    all().iter().find(|kind| kind.name == name)
}

/// The type of this name, for which one can register.
pub fn parse(name: &str) -> Result<EventType, UnknownType> {
    let unknown = || UnknownType { given: name.chars().take(80).collect(), hint: hint(name) };
    find(name).ok_or_else(unknown)?;
    name.parse().map_err(|_| unknown())
}

/// Whether it is a type that somebody may emit: `user.` and one more word at least.
pub fn is_user(name: &str) -> bool {
    name.strip_prefix(USER_ANY).and_then(|rest| rest.strip_prefix('.')).is_some()
        && name.parse::<EventType>().is_ok()
}

/// `; did you mean …?` for a name that is no type.
fn hint(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("user.") {
        let words = rest
            .to_ascii_lowercase()
            .replace(|letter: char| !letter.is_ascii_alphanumeric() && letter != '.', "-");
        let offered = format!("user.{words}");
        return if is_user(&offered) { format!("; did you mean {offered:?}?") } else { String::new() };
    }
    let names = || all().iter().map(|kind| kind.name);
    let near = did_you_mean(name, names());
    if !near.is_empty() {
        return near;
    }
    // Somebody who writes `disk` or `joined` has one half of the name.
    let half = names().find(|known| known.split('.').any(|part| part == name));
    half.map_or_else(String::new, |known| format!("; did you mean {known:?}?"))
}

impl Kind {
    /// Its field of this name.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// Whether its events have whatever fields whoever emits them gives.
    pub fn is_open(&self) -> bool {
        self.name == USER_ANY
    }

    /// The fields that a registration must fix.
    pub fn musts(&self) -> impl Iterator<Item = &'static Field> + use<> {
        self.fields.iter().filter(|field| field.about == About::Must)
    }

    /// Whether a registration may fix this field.
    pub fn fixes(&self, name: &str) -> bool {
        self.field(name).is_some_and(|field| field.about != About::Never)
    }
}

/// The unit of a field: by the table, else by the end of its name.
pub fn unit(kind: &str, field: &str) -> Unit {
    match find(kind).and_then(|kind| kind.field(field)) {
        Some(Field { holds: Holds::Number(unit), .. }) => *unit,
        Some(_) => Unit::Count,
        None if field.ends_with("_bytes") => Unit::Bytes,
        None if field.ends_with("_ms") => Unit::Milliseconds,
        None if field.ends_with("percent") => Unit::Percent,
        None => Unit::Count,
    }
}

/// The page `docs/reference/events.md`.
pub fn reference() -> String {
    let mut text = String::from(HEAD);
    text.push_str("\n| type | says |\n|---|---|\n");
    for kind in all() {
        let _ = writeln!(text, "| [`{}`](#{}) | {} |", title(kind), anchor(kind), kind.sentence);
    }
    for kind in all() {
        let _ = write!(text, "\n## {}\n\n{} ", title(kind), kind.sentence);
        let reports = match kind.reports {
            Reports::Level => "A level: whoever registers late is told the present one at once.",
            Reports::Edge => "It tells what happens from the registration on.",
        };
        let variant = match kind.variant {
            Variant::All => "Every node tells every node.",
            Variant::Selective => "Only the nodes that are asked tell.",
            Variant::Agreed => {
                "All nodes agree on it, and each tells its own consumers; `node` is the node that it is about."
            }
        };
        let included = match kind.included {
            Included::Always => "",
            Included::WhenAsked => " A filter without a type leaves it out.",
        };
        let _ = writeln!(text, "{reports} {variant} At most {} a second.{included}", kind.per_second_max);
        if kind.fields.is_empty() {
            continue;
        }
        text.push_str("\n| field | holds | fixed by a registration | meaning |\n|---|---|---|---|\n");
        for field in kind.fields {
            let about = match field.about {
                About::Never => "",
                About::May => "may be",
                About::Must => "must be",
            };
            let _ =
                writeln!(text, "| `{}` | {} | {about} | {} |", field.name, holds(field.holds), field.meaning);
        }
    }
    text
}

const HEAD: &str = "# Events

Generated from `crates/steadfast-cli/src/events/kinds`. What a type fixes is what is watched: a filter that says
`type=process.exit and pid=812` watches that process alone, and nothing is watched while nobody is registered.

A filter compares fields: `type=disk.usage and node=alpha and percent>90`. There are `=`, `!=`, `<`, `<=`, `>`, `>=`, `~`
(where `*` stands for any text and `?` for one character) and `in (a, b)`; `and`, `or`, `not` and parentheses; texts with
spaces stand in `\"quotes\"`; a number may have a unit (`90%`, `10MiB`, `5s`) and is compared in the field's. `type`, `node`,
`sequence` and `incarnation` are there for every event. A comparison with a field that an event lacks is false, `!=` too,
and so is one with something that can't be compared, as a share with a time.

As JSON an event is a CloudEvent 1.0: `type` is the type below after `steadfast.`, `data` holds the fields. Beside events a
stream tells `steadfast.gap` (events `from` to `to` of the type in `of` were missed, and the `reason`),
`steadfast.source.refused` (the node can't watch what is in `of`, or takes no more registrations, and the `reason`), and once for
each life of a node's agent `steadfast.source.restarted` and `steadfast.source.down`.
";

fn title(kind: &Kind) -> String {
    if kind.is_open() { "user.ANYTHING".to_owned() } else { kind.name.to_owned() }
}

/// How the pages' renderer names a heading.
fn anchor(kind: &Kind) -> String {
    title(kind).to_ascii_lowercase().replace('.', "")
}

fn holds(holds: Holds) -> &'static str {
    match holds {
        Holds::Text => "text",
        Holds::Number(Unit::Count) => "number",
        Holds::Number(Unit::Percent) => "percent",
        Holds::Number(Unit::Bytes) => "bytes",
        Holds::Number(Unit::Milliseconds) => "milliseconds",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use steadfast_proto::events::FIELDS_MAX;

    use super::*;

    #[test]
    fn the_table_is_of_types_and_names_nothing_twice() {
        let names: BTreeSet<&str> = all().iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), all().len());
        for kind in all() {
            assert!(kind.name.parse::<EventType>().is_ok(), "{}", kind.name);
            assert!(kind.sentence.ends_with('.') && kind.per_second_max > 0, "{}", kind.name);
            let fields: BTreeSet<&str> = kind.fields.iter().map(|field| field.name).collect();
            assert!(fields.len() == kind.fields.len() && fields.len() <= FIELDS_MAX, "{}", kind.name);
            for reserved in crate::events::filter::ATTRIBUTES {
                assert!(
                    !fields.contains(reserved),
                    "{} has a field that every event has: {reserved}",
                    kind.name
                );
            }
        }
    }

    #[test]
    fn what_a_node_and_the_cluster_tell_is_in_the_table() {
        for name in [
            "disk.usage",
            "pressure.memory",
            "pressure.cpu",
            "pressure.io",
            "process.exit",
            "file.change",
            "network.interface",
            "clock.step",
            "memory.oom_kill",
            "unit.state",
            "node.joined",
            "node.suspected",
            "node.cleared",
            "node.removed",
            "node.left",
            "link.state",
            "network.state",
            "view.installed",
            "catalog.changed",
            "container.started",
            "container.stopped",
            "container.moved",
            "container.restored",
            "container.failed",
            "container.frozen",
            "checkpoint.committed",
            "checkpoint.lost",
            "device.appeared",
            "device.removed",
            "audit.change",
            "user.backup.done",
        ] {
            assert!(parse(name).is_ok(), "{name}");
        }
        assert_eq!(
            find("file.change").unwrap().musts().map(|field| field.name).collect::<Vec<_>>(),
            ["path"]
        );
        assert!(
            find("process.exit").unwrap().fixes("container")
                && !find("process.exit").unwrap().fixes("status")
        );
    }

    #[test]
    fn an_unknown_type_names_the_nearest() {
        assert!(parse("disk.usag").unwrap_err().to_string().contains("did you mean \"disk.usage\"?"));
        assert!(parse("joined").unwrap_err().to_string().contains("did you mean \"node.joined\"?"));
        assert!(parse("user.Back up").unwrap_err().to_string().contains("did you mean \"user.back-up\"?"));
        assert!(parse("zzzzzzzz").unwrap_err().to_string().contains("user."));
        assert!(parse("user.").is_err() && parse(USER_ANY).is_ok());
    }

    #[test]
    fn a_field_of_ones_own_has_the_unit_its_name_ends_with() {
        assert_eq!(unit("disk.usage", "percent"), Unit::Percent);
        assert_eq!(unit("disk.usage", "used_bytes"), Unit::Bytes);
        assert_eq!(unit("user.backup", "took_ms"), Unit::Milliseconds);
        assert_eq!(unit("user.backup", "files"), Unit::Count);
    }
}
