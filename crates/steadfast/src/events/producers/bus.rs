//! Hears from systemd over its own socket, which speaks D-Bus without a bus in between.
//!
//! Only as much of D-Bus as this takes: say who we are, subscribe, and read the signals in which a unit's state stands; the rest is
//! skipped by its signature. No length from outside is trusted. It calls nothing that changes a unit. Read next: `unit`.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio::io::Interest;

use super::post::{Post, Watched};

const SOCKET: &str = "/run/systemd/private";
/// Is there while systemd is the first process.
const SIGN: &str = "/run/systemd/system";
const OBJECTS: &str = "/org/freedesktop/systemd1/unit/";
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The longest message that is read; systemd's are some KiB.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
const LINE_BYTES_MAX: usize = 4 << 10;
/// Containers within containers of a skipped value.
const DEPTH_MAX: usize = 32;

const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// A unit is in this state now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) unit: String,
    /// `active`, `failed`, ...
    pub(super) state: String,
    /// As `running` or `exited`; the words depend on the kind of unit.
    pub(super) sub: String,
}

/// A connection to systemd that is subscribed.
#[derive(Debug)]
pub(super) struct Bus {
    socket: Watched,
    unread: Vec<u8>,
}

impl Bus {
    /// Whether systemd is the first process here.
    pub(super) fn is_there() -> bool {
        Path::new(SIGN).is_dir()
    }

    /// Connects and subscribes; waits at most some seconds.
    pub(super) fn open(post: &Post) -> io::Result<Bus> {
        let mut stream = UnixStream::connect(SOCKET)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        let mut unread = introduce(&mut stream)?;
        stream.write_all(&subscribe())?;
        while !is_subscribed(&mut unread)? {
            let mut buffer = [0; 4096];
            let length = stream.read(&mut buffer)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            unread.extend(buffer.iter().take(length));
        }
        stream.set_nonblocking(true)?;
        Ok(Bus { socket: post.watch(OwnedFd::from(stream), Interest::READABLE)?, unread })
    }

    /// Waits until the next unit says its state. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> io::Result<Changed> {
        loop {
            while let Some(message) = take_message(&mut self.unread)? {
                if let Some(changed) = parse(&message) {
                    return Ok(changed);
                }
            }
            let mut buffer = [0; 16 << 10];
            match rustix::io::read(&self.socket, &mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.unread.extend(buffer.iter().take(length)),
                Err(rustix::io::Errno::AGAIN) => self.socket.changed().await?,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Says who we are; gives what came after the answers.
fn introduce(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let user = rustix::process::geteuid().as_raw().to_string();
    let digits: String = user.bytes().map(|byte| format!("{byte:02x}")).collect();
    // All in one, as its own tools do: systemd stops listening to whoever waits for the answers in between.
    let words = format!("\0AUTH EXTERNAL {digits}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n");
    stream.write_all(words.as_bytes())?;
    let mut answers = Vec::new();
    loop {
        // One line for each of the first two words; the third has none.
        if let Some((at, _)) = answers.windows(2).enumerate().filter(|(_, pair)| pair == b"\r\n").nth(1) {
            if !answers.starts_with(b"OK ") {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "systemd does not let this user in",
                ));
            }
            return Ok(answers.split_off(at + 2));
        }
        let mut buffer = [0; 256];
        let length = stream.read(&mut buffer)?;
        if length == 0 || answers.len() > LINE_BYTES_MAX {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answers.extend(buffer.iter().take(length));
    }
}

/// The call that makes systemd speak.
fn subscribe() -> Vec<u8> {
    let fields = [
        (1, "o", "/org/freedesktop/systemd1"),
        (2, "s", "org.freedesktop.systemd1.Manager"),
        (3, "s", "Subscribe"),
        (6, "s", "org.freedesktop.systemd1"),
    ];
    message(1, &fields, &[])
}

/// A message with text fields, in the order of this protocol: little-endian, everything aligned to its size.
fn message(kind: u8, fields: &[(u8, &str, &str)], body: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    for (code, signature, text) in fields {
        header.resize(header.len().next_multiple_of(8), 0);
        header.extend([*code, 1]);
        header.extend(signature.as_bytes());
        header.push(0);
        header.extend(length_of(text.len()));
        header.extend(text.as_bytes());
        header.push(0);
    }
    let mut whole = vec![b'l', kind, 0, 1];
    whole.extend(length_of(body.len()));
    whole.extend(1_u32.to_le_bytes());
    whole.extend(length_of(header.len()));
    whole.extend(header);
    whole.resize(whole.len().next_multiple_of(8), 0);
    whole.extend(body);
    whole
}

fn length_of(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("our own messages are short").to_le_bytes()
}

/// Whether the answer to the call is there.
fn is_subscribed(unread: &mut Vec<u8>) -> io::Result<bool> {
    while let Some(message) = take_message(unread)? {
        match message.get(1) {
            Some(&METHOD_RETURN) => return Ok(true),
            Some(&ERROR) => {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "systemd lets nobody subscribe"));
            }
            _ => {}
        }
    }
    Ok(false)
}

/// Takes one whole message from the front.
fn take_message(unread: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let mut reader = Reader::of(unread);
    let Some(length) = reader.message_length() else {
        return match unread.first() {
            Some(b'l') | None => Ok(None),
            // Both ends are on one machine.
            Some(_) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak little-endian D-Bus"))
            }
        };
    };
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is longer than 8 MiB"));
    }
    if unread.len() < length {
        return Ok(None);
    }
    let rest = unread.split_off(length);
    Ok(Some(std::mem::replace(unread, rest)))
}

/// The state of a unit, if a message is about that.
fn parse(message: &[u8]) -> Option<Changed> {
    if *message.get(1)? != SIGNAL {
        return None;
    }
    let mut reader = Reader::of(message);
    reader.at = 12;
    let fields_end = reader.u32()?.checked_add(16)?;
    let (mut path, mut member) = (None, None);
    while reader.at < fields_end {
        reader.align(8);
        let code = reader.u8()?;
        let signature = reader.signature()?;
        match code {
            1 => path = Some(reader.text()?),
            3 => member = Some(reader.text()?),
            _ => reader.skip_all(signature)?,
        }
    }
    if member? != "PropertiesChanged" {
        return None;
    }
    let unit = unescape(path?.strip_prefix(OBJECTS)?)?;
    reader.at = fields_end.next_multiple_of(8);
    if reader.text()? != "org.freedesktop.systemd1.Unit" {
        return None;
    }
    let length = reader.u32()?;
    reader.align(8);
    let end = reader.at.checked_add(length)?;
    let (mut state, mut sub) = (None, None);
    while reader.at < end {
        reader.align(8);
        let name = reader.text()?;
        let signature = reader.signature()?;
        match (name, signature) {
            ("ActiveState", b"s") => state = Some(reader.text()?.to_owned()),
            ("SubState", b"s") => sub = Some(reader.text()?.to_owned()),
            _ => reader.skip_all(signature)?,
        }
    }
    Some(Changed { unit, state: state?, sub: sub? })
}

/// In a path every byte that is no letter or digit stands as `_` and two digits.
fn unescape(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'_' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = tail.get(2..)?;
    }
    String::from_utf8(bytes).ok()
}

/// Reads values one after another; nothing where the bytes end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn of(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    /// How long the message at the front is.
    fn message_length(&mut self) -> Option<usize> {
        if *self.bytes.first()? != b'l' {
            return None;
        }
        self.at = 4;
        let body = self.u32()?;
        self.at = 12;
        let fields = self.u32()?;
        fields.checked_add(16)?.checked_next_multiple_of(8)?.checked_add(body)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let bytes = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(bytes)
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<usize> {
        self.align(4);
        let bytes = self.take(4)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.u32()?;
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        self.take(1)?;
        Some(text)
    }

    fn signature(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.u8()?);
        let signature = self.take(length)?;
        self.take(1)?;
        Some(signature)
    }

    /// Skips a value for each type of a signature.
    fn skip_all(&mut self, signature: &[u8]) -> Option<()> {
        self.skip_some(signature, DEPTH_MAX)
    }

    fn skip_some(&mut self, mut signature: &[u8], depth: usize) -> Option<()> {
        while !signature.is_empty() {
            let (one, rest) = signature.split_at_checked(type_length(signature)?)?;
            self.skip_one(one, depth)?;
            signature = rest;
        }
        Some(())
    }

    fn skip_one(&mut self, signature: &[u8], depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match signature {
            b"y" => self.take(1).map(drop),
            b"n" | b"q" => {
                self.align(2);
                self.take(2).map(drop)
            }
            b"b" | b"i" | b"u" | b"h" => self.u32().map(drop),
            b"x" | b"t" | b"d" => {
                self.align(8);
                self.take(8).map(drop)
            }
            b"s" | b"o" => self.text().map(drop),
            b"g" => self.signature().map(drop),
            b"v" => {
                let inner = self.signature()?;
                self.skip_some(inner, depth)
            }
            [b'a', element @ ..] => {
                let length = self.u32()?;
                if [b'x', b't', b'd', b'(', b'{'].contains(element.first()?) {
                    self.align(8);
                }
                self.take(length).map(drop)
            }
            [b'(' | b'{', inner @ .., b')' | b'}'] => {
                self.align(8);
                self.skip_some(inner, depth)
            }
            _ => None,
        }
    }
}

/// How many bytes of a signature its first whole type takes.
fn type_length(signature: &[u8]) -> Option<usize> {
    let mut open = 0_usize;
    for (at, byte) in signature.iter().enumerate() {
        match byte {
            b'(' | b'{' => open += 1,
            b')' | b'}' => open = open.checked_sub(1)?,
            _ => {}
        }
        if open == 0 && *byte != b'a' {
            return Some(at + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(body: &mut Vec<u8>, signature: &str, value: &[u8], align: usize) {
        body.push(u8::try_from(signature.len()).unwrap());
        body.extend(signature.as_bytes());
        body.push(0);
        body.resize(body.len().next_multiple_of(align), 0);
        body.extend(value);
    }

    fn put_text(body: &mut Vec<u8>, text: &str) {
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend(length_of(text.len()));
        body.extend(text.as_bytes());
        body.push(0);
    }

    fn value(text: &str) -> Vec<u8> {
        let mut value = Vec::new();
        put_text(&mut value, text);
        value
    }

    fn signal(path: &str) -> Vec<u8> {
        let mut entries = Vec::new();
        let mut entry = |name: &str, signature: &str, value: &[u8], align: usize| {
            entries.resize(entries.len().next_multiple_of(8), 0);
            put_text(&mut entries, name);
            put(&mut entries, signature, value, align);
        };
        entry("Job", "(uo)", &[&7_u32.to_le_bytes()[..], &value("/")].concat(), 8);
        entry("ActiveState", "s", &value("failed"), 4);
        entry("Refs", "as", &[&length_of(6)[..], &value("x")].concat(), 4);
        entry("At", "t", &9_u64.to_le_bytes(), 8);
        entry("SubState", "s", &value("failed"), 4);
        let mut body = value("org.freedesktop.systemd1.Unit");
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend(length_of(entries.len()));
        body.resize(body.len().next_multiple_of(8), 0);
        body.extend(entries);
        let fields = [(1, "o", path), (3, "s", "PropertiesChanged")];
        message(SIGNAL, &fields, &body)
    }

    #[test]
    fn the_state_of_a_unit_is_found_among_its_properties() {
        let one = signal("/org/freedesktop/systemd1/unit/web_2dfront_2eservice");
        let changed = Changed {
            unit: "web-front.service".to_owned(),
            state: "failed".to_owned(),
            sub: "failed".to_owned(),
        };
        assert_eq!(parse(&one), Some(changed.clone()));
        assert_eq!(parse(&signal("/org/freedesktop/systemd1/job/7")), None);
        let mut unread = [one.clone(), one.clone()].concat();
        unread.truncate(2 * one.len() - 1);
        assert_eq!(take_message(&mut unread).unwrap(), Some(one.clone()));
        assert_eq!(take_message(&mut unread).unwrap(), None, "its last byte is missing");
        assert!(take_message(&mut vec![b'B'; 32]).is_err());
        assert!(take_message(&mut [b"l\x04\x00\x01".to_vec(), vec![0xff; 28]].concat()).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let one = signal("/org/freedesktop/systemd1/unit/a_2eservice");
        for place in 0..one.len() {
            let _ = parse(&one[..place]);
            for wrong in [0, 1, b'a', b'(', b'v', 0x7f, 0xff] {
                let mut other = one.clone();
                other[place] = wrong;
                let _ = parse(&other);
                let _ = take_message(&mut other);
            }
        }
        assert_eq!(type_length(b"a{sv}as"), Some(5));
        assert_eq!(type_length(b"a"), None);
        assert_eq!(type_length(b")"), None);
    }
}
