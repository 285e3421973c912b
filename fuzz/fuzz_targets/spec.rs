//! A container's spec file. A refusal must name a problem.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_cli::spec::{RawSpec, load};

fuzz_target!(|text: &str| {
    if let Err(failure) = load(Some(("fuzz.toml", text)), RawSpec::default()) {
        assert!(!failure.message.is_empty());
    }
});
