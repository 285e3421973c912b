//! The bodies of the HTTP API, both ways. Whatever is accepted must be accepted again once it is written, and a spec that
//! was checked must survive being shown and sent back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};
use steadfast_cli::api::{convert, exchange_types, server::read_body, types};

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, body)) = bytes.split_first() else { return };
    match kind % 15 {
        0 => spec(body),
        1 => read_again::<types::RunRequest>(body),
        2 => read_again::<types::StopRequest>(body),
        3 => read_again::<types::RestoreRequest>(body),
        4 => read_again::<types::InviteRequest>(body),
        5 => read_again::<types::ExecRequest>(body),
        6 => read_again::<types::ErrorBody>(body),
        7 => read_again::<types::Status>(body),
        8 => read_again::<Vec<types::Node>>(body),
        9 => read_again::<Vec<types::Container>>(body),
        10 => read_again::<Vec<types::Checkpoint>>(body),
        11 => read_again::<types::Invitation>(body),
        12 => read_again::<types::LogLine>(body),
        13 => read_again::<exchange_types::ExchangeSaid>(body),
        _ => read_again::<types::Done>(body),
    }
});

fn read_again<T: Serialize + DeserializeOwned>(body: &[u8]) {
    let Ok(value) = read_body::<T>(body) else { return };
    let written = serde_json::to_vec(&value).expect("these types hold nothing that JSON cannot");
    assert!(read_body::<T>(&written).is_ok());
}

fn spec(body: &[u8]) {
    let Ok(spec) = read_body::<types::Spec>(body) else { return };
    match convert::checked_spec(spec) {
        Ok(checked) => {
            let again = convert::checked_spec(convert::spec(&checked));
            assert_eq!(again.map_err(|failure| failure.message), Ok(checked));
        }
        Err(failure) => assert!(!failure.message.is_empty()),
    }
}
