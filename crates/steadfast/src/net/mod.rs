//! What travels between nodes: sealed datagrams, and calls over mutually authenticated TLS.
//!
//! This folder decides who may speak and how bytes are framed; it never interprets what a message means.
//! In reading order: `seal` (pure), `datagram` (the UDP sockets), `tls` (who is who), `rpc` (calls).

pub mod datagram;
mod os;
pub mod rpc;
pub mod seal;
pub mod tls;
