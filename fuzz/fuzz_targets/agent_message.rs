//! What agents tell each other when one joins, and what they keep. Whatever is accepted must be written the same way again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_cli::agent::fuzzing::{admit_request, held, join_reply, join_request, meta, state};

fuzz_target!(|bytes: &[u8]| {
    for decode in [join_request, join_reply, admit_request, state, meta] {
        if let Some(written) = decode(bytes) {
            assert_eq!(decode(&written).as_ref(), Some(&written));
        }
    }
    assert!(held(bytes) <= bytes.len() / 32);
});
