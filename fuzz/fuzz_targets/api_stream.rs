//! The agent's stream of events as the command line reads it, and the target of a request as the agent reads it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_cli::api::{client::take_event, server::read_queries, types::LogLine};

fuzz_target!(|bytes: &[u8]| {
    let mut pending = bytes.to_vec();
    let mut before = pending.len();
    while let Some(event) = take_event::<LogLine>(&mut pending) {
        assert!(pending.len() < before, "an event of no bytes would be taken for ever");
        before = pending.len();
        if let Err(failure) = event {
            let _ = failure.message;
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        read_queries(text);
        read_queries(&format!("/v1/containers/web/logs?{text}"));
    }
});
