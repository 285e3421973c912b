//! What a peer sends over a connection: any bytes, and true frames cut into any pieces. Every whole frame must come
//! out as it was sent, and what follows the last must be refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use steadfast::net::rpc::{HEADER_BYTES, decode_header, read_frames};
use tokio::{
    io::{AsyncRead, ReadBuf},
    runtime::{Builder, Runtime},
};

/// Enough that bodies are read both ways: into the common buffer, and into one of their own.
const BODY_BYTES_MAX: u32 = 70_000;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&step, rest)) = bytes.split_first() else { return };
    read(rest, step);

    let (mut sent, mut bodies) = (Vec::new(), Vec::new());
    for plan in rest.chunks_exact(8).take(4) {
        let length = u32::from_le_bytes([plan[4], plan[5], plan[6], 0]) % BODY_BYTES_MAX;
        let body = vec![plan[3]; length as usize];
        sent.extend_from_slice(&header(plan[0] % 5 + 1, plan[1], plan[2], length));
        sent.extend_from_slice(&body);
        bodies.push(body);
    }
    let kept = if step % 2 == 0 { sent.len() } else { sent.len().saturating_sub(usize::from(step)) };
    let received = read(&sent[..kept], step);
    assert!(bodies.starts_with(&received));
    assert!(received.len() == bodies.len() || kept < sent.len());
});

fn read(bytes: &[u8], step: u8) -> Vec<Vec<u8>> {
    let pieces = Pieces { rest: bytes, step: usize::from(step) * 64 + 24 };
    let (frames, _) = RUNTIME.with(|runtime| runtime.block_on(read_frames(pieces)));
    for (header, body) in &frames {
        assert_eq!(header.length as usize, body.len());
    }
    frames.into_iter().map(|(_, body)| body.to_vec()).collect()
}

fn header(kind: u8, service: u8, call: u8, length: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..5].copy_from_slice(b"SFrp\x01");
    (header[5], header[6], header[8]) = (kind, service, call);
    header[16..20].copy_from_slice(&length.to_le_bytes());
    let sum = crc32c::crc32c(&header[..20]);
    header[20..].copy_from_slice(&sum.to_le_bytes());
    let _ = decode_header(&header);
    header
}

/// Gives at most `step` bytes at a time.
struct Pieces<'a> {
    rest: &'a [u8],
    step: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let length = self.rest.len().min(self.step).min(buffer.remaining());
        let (piece, rest) = self.rest.split_at(length);
        buffer.put_slice(piece);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}
