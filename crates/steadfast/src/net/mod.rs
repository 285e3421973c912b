//! What travels between nodes: sealed datagrams, and calls over mutually authenticated TLS.
//!
//! This folder decides who may speak and how bytes are framed; it never interprets what a message means.
//! In reading order: `seal` (pure), `datagram` (the UDP sockets), `tls` (who is who), `rpc` (calls); then what the
//! operating system testifies about peers and paths: `refusal`, `watch`, `carrier`. `browser` is TLS for people's browsers.

pub mod browser;
pub mod carrier;
pub mod datagram;
pub(crate) mod netlink;
pub(crate) mod os;
mod refusal;
pub mod rpc;
pub mod seal;
pub mod tls;
pub mod watch;
