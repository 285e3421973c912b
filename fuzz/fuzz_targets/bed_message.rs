//! What the test bed and the demo read: the bed's control lines and note, the witness's datagrams, a server's answers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};
use steadfast_cli::{
    bed::{Registered, control, witness::Report},
    demo::read_answers,
};

fuzz_target!(|bytes: &[u8]| {
    read_again::<control::Request>(bytes);
    read_again::<control::Answer>(bytes);
    read_again::<Registered>(bytes);
    assert!(read_answers(bytes) <= bytes.len() / 3);
    if let Ok(report) = String::from_utf8_lossy(bytes).parse::<Report>() {
        let written = format!("{} {} {}", report.image, report.epoch, report.number);
        assert_eq!(written.parse(), Ok(report));
    }
});

fn read_again<T: Serialize + DeserializeOwned>(line: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(line) else { return };
    let written = serde_json::to_vec(&value).expect("these types hold nothing that JSON cannot");
    assert!(serde_json::from_slice::<T>(&written).is_ok());
}
