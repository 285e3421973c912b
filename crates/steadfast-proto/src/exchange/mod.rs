//! Messages that take effect exactly once, and both sides' records of them that are gone afterwards (PROTOCOLS 2).
//!
//! Four steps: the *message*; its *ack*, which ends the resending; the *confirm*, with which the receiver drops what it
//! remembers of the message; the *confirm-ack*, with which the sender drops its own entry. This module has the two ends of
//! one stream of messages, [`Outbox`] and [`Inbound`], and what travels between them. It runs no program and knows no disk:
//! [`crate::episode`] says what is recorded, and when. `docs/protocols/exchange.md` has the argument.
//!
//! ```
//! use steadfast_proto::exchange::*;
//! use steadfast_proto::time::Time;
//!
//! let letter = Letter { kind: "paid".into(), correlation: None, payload: Blob::from(b"20".as_slice()), begins: false };
//! let (mut outbox, mut inbound) = (Outbox::default(), Inbound::new(1, 0));
//! let seq = outbox.push(letter, None);
//! assert_eq!(inbound.arrive(seq, outbox.floor()), Arrival::New); // 1: the message, which now enters an inbox
//! inbound.accept(seq, outbox.floor());
//! assert_eq!(inbound.arrive(seq, outbox.floor()), Arrival::Known); // a copy of it
//! outbox.acked(seq, seq); // 2: the ack
//! inbound.confirm(seq, seq); // 3: the confirm
//! outbox.forget(seq, seq); // 4: the confirm-ack
//! assert!(outbox.is_empty() && inbound.is_empty());
//! ```

mod inbound;
mod message;
mod outbox;
mod session;
mod words;

pub use inbound::{Arrival, Inbound};
pub use message::{DecodeError, FRAME_BYTES_MAX, Frame, Letter, Message, Refusal, Span, Stream};
pub use outbox::{Entry, Flow, Outbox, Phase};
pub use session::{Sessions, Stale};
pub use words::{Blob, KEY_BYTES_MAX, Name, NameError, TEXT_BYTES_MAX, Text};

/// How many messages of one stream may be unfinished (PROTOCOLS 2.8); bounds what a receiver remembers of a sender.
pub const WINDOW: u64 = 1_024;
