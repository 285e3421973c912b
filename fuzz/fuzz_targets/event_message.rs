//! What nodes say to each other about events. What is accepted is written the same way again, and no longer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_proto::events::Message;

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = Message::decode(bytes) else { return };
    let again = message.encode();
    assert!(again.len() <= bytes.len());
    let read = Message::decode(&again).expect("what was accepted is accepted again");
    assert_eq!(read.encode(), again);
});
