//! The words of an exchange: names, short texts and bytes, shared rather than copied.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smol_str::SmolStr;

/// The longest [`Text`], in bytes.
pub const TEXT_BYTES_MAX: usize = 256;
/// The longest key of a [`Name`], in bytes.
pub const KEY_BYTES_MAX: usize = 128;
const PROGRAM_BYTES_MAX: usize = 63;

/// Bytes that mean something to programs alone: a state or a payload.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob(Arc<[u8]>);

/// A short text: a kind, a correlation, a reason. Of up to 23 bytes it is kept in place: names are compared at every step of an
/// exchange, and most are as short.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(SmolStr);

/// What an instance is called in the whole cluster: `PROGRAM/KEY`.
///
/// `outside/KEY` is a party that is no instance of this cluster and speaks the four steps itself; `effect/KEY` is an
/// adapter, which carries an effect out on a foreign system.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Text);

/// Why a text is no [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is no slash.
    #[error("{0:?} names no instance: write PROGRAM/KEY, such as order/17")]
    Shape(String),
    /// The part before the slash.
    #[error("{0:?} is no name of a program: use 1 to 63 of a-z, 0-9, '-' and '.', beginning with a letter")]
    Program(String),
    /// The part after it.
    #[error("{0:?} is no key of an instance: use 1 to 128 bytes without blanks and control characters")]
    Key(String),
}

impl Blob {
    /// Nothing.
    pub fn empty() -> Blob {
        Blob(Arc::new([]))
    }
}

impl Default for Blob {
    fn default() -> Blob {
        Blob::empty()
    }
}

impl From<&[u8]> for Blob {
    fn from(bytes: &[u8]) -> Blob {
        Blob(bytes.into())
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Blob {
        Blob(bytes.into())
    }
}

impl std::ops::Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0.escape_ascii())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

struct BlobVisitor;

impl Visitor<'_> for BlobVisitor {
    type Value = Blob;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Blob, E> {
        Ok(Blob::from(bytes))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Blob, D::Error> {
        deserializer.deserialize_bytes(BlobVisitor)
    }
}

impl Text {
    /// The text, cut at [`TEXT_BYTES_MAX`].
    pub fn cut(text: &str) -> Text {
        Text(text[..text.floor_char_boundary(TEXT_BYTES_MAX)].into())
    }

    /// As a string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Text {
        Text::cut(text)
    }
}

impl std::ops::Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Text {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, formatter)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = Text;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a text of at most {TEXT_BYTES_MAX} bytes")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(E::invalid_length(text.len(), &self));
        }
        Ok(Text(text.into()))
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

impl Name {
    /// What comes first in the names of parties that are no instances.
    pub const OUTSIDE: &'static str = "outside";
    /// What comes first in the names of adapters.
    pub const EFFECT: &'static str = "effect";

    /// The name in `text`.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Name, NameError> {
        Name::check(text)?;
        Ok(Name(Text(text.into())))
    }

    fn check(text: &str) -> Result<(), NameError> {
        let (program, key) = text.split_once('/').ok_or_else(|| NameError::Shape(text.to_owned()))?;
        let fits =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
        let begins = program.starts_with(|first: char| first.is_ascii_lowercase());
        if !begins || program.len() > PROGRAM_BYTES_MAX || !program.bytes().all(fits) {
            return Err(NameError::Program(program.to_owned()));
        }
        let odd = |letter: char| letter.is_whitespace() || letter.is_control();
        if key.is_empty() || key.len() > KEY_BYTES_MAX || key.contains(odd) {
            return Err(NameError::Key(key.to_owned()));
        }
        Ok(())
    }

    /// What the instance runs.
    pub fn program(&self) -> &str {
        self.0.split_once('/').expect("a name has a slash").0
    }

    /// Which instance of that program.
    pub fn key(&self) -> &str {
        self.0.split_once('/').expect("a name has a slash").1
    }

    /// As a string.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it names a party that speaks the four steps itself.
    pub fn is_outside(&self) -> bool {
        self.program() == Name::OUTSIDE
    }

    /// Whether it names an adapter.
    pub fn is_effect(&self) -> bool {
        self.program() == Name::EFFECT
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        let text = Text::deserialize(deserializer)?;
        Name::check(&text).map_err(D::Error::custom)?;
        Ok(Name(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_program_and_a_key() {
        let name = Name::parse("order/17/a").expect("a name");
        assert_eq!((name.program(), name.key()), ("order", "17/a"));
        for (text, problem) in [
            ("order", "PROGRAM/KEY"),
            ("Order/1", "a-z"),
            ("/1", "a-z"),
            ("order/", "128 bytes"),
            ("order/a b", "blanks"),
        ] {
            let error = Name::parse(text).expect_err(text).to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_from_the_wire_is_checked() {
        let bytes = postcard::to_allocvec("no slash").expect("it is written");
        assert!(postcard::from_bytes::<Name>(&bytes).is_err());
    }
}
