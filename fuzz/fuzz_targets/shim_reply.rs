//! What a shim says to its callers, and the plan that it is given. Whatever is accepted must be accepted again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_container::fuzzing::{plan, prepared, reply};

fuzz_target!(|bytes: &[u8]| {
    for decode in [reply, prepared] {
        if let Some(written) = decode(bytes) {
            assert_eq!(decode(&written).as_ref(), Some(&written));
        }
    }
    if let Some(written) = plan(bytes) {
        // Its share of the processors may lose a last digit on the way.
        assert!(plan(&written).is_some());
    }
});
