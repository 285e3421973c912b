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

/// runc's request without CRIU's use of a freezer group, whose state CRIU polls every 100 ms while the program stands
/// still; without it CRIU stops each thread by itself. `None` where there is nothing to change.
pub(crate) fn without_freezer(request: &[u8]) -> Option<Vec<u8>> {
    const OPTIONS: u64 = 2;
    const FREEZE_CGROUP: u64 = 44;
    let mut changed = false;
    let mut rewritten = Vec::with_capacity(request.len());
    let mut fields = Fields(request);
    while let Some((field, raw)) = fields.next_raw() {
        match field? {
            (OPTIONS, Value::Bytes(options)) => {
                let mut kept = Vec::with_capacity(options.len());
                let mut inner = Fields(options);
                while let Some((field, raw)) = inner.next_raw() {
                    if field?.0 != FREEZE_CGROUP {
                        kept.extend_from_slice(raw);
                    }
                }
                changed |= kept.len() != options.len();
                rewritten.push(0x12);
                push_varint(&mut rewritten, kept.len());
                rewritten.extend(kept);
            }
            _ => rewritten.extend_from_slice(raw),
        }
    }
    changed.then_some(rewritten)
}

fn push_varint(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).expect("seven bits") | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).expect("less than 128"));
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

/// A field's number and value.
type Field<'a> = (u64, Value<'a>);

/// The fields of a message; `None` where the bytes are not one.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Option<Field<'a>>;

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
    /// The next field, and the bytes it was made of.
    fn next_raw(&mut self) -> Option<(Option<Field<'a>>, &'a [u8])> {
        let before = self.0;
        let field = self.next()?;
        let raw = before.get(..before.len() - self.0.len()).unwrap_or(before);
        Some((field, raw))
    }

    fn field(&mut self) -> Option<Field<'a>> {
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
    fn only_the_freezer_group_is_taken_out() {
        let path = [b"/sys/fs".as_slice(), &[b'x'; 200]].concat();
        let freezer = [&[0xe2, 0x02, 0xcf, 0x01][..], &path].concat();
        let options = [&[0x08, 5][..], &freezer, &[0x18, 1]].concat();
        let request = [&[0x08, 1, 0x12, 0xd7, 0x01][..], &options, &[0x20, 1]].concat();
        assert_eq!(without_freezer(&request).unwrap(), [0x08, 1, 0x12, 4, 0x08, 5, 0x18, 1, 0x20, 1]);
        assert_eq!(without_freezer(&[0x08, 1, 0x12, 2, 0x08, 5]), None);
    }

    #[test]
    fn the_freezer_group_is_taken_out_of_options_that_come_in_parts() {
        // Protocol buffers allow a message to be given in several fields, which are merged.
        let parts = [0x12, 7, 0xe2, 0x02, 4, b'/', b's', b'y', b's', 0x12, 2, 0x08, 5];
        assert_eq!(without_freezer(&parts).unwrap(), [0x12, 0, 0x12, 2, 0x08, 5]);
    }

    #[test]
    fn no_bytes_panic() {
        for length in 0..64_u8 {
            let bytes: Vec<u8> = (0..length).map(|n| n.wrapping_mul(37) ^ 0xff).collect();
            response(&bytes);
            without_freezer(&bytes);
            frozen_us(&bytes);
        }
        assert_eq!(response(&[0x0a, 200]), None);
    }
}
