//! A message between members of the catalog. Whatever is accepted must be written the same way again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::catalog::fuzzing::{request, response};

fuzz_target!(|bytes: &[u8]| {
    for decode in [request, response] {
        // As it came, and as a message of this version.
        for bytes in [bytes, &[&[1], bytes].concat()] {
            if let Some(written) = decode(bytes) {
                assert_eq!(decode(&written).as_ref(), Some(&written));
            }
        }
    }
});
