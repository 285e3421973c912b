//! The JSON of tasks and answers.

use proptest::prelude::*;
use serde_json::{Value, json};
use steadfast_proto::episode::Outgoing;
use steadfast_proto::exchange::Text;

use super::super::json;
use super::*;

fn answer(text: &str) -> Result<Ran, String> {
    json::answer(text.as_bytes(), &task("{}"), limits()).map_err(|error| error.to_string())
}

#[test]
fn a_program_is_told_all_of_its_episode() {
    let found: Value = serde_json::from_slice(&json::task(&task(r#"{"amount":25}"#))).unwrap();
    let expected = json!({
        "program": "order", "version": 3, "instance": "order/17", "episode": 2, "now_ms": 1_790_000_000_123_u64,
        "event": {"kind": "paid", "source": "payment/17", "correlation": "c17", "payload": {"amount": 25}},
        "state": {"item": "book"},
    });
    assert_eq!(found, expected);
}

#[test]
fn what_there_is_not_is_null() {
    let mut task = task("");
    (task.state, task.event.source, task.event.correlation) = (Blob::empty(), None, None);
    let found: Value = serde_json::from_slice(&json::task(&task)).unwrap();
    assert_eq!(found["event"], json!({"kind": "paid", "source": null, "correlation": null, "payload": null}));
    assert_eq!(found["state"], Value::Null);
}

#[test]
fn bytes_are_shown_as_the_json_that_they_are_as_it_was_written_or_as_base64() {
    for (payload, shown) in [
        (r#"{"b":1,"a":1e400}"#.as_bytes(), r#""payload":{"b":1,"a":1e400}}"#),
        (b" 12345678901234567890123 ", r#""payload":12345678901234567890123}"#),
        (b"hello", r#""payload":{"base64":"aGVsbG8="}}"#),
        (b"\xff\0", r#""payload":{"base64":"/wA="}}"#),
        (b"{} {}", r#""payload":{"base64":"e30ge30="}}"#),
    ] {
        let mut task = task("");
        task.event.payload = payload.into();
        let text = String::from_utf8(json::task(&task)).unwrap();
        assert!(text.contains(shown), "{text}");
    }
}

#[test]
fn why_something_is_undeliverable_is_a_text() {
    let mut task = task("");
    (task.event.kind, task.event.payload) =
        (Event::UNDELIVERABLE.into(), b"\"quoted\" \xff".as_slice().into());
    let shown =
        |task: &Task| serde_json::from_slice::<Value>(&json::task(task)).unwrap()["event"]["payload"].clone();
    assert_eq!(
        shown(&task),
        json!({"base64": "InF1b3RlZCIg/w=="}),
        "a sender's own event of that kind is as it is"
    );
    task.event.id = EventId::Notice(1);
    assert_eq!(shown(&task), json!("\"quoted\" \u{fffd}"));
}

#[test]
fn an_answer_is_read_in_all_its_parts() {
    let ran = answer(
        r#"{"state": {"paid": true, "amount": 1e400},
            "messages": [
                {"to": "shipment/17", "kind": "ship", "correlation": "c", "payload": {"base64": "/wA="}, "begins": true, "within_ms": 1500},
                {"to": "outside/bank", "kind": "thanks"}],
            "answer": null,
            "wait": {"any": [{"kind": "shipped", "source": "shipment/17", "correlation": "c", "filter": "count > 1"}, {}], "within_ms": 2000},
            "log": ["one", "two"]}"#,
    )
    .unwrap();
    assert_eq!(ran.log, ["one", "two"]);
    let outcome = outcome(ran);
    assert_eq!(outcome.state, blob(r#"{"paid": true, "amount": 1e400}"#));
    assert_eq!(outcome.answer, Some(Blob::empty()));
    let name = |text| Name::parse(text).unwrap();
    let messages = [
        Outgoing {
            to: name("shipment/17"),
            kind: "ship".into(),
            correlation: Some("c".into()),
            payload: b"\xff\0".as_slice().into(),
            begins: true,
            within: Some(Duration::from_millis(1500)),
        },
        Outgoing {
            to: name("outside/bank"),
            kind: "thanks".into(),
            correlation: None,
            payload: Blob::empty(),
            begins: false,
            within: None,
        },
    ];
    assert_eq!(outcome.messages, messages);
    let full = Match {
        kind: Some("shipped".into()),
        source: Some(name("shipment/17")),
        correlation: Some("c".into()),
        filter: Some("count > 1".into()),
    };
    let deadline = Some(task("").now + Duration::from_secs(2));
    assert_eq!(waits_for(&outcome), &Wait { any: vec![full, Match::default()], deadline });
}

#[test]
fn a_state_that_is_absent_stays_and_one_that_is_null_is_emptied() {
    assert_eq!(outcome(answer(r#"{"end": null}"#).unwrap()).state, task("").state);
    let ended = outcome(answer(r#"{"end": 5, "state": null}"#).unwrap());
    assert_eq!((ended.state, ended.answer, ended.next), (Blob::empty(), None, Next::End(blob("5"))));
}

#[test]
fn a_program_that_fails_says_why_and_whether_for_good() {
    let ran = answer(r#"{"fail": "no such book", "lasting": true, "log": ["looked"]}"#).unwrap();
    let failure = ran.result.unwrap_err();
    assert_eq!(
        (&*failure.why, failure.lasting, &ran.log[..]),
        ("no such book", true, &["looked".to_owned()][..])
    );
    assert_eq!(why(&answer(r#"{"fail": "the shop is closed"}"#).unwrap()), "the shop is closed");
}

#[test]
fn an_answer_that_is_none_is_refused_with_what_would_be_right() {
    let long = "x".repeat(257);
    for (text, expected) in [
        ("", "it is empty; an object with \"wait\" or \"end\" would be right"),
        ("hello", "it begins: hello"),
        ("[1]", "invalid type: sequence, expected an object"),
        ("5", "invalid type: integer `5`, expected an object"),
        (r#"{"end": 1} x"#, "trailing characters"),
        (
            r#"{"end": 1, "stat": 2}"#,
            "unknown field `stat`, expected one of `state`, `messages`, `wait`, `end`",
        ),
        (r#"{"end": 1, "end": 2}"#, "duplicate field `end`"),
        (r#"{"wait": {"any": [{"knd": "a"}]}}"#, "unknown field `knd`, expected one of `kind`, `source`"),
        (r#"{"wait": {"within": 5}}"#, "unknown field `within`, expected `any` or `within_ms`"),
        (r#"{"wait": {"within_ms": -5}}"#, "expected u64"),
        (r#"{"messages": 5}"#, "expected a sequence"),
        (r#"{"messages": [["order/1", "a"]], "end": 1}"#, "invalid type: sequence, expected an object"),
        (r#"{"wait": [[{}]]}"#, "invalid type: sequence, expected an object"),
        (r#"{"wait": {"any": [["a"]]}}"#, "invalid type: sequence, expected an object"),
        (r#"{"messages": [{"kind": "a"}]}"#, "missing field `to`"),
        (r#"{"messages": [{"to": "order/1"}]}"#, "missing field `kind`"),
        (r#"{"messages": [{"to": "order", "kind": "a"}]}"#, "write PROGRAM/KEY, such as order/17"),
        (r#"{"messages": [{"to": "order/1", "kind": ""}]}"#, "a message to order/1 has no kind"),
        (
            r#"{"messages": [{"to": "effect/mail", "kind": "a", "begins": true}]}"#,
            "begins effect/mail, which is no instance",
        ),
        (
            &format!(r#"{{"messages": [{{"to": "order/1", "kind": "{long}"}}]}}"#),
            "has 257 bytes; the limit is 256",
        ),
        (
            &format!(r#"{{"messages": [{{"to": "order/{long}", "kind": "a"}}]}}"#),
            "has 263 bytes; the limit is 256",
        ),
        (
            r#"{"wait": {"any": [{"filter": "a >"}]}}"#,
            "the filter \"a >\" of a wait can not be read: at byte 3",
        ),
        (r#"{"wait": {"any": [{"source": "x"}]}}"#, "the source of a wait is no name"),
        ("{}", "says neither that it ends nor what it waits for"),
        (r#"{"wait": {}}"#, "says neither that it ends nor what it waits for"),
        (r#"{"wait": {"any": [{}]}, "end": null}"#, "it ends and also what it waits for"),
        (r#"{"fail": "a", "state": 1}"#, "has \"fail\" and also \"state\""),
        (r#"{"fail": "a", "end": null}"#, "has \"fail\" and also \"end\""),
        (r#"{"lasting": true, "end": 1}"#, "has \"lasting\" without \"fail\""),
        (
            r#"{"end": {"base64": "?"}}"#,
            "end is an object with the one field \"base64\", which is no base64 text",
        ),
    ] {
        let error = answer(text).err().unwrap_or_else(|| panic!("{text} was taken"));
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn an_answer_beyond_the_limits_is_refused() {
    let limits =
        Limits { state_bytes_max: 10, payload_bytes_max: 5, messages_max: 1, log_bytes_max: 8, ..limits() };
    for (text, expected) in [
        (r#"{"end": 1, "state": "012345678"}"#, "the state has 11 bytes; the limit is 10"),
        (r#"{"end": "0123"}"#, "the answer of the end has 6 bytes; the limit is 5"),
        (r#"{"end": 1, "answer": "0123"}"#, "the answer has 6 bytes; the limit is 5"),
        (
            r#"{"end": 1, "messages": [{"to": "a/1", "kind": "a", "payload": "0123"}]}"#,
            "the payload of a message has 6 bytes",
        ),
        (
            r#"{"end": 1, "messages": [{"to": "a/1", "kind": "a"}, {"to": "a/1", "kind": "a"}]}"#,
            "more than 1 messages",
        ),
        (r#"{"end": 1, "log": ["0123", "01"]}"#, ""),
        (r#"{"end": 1, "log": ["0123", "0123"]}"#, "more than 8 bytes of log"),
    ] {
        let found = json::answer(text.as_bytes(), &task("{}"), limits);
        let error = found.err().map_or(String::new(), |error| error.to_string());
        assert!(error.contains(expected) && error.is_empty() == expected.is_empty(), "{text}: {error}");
    }
}

/// What an outcome is written as by a program that takes the page literally.
fn written(outcome: &Outcome, now: Time) -> Value {
    let any = |bytes: &[u8]| -> Value {
        if bytes.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(bytes)
            .unwrap_or_else(|_| json!({"base64": data_encoding::BASE64.encode(bytes)}))
    };
    let messages: Vec<Value> = outcome
        .messages
        .iter()
        .map(|message| {
            json!({
                "to": message.to.as_str(), "kind": message.kind.as_str(), "payload": any(&message.payload),
                "correlation": message.correlation.as_deref(), "begins": message.begins,
                "within_ms": message.within.map(|within| u64::try_from(within.as_millis()).unwrap()),
            })
        })
        .collect();
    let mut object = json!({"state": any(&outcome.state), "messages": messages});
    if let Some(answer) = &outcome.answer {
        object["answer"] = any(answer);
    }
    match &outcome.next {
        Next::End(answer) => object["end"] = any(answer),
        Next::Wait(wait) => {
            let alternatives: Vec<Value> = wait
                .any
                .iter()
                .map(|one| {
                    json!({
                        "kind": one.kind.as_deref(), "source": one.source.as_ref().map(Name::as_str),
                        "correlation": one.correlation.as_deref(), "filter": one.filter.as_deref(),
                    })
                })
                .collect();
            let within =
                wait.deadline.map(|deadline| u64::try_from(deadline.since(now).as_millis()).unwrap());
            object["wait"] = json!({"any": alternatives, "within_ms": within});
        }
    }
    object
}

fn any_blob() -> impl Strategy<Value = Blob> {
    let json = prop_oneof![
        Just("{}".to_owned()),
        any::<i32>().prop_map(|number| number.to_string()),
        "[a-zé\u{1}\"\\\\ ]{0,12}".prop_map(|text| json!({ "text": text, "base64": "no" }).to_string()),
        "[a-z]{0,5}".prop_map(|text| json!([text, null, {"base64": "aGk="}]).to_string()),
    ];
    // Bytes that happen to be JSON are normalised by the program that reads and writes them.
    let is_no_json = |bytes: &Vec<u8>| bytes.is_empty() || serde_json::from_slice::<Value>(bytes).is_err();
    prop_oneof![
        json.prop_map(|text| blob(&text)),
        prop::collection::vec(any::<u8>(), 0..20).prop_filter("it is JSON", is_no_json).prop_map(Blob::from),
    ]
}

fn any_text() -> impl Strategy<Value = Text> {
    "[a-zé./\"\\\\-]{1,20}".prop_map(|text| Text::cut(&text))
}

fn any_name() -> impl Strategy<Value = Name> {
    "[a-z][a-z0-9.-]{0,8}/[a-zA-Z0-9é/\"\\\\]{1,12}"
        .prop_map(|text| Name::parse(&text).unwrap())
        .prop_filter("nobody can begin it", |name| !name.is_outside() && !name.is_effect())
}

fn any_match() -> impl Strategy<Value = Match> {
    let filter =
        prop::option::of(prop::sample::select(vec!["amount>20", "a.b = \"x\\\"y\"", "not paid=true"]));
    let parts =
        (prop::option::of(any_text()), prop::option::of(any_name()), prop::option::of(any_text()), filter);
    parts.prop_map(|(kind, source, correlation, filter)| Match {
        kind,
        source,
        correlation,
        filter: filter.map(Text::from),
    })
}

fn any_outgoing() -> impl Strategy<Value = Outgoing> {
    let within = prop::option::of((0..100_000_u64).prop_map(Duration::from_millis));
    (any_name(), any_text(), prop::option::of(any_text()), any_blob(), any::<bool>(), within).prop_map(
        |(to, kind, correlation, payload, begins, within)| Outgoing {
            to,
            kind,
            correlation,
            payload,
            begins,
            within,
        },
    )
}

fn any_next() -> impl Strategy<Value = Next> {
    let deadline = prop::option::of((0..100_000_u64).prop_map(|ms| task("").now + Duration::from_millis(ms)));
    prop_oneof![
        any_blob().prop_map(Next::End),
        (prop::collection::vec(any_match(), 1..4), deadline)
            .prop_map(|(any, deadline)| Next::Wait(Wait { any, deadline })),
    ]
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    let parts =
        (any_blob(), prop::collection::vec(any_outgoing(), 0..4), prop::option::of(any_blob()), any_next());
    parts.prop_map(|(state, messages, answer, next)| Outcome { state, messages, answer, next })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_outcome_reads_back_as_it_was_written(outcome in any_outcome()) {
        let task = task("{}");
        let text = written(&outcome, task.now).to_string();
        let found = json::answer(text.as_bytes(), &task, limits()).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(found.result.as_ref(), Ok(&outcome), "{}", text);
    }

    #[test]
    fn a_program_that_returns_what_it_was_told_changes_no_byte(state in any_blob()) {
        let mut task = task("{}");
        task.state = state.clone();
        let told: serde_json::Map<String, Value> = serde_json::from_slice(&json::task(&task)).unwrap();
        let answer = json!({"state": told["state"], "end": null}).to_string();
        let found = json::answer(answer.as_bytes(), &task, limits()).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let found = found.result.unwrap().state;
        let as_json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
        prop_assert!(found == state || as_json(&found).is_some() && as_json(&found) == as_json(&state), "{:?} {:?}", found, state);
    }

    #[test]
    fn whatever_bytes_come_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = json::answer(&bytes, &task("{}"), limits()) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
