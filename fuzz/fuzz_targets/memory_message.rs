//! What nodes ask each other's checkpoint memory, as it came and with a true length in front.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::memory::{decode_request, decode_response};

fuzz_target!(|bytes: &[u8]| {
    let length = u32::try_from(bytes.len()).expect("inputs are short");
    let framed = [&length.to_le_bytes()[..], bytes, b"bulk"].concat();
    let _ = decode_request(bytes.to_vec().into());
    let _ = decode_response(bytes.to_vec().into());
    for decode in [decode_request, decode_response] {
        if let Ok(message) = decode(framed.clone().into()) {
            assert!(!message.head.is_empty());
            assert_eq!(&message.bulk[..], b"bulk");
        }
    }
});
