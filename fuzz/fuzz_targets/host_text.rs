//! Texts of programs and of the host: CRIU's and runc's logs, versions, the processor, accounts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_container::fuzzing::{account, criu_log, criu_version, processor, runc_log};

fuzz_target!(|text: &str| {
    let _ = criu_version(text);
    let _ = runc_log(text);
    assert!(!processor(text).is_empty());
    if let Some(words) = criu_log(text) {
        assert!(words.contains("CRIU: "));
    }
    if let Some(fields) = account(text, "root") {
        assert_eq!(fields[0], "root");
    }
});
