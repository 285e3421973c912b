//! A join token, from a person's clipboard: any text, and a true token in which some characters were changed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use steadfast::token::Token;
use steadfast_proto::ids::ClusterId;

static TRUE_TOKEN: LazyLock<String> = LazyLock::new(|| {
    let addresses = vec!["10.0.1.11:7400".parse().expect("an address")];
    Token::new(ClusterId(1), "bravo", [7; 32], addresses, 1 << 40).expect("within all bounds").encode()
});

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        round_trip(text);
    }
    round_trip(&changed(&TRUE_TOKEN, bytes));
});

fn round_trip(text: &str) {
    if let Ok(token) = Token::decode(text) {
        assert_eq!(
            Token::decode(&token.encode()).expect("what was written can be read").encode(),
            token.encode()
        );
    }
}

/// Each pair of bytes names a place and what to put there.
fn changed(original: &str, edits: &[u8]) -> String {
    let mut text: Vec<u8> = original.bytes().collect();
    for edit in edits.chunks_exact(2).take(4) {
        let (place, byte) = (usize::from(edit[0]) % text.len(), edit[1] & 0x7f);
        text[place] = byte;
    }
    String::from_utf8_lossy(&text).into_owned()
}
