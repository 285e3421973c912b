//! Which traced operation a call belongs to: the W3C trace context, as 25 bytes and as text.
//!
//! It decides how a context is written and read, nothing more: who makes spans and sends them somewhere is a
//! [`Tracer`], which a program sets or not. Without one no call carries anything.

use std::fmt;
use std::str::FromStr;

use steadfast_proto::ids::NodeId;

/// Bytes of a context in front of a call's body.
pub(super) const TRACE_BYTES: usize = 25;
/// The flag that says that the operation is recorded.
const SAMPLED: u8 = 1;

/// A place in a trace: the operation, and the step of it that something else is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The operation; never all zero.
    pub operation: [u8; 16],
    /// The step; never all zero.
    pub step: [u8; 8],
    /// The flags of the W3C trace context.
    pub flags: u8,
}

/// What makes steps of traced operations out of calls.
pub trait Tracer: Send + Sync + 'static {
    /// The place of whatever runs on this thread now, if it is part of a traced operation.
    fn current(&self) -> Option<Trace>;

    /// The step that carries out the call of `service` by `peer`.
    fn serving(&self, service: u8, peer: NodeId, trace: Trace) -> tracing::Span;
}

impl Trace {
    /// Whether the operation is recorded: otherwise nothing need be said of it.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The form between nodes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; TRACE_BYTES] {
        let mut bytes = [self.flags; TRACE_BYTES];
        bytes[..16].copy_from_slice(&self.operation);
        bytes[16..24].copy_from_slice(&self.step);
        bytes
    }

    /// Reads that form; `None` where the operation or the step is all zero.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; TRACE_BYTES]) -> Option<Self> {
        let (operation, rest) = bytes.split_first_chunk::<16>()?;
        let (step, rest) = rest.split_first_chunk::<8>()?;
        let trace = Self { operation: *operation, step: *step, flags: *rest.first()? };
        (trace.operation != [0; 16] && trace.step != [0; 8]).then_some(trace)
    }
}

/// The text of the header `traceparent`.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (operation, step) = (u128::from_be_bytes(self.operation), u64::from_be_bytes(self.step));
        write!(f, "00-{operation:032x}-{step:016x}-{:02x}", self.flags)
    }
}

/// The text is no trace context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a trace context; one looks like 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
pub struct NoTrace;

impl FromStr for Trace {
    type Err = NoTrace;

    fn from_str(text: &str) -> Result<Self, NoTrace> {
        let mut parts = text.split('-');
        let mut hex = |digits: usize| {
            let part = parts.next().ok_or(NoTrace)?;
            let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            if part.len() != digits || !part.bytes().all(is_hex) {
                return Err(NoTrace);
            }
            u128::from_str_radix(part, 16).map_err(|_| NoTrace)
        };
        let (version, operation, step, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        // A later version may add parts, and 255 is none.
        if version == 0xff || (version == 0 && parts.next().is_some()) {
            return Err(NoTrace);
        }
        let step = u64::try_from(step).map_err(|_| NoTrace)?.to_be_bytes();
        let flags = u8::try_from(flags).map_err(|_| NoTrace)?;
        let trace = Self { operation: operation.to_be_bytes(), step, flags };
        Self::from_bytes(&trace.to_bytes()).ok_or(NoTrace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_come_back() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace: Trace = text.parse().unwrap();
        assert!(trace.is_sampled());
        assert_eq!(trace.to_string(), text);
        assert_eq!(Trace::from_bytes(&trace.to_bytes()), Some(trace));
    }

    #[test]
    fn what_is_no_context_is_refused() {
        for wrong in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(wrong.parse::<Trace>(), Err(NoTrace), "{wrong}");
        }
        assert_eq!(Trace::from_bytes(&[0; TRACE_BYTES]), None);
        let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more";
        assert!(!later.parse::<Trace>().unwrap().is_sampled());
    }
}
