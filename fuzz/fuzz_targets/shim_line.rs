//! One line that a caller sends to a shim. Whatever is accepted must be written the same way again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_container::decode_request;

fuzz_target!(|line: &[u8]| {
    let Ok(request) = decode_request(line) else { return };
    let again = serde_json::to_vec(&request).expect("a request is JSON");
    assert_eq!(decode_request(&again).expect("what was written can be read"), request);
});
