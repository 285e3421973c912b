//! A key of the catalog. Whatever is accepted must be written the same way again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_proto::catalog::Key;

fuzz_target!(|text: &str| {
    let Some(key) = Key::decode(text) else { return };
    assert_eq!(Key::decode(&key.encode()).as_ref(), Some(&key));
});
