//! What CRIU and runc say to each other, and CRIU's statistics. A request that was changed needs no second change.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_container::fuzzing::{criu_request, criu_response, criu_statistics};

fuzz_target!(|bytes: &[u8]| {
    let _ = criu_response(bytes);
    let _ = criu_statistics(bytes);
    if let Some(changed) = criu_request(bytes) {
        assert!(changed.len() < bytes.len());
        assert_eq!(criu_request(&changed), None);
        assert_eq!(criu_response(&changed).is_some(), criu_response(bytes).is_some());
    }
    // The order of whole fields must not matter: the freezer group gets through nowhere.
    let freezer = b"\x12\x07\xe2\x02\x04/sys";
    if criu_response(bytes).is_some() {
        let (first, last) = ([freezer, bytes].concat(), [bytes, freezer].concat());
        assert_eq!(criu_request(&first).is_some(), criu_request(&last).is_some());
    }
});
