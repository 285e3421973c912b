//! The filter language: `type=disk.usage and node=alpha and percent>90`.
//!
//! It decides which events a consumer hears ([`Filter::matches`]) and what must be registered so that none of those is
//! missed ([`Filter::registrations`]). It must never decide by a field's meaning, only by the table's units, and never
//! take longer or deeper than its bounds, since the text comes from outside. Read `parse` for the grammar, `evaluate`
//! for what a comparison means, `register` for what is pushed down to the producers.

mod evaluate;
mod parse;
mod register;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::{Delivery, EventView};
use crate::codes::Code;
use crate::failure::Failure;

pub use register::{LeftOut, Registration, Registrations};

/// The longest filter, in bytes.
pub const TEXT_BYTES_MAX: usize = 4_096;
/// How deep parentheses and `not` may be nested.
pub const DEPTH_MAX: usize = 32;
/// What every event has, beside its fields.
pub const ATTRIBUTES: &[&str] = &["type", "node", "sequence", "incarnation"];

/// How much of a long filter an error shows on each side of the place, in characters.
const SHOWN_CHARS: usize = 48;

/// A filter that was read; [`Filter::default`] lets everything through.
///
/// ```
/// let filter: steadfast_cli::events::filter::Filter = "type=disk.usage and percent>90".parse()?;
/// let asked = filter.registrations()?;
/// assert_eq!(asked.list[0].topic.to_string(), "disk.usage");
/// # Ok::<(), steadfast_cli::events::filter::FilterError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Filter {
    root: Option<Expression>,
    text: String,
}

/// A filter that can't be used: what is wrong, with a mark under the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterError {
    text: String,
    at: usize,
    wrong: String,
}

/// A condition.
#[derive(Clone, Debug, PartialEq)]
enum Expression {
    /// All of two or more.
    All(Vec<Expression>),
    /// At least one of two or more.
    Any(Vec<Expression>),
    /// Not this.
    Not(Box<Expression>),
    /// One comparison.
    Compare(Comparison),
}

/// A field or attribute held against a literal or several.
#[derive(Clone, Debug, PartialEq)]
struct Comparison {
    name: String,
    at: Place,
    test: Test,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    Is(Operator, Literal),
    In(Vec<Literal>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    Unequal,
    Below,
    AtMost,
    Above,
    AtLeast,
    Like,
}

/// What stands on the right of an operator: its text, and what else that text is.
#[derive(Clone, Debug, PartialEq)]
struct Literal {
    text: String,
    meaning: Meaning,
    at: Place,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Meaning {
    Text,
    Flag(bool),
    Amount(Amount),
}

/// A number with what it counts; sizes are in bytes and times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Amount {
    value: Scalar,
    dimension: Dimension,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Scalar {
    Whole(i128),
    Real(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dimension {
    None,
    Percent,
    Bytes,
    Time,
}

/// Where in the text, in bytes. Two filters are the same wherever their parts stand.
#[derive(Clone, Copy, Debug, Default)]
struct Place(usize);

impl PartialEq for Place {
    fn eq(&self, _: &Place) -> bool {
        true
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Filter) -> bool {
        self.root == other.root
    }
}

impl Filter {
    /// Whether it lets this event through.
    pub fn matches(&self, event: &EventView) -> bool {
        self.root.as_ref().is_none_or(|root| evaluate::matches(root, event))
    }

    /// Whether it is true of what is no event of this cluster: its fields are those of a JSON object, and of the objects in
    /// it as in `address.city`. What is no object has one field, `value`.
    pub fn matches_json(&self, json: &serde_json::Value) -> bool {
        self.root.as_ref().is_none_or(|root| evaluate::matches_json(root, json))
    }

    /// Whether whoever has this filter must be told: events that match, and gaps, restarts and ends of sources whose
    /// events might.
    pub fn concerns(&self, delivery: &Delivery) -> bool {
        match delivery {
            Delivery::Event(event) => self.matches(event),
            Delivery::Gap(_)
            | Delivery::Restarted { .. }
            | Delivery::Down { .. }
            | Delivery::Refused { .. } => {
                self.root.as_ref().is_none_or(|root| evaluate::might(root, delivery.source()))
            }
        }
    }

    /// What must be registered, and on which nodes, so that no event that matches is missed; refuses what can never be.
    pub fn registrations(&self) -> Result<Registrations, FilterError> {
        register::registrations(self)
    }

    /// The nodes that it restricts itself to; `None` when it takes events of every node.
    pub fn nodes(&self) -> Option<BTreeSet<String>> {
        register::nodes(self.root.as_ref()?)
    }

    /// Something wrong at this byte of the text.
    fn error(&self, at: Place, wrong: impl Into<String>) -> FilterError {
        FilterError { text: self.text.clone(), at: at.0, wrong: wrong.into() }
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Filter, FilterError> {
        let root = parse::parse(text)?;
        Ok(Filter { root, text: text.to_owned() })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.as_ref().map_or(Ok(()), |root| root.fmt(f))
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expression::Compare(comparison) => comparison.fmt(f),
            Expression::Not(inner) if inner.is_list() => write!(f, "not ({inner})"),
            Expression::Not(inner) => write!(f, "not {inner}"),
            Expression::All(parts) => joined(f, parts, " and ", Expression::is_list),
            Expression::Any(parts) => joined(f, parts, " or ", |part| matches!(part, Expression::Any(_))),
        }
    }
}

impl Expression {
    fn is_list(&self) -> bool {
        matches!(self, Expression::All(_) | Expression::Any(_))
    }
}

fn joined(
    f: &mut fmt::Formatter<'_>,
    parts: &[Expression],
    between: &str,
    in_parentheses: impl Fn(&Expression) -> bool,
) -> fmt::Result {
    for (place, part) in parts.iter().enumerate() {
        if place > 0 {
            f.write_str(between)?;
        }
        if in_parentheses(part) {
            write!(f, "({part})")?;
        } else {
            write!(f, "{part}")?;
        }
    }
    Ok(())
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.test {
            Test::Is(operator, literal) => write!(f, "{}{}{literal}", self.name, operator.sign()),
            Test::In(literals) => {
                let literals: Vec<String> = literals.iter().map(Literal::to_string).collect();
                write!(f, "{} in ({})", self.name, literals.join(", "))
            }
        }
    }
}

impl Operator {
    fn sign(self) -> &'static str {
        match self {
            Operator::Equal => "=",
            Operator::Unequal => "!=",
            Operator::Below => "<",
            Operator::AtMost => "<=",
            Operator::Above => ">",
            Operator::AtLeast => ">=",
            Operator::Like => "~",
        }
    }
}

impl Literal {
    /// The literal that this text is when it stands without quotes.
    fn bare(text: &str, at: Place) -> Literal {
        Literal { text: text.to_owned(), meaning: parse::meaning(text), at }
    }

    /// The literal that this text is when it stands in quotes.
    fn quoted(text: String, at: Place) -> Literal {
        Literal { text, meaning: Meaning::Text, at }
    }
}

/// Bare where that reads back as the same, else in quotes.
impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if parse::is_bare(&self.text) && parse::meaning(&self.text) == self.meaning {
            return f.write_str(&self.text);
        }
        write!(f, "\"{}\"", self.text.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

impl FilterError {
    /// What is wrong, in one sentence.
    pub fn wrong(&self) -> &str {
        &self.wrong
    }

    /// Before which byte of the text it is wrong.
    pub fn at(&self) -> usize {
        self.at
    }
}

/// The sentence, the text, and a mark under the place.
impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is no character of its own on a terminal would move the mark.
        let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
        let letters: Vec<char> = self.text.chars().map(plain).collect();
        let place = self.text.char_indices().take_while(|(start, _)| *start < self.at).count();
        // A text that is not much too long is shown whole.
        let from = if letters.len() <= 2 * SHOWN_CHARS { 0 } else { place.saturating_sub(SHOWN_CHARS) };
        let shown: String = letters.iter().skip(from).take(2 * SHOWN_CHARS).collect();
        let (before, after) = (from > 0, letters.len() > from + 2 * SHOWN_CHARS);
        let (before, after) = (if before { "…" } else { "" }, if after { "…" } else { "" });
        let indent = " ".repeat(place - from + before.chars().count());
        write!(f, "{}\n  {before}{shown}{after}\n  {indent}^", self.wrong)
    }
}

impl std::error::Error for FilterError {}

impl From<FilterError> for Failure {
    fn from(error: FilterError) -> Failure {
        Failure::new(Code::BadRequest, format!("the filter can't be used: {error}"))
    }
}
