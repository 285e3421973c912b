//! The header in front of every frame of a call, as it came and with its checksum put right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::net::rpc::{BODY_BYTES_MAX, decode_header};

fuzz_target!(|bytes: &[u8]| {
    let Some((header, _)) = bytes.split_first_chunk() else { return };
    let mut header = *header;
    let _ = decode_header(&header);
    let (checked, sum) = header.split_at_mut(20);
    sum.copy_from_slice(&crc32c::crc32c(checked).to_le_bytes());
    if let Ok(decoded) = decode_header(&header) {
        assert!(decoded.length as usize <= BODY_BYTES_MAX);
    }
});
