//! Host interface version 1: the functions that a WebAssembly module may import from `steadfast_1`.
//!
//! A module exports its memory as `memory`, a function `episode` without parameters and results, and something called
//! `steadfast_version_1`, a function or a global of any type, which says that it was written for this version. Each episode
//! runs in an instance of its own, which begins as the module begins; what is to last is the state.
//!
//! | function | does |
//! |---|---|
//! | `instance_len() -> i32`, `instance_read(to: i32)` | the instance's name, `PROGRAM/KEY` |
//! | `episode_number() -> i64` | which episode of the instance this is, from 1 |
//! | `state_len() -> i32`, `state_read(to: i32)` | the state that the last episode left |
//! | `state_write(at: i32, len: i32)` | the state that the next one finds; without it, it stays as it was |
//! | `event_len(part: i32) -> i32`, `event_read(part: i32, to: i32)` | the event: part 0 its kind, 1 its source, 2 its correlation, 3 its payload; the length is -1 where there is none |
//! | `send(to_at, to_len, kind_at, kind_len, correlation_at, correlation_len, payload_at, payload_len, flags: i32, within_ms: i64)` | sends a message when the episode has ended well; flag 1 begins the receiver where there is none; `within_ms` 0 is without a limit |
//! | `wait(kind_at, kind_len, source_at, source_len, correlation_at, correlation_len, filter_at, filter_len)` | one more alternative of what is waited for; a part of length 0 fits everything |
//! | `deadline(ms: i64)` | waits for no longer than this from now on |
//! | `end(at: i32, len: i32)` | ends the instance with this answer |
//! | `answer(at: i32, len: i32)` | answers whoever sent the event and waits |
//! | `log(at: i32, len: i32)` | logs a line |
//! | `now_ms() -> i64` | milliseconds since 1970, the same all through the episode |
//! | `random() -> i64` | the next random number of this episode; the same ones when it is run again. No secret |
//! | `fail(at: i32, len: i32, lasting: i32)` | gives up with this reason: the episode is run again, or is left to a person at once if `lasting` is 1 |
//!
//! `…_at` and `to` are offsets in the module's memory, all `i32`. A `correlation_len` of 0 is none. `…_read` writes as many
//! bytes as `…_len` says. What does not fit (an offset outside the memory, a text that is no UTF-8, a name that is none, more
//! than a limit) ends the episode, which then has changed nothing; the sentence about it is what `episode show` prints.

use wasmi::ValType;
use wasmi::ValType::{I32, I64};

/// The version of the functions that are offered.
pub const VERSION: u32 = 1;
/// What they are imported from.
pub const MODULE: &str = "steadfast_1";
/// What the names of such modules begin with, in all versions.
pub(super) const MODULE_PREFIX: &str = "steadfast_";
/// What a module exports to say for which version it was written.
pub(super) const VERSION_EXPORT: &str = "steadfast_version_1";
/// What the names of such exports begin with, in all versions.
pub(super) const VERSION_EXPORT_PREFIX: &str = "steadfast_version_";

/// A function's name, parameters and results.
pub(in crate::episodes::programs) type Signature = (&'static str, &'static [ValType], &'static [ValType]);

/// All that can be imported.
pub(in crate::episodes::programs) const FUNCTIONS: [Signature; 17] = [
    ("answer", &[I32, I32], &[]),
    ("deadline", &[I64], &[]),
    ("end", &[I32, I32], &[]),
    ("episode_number", &[], &[I64]),
    ("event_len", &[I32], &[I32]),
    ("event_read", &[I32, I32], &[]),
    ("fail", &[I32, I32, I32], &[]),
    ("instance_len", &[], &[I32]),
    ("instance_read", &[I32], &[]),
    ("log", &[I32, I32], &[]),
    ("now_ms", &[], &[I64]),
    ("random", &[], &[I64]),
    ("send", &[I32, I32, I32, I32, I32, I32, I32, I32, I32, I64], &[]),
    ("state_len", &[], &[I32]),
    ("state_read", &[I32], &[]),
    ("state_write", &[I32, I32], &[]),
    ("wait", &[I32, I32, I32, I32, I32, I32, I32, I32], &[]),
];

/// The names of all functions, for people.
pub fn names() -> String {
    FUNCTIONS.map(|(name, _, _)| name).join(", ")
}

/// A signature as WebAssembly text has it.
pub(in crate::episodes::programs) fn signature(parameters: &[ValType], results: &[ValType]) -> String {
    let list = |word: &str, types: &[ValType]| {
        let types: Vec<&str> = types.iter().map(type_name).collect();
        if types.is_empty() { String::new() } else { format!(" ({word} {})", types.join(" ")) }
    };
    format!("(func{}{})", list("param", parameters), list("result", results))
}

fn type_name(one: &ValType) -> &'static str {
    match one {
        ValType::I32 => "i32",
        ValType::I64 => "i64",
        ValType::F32 => "f32",
        ValType::F64 => "f64",
        ValType::V128 => "v128",
        ValType::FuncRef => "funcref",
        ValType::ExternRef => "externref",
    }
}
