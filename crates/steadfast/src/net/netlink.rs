//! The form of what the kernel says over netlink: messages, their attributes, and the numbers of those about interfaces.
//!
//! Pure but for [`receive`], one read that keeps only what the kernel itself said. It never decides what a message means. Read
//! next: `carrier`, and the producers of events about interfaces and processes.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use rustix::net::RecvFlags;
use rustix::net::netlink::SocketAddrNetlink;

pub(crate) const GROUP_LINK: u32 = 1;
pub(crate) const GROUP_IPV4_ADDRESS: u32 = 0x10;
pub(crate) const GROUP_IPV6_ADDRESS: u32 = 0x100;

pub(crate) const ERROR: u16 = 2;
pub(crate) const DONE: u16 = 3;
pub(crate) const NEW_LINK: u16 = 16;
pub(crate) const DEL_LINK: u16 = 17;
pub(crate) const GET_LINK: u16 = 18;
pub(crate) const NEW_ADDRESS: u16 = 20;
pub(crate) const DEL_ADDRESS: u16 = 21;
pub(crate) const GET_ADDRESS: u16 = 22;

pub(crate) const FLAG_REQUEST: u16 = 1;
pub(crate) const FLAG_DUMP: u16 = 0x300;
/// What was asked for changed while it was being told.
pub(crate) const FLAG_INTERRUPTED: u16 = 0x10;

pub(crate) const ATTRIBUTE_ADDRESS: u16 = 1;
pub(crate) const ATTRIBUTE_LOCAL: u16 = 2;
pub(crate) const ATTRIBUTE_FLAGS: u16 = 8;

/// Reads once; `None` when it was not the kernel that spoke.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    let (_, length, from) = rustix::net::recvfrom(socket, buffer, flags)?;
    let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
    Ok(from.is_some_and(|from| from.pid() == 0).then_some(length))
}

/// A question for all of one kind; its body is a header of zeroes.
pub(crate) fn question_for_all(kind: u16, body_bytes: usize) -> Vec<u8> {
    let length = 16 + body_bytes;
    let mut question = Vec::with_capacity(length);
    question.extend(u32::try_from(length).expect("32 at most").to_ne_bytes());
    question.extend(kind.to_ne_bytes());
    question.extend((FLAG_REQUEST | FLAG_DUMP).to_ne_bytes());
    question.resize(length, 0);
    question
}

/// One netlink message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) body: &'a [u8],
}

/// The messages of one read; what is cut short is left out.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = usize::try_from(u32::from_ne_bytes(number(self.0)?)).ok()?;
        let kind = u16::from_ne_bytes(number(self.0.get(4..)?)?);
        let flags = u16::from_ne_bytes(number(self.0.get(6..)?)?);
        let body = self.0.get(16..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, body })
    }
}

/// The attributes behind a message's own header.
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(u16::from_ne_bytes(number(self.0)?));
        let kind = u16::from_ne_bytes(number(self.0.get(2..)?)?);
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The first bytes of a field.
pub(crate) fn number<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}

pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from);
    v4().or_else(v6)
}
