//! The framed stream of `steadfast exec`. Whatever is accepted must be written the same way again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};
use steadfast_cli::api::frames::{Frame, PAYLOAD_BYTES_MAX};

fuzz_target!(|bytes: &[u8]| {
    let mut reader = bytes;
    while let Ok(Some(frame)) = ready(Frame::read(&mut reader)) {
        if let Frame::Stdin(bytes) | Frame::Stdout(bytes) | Frame::Stderr(bytes) = &frame {
            assert!(bytes.len() <= PAYLOAD_BYTES_MAX);
        }
        let mut written = Vec::new();
        ready(frame.write(&mut written)).expect("memory takes everything");
        let again = ready(Frame::read(&mut written.as_slice()));
        assert_eq!(again.expect("what was written can be read"), Some(frame));
    }
});

/// Reading from memory never waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let Poll::Ready(value) = pin!(future).poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("memory was waited for")
    };
    value
}
