//! A heartbeat's frame, as it is after its seal was opened. Whatever is accepted must be written the same way again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_proto::wire::Heartbeat;

fuzz_target!(|bytes: &[u8]| {
    let Ok(heartbeat) = Heartbeat::decode(bytes) else { return };
    let mut again = Vec::new();
    heartbeat.encode(&mut again);
    assert_eq!(Heartbeat::decode(&again).as_ref(), Ok(&heartbeat));
});
