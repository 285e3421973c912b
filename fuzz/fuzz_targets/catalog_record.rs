//! Records of the catalog's durable log, and the image of a table as another member sends it, as they come and behind
//! a good checksum. Whatever is accepted must be written the same way again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::catalog::fuzzing::{image, record};

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, payload)) = bytes.split_first() else { return };
    if kind % 7 < 6 {
        if let Some(written) = record(kind % 7, payload) {
            assert_eq!(record(kind % 7, &written).as_ref(), Some(&written));
        }
        return;
    }
    let _ = image(payload);
    let mut checked = [b"SFCATIM1", payload].concat();
    checked.extend_from_slice(&crc32c::crc32c(&checked).to_le_bytes());
    if let Some(written) = image(&checked) {
        assert_eq!(image(&written).as_ref(), Some(&written));
    }
});
