//! CRIU's messages, as far as we read them: protocol buffers whose other fields are skipped.
//!
//! Must never panic on any bytes. The field numbers are CRIU's published ones.

/// A `CriuResp`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Response {
    /// What it answers; [`NOTIFY`] is a question of its own.
    pub(crate) kind: u64,
    /// The name of the stage that a notification is about.
    pub(crate) script: Option<String>,
}

/// The kind of a notification.
pub(crate) const NOTIFY: u64 = 6;

/// Reads a response.
pub(crate) fn response(bytes: &[u8]) -> Option<Response> {
    let mut response = Response::default();
    for field in Fields(bytes) {
        match field? {
            (1, Value::Number(kind)) => response.kind = kind,
            (5, Value::Bytes(notify)) => {
                for field in Fields(notify) {
                    if let (1, Value::Bytes(script)) = field? {
                        response.script = Some(String::from_utf8(script.to_vec()).ok()?);
                    }
                }
            }
            _ => {}
        }
    }
    Some(response)
}

/// A `CriuReq` that answers a notification with "stop".
pub(crate) fn veto() -> Vec<u8> {
    // type = NOTIFY, notify_success = false.
    vec![0x08, 6, 0x18, 0]
}

/// How long the program stood still, microseconds, from the bytes of CRIU's `stats-dump`.
pub(crate) fn frozen_us(file: &[u8]) -> Option<u64> {
    const MAGIC_AND_LENGTH: usize = 12;
    for field in Fields(file.get(MAGIC_AND_LENGTH..)?) {
        if let (1, Value::Bytes(dump)) = field? {
            for field in Fields(dump) {
                if let (2, Value::Number(frozen)) = field? {
                    return Some(frozen);
                }
            }
        }
    }
    None
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The fields of a message; `None` where the bytes are not one.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        Some((key >> 3, value))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_names_its_stage() {
        let bytes = [
            0x08, 6, 0x10, 1, 0x2a, 13, 0x0a, 9, b'p', b'o', b's', b't', b'-', b'd', b'u', b'm', b'p', 0x10,
            7,
        ];
        assert_eq!(response(&bytes), Some(Response { kind: NOTIFY, script: Some("post-dump".into()) }));
    }

    #[test]
    fn no_bytes_panic() {
        for length in 0..64_u8 {
            let bytes: Vec<u8> = (0..length).map(|n| n.wrapping_mul(37) ^ 0xff).collect();
            response(&bytes);
            frozen_us(&bytes);
        }
        assert_eq!(response(&[0x0a, 200]), None);
    }
}
