//! The manifest of a checkpoint, as it came and behind a good checksum. Whatever is accepted must stay inside of its
//! folder, and be written the same way again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::{envelope::Format, memory::Manifest};

const FORMAT: Format = Format { magic: *b"SFmf", version: 1, version_min: 1, body_bytes_max: 15 << 20 };

fuzz_target!(|bytes: &[u8]| {
    let _ = Manifest::decode_unnamed(bytes);
    let Ok(manifest) = Manifest::decode_unnamed(&FORMAT.wrap(bytes)) else { return };
    for entry in &manifest.entries {
        let path = String::from_utf8_lossy(&entry.path);
        assert!(!path.starts_with('/') && path.split('/').all(|part| part != ".." && !part.is_empty()));
    }
    let _ = (manifest.chunks(), manifest.bytes());
    let (digest, written) = manifest.encode().expect("what was read is within the bounds");
    assert_eq!(Manifest::decode(digest, &written).expect("what was written can be read"), manifest);
});
