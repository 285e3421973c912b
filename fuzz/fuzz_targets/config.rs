//! A node's configuration file. A refusal must name a problem.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_cli::config::check_text;

fuzz_target!(|text: &str| {
    if let Err(failure) = check_text("fuzz.toml", text, |_| None) {
        assert!(!failure.message.is_empty());
    }
});
