//! The envelope of a small file on disk. What is accepted is what was wrapped.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::envelope::Format;

const FORMAT: Format = Format { magic: *b"SFZZ", version: 2, version_min: 1, body_bytes_max: 4096 };

fuzz_target!(|bytes: &[u8]| {
    let _ = FORMAT.unwrap(bytes);
    if bytes.len() <= 4096 {
        let wrapped = FORMAT.wrap(bytes);
        assert_eq!(FORMAT.unwrap(&wrapped), Ok((2, bytes)));
        let cut = &wrapped[..wrapped.len() - 1];
        assert!(FORMAT.unwrap(cut).is_err());
    }
});
