//! The identifiers that every protocol shares (PROTOCOLS 0.2).
//!
//! Each is a newtype, so that a view can't be passed where an incarnation is meant. 128-bit ids are UUIDs and
//! are written as such. Nothing here makes an id: randomness comes from outside the core.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(self.0, formatter)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}({:08x})", stringify!($name), self.0 >> 96)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<$name, ParseIdError> {
                parse_uuid(text).map($name)
            }
        }
    };
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

uuid_id!(
    /// A node's persistent identity, made once by the node itself (PROTOCOLS 4.5).
    NodeId
);
uuid_id!(
    /// The cluster that a datagram, a certificate or a token belongs to.
    ClusterId
);
uuid_id!(
    /// A container, for as long as its row exists.
    ContainerId
);

number_id!(
    /// Counts the starts of one node's agent, durably; a higher one fences the lower.
    Incarnation(u64)
);
number_id!(
    /// The number of an agreed list of members; every change is one new view.
    ViewId(u64)
);
number_id!(
    /// One independent network that nodes share, by its position in the configuration.
    NetworkId(u16)
);
number_id!(
    /// The run epoch of a container; every change of owner or restart is one more (PROTOCOLS 0.3).
    Epoch(u64)
);

impl Incarnation {
    /// The incarnation after this one.
    #[must_use]
    pub fn next(self) -> Incarnation {
        Incarnation(self.0.saturating_add(1))
    }
}

impl ViewId {
    /// The view after this one.
    #[must_use]
    pub fn next(self) -> ViewId {
        ViewId(self.0.saturating_add(1))
    }
}

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0.saturating_add(1))
    }
}

/// A BLAKE3 hash that names content: a chunk or a manifest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(formatter, "Digest({a:02x}{b:02x}{c:02x}{d:02x})")
    }
}

impl FromStr for Digest {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Digest, ParseIdError> {
        let error = || ParseIdError { text: excerpt(text), expected: "64 hexadecimal digits" };
        if text.len() != 64 || !text.is_ascii() {
            return Err(error());
        }
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| error())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        Ok(Digest(bytes))
    }
}

/// The text is not an id of the kind that was asked for; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not an id: expected {expected}")]
pub struct ParseIdError {
    text: String,
    expected: &'static str,
}

fn write_uuid(id: u128, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let hex = format!("{id:032x}");
    let (a, rest) = hex.split_at(8);
    let (b, rest) = rest.split_at(4);
    let (c, rest) = rest.split_at(4);
    let (d, e) = rest.split_at(4);
    write!(formatter, "{a}-{b}-{c}-{d}-{e}")
}

fn parse_uuid(text: &str) -> Result<u128, ParseIdError> {
    let error = || ParseIdError {
        text: excerpt(text),
        expected: "a UUID such as 0b9c5b8e-6f0a-4a53-9d4e-2f6b1c8d7e90",
    };
    if text.len() > 36 {
        return Err(error());
    }
    let digits: String = text.chars().filter(|character| *character != '-').collect();
    if digits.len() != 32 || digits.starts_with('+') {
        return Err(error());
    }
    u128::from_str_radix(&digits, 16).map_err(|_| error())
}

/// The start of `text`, short enough for an error message.
fn excerpt(text: &str) -> String {
    text.chars().take(48).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_survive_being_written_and_read() {
        let id = NodeId(0x0b9c_5b8e_6f0a_4a53_9d4e_2f6b_1c8d_7e90);
        assert_eq!(id.to_string(), "0b9c5b8e-6f0a-4a53-9d4e-2f6b1c8d7e90");
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn what_is_no_id_is_refused_with_what_would_be_right() {
        for text in ["", "alpha", "+b9c5b8e6f0a4a539d4e2f6b1c8d7e90", "0b9c5b8e-6f0a-4a53-9d4e-2f6b1c8d7e9ö"]
        {
            let error = text.parse::<NodeId>().unwrap_err().to_string();
            assert!(error.contains("expected a UUID"), "{error}");
        }
        assert!("ab".parse::<Digest>().is_err());
    }

    #[test]
    fn digests_survive_being_written_and_read() {
        let digest = Digest(std::array::from_fn(|index| u8::try_from(index * 7).unwrap()));
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
}
