//! A line of a container's log file, as it lies on a disk. What is accepted holds a part of the line and nothing else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_container::fuzzing::log_line;

fuzz_target!(|bytes: &[u8]| {
    let Some(line) = log_line(bytes) else { return };
    assert!(bytes.starts_with(line.time.as_bytes()));
    assert!(bytes.ends_with(&line.text));
});
