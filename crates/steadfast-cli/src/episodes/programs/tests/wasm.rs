//! Modules, written as text.

use std::time::Duration;

use super::super::wasm::interface::{FUNCTIONS, signature};
use super::super::{DeployError, interface};
use super::*;

/// A module that imports every function and has these further parts.
fn module(parts: &str) -> Source {
    let imports: String = FUNCTIONS
        .iter()
        .map(|(name, parameters, results)| {
            let function = signature(parameters, results).replacen("(func", &format!("(func ${name}"), 1);
            format!("(import \"steadfast_1\" \"{name}\" {function})\n")
        })
        .collect();
    let text = format!(
        "(module {imports} (memory (export \"memory\") 2) (global (export \"steadfast_version_1\") i32 (i32.const 1)) {parts})"
    );
    Source::Wasm(text.into_bytes())
}

/// A module whose episode does this, with `hello` at 0, bytes that are no UTF-8 at 16, and `order/18` at 32.
fn episode(body: &str) -> Source {
    module(&format!(
        r#"(data (i32.const 0) "hello") (data (i32.const 16) "\ff\fe") (data (i32.const 32) "order/18")
        (data (i32.const 48) "amount > ") (func $deep call $deep call $deep) (func (export "episode") {body})"#
    ))
}

async fn run(source: Source, limits: Limits) -> Ran {
    prepared(source, limits).run(&task("{}")).await
}

fn refusal(source: Source) -> DeployError {
    Prepared::new(source, limits()).expect_err("it should have been refused")
}

#[tokio::test]
async fn a_module_learns_what_there_is_to_learn_and_says_what_there_is_to_say() {
    let parts = r#"
        (data (i32.const 0) "charge") (data (i32.const 16) "payment/9") (data (i32.const 32) "amount > 20")
        (data (i32.const 48) "noted") (data (i32.const 64) "refused")
        (func (export "episode") (local $end i32)
            ;; One after the other from 1000 on: name, state, kind, source, correlation, payload.
            (call $instance_read (i32.const 1000))
            (local.set $end (i32.add (i32.const 1000) (call $instance_len)))
            (call $state_read (local.get $end))
            (local.set $end (i32.add (local.get $end) (call $state_len)))
            (call $event_read (i32.const 0) (local.get $end))
            (local.set $end (i32.add (local.get $end) (call $event_len (i32.const 0))))
            (call $event_read (i32.const 1) (local.get $end))
            (local.set $end (i32.add (local.get $end) (call $event_len (i32.const 1))))
            (call $event_read (i32.const 2) (local.get $end))
            (local.set $end (i32.add (local.get $end) (call $event_len (i32.const 2))))
            (call $event_read (i32.const 3) (local.get $end))
            (local.set $end (i32.add (local.get $end) (call $event_len (i32.const 3))))
            (i64.store (local.get $end) (call $now_ms))
            (i64.store offset=8 (local.get $end) (call $episode_number))
            (call $state_write (i32.const 1000) (i32.sub (i32.add (local.get $end) (i32.const 16)) (i32.const 1000)))
            (call $send (i32.const 16) (i32.const 9) (i32.const 0) (i32.const 6) (i32.const 48) (i32.const 5)
                (i32.const 32) (i32.const 6) (i32.const 1) (i64.const 1500))
            (call $send (i32.const 16) (i32.const 9) (i32.const 0) (i32.const 6) (i32.const 0) (i32.const 0)
                (i32.const 0) (i32.const 0) (i32.const 0) (i64.const 0))
            (call $wait (i32.const 64) (i32.const 7) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
            (call $wait (i32.const 0) (i32.const 0) (i32.const 16) (i32.const 9) (i32.const 48) (i32.const 5) (i32.const 32) (i32.const 11))
            (call $deadline (i64.const 2000))
            (call $answer (i32.const 48) (i32.const 5))
            (call $log (i32.const 48) (i32.const 5))
            (call $log (i32.const 0) (i32.const 0)))"#;
    let task = task("{}");
    let ran = prepared(module(parts), limits()).run(&task).await;
    assert_eq!(ran.log, ["noted", ""]);
    let outcome = outcome(ran);
    let mut state = b"order/17{\"item\":\"book\"}paidpayment/17c17{}".to_vec();
    state.extend(1_790_000_000_123_i64.to_le_bytes());
    state.extend(2_i64.to_le_bytes());
    assert_eq!(outcome.state, Blob::from(state));
    let [first, second] = &outcome.messages[..] else { panic!("{:?}", outcome.messages) };
    assert_eq!(
        (first.to.as_str(), &*first.kind, first.correlation.as_deref()),
        ("payment/9", "charge", Some("noted"))
    );
    assert_eq!(
        (&first.payload, first.begins, first.within),
        (&blob("amount"), true, Some(Duration::from_millis(1500)))
    );
    assert_eq!(
        (&second.correlation, &second.payload, second.begins, second.within),
        (&None, &blob(""), false, None)
    );
    let filtered = Match {
        kind: None,
        source: Some(Name::parse("payment/9").unwrap()),
        correlation: Some("noted".into()),
        filter: Some("amount > 20".into()),
    };
    let wait =
        Wait { any: vec![kind("refused"), filtered], deadline: Some(task.now + Duration::from_secs(2)) };
    assert_eq!(waits_for(&outcome), &wait);
    assert_eq!(outcome.answer, Some(blob("noted")));
}

#[tokio::test]
async fn a_state_of_which_a_module_says_nothing_stays_and_an_end_has_an_answer() {
    let outcome = outcome(run(episode("(call $end (i32.const 0) (i32.const 5))"), limits()).await);
    assert_eq!(outcome.state, task("").state);
    assert_eq!(outcome.next, Next::End(blob("hello")));
}

#[tokio::test]
async fn what_an_event_lacks_has_the_length_minus_one() {
    let body = "(i32.store (i32.const 100) (call $event_len (i32.const 1)))
        (i32.store (i32.const 104) (call $event_len (i32.const 2)))
        (i32.store (i32.const 108) (call $event_len (i32.const 3)))
        (call $event_read (i32.const 1) (i32.const 100)) (call $end (i32.const 100) (i32.const 12))";
    let mut task = task("");
    (task.event.source, task.event.correlation) = (None, None);
    let found = outcome(prepared(episode(body), limits()).run(&task).await);
    assert_eq!(found.next, Next::End(b"\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0".as_slice().into()));
}

#[tokio::test]
async fn random_numbers_are_the_same_in_a_rerun_and_others_in_another_episode_or_instance() {
    let body = "(i64.store (i32.const 100) (call $random)) (i64.store (i32.const 108) (call $random))
        (call $end (i32.const 100) (i32.const 16))";
    let program = prepared(episode(body), limits());
    let drawn = async |task: &Task| match outcome(program.run(task).await).next {
        Next::End(answer) => answer,
        Next::Wait(wait) => panic!("{wait:?}"),
    };
    let first = task("{}");
    let rerun = Task { run: 77, now: Time::from_nanos(1), ..first.clone() };
    let later = Task { episode: 3, ..first.clone() };
    let other = Task { name: Name::parse("order/18").unwrap(), ..first.clone() };
    let numbers = drawn(&first).await;
    assert_ne!(numbers[..8], numbers[8..]);
    assert_eq!(numbers, drawn(&rerun).await);
    assert_ne!(numbers, drawn(&later).await);
    assert_ne!(numbers, drawn(&other).await);
}

#[tokio::test]
async fn an_episode_begins_with_the_memory_of_the_module_whatever_the_last_one_left() {
    let body = "(i32.store8 (i32.const 4) (i32.add (i32.const 1) (i32.load8_u (i32.const 4)))) (call $end (i32.const 0) (i32.const 5))";
    let program = prepared(episode(body), limits());
    for _ in 0..3 {
        assert_eq!(outcome(program.run(&task("{}")).await).next, Next::End(blob("hellp")));
    }
}

#[tokio::test]
async fn each_way_to_go_wrong_fails_with_a_sentence_and_leaves_nothing() {
    let one = |at, len| format!("(i32.const {at}) (i32.const {len})");
    let send = |to: String, kind: String, payload: String, flags: i32, within: i64| {
        format!("(call $send {to} {kind} {} {payload} (i32.const {flags}) (i64.const {within}))", one(0, 0))
    };
    let (name, text) = (one(32, 8), one(0, 5));
    for (body, expected) in [
        ("unreachable".to_owned(), "came to an unreachable instruction"),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))".to_owned(), "trapped: integer divide by zero"),
        ("(drop (i32.load (i32.const -1)))".to_owned(), "trapped: out of bounds memory access"),
        ("(call $deep)".to_owned(), "calls itself too deeply"),
        ("(loop br 0)".to_owned(), "used up its fuel of 20000000 instructions; it may loop for ever"),
        (
            "(drop (memory.grow (i32.const 2000)))".to_owned(),
            "more memory than 67108864 bytes, which is the limit",
        ),
        (String::new(), "says neither that it ends nor what it waits for"),
        (format!("(call $end {text}) (call $deadline (i64.const 1))"), "it ends and also what it waits for"),
        (
            "(call $deadline (i64.const -5))".to_owned(),
            "called deadline wrongly: -5 ms from now is in the past",
        ),
        (
            format!("(call $log {})", one(131_072, 1)),
            "called log wrongly: 1 bytes at 131072 lie outside its memory of 131072 bytes",
        ),
        (format!("(call $log {})", one(-1, -1)), "4294967295 bytes at 4294967295 lie outside"),
        (format!("(call $log {})", one(16, 2)), "called log wrongly: the text at 16 is no UTF-8"),
        (
            "(call $state_read (i32.const 131071))".to_owned(),
            "called state_read wrongly: 15 bytes at 131071 lie outside",
        ),
        (
            "(call $event_read (i32.const 4) (i32.const 0))".to_owned(),
            "an event has no part 4; 0 is its kind",
        ),
        ("(drop (call $event_len (i32.const -1)))".to_owned(), "an event has no part -1"),
        (
            format!("(call $state_write {})", one(0, 131_073)),
            "called state_write wrongly: 131073 bytes at 0 lie outside",
        ),
        (
            send(text.clone(), text.clone(), text.clone(), 0, 0),
            "called send wrongly: the receiver of a message is no name: \"hello\" names no instance",
        ),
        (
            send(one(16, 2), text.clone(), text.clone(), 0, 0),
            "called send wrongly: the text at 16 is no UTF-8",
        ),
        (send(name.clone(), one(0, 0), text.clone(), 0, 0), "a message to order/18 has no kind"),
        (
            send(name.clone(), one(1000, 257), text.clone(), 0, 0),
            "the kind of a message has 257 bytes; the limit is 256",
        ),
        (send(name.clone(), text.clone(), one(-8, 4), 0, 0), "4 bytes at 4294967288 lie outside"),
        (
            send(name.clone(), text.clone(), text.clone(), 2, 0),
            "called send wrongly: flags 2 are unknown; 1 begins",
        ),
        (send(name.clone(), text.clone(), text.clone(), 0, -1), "a time of -1 ms is over already"),
        (
            format!("(call $wait {} {} {} {})", one(0, 0), one(0, 0), one(0, 0), one(48, 9)),
            "called wait wrongly: the filter \"amount > \" of a wait can not be read: at byte 9",
        ),
        (
            format!("(call $wait {} {text} {} {})", one(0, 0), one(0, 0), one(0, 0)),
            "the source of a wait is no name",
        ),
        (
            format!("(loop (call $wait {} {} {} {}) br 0)", one(0, 0), one(0, 0), one(0, 0), one(0, 0)),
            "more than 64 alternatives of its wait, which is the limit",
        ),
        (
            format!("(loop {} br 0)", send(name.clone(), text.clone(), text, 0, 0)),
            "more than 256 messages, which is the limit",
        ),
        (
            format!("(loop (call $log {}) br 0)", one(0, 0)),
            "more than 65536 bytes of log, which is the limit",
        ),
    ] {
        let found = why(&run(episode(&body), limits()).await);
        assert!(found.contains(expected), "{body}: {found}");
    }
}

#[tokio::test]
async fn a_state_or_a_payload_that_is_too_large_is_refused() {
    let limits = Limits { state_bytes_max: 100, payload_bytes_max: 50, ..limits() };
    for (body, expected) in [
        ("(call $state_write (i32.const 0) (i32.const 101))", "state_write wrongly: the state has 101 bytes; the limit is 100"),
        ("(call $end (i32.const 0) (i32.const 51))", "the answer of the end has 51 bytes; the limit is 50"),
        ("(call $answer (i32.const 0) (i32.const 51))", "the answer has 51 bytes; the limit is 50"),
        (
            "(call $send (i32.const 32) (i32.const 8) (i32.const 0) (i32.const 5) (i32.const 0) (i32.const 0) (i32.const 0)
                (i32.const 51) (i32.const 0) (i64.const 0))",
            "the payload of a message has 51 bytes; the limit is 50",
        ),
    ] {
        let found = why(&run(episode(body), limits).await);
        assert!(found.contains(expected), "{found}");
    }
}

#[tokio::test]
async fn a_module_that_takes_too_long_gives_its_thread_back() {
    let limits = Limits { time_max: Duration::from_millis(50), fuel_max: u64::MAX, ..limits() };
    for body in [
        "(loop br 0)",
        // Each call copies a megabyte and costs next to no fuel.
        "(drop (memory.grow (i32.const 20))) (loop (call $state_write (i32.const 0) (i32.const 1000000)) br 0)",
    ] {
        let found = why(&run(episode(body), limits).await);
        assert!(found.contains("longer than 50ms, which is the limit"), "{found}");
    }
}

#[tokio::test]
async fn a_module_that_waits_for_its_thread_stays_off_the_runtime() {
    // One thread only: if the module ran on it, nothing else would end first.
    let limits = Limits { time_max: Duration::from_secs(2), fuel_max: u64::MAX, ..limits() };
    let program = prepared(episode("(loop br 0)"), limits);
    let task = task("{}");
    tokio::select! {
        biased;
        ran = program.run(&task) => panic!("{ran:?}"),
        () = async { for _ in 0..100 { tokio::task::yield_now().await; } } => {}
    }
}

#[tokio::test]
async fn a_module_that_gives_up_says_whether_for_good_and_keeps_its_log() {
    let body = "(call $log (i32.const 0) (i32.const 5)) (call $state_write (i32.const 0) (i32.const 5))
        (call $fail (i32.const 0) (i32.const 5) (i32.const 1))";
    let ran = run(episode(body), limits()).await;
    let failure = ran.result.unwrap_err();
    assert_eq!((&*failure.why, failure.lasting, &ran.log[..]), ("hello", true, &["hello".to_owned()][..]));
    let ran = run(episode("(call $fail (i32.const 0) (i32.const 5) (i32.const 0))"), limits()).await;
    assert_eq!(why(&ran), "hello");
    let ran = run(episode("(call $log (i32.const 0) (i32.const 5)) unreachable"), limits()).await;
    assert_eq!((ran.result.is_err(), &ran.log[..]), (true, &["hello".to_owned()][..]));
}

#[tokio::test]
async fn an_episode_that_fails_affects_no_other_of_the_same_module() {
    let body = "(if (i32.eqz (call $event_len (i32.const 3))) (then unreachable)) (call $end (i32.const 0) (i32.const 5))";
    let program = prepared(episode(body), limits());
    for _ in 0..50 {
        let (good, bad) = (task("{}"), task(""));
        let (good, bad) = tokio::join!(program.run(&good), program.run(&bad));
        assert_eq!(outcome(good).next, Next::End(blob("hello")));
        assert!(why(&bad).contains("unreachable"));
    }
}

#[tokio::test]
async fn a_long_episode_within_its_limits_goes_on_over_many_slices() {
    let body = "(local $n i32) (loop (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if 0 (i32.lt_u (local.get $n) (i32.const 3000000))))
        (i32.store (i32.const 0) (local.get $n)) (memory.fill (i32.const 100) (i32.const 7) (i32.const 100000))
        (call $end (i32.const 0) (i32.const 4))";
    let limits = Limits { fuel_max: u64::MAX, ..limits() };
    let found = outcome(run(episode(body), limits).await);
    assert_eq!(found.next, Next::End(3_000_000_u32.to_le_bytes().as_slice().into()));
}

#[test]
fn what_is_no_module_for_this_agent_is_refused_with_what_would_be_right() {
    let text = |text: &str| Source::Wasm(text.as_bytes().to_vec());
    let version = r#"(global (export "steadfast_version_1") i32 (i32.const 1))"#;
    let memory = r#"(memory (export "memory") 1)"#;
    let ready = r#"(func (export "episode"))"#;
    for (source, expected) in [
        (Source::Wasm(vec![1, 2, 3, 255]), "no WebAssembly module that can be run here"),
        (Source::Wasm(b"\0asm\x01\0\0\0\x01".to_vec()), "no WebAssembly module that can be run here"),
        (text("(module"), "no WebAssembly module"),
        (text("(module (func (result i32)))"), "type mismatch"),
        (text(&format!("(module {version} {ready})")), "the module exports no memory; export the memory"),
        (text(&format!("(module {version} {memory})")), "the module exports no episode; export a function"),
        (
            text(&format!(r#"(module {version} {memory} (func (export "episode") (param i32)))"#)),
            "without parameters and results",
        ),
        (
            text(&format!("(module {memory} {ready})")),
            "exports no steadfast_version_1; export a function or a global",
        ),
        (
            text(&format!(r#"(module {memory} {ready} (func (export "steadfast_version_7")))"#)),
            "compiled for host interface version 7, and this agent offers version 1",
        ),
        (
            text(&format!(r#"(module (import "steadfast_2" "send" (func)) {memory} {ready})"#)),
            "compiled for host interface version 2, and this agent offers version 1",
        ),
        (
            text(&format!(r#"(module (import "env" "puts" (func (param i32))) {version} {memory} {ready})"#)),
            "imports env.puts, which is not offered; a module may import from steadfast_1: answer, deadline, end",
        ),
        (
            text(&format!(r#"(module (import "steadfast_1" "sleep" (func)) {version} {memory} {ready})"#)),
            "imports steadfast_1.sleep, which is not offered",
        ),
        (
            text(&format!(
                r#"(module (import "steadfast_1" "end" (func (param i64))) {version} {memory} {ready})"#
            )),
            "imports steadfast_1.end as (func (param i64)); it is (func (param i32 i32))",
        ),
        (
            text(&format!(
                r#"(module (import "steadfast_1" "now_ms" (global i64)) {version} {memory} {ready})"#
            )),
            "imports steadfast_1.now_ms as a global; it is (func (result i64))",
        ),
        (text(&format!("(module {version} {memory} {ready} (func $s) (start $s))")), "start"),
        (
            text(&format!(r#"(module {version} {ready} (memory (export "memory") 1025))"#)),
            "can not be started: the module wants more memory than 67108864 bytes",
        ),
        (text(&format!("(module {version} {memory} (memory 1) {ready})")), "multiple memories"),
        (
            text(&format!("(module {version} {memory} {ready} (table 100001 funcref))")),
            "can not be started: the module wants more memory than",
        ),
        (
            text(&format!("(module {version} {memory} {ready} {})", "(table 1 funcref)".repeat(9))),
            "can not be started",
        ),
        (
            text(&format!(r#"(module {version} {memory} {ready} (data (i32.const 65536) "x"))"#)),
            "can not be started",
        ),
    ] {
        let error = refusal(source).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn the_page_of_the_interface_names_every_function() {
    let page = include_str!("../wasm/interface.rs");
    for (name, _, _) in FUNCTIONS {
        assert!(page.contains(&format!("`{name}(")), "{name}");
    }
    assert!(interface::MODULE.ends_with(&interface::VERSION.to_string()));
}

#[tokio::test]
async fn many_episodes_of_one_module_run_at_once() {
    let program = prepared(episode("(call $end (i32.const 0) (i32.const 5))"), limits());
    let runs: Vec<_> = (0..64)
        .map(|_| {
            let program = program.clone();
            tokio::spawn(async move { program.run(&task("{}")).await })
        })
        .collect();
    for run in runs {
        assert_eq!(outcome(run.await.unwrap()).next, Next::End(blob("hello")));
    }
}
