//! Placeholder until the first module lands.

mod buffers;
pub mod catalog;
pub mod envelope;
pub mod identity;
pub mod memory;
pub mod net;
pub mod token;
pub mod node;
