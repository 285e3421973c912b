//! Ids, codes, addresses and numbers with a unit, as text. Whatever is accepted must be written the same way again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::{fmt::Display, str::FromStr};
use steadfast_cli::{codes::Code, units};
use steadfast_container::Address;
use steadfast_proto::ids::{ClusterId, ContainerId, Digest, NodeId};

fuzz_target!(|text: &str| {
    read_again::<NodeId>(text);
    read_again::<ContainerId>(text);
    read_again::<ClusterId>(text);
    read_again::<Digest>(text);
    read_again::<Address>(text);
    read_again::<Code>(text);
    let _ = units::size(text);
    let _ = units::cores(text);
    let _ = units::count(text, 1, 9);
    if let Ok(duration) = units::duration(text) {
        let _ = units::human_duration(duration);
    }
    if let Ok(name) = units::name(text) {
        assert_eq!(name, text);
    }
});

fn read_again<T: FromStr + Display + PartialEq>(text: &str) {
    let Ok(value) = text.parse::<T>() else { return };
    let written = value.to_string();
    assert!(written.parse::<T>().is_ok_and(|again| again == value), "{written}");
}
