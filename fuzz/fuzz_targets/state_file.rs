//! A file of a node's state directory, as it lies on a damaged disk and behind a good checksum. Whatever is accepted
//! must be written the same way again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::{envelope::Format, identity::rewrite_record};

const MAGICS: [[u8; 4]; 3] = [*b"SFid", *b"SFin", *b"SFmb"];

fuzz_target!(|bytes: &[u8]| {
    let _ = rewrite_record(bytes);
    for magic in MAGICS {
        let format = Format { magic, version: 1, version_min: 1, body_bytes_max: 64 * 1024 };
        if let Some(written) = rewrite_record(&format.wrap(bytes)) {
            assert_eq!(rewrite_record(&written).as_ref(), Some(&written));
        }
    }
});
