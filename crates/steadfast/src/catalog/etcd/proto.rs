//! The few messages of etcd's API that the catalog needs, to bytes and back.
//!
//! Written by hand after etcd's published definitions, as the library has no other use for a generator. Fields that are not known are
//! passed over, as that format asks for; what can't be read is an error and never a guess. It must not decide what a message
//! means: `link` does.

use bytes::Bytes;

/// A message that can't be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("etcd's answer can't be read: {0}")]
pub(super) struct Malformed(&'static str);

/// Writes fields; those that hold their default are left out, as the format wants.
#[derive(Debug, Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }

    fn number(self, field: u32, value: u64) -> Self {
        if value == 0 { self } else { self.number_even_zero(field, value) }
    }

    /// One of several alternatives, whose presence says which it is.
    fn number_even_zero(mut self, field: u32, value: u64) -> Self {
        self.varint(u64::from(field) << 3);
        self.varint(value);
        self
    }

    fn bytes(self, field: u32, value: &[u8]) -> Self {
        if value.is_empty() { self } else { self.message(field, value) }
    }

    /// A message within, which counts even when it is empty.
    fn message(mut self, field: u32, value: &[u8]) -> Self {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }
}

/// What a field holds.
#[derive(Debug, PartialEq, Eq)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// A fixed number; no message here has one.
    Other,
}

impl<'a> Value<'a> {
    fn number(&self) -> Result<u64, Malformed> {
        match self {
            Value::Number(number) => Ok(*number),
            Value::Bytes(_) | Value::Other => Err(Malformed("a number has another form")),
        }
    }

    fn bytes(&self) -> Result<&'a [u8], Malformed> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            Value::Number(_) | Value::Other => Err(Malformed("a text or message has another form")),
        }
    }
}

/// Hands each field to `take`.
fn each(
    mut bytes: &[u8],
    mut take: impl FnMut(u64, Value<'_>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut bytes)?),
            1 => {
                cut(&mut bytes, 8)?;
                Value::Other
            }
            2 => {
                let length = varint(&mut bytes)?;
                Value::Bytes(cut(&mut bytes, length)?)
            }
            5 => {
                cut(&mut bytes, 4)?;
                Value::Other
            }
            _ => return Err(Malformed("a field has an unknown form")),
        };
        take(tag >> 3, value)?;
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let Some((byte, rest)) = bytes.split_first() else { return Err(Malformed("it is cut short")) };
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed("a number is too long"))
}

fn cut<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], Malformed> {
    let length = usize::try_from(length).map_err(|_| Malformed("a length is too large"))?;
    let (value, rest) = bytes.split_at_checked(length).ok_or(Malformed("it is cut short"))?;
    *bytes = rest;
    Ok(value)
}

/// What to read.
#[derive(Clone, Debug, Default)]
pub(super) struct RangeRequest {
    pub(super) key: Vec<u8>,
    /// The first key that is not meant any more; empty for `key` alone.
    pub(super) range_end: Vec<u8>,
    pub(super) limit: u64,
    /// As of which revision; 0 for now.
    pub(super) revision: u64,
}

impl RangeRequest {
    pub(super) fn encode(&self) -> Vec<u8> {
        let writer = Writer::default().bytes(1, &self.key).bytes(2, &self.range_end);
        writer.number(3, self.limit).number(4, self.revision).0
    }
}

/// One step of a transaction.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Range(RangeRequest),
    Put(Vec<u8>, Bytes),
    Delete(Vec<u8>),
}

impl Op {
    fn encode(&self) -> Vec<u8> {
        let writer = Writer::default();
        match self {
            Op::Range(range) => writer.message(1, &range.encode()),
            Op::Put(key, value) => writer.message(2, &put_request(key, value)),
            Op::Delete(key) => writer.message(3, &Writer::default().bytes(1, key).0),
        }
        .0
    }
}

/// What a key's revision of its last change must be for a transaction to succeed; 0 for no such key.
#[derive(Clone, Debug)]
pub(super) struct Compare {
    pub(super) key: Vec<u8>,
    pub(super) revision: u64,
}

impl Compare {
    fn encode(&self) -> Vec<u8> {
        // The relation is the default, equality.
        const TARGET_REVISION: u64 = 2;
        let writer = Writer::default().number(2, TARGET_REVISION).bytes(3, &self.key);
        writer.number_even_zero(6, self.revision).0
    }
}

/// A transaction.
#[derive(Clone, Debug, Default)]
pub(super) struct TxnRequest {
    pub(super) compare: Vec<Compare>,
    pub(super) success: Vec<Op>,
    pub(super) failure: Vec<Op>,
}

impl TxnRequest {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        for compare in &self.compare {
            writer = writer.message(1, &compare.encode());
        }
        for (field, ops) in [(2, &self.success), (3, &self.failure)] {
            for op in ops {
                writer = writer.message(field, &op.encode());
            }
        }
        writer.0
    }
}

/// Writes one key.
pub(super) fn put_request(key: &[u8], value: &[u8]) -> Vec<u8> {
    Writer::default().bytes(1, key).bytes(2, value).0
}

/// Asks for all changes of a range from a revision on.
pub(super) fn watch_request(key: &[u8], range_end: &[u8], start_revision: u64) -> Vec<u8> {
    let create = Writer::default().bytes(1, key).bytes(2, range_end).number(3, start_revision).0;
    Writer::default().message(1, &create).0
}

/// What every answer says first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) cluster: u64,
    pub(super) revision: u64,
}

impl Header {
    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut header = Self::default();
        each(bytes, |field, value| {
            match field {
                1 => header.cluster = value.number()?,
                3 => header.revision = value.number()?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(header)
    }
}

/// A key and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyValue {
    pub(super) key: Vec<u8>,
    pub(super) value: Bytes,
    pub(super) mod_revision: u64,
}

impl KeyValue {
    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut found = Self::default();
        each(bytes, |field, value| {
            match field {
                1 => found.key = value.bytes()?.to_vec(),
                3 => found.mod_revision = value.number()?,
                // A copy of its own: a row must not keep the whole answer in memory.
                5 => found.value = Bytes::copy_from_slice(value.bytes()?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(found)
    }
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RangeResponse {
    pub(super) header: Header,
    pub(super) rows: Vec<KeyValue>,
    /// Whether the limit cut it off.
    pub(super) more: bool,
}

impl RangeResponse {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut response = Self::default();
        each(bytes, |field, value| {
            match field {
                1 => response.header = Header::decode(value.bytes()?)?,
                2 => response.rows.push(KeyValue::decode(value.bytes()?)?),
                3 => response.more = value.number()? != 0,
                _ => {}
            }
            Ok(())
        })?;
        Ok(response)
    }
}

/// What became of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TxnResponse {
    pub(super) header: Header,
    pub(super) succeeded: bool,
    /// What each range among the steps read, in order.
    pub(super) ranges: Vec<RangeResponse>,
}

impl TxnResponse {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut response = Self::default();
        each(bytes, |field, value| {
            match field {
                1 => response.header = Header::decode(value.bytes()?)?,
                2 => response.succeeded = value.number()? != 0,
                3 => each(value.bytes()?, |kind, value| {
                    if kind == 1 {
                        response.ranges.push(RangeResponse::decode(value.bytes()?)?);
                    }
                    Ok(())
                })?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(response)
    }
}

/// One change of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) is_delete: bool,
    pub(super) row: KeyValue,
}

/// What a watch says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct WatchResponse {
    pub(super) header: Header,
    pub(super) canceled: bool,
    /// The oldest revision that is left, when what was asked for is gone.
    pub(super) compact_revision: u64,
    pub(super) cancel_reason: String,
    pub(super) events: Vec<Event>,
}

impl WatchResponse {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut response = Self::default();
        each(bytes, |field, value| {
            match field {
                1 => response.header = Header::decode(value.bytes()?)?,
                4 => response.canceled = value.number()? != 0,
                5 => response.compact_revision = value.number()?,
                6 => response.cancel_reason = String::from_utf8_lossy(value.bytes()?).into_owned(),
                11 => {
                    let mut event = Event::default();
                    each(value.bytes()?, |field, value| {
                        match field {
                            1 => event.is_delete = value.number()? == 1,
                            2 => event.row = KeyValue::decode(value.bytes()?)?,
                            _ => {}
                        }
                        Ok(())
                    })?;
                    response.events.push(event);
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_have_the_published_form() {
        let range = RangeRequest {
            key: b"a".to_vec(),
            range_end: b"b".to_vec(),
            limit: 300,
            ..RangeRequest::default()
        };
        assert_eq!(range.encode(), [0x0a, 1, b'a', 0x12, 1, b'b', 0x18, 0xac, 2]);
        let compare = Compare { key: b"k".to_vec(), revision: 0 };
        assert_eq!(compare.encode(), [0x10, 2, 0x1a, 1, b'k', 0x30, 0], "absence is said, not left out");
        let put = Op::Put(b"k".to_vec(), "v".into());
        assert_eq!(put.encode(), [0x12, 6, 0x0a, 1, b'k', 0x12, 1, b'v']);
    }

    #[test]
    fn answers_are_read_and_what_is_unknown_is_passed_over() {
        let row = Writer::default().bytes(1, b"k").number(2, 3).number(3, 9).bytes(5, b"v").number(77, 1);
        let header = Writer::default().number(1, 5).number(3, 12).0;
        let range = Writer::default().message(1, &header).message(2, &row.0).number(3, 1).0;
        let read = RangeResponse::decode(&range).unwrap();
        assert_eq!(read.header, Header { cluster: 5, revision: 12 });
        assert_eq!(read.rows, [KeyValue { key: b"k".to_vec(), value: "v".into(), mod_revision: 9 }]);
        assert!(read.more);
        let op = Writer::default().message(1, &range).0;
        let txn = Writer::default().message(1, &header).number(2, 1).message(3, &op).message(3, &op).0;
        let read = TxnResponse::decode(&txn).unwrap();
        assert!(read.succeeded && read.ranges.len() == 2);
        assert_eq!(RangeResponse::decode(&range[..range.len() - 3]), Err(Malformed("it is cut short")));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = RangeResponse::decode(&bytes);
            let _ = TxnResponse::decode(&bytes);
            let _ = WatchResponse::decode(&bytes);
        }

        #[test]
        fn numbers_come_back(value: u64) {
            let written = Writer::default().number_even_zero(3, value).0;
            let mut read = None;
            each(&written, |field, value| { read = Some((field, value.number()?)); Ok(()) }).unwrap();
            prop_assert_eq!(read, Some((3, value)));
        }
    }
}
