//! What a comparison means, for an event and for what is known of a source alone.
//!
//! It decides in three values: an event answers yes or no, a source may also leave it open. A comparison with what is
//! missing, or with what counts something else, is false, `!=` too; `not` turns that into true. It must never allocate for each event it turns away.

use std::cmp::Ordering;

use serde_json::{Map, Value as Json};
use steadfast_proto::events::Value;

use super::{Amount, Comparison, Dimension, Expression, Literal, Meaning, Operator, Scalar, Test};
use crate::events::kinds::{self, Holds, Unit};
use crate::events::{EventView, Source, USER_ANY, shown};

/// Whether an event satisfies an expression.
pub(super) fn matches(expression: &Expression, event: &EventView) -> bool {
    let kind = event.kind.as_str();
    let seen = |name: &str| match name {
        "type" => Seen::Text(kind),
        "node" => Seen::Text(&event.source.node),
        "sequence" => Seen::Whole(i128::from(event.sequence)),
        "incarnation" => Seen::Whole(i128::from(event.source.incarnation.0)),
        _ => event.fields.get(name).map_or(Seen::Missing, Seen::of),
    };
    decide(expression, kind, &seen) == Truth::Yes
}

/// Whether a JSON value satisfies an expression. A unit is told by the end of a field's name, as for events of users.
pub(super) fn matches_json(expression: &Expression, json: &Json) -> bool {
    let seen = |name: &str| match json {
        Json::Object(fields) => find(fields, name).map_or(Seen::Missing, Seen::of_json),
        value @ (Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_)) => {
            if name == "value" { Seen::of_json(value) } else { Seen::Missing }
        }
    };
    decide(expression, USER_ANY, &seen) == Truth::Yes
}

/// A field by its name, which may hold dots itself, or by the names of the objects that it is in.
fn find<'a>(fields: &'a Map<String, Json>, name: &str) -> Option<&'a Json> {
    if let Some(found) = fields.get(name) {
        return Some(found);
    }
    let (first, rest) = name.split_once('.')?;
    rest.split('.').try_fold(fields.get(first)?, |outer, name| outer.as_object()?.get(name))
}

/// Whether some event of a source could satisfy it.
pub(super) fn might(expression: &Expression, source: &Source) -> bool {
    let name_of_kind = source.topic.kind.as_str();
    let kind = kinds::find(name_of_kind);
    let seen = |name: &str| match name {
        "type" if name_of_kind == USER_ANY => Seen::Unknown,
        "type" => Seen::Text(name_of_kind),
        "node" => Seen::Text(&source.node),
        "incarnation" => Seen::Whole(i128::from(source.incarnation.0)),
        "sequence" => Seen::Unknown,
        _ => match (kind.and_then(|kind| kind.field(name)), source.topic.about.get(name)) {
            (Some(field), Some(text)) if field.holds == Holds::Text => Seen::Text(text),
            (Some(_), _) => Seen::Unknown,
            (None, _) if kind.is_some_and(|kind| !kind.is_open()) => Seen::Missing,
            (None, _) => Seen::Unknown,
        },
    };
    decide(expression, name_of_kind, &seen) != Truth::No
}

/// What is known of a field.
#[derive(Clone, Copy, Debug)]
enum Seen<'a> {
    Text(&'a str),
    Whole(i128),
    Real(f64),
    Flag(bool),
    Missing,
    Unknown,
}

impl<'a> Seen<'a> {
    fn of(value: &'a Value) -> Seen<'a> {
        match value {
            Value::Flag(flag) => Seen::Flag(*flag),
            Value::Integer(integer) => Seen::Whole(i128::from(*integer)),
            Value::Number(number) => Seen::Real(*number),
            Value::Text(text) => Seen::Text(text),
        }
    }

    fn of_json(json: &'a Json) -> Seen<'a> {
        match json {
            Json::Bool(flag) => Seen::Flag(*flag),
            Json::String(text) => Seen::Text(text),
            Json::Number(number) => {
                let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
                let real = || number.as_f64().map_or(Seen::Missing, Seen::Real);
                whole.map_or_else(real, Seen::Whole)
            }
            Json::Null | Json::Array(_) | Json::Object(_) => Seen::Missing,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Truth {
    No,
    Open,
    Yes,
}

fn decide<'a>(expression: &Expression, kind: &str, seen: &dyn Fn(&str) -> Seen<'a>) -> Truth {
    match expression {
        Expression::All(parts) => {
            let mut truth = Truth::Yes;
            for part in parts {
                truth = truth.min(decide(part, kind, seen));
                if truth == Truth::No {
                    break;
                }
            }
            truth
        }
        Expression::Any(parts) => {
            let mut truth = Truth::No;
            for part in parts {
                truth = truth.max(decide(part, kind, seen));
                if truth == Truth::Yes {
                    break;
                }
            }
            truth
        }
        Expression::Not(inner) => match decide(inner, kind, seen) {
            Truth::No => Truth::Yes,
            Truth::Open => Truth::Open,
            Truth::Yes => Truth::No,
        },
        Expression::Compare(comparison) => match seen(&comparison.name) {
            Seen::Unknown => Truth::Open,
            Seen::Missing => Truth::No,
            value @ (Seen::Text(_) | Seen::Whole(_) | Seen::Real(_) | Seen::Flag(_)) => {
                if compare(comparison, kind, value) { Truth::Yes } else { Truth::No }
            }
        },
    }
}

fn compare(comparison: &Comparison, kind: &str, value: Seen<'_>) -> bool {
    let unit = || kinds::unit(kind, &comparison.name);
    match &comparison.test {
        Test::In(literals) => literals.iter().any(|literal| equal(value, literal, unit)),
        Test::Is(Operator::Equal, literal) => equal(value, literal, unit),
        Test::Is(Operator::Unequal, literal) => {
            is_comparable(value, literal, unit) && !equal(value, literal, unit)
        }
        Test::Is(Operator::Like, literal) => like(value, &literal.text),
        Test::Is(Operator::Below, literal) => order(value, literal, unit) == Some(Ordering::Less),
        Test::Is(Operator::Above, literal) => order(value, literal, unit) == Some(Ordering::Greater),
        Test::Is(Operator::AtMost, literal) => order(value, literal, unit).is_some_and(Ordering::is_le),
        Test::Is(Operator::AtLeast, literal) => order(value, literal, unit).is_some_and(Ordering::is_ge),
    }
}

/// Whether equality says anything: a number is held against a number of the same sort, or the text it is shown as.
fn is_comparable(value: Seen<'_>, literal: &Literal, unit: impl Fn() -> Unit) -> bool {
    match (value, literal.meaning) {
        (Seen::Text(_) | Seen::Flag(_), _) => true,
        (Seen::Whole(_) | Seen::Real(_), Meaning::Amount(amount)) => factor(&amount, unit).is_some(),
        (Seen::Whole(_) | Seen::Real(_), Meaning::Text) => literal.text.parse::<f64>().is_ok(),
        (Seen::Whole(_) | Seen::Real(_), Meaning::Flag(_)) | (Seen::Missing | Seen::Unknown, _) => false,
    }
}

fn equal(value: Seen<'_>, literal: &Literal, unit: impl Fn() -> Unit) -> bool {
    match (value, literal.meaning) {
        (Seen::Text(text), _) => text == literal.text,
        (Seen::Flag(flag), Meaning::Flag(wanted)) => flag == wanted,
        (Seen::Flag(flag), Meaning::Text | Meaning::Amount(_)) => text_of_flag(flag) == literal.text,
        (Seen::Whole(_) | Seen::Real(_), Meaning::Amount(_)) => {
            order(value, literal, unit) == Some(Ordering::Equal)
        }
        (Seen::Whole(whole), Meaning::Text) => whole.to_string() == literal.text,
        (Seen::Real(real), Meaning::Text) => real.to_string() == literal.text,
        (Seen::Whole(_) | Seen::Real(_), Meaning::Flag(_)) | (Seen::Missing | Seen::Unknown, _) => false,
    }
}

fn order(value: Seen<'_>, literal: &Literal, unit: impl Fn() -> Unit) -> Option<Ordering> {
    let value = match value {
        Seen::Text(text) => return Some(text.cmp(&literal.text)),
        Seen::Whole(whole) => Scalar::Whole(whole),
        Seen::Real(real) => Scalar::Real(real),
        Seen::Flag(_) | Seen::Missing | Seen::Unknown => return None,
    };
    let Meaning::Amount(amount) = literal.meaning else { return None };
    let factor = factor(&amount, unit)?;
    match (value, amount.value) {
        (Scalar::Whole(value), Scalar::Whole(wanted)) => Some((value.saturating_mul(factor)).cmp(&wanted)),
        (value, wanted) => (value.real() * factor as f64).partial_cmp(&wanted.real()),
    }
}

impl Scalar {
    fn real(self) -> f64 {
        match self {
            Scalar::Whole(whole) => whole as f64,
            Scalar::Real(real) => real,
        }
    }
}

/// By what a field in this unit is multiplied to be compared with the amount; `None` where they count different things.
pub(super) fn factor(amount: &Amount, unit: impl Fn() -> Unit) -> Option<i128> {
    if amount.dimension == Dimension::None {
        return Some(1);
    }
    match (amount.dimension, unit()) {
        (Dimension::Percent, Unit::Percent) | (Dimension::Bytes, Unit::Bytes) => Some(1),
        (Dimension::Time, Unit::Milliseconds) => Some(1_000_000),
        (
            Dimension::None | Dimension::Percent | Dimension::Bytes | Dimension::Time,
            Unit::Count | Unit::Percent | Unit::Bytes | Unit::Milliseconds,
        ) => None,
    }
}

fn like(value: Seen<'_>, pattern: &str) -> bool {
    match value {
        Seen::Text(text) => glob(pattern, text),
        Seen::Whole(whole) => glob(pattern, &whole.to_string()),
        Seen::Real(real) => glob(pattern, &shown(&Value::Number(real))),
        Seen::Flag(flag) => glob(pattern, text_of_flag(flag)),
        Seen::Missing | Seen::Unknown => false,
    }
}

fn text_of_flag(flag: bool) -> &'static str {
    if flag { "true" } else { "false" }
}

/// Whether a text is of this form, in which `*` stands for any text and `?` for one character.
pub(super) fn glob(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.chars(), text.chars());
    // After the last star seen, and the text that it has not swallowed yet: where to go on when the rest does not fit.
    let mut retry: Option<(std::str::Chars<'_>, std::str::Chars<'_>)> = None;
    loop {
        let rest = text.clone();
        match (pattern.next(), text.next()) {
            (Some('*'), _) => {
                text = rest;
                retry = Some((pattern.clone(), text.clone()));
            }
            (Some('?'), Some(_)) => {}
            (Some(wanted), Some(found)) if wanted == found => {}
            (None, None) => return true,
            _ => {
                let Some((after, mut swallowed)) = retry else { return false };
                if swallowed.next().is_none() {
                    return false;
                }
                pattern = after.clone();
                text = swallowed.clone();
                retry = Some((after, swallowed));
            }
        }
    }
}
