//! A record of the log of episodes, and an instance of its index. Whatever is accepted must be written the same way again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_proto::episode::{Instance, Record};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = Record::decode(bytes) {
        let mut again = Vec::new();
        record.encode(&mut again);
        assert_eq!(Record::decode(&again).as_ref(), Ok(&record));
    }
    if let Ok(instance) = Instance::decode(bytes) {
        assert_eq!(Instance::decode(&instance.encode()).as_ref(), Ok(&instance));
    }
});
