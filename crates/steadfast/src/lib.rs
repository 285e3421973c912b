//! Placeholder until the first module lands.

pub mod catalog;
pub mod envelope;
pub mod identity;
pub mod net;
pub mod token;
pub mod node;
