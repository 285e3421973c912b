//! The filter language: transcripts of errors, and properties against a second, naive evaluator.

use proptest::prelude::*;
use steadfast_proto::events::Value;

use super::*;
use crate::events::cloud::tests::{event, source};
use crate::events::kinds::{self, Unit};
use crate::events::{Lost, USER_ANY, parse_topic, shown};

fn filter(text: &str) -> Filter {
    text.parse().unwrap_or_else(|error: FilterError| panic!("{error}"))
}

fn refusal(text: &str) -> String {
    match text.parse::<Filter>() {
        Err(error) => error.to_string(),
        Ok(filter) => match filter.registrations() {
            Err(error) => error.to_string(),
            Ok(found) => panic!("{text} is taken: {found:?}"),
        },
    }
}

/// `topic` or `topic@node,node`, each registration.
fn asked(text: &str) -> Vec<String> {
    let found = filter(text).registrations().unwrap_or_else(|error| panic!("{error}"));
    let one = |registration: Registration| match registration.nodes {
        None => registration.topic.to_string(),
        Some(nodes) => {
            format!("{}@{}", registration.topic, nodes.into_iter().collect::<Vec<_>>().join(","))
        }
    };
    found.list.into_iter().map(one).collect()
}

fn usage(percent: f64) -> EventView {
    event(
        "disk.usage",
        7,
        &[
            ("percent", Value::Number(percent)),
            ("path", Value::Text("/var/lib data".into())),
            ("used_bytes", Value::Integer(10 << 20)),
        ],
    )
}

#[test]
fn the_example_of_the_issue() {
    let text = "type=disk.usage and node=alpha and percent>90";
    assert!(filter(text).matches(&usage(90.5)));
    assert!(!filter(text).matches(&usage(90.0)));
    assert_eq!(asked(text), ["disk.usage@alpha"]);
    assert_eq!(filter(text).nodes(), Some(["alpha".to_owned()].into()));
}

#[test]
fn what_comparisons_mean() {
    let exit = event(
        "user.backup",
        7,
        &[
            ("ok", Value::Flag(false)),
            ("took_ms", Value::Integer(61_000)),
            ("host", Value::Text("10.0.0.1".into())),
            ("code", Value::Integer(12)),
        ],
    );
    for (text, expected) in [
        ("", true),
        ("percent>90%", true),
        ("percent>=90.5 and percent<=90.5", true),
        ("percent>5s", false),
        ("used_bytes=10MiB", true),
        ("used_bytes<10MB", false),
        ("used_bytes >= 10485760", true),
        ("path=\"/var/lib data\"", true),
        ("path~/var/*", true),
        ("path~*lib?data", true),
        ("path~/var", false),
        ("node in (beta, alpha)", true),
        ("node!=alpha", false),
        ("sequence=7 and incarnation<4", true),
        ("pid!=5", false),
        ("percent!=5s", false),
        ("percent!=many", false),
        ("not pid=5", true),
        ("not (type=disk.usage or percent>90)", false),
        ("type=file.change or type~disk.* AND percent>90", true),
        ("(type=file.change or type~disk.*) and percent>91", false),
        ("percent==90.5", true),
    ] {
        assert_eq!(filter(text).matches(&usage(90.5)), expected, "{text}");
    }
    for (text, expected) in [
        ("ok=false", true),
        ("ok!=false", false),
        ("ok=\"false\"", true),
        ("took_ms>1m", true),
        ("took_ms<61s", false),
        ("took_ms=1.0166666m", false),
        ("host=10.0.0.1", true),
        ("host~10.0.*", true),
        ("code=\"12\"", true),
        ("code=12.0", true),
        ("code in (1, 12)", true),
        ("code~1*", true),
        ("code=true", false),
    ] {
        assert_eq!(filter(text).matches(&exit), expected, "{text}");
    }
}

#[test]
fn an_error_points_at_the_place_and_says_what_was_expected() {
    for (text, expected) in [
        (
            "type=disk.usage and percent>",
            "expected a value after \">\", and the filter ends here\n  type=disk.usage and percent>\n                              ^",
        ),
        (
            "percent 90",
            "expected one of = != < <= > >= ~ in after \"percent\", and \"90\" was found\n  percent 90\n          ^",
        ),
        ("a=1 b=2", "expected \"and\", \"or\" or the end, and \"b\" was found\n  a=1 b=2\n      ^"),
        (
            "(a=1 or b=2",
            "expected \"and\", \"or\" or \")\", and the filter ends here\n  (a=1 or b=2\n             ^",
        ),
        (
            "a=1 && b=2",
            "expected \"and\", \"or\" or the end, and \"&\" was found; write \"and\"\n  a=1 && b=2\n      ^",
        ),
        (
            "and a=1",
            "expected a field, as in percent>90, \"not\" or \"(\", and \"and\" was found\n  and a=1\n  ^",
        ),
        ("a=\"x", "this quote is not closed; put \" at the end of the text\n  a=\"x\n    ^"),
        (
            "type in disk",
            "expected \"(\" after \"in\", as in type in (disk.usage, file.change), and \"disk\" was found\n  type in disk\n          ^",
        ),
        ("a in (1 2)", "expected \",\" or \")\", and \"2\" was found\n  a in (1 2)\n          ^"),
        (
            "node='x'",
            "expected a value after \"=\", and a single quote was found; texts stand in \"double quotes\"\n  node='x'\n       ^",
        ),
        (
            "90<percent",
            "\"90\" is no field's name; a comparison begins with one, as in percent>90, and names begin with a small letter\n  90<percent\n  ^",
        ),
    ] {
        assert_eq!(text.parse::<Filter>().unwrap_err().to_string(), expected, "{text}");
    }
}

#[test]
fn a_mark_stands_under_its_character_whatever_stands_before() {
    let error = format!("node=\"ä\n{}\" percent", "ö".repeat(300)).parse::<Filter>().unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    let [_, shown, mark] = lines.as_slice() else { panic!("{error}") };
    let place = mark.chars().count() - 1;
    assert_eq!(shown.chars().nth(place), Some('p'), "{error}");
    assert!(shown.chars().count() < 110);
}

#[test]
fn a_filter_is_bounded_in_length_and_depth() {
    assert!(refusal(&"a".repeat(TEXT_BYTES_MAX + 1)).contains("4097 bytes"));
    let deep = |depth: usize| format!("{}a=1{}", "(".repeat(depth), ")".repeat(depth));
    assert!(deep(DEPTH_MAX).parse::<Filter>().is_ok());
    assert!(refusal(&deep(DEPTH_MAX + 1)).contains("deeper than 32"));
    assert!(refusal(&format!("{}a=1", "not ".repeat(900))).contains("deeper than 32"));
}

#[test]
fn what_is_fixed_is_pushed_down_to_the_producer() {
    for (text, expected) in [
        ("type=process.exit and pid=12", vec!["process.exit[pid=12]"]),
        (
            "type=process.exit and pid in (12, 13) and node=a",
            vec!["process.exit[pid=12]@a", "process.exit[pid=13]@a"],
        ),
        // One process may be both: two topics would tell of it twice.
        ("type=process.exit and (pid=12 or command=x)", vec!["process.exit"]),
        (
            "type=process.exit and (pid=12 or pid=13 and command=x)",
            vec!["process.exit[pid=12]", "process.exit[pid=13]"],
        ),
        ("type=process.exit and not pid!=12", vec!["process.exit"]),
        ("type=process.exit and status=1", vec!["process.exit"]),
        ("type=disk.usage or type=process.exit and pid=12", vec!["disk.usage", "process.exit[pid=12]"]),
        (
            "type=disk.usage and node=a or type=clock.step and not node!=b",
            vec!["disk.usage@a", "clock.step@b"],
        ),
        ("type~container.f*", vec!["container.failed", "container.frozen"]),
        (
            "type~device.* and device=data1",
            vec!["device.appeared[device=data1]", "device.removed[device=data1]"],
        ),
        ("type=user.backup and files>3", vec!["user.backup"]),
        ("type~user.*", vec!["user"]),
        ("type~user.* and node=a or type=user.backup and node=b", vec!["user@a,b"]),
        ("type=file.change and path=/etc", vec!["file.change[path=/etc]"]),
        (
            "type in (node.joined, node.left) and member=x",
            vec!["node.joined[member=x]", "node.left[member=x]"],
        ),
    ] {
        assert_eq!(asked(text), expected, "{text}");
    }
}

#[test]
fn without_a_type_the_busy_ones_are_left_out_and_said() {
    let found = Filter::default().registrations().unwrap();
    let topics: Vec<String> = found.topics().iter().map(ToString::to_string).collect();
    assert!(topics.contains(&"disk.usage".into()) && topics.contains(&"user".into()));
    let left_out: Vec<&str> = found.left_out.iter().map(|left_out| left_out.kind).collect();
    assert_eq!(left_out, ["process.exit", "file.change", "unit.state", "catalog.changed"]);
    assert!(found.left_out.iter().all(|left_out| left_out.reason.contains("write for example type=")));
    let all = asked("type!=clock.step");
    assert!(all.contains(&"process.exit".into()) && !all.contains(&"clock.step".into()));
    assert!(asked("container=web").contains(&"process.exit[container=web]".into()));
    assert!(asked("path=/etc").contains(&"file.change[path=/etc]".into()));
}

#[test]
fn what_can_never_match_is_refused_with_the_reason() {
    for (text, expected) in [
        ("type=disk.usag and node=a", "did you mean \"disk.usage\"?"),
        ("node=a and type in (disk.usage, joined)", "did you mean \"node.joined\"?"),
        ("type=container.*", "write type~container.*"),
        ("type~contaner.*", "no event type is like"),
        ("type>disk", "types have no order"),
        ("type=user", "write type~user.*"),
        ("type=disk.usage and percnt>90", "no event type has a field \"percnt\"; did you mean \"percent\"?"),
        ("type=disk.usage and pid=4", "disk.usage has no field \"pid\""),
        ("type=process.exit and pid=5 or type=disk.usage and pid=4", "disk.usage has no field \"pid\""),
        ("type in (disk.usage, process.exit) and percent>90", "process.exit has no field \"percent\""),
        ("percent>many", "percent of disk.usage is in percent, and \"many\" is none; write for example 90%"),
        ("percent>90B", "\"90B\" is a size; write for example 90%"),
        ("used_bytes>5s", "\"5s\" is a time; write for example 10MiB"),
        ("type=container.restored and age_ms>90%", "is a time"),
        ("sequence>x", "sequence is a number"),
        (
            "type=file.change",
            "file.change needs path to be fixed; write for example type=file.change and path=/etc/hosts",
        ),
        ("type=file.change and path~/etc/*", "file.change needs path"),
        ("type=disk.usage and type=clock.step", "can never match"),
        ("type=process.exit and pid=1 and pid=2", "exclude each other"),
        ("node=a and node=b", "exclude each other"),
    ] {
        let found = refusal(text);
        assert!(found.contains(expected), "{text}: {found}");
    }
    let found = refusal("type=process.exit and pid=5 or type=disk.usage and pid=4");
    let mark = found.lines().last().unwrap().len() - 3;
    assert_eq!(mark, "type=process.exit and pid=5 or type=disk.usage and ".len(), "{found}");
}

#[test]
fn a_gap_is_told_to_whoever_might_have_had_the_events() {
    let gap = |topic: &str| {
        Delivery::Gap(Lost { source: source(topic), from: 1, to: 2, reason: String::new(), at_unix_us: 0 })
    };
    for (text, topic, expected) in [
        ("type=disk.usage and percent>90", "disk.usage", true),
        ("type=disk.usage and percent>90", "clock.step", false),
        ("node=beta", "disk.usage", false),
        ("path=/var", "disk.usage[path=/var]", true),
        ("path=/var", "disk.usage[path=/]", false),
        ("pid=4", "disk.usage", false),
        ("type=user.x", USER_ANY, true),
        ("not percent>90", "disk.usage", true),
    ] {
        assert_eq!(filter(text).concerns(&gap(topic)), expected, "{text} {topic}");
    }
}

/// A second opinion, as plain as it can be.
fn naive(expression: &Expression, event: &EventView) -> bool {
    match expression {
        Expression::All(parts) => parts.iter().filter(|part| naive(part, event)).count() == parts.len(),
        Expression::Any(parts) => parts.iter().filter(|part| naive(part, event)).count() > 0,
        Expression::Not(inner) => !naive(inner, event),
        Expression::Compare(comparison) => {
            let value = match comparison.name.as_str() {
                "type" => Some(Value::Text(event.kind.to_string())),
                "node" => Some(Value::Text(event.source.node.clone())),
                "sequence" => Some(Value::Integer(i64::try_from(event.sequence).unwrap())),
                "incarnation" => Some(Value::Integer(i64::try_from(event.source.incarnation.0).unwrap())),
                name => event.fields.get(name).cloned(),
            };
            let Some(value) = value else { return false };
            let unit = kinds::unit(event.kind.as_str(), &comparison.name);
            match &comparison.test {
                Test::In(literals) => {
                    literals.iter().any(|literal| naive_is(&value, unit, Operator::Equal, literal))
                }
                Test::Is(operator, literal) => naive_is(&value, unit, *operator, literal),
            }
        }
    }
}

fn naive_is(value: &Value, unit: Unit, operator: Operator, literal: &Literal) -> bool {
    let as_number = match value {
        Value::Integer(integer) => Some(*integer as f64),
        Value::Number(number) => Some(*number),
        Value::Flag(_) | Value::Text(_) => None,
    };
    let wanted = match literal.meaning {
        Meaning::Amount(Amount { value, dimension }) => {
            let value = match value {
                Scalar::Whole(whole) => whole as f64,
                Scalar::Real(real) => real,
            };
            match (dimension, unit) {
                (Dimension::None, _) => Some(value),
                (Dimension::Percent, Unit::Percent) | (Dimension::Bytes, Unit::Bytes) => Some(value),
                (Dimension::Time, Unit::Milliseconds) => Some(value / 1e6),
                _ => None,
            }
        }
        Meaning::Text | Meaning::Flag(_) => None,
    };
    let equal = match (as_number, &literal.meaning) {
        (Some(number), Meaning::Amount(_)) => wanted == Some(number),
        (Some(_), Meaning::Flag(_)) => false,
        (Some(_) | None, _) => shown(value) == literal.text,
    };
    match (operator, value) {
        (Operator::Equal, _) => equal,
        (Operator::Unequal, _) => {
            !equal
                && (as_number.is_none()
                    || wanted.is_some()
                    || literal.meaning == Meaning::Text && literal.text.parse::<f64>().is_ok())
        }
        (Operator::Like, _) => naive_glob(&literal.text, &shown(value)),
        (Operator::Below, Value::Text(text)) => text < &literal.text,
        (Operator::AtMost, Value::Text(text)) => text <= &literal.text,
        (Operator::Above, Value::Text(text)) => text > &literal.text,
        (Operator::AtLeast, Value::Text(text)) => text >= &literal.text,
        (ordered, _) => as_number.zip(wanted).is_some_and(|(number, wanted)| match ordered {
            Operator::Below => number < wanted,
            Operator::AtMost => number <= wanted,
            Operator::Above => number > wanted,
            Operator::AtLeast => number >= wanted,
            Operator::Equal | Operator::Unequal | Operator::Like => false,
        }),
    }
}

fn naive_glob(pattern: &str, text: &str) -> bool {
    let mut rest = pattern.chars();
    match rest.next() {
        None => text.is_empty(),
        Some('*') => {
            let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.into_iter().any(|at| naive_glob(rest.as_str(), &text[at..]))
        }
        Some(first) => {
            let mut letters = text.chars();
            letters.next().is_some_and(|found| first == '?' || first == found)
                && naive_glob(rest.as_str(), letters.as_str())
        }
    }
}

fn any_literal() -> impl Strategy<Value = Literal> {
    let bare = prop::sample::select(vec![
        "alpha", "beta", "/var", "web", "12", "13", "12.5", "90", "90%", "1MiB", "5s", "5ms", "true",
        "false", "x*", "*", "up", "created", "0", "-3",
    ]);
    prop_oneof![
        4 => bare.prop_map(|text| Literal::bare(text, Place(0))),
        1 => "[a-z0-9 \"\\\\%=(),é*]{0,6}".prop_map(|text| Literal::quoted(text, Place(0))),
        1 => "[a-z0-9.*?/:-]{1,6}"
            .prop_filter("a keyword", |text| parse::is_bare(text))
            .prop_map(|text| Literal::bare(&text, Place(0))),
    ]
}

fn any_type() -> impl Strategy<Value = String> {
    let built_in: Vec<String> =
        kinds::all().iter().map(|kind| kind.name.to_owned()).filter(|name| name != USER_ANY).collect();
    prop_oneof![
        3 => prop::sample::select(vec!["disk.usage", "process.exit", "file.change", "container.moved"]).prop_map(str::to_owned),
        2 => prop::sample::select(built_in),
        1 => prop::sample::select(vec!["user.a", "user.b"]).prop_map(str::to_owned),
    ]
}

fn any_operator() -> impl Strategy<Value = Operator> {
    use Operator::{Above, AtLeast, AtMost, Below, Equal, Like, Unequal};
    prop::sample::select(vec![Equal, Equal, Equal, Unequal, Below, AtMost, Above, AtLeast, Like])
}

fn any_comparison() -> impl Strategy<Value = Expression> {
    use Operator::{Equal, Like, Unequal};
    let names: Vec<&str> = kinds::all().iter().flat_map(|kind| kind.fields).map(|field| field.name).collect();
    let names = prop_oneof![
        3 => prop::sample::select(names),
        2 => prop::sample::select(vec!["pid", "path", "container", "node", "percent", "sequence"]),
    ];
    let compare = |name: String, test| Expression::Compare(Comparison { name, at: Place(0), test });
    let kind = |name: String| Literal::bare(&name, Place(0));
    let like = prop::sample::select(vec!["*", "disk.*", "user.*", "us*", "*.exit", "container.?oved"]);
    let nodes = prop::sample::select(vec!["alpha", "beta"]);
    prop_oneof![
        3 => (any_type(), prop::sample::select(vec![Equal, Unequal]))
            .prop_map(move |(name, operator)| compare("type".into(), Test::Is(operator, kind(name)))),
        1 => like.prop_map(move |text| compare("type".into(), Test::Is(Like, kind(text.to_owned())))),
        1 => prop::collection::vec(any_type(), 1..3)
            .prop_map(move |names| compare("type".into(), Test::In(names.into_iter().map(kind).collect()))),
        1 => (nodes, prop::sample::select(vec![Equal, Unequal]))
            .prop_map(move |(name, operator)| compare("node".into(), Test::Is(operator, kind(name.to_owned())))),
        4 => (names.clone(), any_operator(), any_literal())
            .prop_map(move |(name, operator, literal)| compare(name.to_owned(), Test::Is(operator, literal))),
        1 => (names, prop::collection::vec(any_literal(), 1..4))
            .prop_map(move |(name, literals)| compare(name.to_owned(), Test::In(literals))),
    ]
}

fn any_filter() -> impl Strategy<Value = Filter> {
    let expression = any_comparison().prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            2 => prop::collection::vec(inner.clone(), 2..4).prop_map(Expression::All),
            2 => prop::collection::vec(inner.clone(), 2..4).prop_map(Expression::Any),
            1 => inner.prop_map(|inner| Expression::Not(Box::new(inner))),
        ]
    });
    expression.prop_map(|root| Filter { text: root.to_string(), root: Some(root) })
}

fn any_event() -> impl Strategy<Value = EventView> {
    let number = prop::sample::select(vec![12_i64, 13, 0, -3, 90, 1 << 20, 5_000]);
    let text = prop::sample::select(vec!["alpha", "beta", "/var", "web", "12", "up", "created", "x"]);
    let node = prop::sample::select(vec!["alpha", "beta"]);
    (any_type(), node, prop::collection::vec((number, text, any::<bool>()), 12)).prop_map(
        |(name, node, values)| {
            let kind = kinds::find(&name).unwrap();
            let own = ["pid", "path", "percent", "container"].map(|name| (name, kinds::Holds::Text));
            let fields: Vec<(&str, kinds::Holds)> = if kind.is_open() {
                own.to_vec()
            } else {
                kind.fields.iter().map(|field| (field.name, field.holds)).collect()
            };
            let mut shown_fields = Vec::new();
            for ((name, holds), (number, text, is_there)) in fields.into_iter().zip(values) {
                let is_must = kind.field(name).is_some_and(|field| field.about == kinds::About::Must);
                if is_there || is_must {
                    shown_fields.push((
                        name,
                        match holds {
                            kinds::Holds::Text => Value::Text(text.to_owned()),
                            kinds::Holds::Number(Unit::Percent) => {
                                Value::Number(number as f64 + 0.5 * f64::from(number == 12))
                            }
                            kinds::Holds::Number(_) => Value::Integer(number),
                        },
                    ));
                }
            }
            let mut event = event(&name, 12, &shown_fields);
            event.source.node = node.to_owned();
            event
        },
    )
}

fn covers(registration: &Registration, event: &EventView) -> bool {
    let topic = &registration.topic;
    let is_kind =
        topic.kind == event.kind || (topic.kind.as_str() == USER_ANY && kinds::is_user(event.kind.as_str()));
    let is_about = topic
        .about
        .iter()
        .all(|(name, text)| event.fields.get(name).is_some_and(|value| &shown(value) == text));
    is_kind && is_about && registration.nodes.as_ref().is_none_or(|nodes| nodes.contains(&event.source.node))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_filter_reads_back_as_it_was_printed(filter in any_filter()) {
        let again: Filter = filter.to_string().parse().map_err(|error: FilterError| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(again, filter);
    }

    #[test]
    fn matching_agrees_with_a_naive_evaluator(filter in any_filter(), event in any_event()) {
        prop_assert_eq!(filter.matches(&event), naive(filter.root.as_ref().unwrap(), &event), "{}", filter);
    }

    #[test]
    fn no_event_that_matches_is_lost_by_what_is_registered(
        filter in any_filter(),
        events in prop::collection::vec(any_event(), 40),
    ) {
        let found = filter.registrations();
        for event in events.iter().filter(|event| filter.matches(event)) {
            // A refusal may come from one of several types; that one is then the reason.
            let Ok(found) = &found else { continue };
            let covering = found.list.iter().filter(|registration| covers(registration, event)).count();
            let is_left_out = found.left_out.iter().any(|left_out| Some(left_out.kind) == kinds::find(event.kind.as_str()).map(|kind| kind.name));
            prop_assert!(covering == 1 || (covering == 0 && is_left_out), "{}: {:?} by {} of {:?}", filter, event, covering, found);
            prop_assert!(filter.nodes().is_none_or(|nodes| nodes.contains(&event.source.node)));
            let mut gap = event.source.clone();
            gap.topic = found.list.iter().find(|registration| covers(registration, event)).map_or(gap.topic, |registration| registration.topic.clone());
            prop_assert!(filter.concerns(&Delivery::Down { source: gap, at_unix_us: 0 }), "{}", filter);
        }
    }

    #[test]
    fn a_glob_agrees_with_a_naive_one(pattern in "[ab*?]{0,8}", text in "[abé]{0,8}") {
        prop_assert_eq!(evaluate::glob(&pattern, &text), naive_glob(&pattern, &text));
    }

    #[test]
    fn whatever_is_typed_is_taken_or_refused_with_a_place(text in "[a-z0-9 =<>!~()\",.é%]{0,40}") {
        if let Err(error) = text.parse::<Filter>() {
            prop_assert!(error.at() <= text.len() && !error.wrong().is_empty());
        }
    }
}

#[test]
fn a_topic_that_was_asked_for_can_be_written_and_read() {
    for topic in filter("type=process.exit and command=\"a,b]\"").registrations().unwrap().topics() {
        assert_eq!(parse_topic(&crate::events::topic_text(&topic)), Some(topic));
    }
}
