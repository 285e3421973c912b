//! What stands for the export of traces in a binary without it: nothing.
//!
//! Every function here must cost nothing and do nothing. Its counterpart is `export`.

use std::fmt::Display;

use steadfast::net::rpc::{Peers, Services, Trace};
use tracing::Span;
use tracing_subscriber::layer::Identity;

use super::Attributes;
use crate::config::Traces;
use crate::failure::Failure;

/// Sends nothing.
pub type Export = Identity;

/// No layer: the configuration was refused already where it asks for one.
pub fn layer(_: &Traces, _: &str) -> Result<Export, Failure> {
    Ok(Identity::new())
}

/// Nothing is pending.
pub fn flush() {}

pub(crate) fn attach(_: &Peers, _: &Services) {}

pub(crate) fn current() -> Option<Trace> {
    None
}

pub(super) fn child(_: &str, _: Attributes<'_>) -> Span {
    Span::none()
}

pub(super) fn child_of(_: Option<Trace>, _: &str, _: Attributes<'_>) -> Span {
    Span::none()
}

pub(crate) fn failed(_: &Span, _: &dyn Display) {}

/// No span is kept from the log.
pub(crate) fn is_traced(_: &tracing::Metadata<'_>) -> bool {
    false
}
