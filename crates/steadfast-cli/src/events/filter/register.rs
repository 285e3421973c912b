//! From a filter to what must be registered: topics, each on some nodes or on all.
//!
//! Per type it computes *alternatives*: sets of fields with fixed texts, so that every event of the type that matches has
//! all fields of at least one set. What the type lets a registration fix goes into the topic, `node` into the nodes. It
//! must never lose an event that matches; asking for too much only costs, since the filter is applied again to what
//! comes. Two topics of one type never overlap, so that nobody hears one event twice.

use std::collections::{BTreeMap, BTreeSet};

use steadfast_proto::events::{EventType, Topic};

use super::evaluate::{factor, glob};
use super::{
    ATTRIBUTES, Comparison, Dimension, Expression, Filter, FilterError, Literal, Meaning, Operator, Place,
    Scalar, Test,
};
use crate::events::USER_ANY;
use crate::events::kinds::{self, Field, Holds, Included, Kind, Unit};
use crate::failure::did_you_mean;

/// How many alternatives are kept per type; beyond that less is fixed.
const ALTERNATIVES_MAX: usize = 64;

/// One thing to register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// For what.
    pub topic: Topic,
    /// On these nodes only; on all where it is `None`.
    pub nodes: Option<BTreeSet<String>>,
}

/// A type that would match but is not registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its name.
    pub kind: &'static str,
    /// Why, and how it is asked for.
    pub reason: String,
}

/// What a filter asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registrations {
    /// What to register.
    pub list: Vec<Registration>,
    /// What is left out, to be told to whoever asked.
    pub left_out: Vec<LeftOut>,
}

impl Registrations {
    /// The topics alone.
    pub fn topics(&self) -> Vec<Topic> {
        self.list.iter().map(|registration| registration.topic.clone()).collect()
    }
}

/// Fixed texts by field; the attribute `node` is one of them.
type Fixed = BTreeMap<String, String>;

pub(super) fn registrations(filter: &Filter) -> Result<Registrations, FilterError> {
    let Some(root) = &filter.root else { return collect(filter, None, &[]) };
    let mut comparisons = Vec::new();
    list_comparisons(root, true, &mut comparisons);
    check_types(filter, &comparisons)?;
    check_fields(filter, &comparisons)?;
    let found = collect(filter, Some(root), &comparisons)?;
    if found.list.is_empty() && found.left_out.is_empty() {
        return Err(
            filter.error(Place(0), "no event can ever match this filter: its conditions exclude each other")
        );
    }
    Ok(found)
}

/// The nodes that an expression restricts itself to.
pub(super) fn nodes(root: &Expression) -> Option<BTreeSet<String>> {
    let only_nodes = |comparison: &Comparison, positive: bool| match comparison.name.as_str() {
        "node" => attribute_texts(comparison, positive).map_or_else(
            || vec![Fixed::new()],
            |texts| {
                texts.into_iter().map(|text| Fixed::from([("node".to_owned(), text.to_owned())])).collect()
            },
        ),
        _ => vec![Fixed::new()],
    };
    nodes_of(&alternatives(root, true, &only_nodes))
}

fn nodes_of(alternatives: &[Fixed]) -> Option<BTreeSet<String>> {
    alternatives.iter().map(|fixed| fixed.get("node").cloned()).collect()
}

/// The registrations for every type, in the table's order, user types last.
fn collect(
    filter: &Filter,
    root: Option<&Expression>,
    comparisons: &[(&Comparison, bool)],
) -> Result<Registrations, FilterError> {
    let mut found = Registrations::default();
    let named = named_types(comparisons);
    let selects_types = comparisons.iter().any(|(comparison, _)| comparison.name == "type");
    let user: BTreeSet<&str> =
        named.iter().map(|literal| literal.text.as_str()).filter(|name| kinds::is_user(name)).collect();
    let candidates = kinds::all().iter().map(|kind| kind.name).chain(user.iter().copied());
    for name in candidates {
        let Some(kind) = kinds::find(name) else { continue };
        let mut fixed = match root {
            None => vec![Fixed::new()],
            Some(root) => {
                alternatives(root, true, &|comparison, positive| leaf(comparison, positive, kind, name))
            }
        };
        let literal = named.iter().find(|literal| literal.text == name);
        if fixed.is_empty() {
            let Some((literal, root)) = literal.zip(root) else { continue };
            return Err(never(filter, root, literal, kind, name));
        }
        let missing = kind.musts().find(|must| fixed.iter().any(|fixed| !fixed.contains_key(must.name)));
        if let Some(must) = missing {
            let reason = format!(
                "{name} needs {0} to be fixed; write for example type={name} and {0}={1}",
                must.name,
                example(must)
            );
            if let Some(literal) = literal {
                return Err(filter.error(literal.at, reason));
            }
            fixed.retain(|fixed| kind.musts().all(|must| fixed.contains_key(must.name)));
            found.left_out.push(LeftOut { kind: kind.name, reason });
        }
        let is_narrow = |fixed: &Fixed| fixed.keys().any(|field| field != "node");
        if kind.included == Included::WhenAsked
            && !selects_types
            && missing.is_none()
            && !fixed.iter().all(is_narrow)
        {
            let reason =
                format!("{name} is left out where no type is asked for; write for example type={name}");
            found.left_out.push(LeftOut { kind: kind.name, reason });
            continue;
        }
        found.list.extend(topics(name, fixed));
    }
    Ok(without_overlap(found))
}

/// Where all user types are registered, a single one of them would be heard twice.
fn without_overlap(mut found: Registrations) -> Registrations {
    let Some(all) = found.list.iter().position(|registration| registration.topic.kind.as_str() == USER_ANY)
    else {
        return found;
    };
    let single = found.list.split_off(all + 1);
    if let Some(all) = found.list.last_mut() {
        for registration in single {
            all.nodes = all.nodes.take().zip(registration.nodes).map(|(mut nodes, more)| {
                nodes.extend(more);
                nodes
            });
        }
    }
    found
}

/// The topics of one type that cover its alternatives and do not overlap: only what all of them fix is fixed.
fn topics(name: &str, alternatives: Vec<Fixed>) -> Vec<Registration> {
    let Ok(kind) = name.parse::<EventType>() else { return Vec::new() };
    let is_common = |field: &String| alternatives.iter().all(|fixed| fixed.contains_key(field));
    let mut by_about: BTreeMap<Fixed, Vec<Fixed>> = BTreeMap::new();
    for fixed in &alternatives {
        let about = fixed.iter().filter(|(field, _)| *field != "node" && is_common(field));
        let about: Fixed = about.map(|(field, text)| (field.clone(), text.clone())).collect();
        by_about.entry(about).or_default().push(fixed.clone());
    }
    by_about
        .into_iter()
        .map(|(about, fixed)| Registration {
            topic: Topic { kind: kind.clone(), about },
            nodes: nodes_of(&fixed),
        })
        .collect()
}

/// Sets of fixed fields, one of which every match has; none where nothing matches.
fn alternatives(
    expression: &Expression,
    positive: bool,
    leaf: &dyn Fn(&Comparison, bool) -> Vec<Fixed>,
) -> Vec<Fixed> {
    match (expression, positive) {
        (Expression::Compare(comparison), _) => leaf(comparison, positive),
        (Expression::Not(inner), _) => alternatives(inner, !positive, leaf),
        (Expression::All(parts), true) | (Expression::Any(parts), false) => {
            let mut product = vec![Fixed::new()];
            for part in parts {
                let more = alternatives(part, positive, leaf);
                if more.is_empty() {
                    return more;
                }
                // With too many, what is fixed so far still covers every match.
                if product.len() * more.len() <= ALTERNATIVES_MAX {
                    product = both(&product, &more);
                }
            }
            product
        }
        (Expression::Any(parts), true) | (Expression::All(parts), false) => {
            let mut union: Vec<Fixed> = Vec::new();
            for part in parts {
                union.extend(alternatives(part, positive, leaf));
            }
            simplified(union)
        }
    }
}

/// Every pair of alternatives that agree.
fn both(left: &[Fixed], right: &[Fixed]) -> Vec<Fixed> {
    let mut product = Vec::new();
    for one in left {
        for other in right {
            let agrees = other.iter().all(|(field, text)| one.get(field).is_none_or(|fixed| fixed == text));
            if agrees {
                product.push(
                    one.iter().chain(other).map(|(field, text)| (field.clone(), text.clone())).collect(),
                );
            }
        }
    }
    simplified(product)
}

/// Without what another alternative covers already.
fn simplified(alternatives: Vec<Fixed>) -> Vec<Fixed> {
    if alternatives.len() > ALTERNATIVES_MAX || alternatives.iter().any(Fixed::is_empty) {
        return vec![Fixed::new()];
    }
    let mut kept: Vec<Fixed> = Vec::new();
    let covers =
        |wide: &Fixed, narrow: &Fixed| wide.iter().all(|(field, text)| narrow.get(field) == Some(text));
    for fixed in alternatives {
        if kept.iter().any(|wide| covers(wide, &fixed)) {
            continue;
        }
        kept.retain(|narrow| !covers(&fixed, narrow));
        kept.push(fixed);
    }
    kept
}

/// The alternatives of one comparison, or of its opposite, for one type.
fn leaf(comparison: &Comparison, positive: bool, kind: &Kind, name: &str) -> Vec<Fixed> {
    let open = || vec![Fixed::new()];
    let only = |fits: bool| if fits { open() } else { Vec::new() };
    let fixed = |texts: Vec<&str>| -> Vec<Fixed> {
        simplified(
            texts.into_iter().map(|text| Fixed::from([(comparison.name.clone(), text.to_owned())])).collect(),
        )
    };
    match comparison.name.as_str() {
        "type" => only(might_be(comparison, positive, name)),
        "node" => attribute_texts(comparison, positive).map_or_else(open, fixed),
        "sequence" | "incarnation" => open(),
        _ if kind.is_open() || !positive => open(),
        field => {
            let Some(field) = kind.field(field) else { return Vec::new() };
            if !fits(field, comparison) {
                return Vec::new();
            }
            if !kind.fixes(field.name) {
                return open();
            }
            match &comparison.test {
                Test::Is(Operator::Equal, literal) => fixes(field, std::slice::from_ref(literal)),
                Test::In(literals) => fixes(field, literals),
                Test::Is(..) => open(),
            }
        }
    }
}

/// The alternatives of a field that is equal to one of these.
fn fixes(field: &Field, literals: &[Literal]) -> Vec<Fixed> {
    let literals = literals.iter().filter(|literal| wrong_literal(field, literal, true).is_none());
    simplified(
        literals.map(|literal| Fixed::from([(field.name.to_owned(), fixed_text(field, literal))])).collect(),
    )
}

/// The text that the field of a matching event has.
fn fixed_text(field: &Field, literal: &Literal) -> String {
    match (field.holds, literal.meaning) {
        (Holds::Number(_), Meaning::Amount(amount)) => match amount.value {
            Scalar::Whole(whole) => whole.to_string(),
            Scalar::Real(real) => real.to_string(),
        },
        (Holds::Text | Holds::Number(_), _) => literal.text.clone(),
    }
}

/// The texts that an attribute has one of, where the comparison (or its opposite) says that much.
fn attribute_texts(comparison: &Comparison, positive: bool) -> Option<Vec<&str>> {
    match (&comparison.test, positive) {
        (Test::Is(Operator::Equal, literal), true) | (Test::Is(Operator::Unequal, literal), false) => {
            Some(vec![literal.text.as_str()])
        }
        (Test::In(literals), true) => Some(literals.iter().map(|literal| literal.text.as_str()).collect()),
        (Test::Is(..), _) | (Test::In(_), false) => None,
    }
}

/// Whether an event of this type may satisfy a comparison of `type`, or its opposite; [`USER_ANY`] stands for every user
/// type that the filter does not name.
fn might_be(comparison: &Comparison, positive: bool, name: &str) -> bool {
    let is_every_user_type = name == USER_ANY;
    let truth = match &comparison.test {
        Test::Is(Operator::Equal, literal) => literal.text == name,
        Test::Is(Operator::Unequal, literal) => literal.text != name,
        Test::In(literals) => literals.iter().any(|literal| literal.text == name),
        Test::Is(Operator::Like, literal) if is_every_user_type => {
            return if positive { may_like_user(&literal.text) } else { !always_likes_user(&literal.text) };
        }
        Test::Is(Operator::Like, literal) => glob(&literal.text, name),
        Test::Is(Operator::Below | Operator::AtMost | Operator::Above | Operator::AtLeast, _) => return true,
    };
    truth == positive
}

/// Whether some text that begins with `user.` may be of this form.
fn may_like_user(pattern: &str) -> bool {
    let literal = pattern.split(['*', '?']).next().unwrap_or_default();
    literal.starts_with("user.") || (literal.len() < pattern.len() && "user.".starts_with(literal))
}

/// Whether every text that begins with `user.` is of this form.
fn always_likes_user(pattern: &str) -> bool {
    pattern.strip_suffix('*').is_some_and(|start| "user.".starts_with(start))
}

fn list_comparisons<'a>(expression: &'a Expression, positive: bool, into: &mut Vec<(&'a Comparison, bool)>) {
    match expression {
        Expression::All(parts) | Expression::Any(parts) => {
            parts.iter().for_each(|part| list_comparisons(part, positive, into));
        }
        Expression::Not(inner) => list_comparisons(inner, !positive, into),
        Expression::Compare(comparison) => into.push((comparison, positive)),
    }
}

/// The literals by which a filter asks for types by name.
fn named_types<'a>(comparisons: &[(&'a Comparison, bool)]) -> Vec<&'a Literal> {
    let mut named = Vec::new();
    for (comparison, positive) in comparisons.iter().filter(|(comparison, _)| comparison.name == "type") {
        match (&comparison.test, positive) {
            (Test::Is(Operator::Equal, literal), true) | (Test::Is(Operator::Unequal, literal), false) => {
                named.push(literal);
            }
            (Test::In(literals), true) => named.extend(literals),
            (Test::Is(..), _) | (Test::In(_), false) => {}
        }
    }
    named
}

/// Refuses names of types that there are none of.
fn check_types(filter: &Filter, comparisons: &[(&Comparison, bool)]) -> Result<(), FilterError> {
    for (comparison, _) in comparisons.iter().filter(|(comparison, _)| comparison.name == "type") {
        let literals = match &comparison.test {
            Test::Is(Operator::Equal | Operator::Unequal, literal) => std::slice::from_ref(literal),
            Test::In(literals) => literals.as_slice(),
            Test::Is(Operator::Like, literal) => {
                let is_known = kinds::all().iter().any(|kind| glob(&literal.text, kind.name));
                if !is_known && !may_like_user(&literal.text) {
                    return Err(filter.error(
                        literal.at,
                        format!(
                            "no event type is like {:?}; write for example type~container.*",
                            literal.text
                        ),
                    ));
                }
                continue;
            }
            Test::Is(Operator::Below | Operator::AtMost | Operator::Above | Operator::AtLeast, literal) => {
                return Err(filter.error(literal.at, "types have no order; compare them with =, !=, ~ or in"));
            }
        };
        for literal in literals {
            if literal.text == USER_ANY {
                return Err(filter.error(literal.at, "write type~user.* for every user-defined type"));
            }
            if literal.text.contains('*') && kinds::find(&literal.text).is_none() {
                let wrong = format!("write type~{0} where * stands for any text", literal.text);
                return Err(filter.error(literal.at, wrong));
            }
            kinds::parse(&literal.text).map_err(|error| filter.error(literal.at, error.to_string()))?;
        }
    }
    Ok(())
}

/// Refuses fields that no type has and values that no field of that name can have, unless user-defined types are meant,
/// which have whatever fields they are given.
fn check_fields(filter: &Filter, comparisons: &[(&Comparison, bool)]) -> Result<(), FilterError> {
    let is_for_user_types = comparisons.iter().any(|(comparison, _)| {
        comparison.name == "type"
            && match &comparison.test {
                Test::Is(_, literal) => literal.text.starts_with("user."),
                Test::In(literals) => literals.iter().any(|literal| literal.text.starts_with("user.")),
            }
    });
    for (comparison, _) in comparisons {
        if ATTRIBUTES.contains(&comparison.name.as_str()) {
            check_attribute(filter, comparison)?;
            continue;
        }
        if is_for_user_types {
            continue;
        }
        let fields = || kinds::all().iter().filter_map(|kind| Some((kind, kind.field(&comparison.name)?)));
        let Some((kind, field)) = fields().next() else {
            let known = kinds::all().iter().flat_map(|kind| kind.fields).map(|field| field.name);
            let hint = did_you_mean(&comparison.name, known.chain(ATTRIBUTES.iter().copied()));
            let wrong = format!("no event type has a field {:?}{hint}", comparison.name);
            return Err(filter.error(comparison.at, wrong));
        };
        if !fields().any(|(_, field)| fits(field, comparison))
            && let Some((at, wrong)) = wrong_value(kind.name, field, comparison)
        {
            return Err(filter.error(at, wrong));
        }
    }
    Ok(())
}

fn check_attribute(filter: &Filter, comparison: &Comparison) -> Result<(), FilterError> {
    if !matches!(comparison.name.as_str(), "sequence" | "incarnation") {
        return Ok(());
    }
    let field =
        Field { name: "", holds: Holds::Number(Unit::Count), about: kinds::About::Never, meaning: "" };
    match wrong_value("every event", &field, comparison) {
        Some((at, _)) if !fits(&field, comparison) => {
            Err(filter.error(at, format!("{} is a number, as in {0}>100", comparison.name)))
        }
        _ => Ok(()),
    }
}

/// Whether the field can have a value that satisfies the comparison, as far as its sort goes.
fn fits(field: &Field, comparison: &Comparison) -> bool {
    match &comparison.test {
        Test::Is(Operator::Like, _) => true,
        Test::Is(operator, literal) => {
            wrong_literal(field, literal, matches!(operator, Operator::Equal | Operator::Unequal)).is_none()
        }
        Test::In(literals) => literals.iter().any(|literal| wrong_literal(field, literal, true).is_none()),
    }
}

fn wrong_value(kind: &str, field: &Field, comparison: &Comparison) -> Option<(Place, String)> {
    let (literal, is_equality) = match &comparison.test {
        Test::Is(operator, literal) => (literal, matches!(operator, Operator::Equal | Operator::Unequal)),
        Test::In(literals) => (literals.first()?, true),
    };
    let wrong = wrong_literal(field, literal, is_equality)?;
    Some((literal.at, format!("{} of {kind} {wrong}", comparison.name)))
}

/// Why a field can't be compared with a literal; a number is also equal to the text that it is shown as.
fn wrong_literal(field: &Field, literal: &Literal, is_equality: bool) -> Option<String> {
    let Holds::Number(unit) = field.holds else { return None };
    let (sort, example) = match unit {
        Unit::Count => ("is a number", "12"),
        Unit::Percent => ("is in percent", "90%"),
        Unit::Bytes => ("is a size", "10MiB"),
        Unit::Milliseconds => ("is a time", "5s"),
    };
    let wrong = || Some(format!("{sort}, and {:?} is none; write for example {example}", literal.text));
    match literal.meaning {
        Meaning::Amount(amount) if factor(&amount, || unit).is_some() => None,
        Meaning::Amount(amount) => match amount.dimension {
            Dimension::None | Dimension::Percent => wrong(),
            Dimension::Bytes => {
                Some(format!("{sort}, and {:?} is a size; write for example {example}", literal.text))
            }
            Dimension::Time => {
                Some(format!("{sort}, and {:?} is a time; write for example {example}", literal.text))
            }
        },
        Meaning::Text if is_equality && literal.text.parse::<f64>().is_ok() => None,
        Meaning::Text | Meaning::Flag(_) => wrong(),
    }
}

/// Why a type that the filter names can never match.
fn never(filter: &Filter, root: &Expression, literal: &Literal, kind: &Kind, name: &str) -> FilterError {
    let Some(comparison) = blamed(root, literal, kind) else {
        return filter
            .error(literal.at, format!("{name} can never match: the conditions on it exclude each other"));
    };
    if let Some(field) = kind.field(&comparison.name) {
        let wrong = wrong_value(name, field, comparison);
        let (at, wrong) = wrong.unwrap_or_else(|| (comparison.at, format!("{name} can never match this")));
        return filter.error(at, wrong);
    }
    let known: Vec<&str> = kind.fields.iter().map(|field| field.name).collect();
    let hint = did_you_mean(&comparison.name, known.iter().copied());
    let has = format!("{name} has no field {:?}{hint}", comparison.name);
    filter.error(comparison.at, format!("{has} (it has {})", known.join(", ")))
}

/// The first comparison that an event of this type can't satisfy, looked for beside the type's name first.
fn blamed<'a>(root: &'a Expression, literal: &Literal, kind: &Kind) -> Option<&'a Comparison> {
    let unsatisfiable = |within: &'a Expression| {
        let mut all = Vec::new();
        list_comparisons(within, true, &mut all);
        all.into_iter().map(|(comparison, _)| comparison).find(|comparison| {
            !ATTRIBUTES.contains(&comparison.name.as_str())
                && kind.field(&comparison.name).is_none_or(|field| !fits(field, comparison))
        })
    };
    beside(root, literal).and_then(unsatisfiable).or_else(|| unsatisfiable(root))
}

/// The largest conjunction that holds the literal and no other branch of an `or`.
fn beside<'a>(expression: &'a Expression, literal: &Literal) -> Option<&'a Expression> {
    let mut all = Vec::new();
    list_comparisons(expression, true, &mut all);
    let holds_it = all.iter().any(|(comparison, _)| match &comparison.test {
        Test::Is(_, found) => found.at.0 == literal.at.0,
        Test::In(found) => found.iter().any(|found| found.at.0 == literal.at.0),
    });
    if !holds_it {
        return None;
    }
    match expression {
        Expression::Any(parts) => parts.iter().find_map(|part| beside(part, literal)),
        Expression::Not(inner) => beside(inner, literal),
        Expression::All(_) | Expression::Compare(_) => Some(expression),
    }
}

fn example(field: &Field) -> &'static str {
    if field.name == "path" { "/etc/hosts" } else { "NAME" }
}
