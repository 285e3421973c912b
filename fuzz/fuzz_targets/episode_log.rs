//! A segment of the log of episodes: arbitrary bytes are refused or read, a true one is read, and a changed one gives the
//! beginning of what was written, with everything that a later record calls durable, or is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::episodes::fuzzing::{SEGMENT_BYTES, frames, open, write};

fuzz_target!(|bytes: &[u8]| {
    let mut segment = bytes.to_vec();
    let _ = open(&segment);
    segment.resize(SEGMENT_BYTES, 0);
    let _ = open(&segment);
    let [number, first, place_high, place_low, mask, records @ ..] = bytes else { return };
    assert!(frames(u64::from(*number), u64::from(*first), records) <= records.len() + 64);

    let records: Vec<(Vec<u8>, bool)> = records
        .chunks(1 + usize::from(*number))
        .map(|record| (record.to_vec(), record.first().is_some_and(|byte| byte % 3 == 0)))
        .collect();
    let Some((mut segment, told)) = write(&records) else { return };
    let expected: Vec<Vec<u8>> = records.into_iter().map(|(record, _)| record).collect();
    assert_eq!(open(&segment).unwrap_or_default(), expected);

    let place = usize::from(u16::from_be_bytes([*place_high, *place_low])) % segment.len();
    segment[place] ^= mask;
    if let Some(read) = open(&segment) {
        assert!(read.len() as u64 >= told, "what was durable is served or damage is told");
        assert_eq!(read, expected[..read.len()]);
    }
});
