//! Frames for the kernel's netlink sockets: messages with attributes, and what comes back.
//!
//! Decides nothing. Decoding takes bytes of the kernel as they come and skips what does not fit.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netdevice::name_to_index, netlink, recv, send, socket_with,
    },
    time::Timespec,
};

/// Answer expected for this message, also on success.
pub(crate) const ACK: u16 = 0x4;
/// Every message to the kernel has it.
pub(crate) const REQUEST: u16 = 0x1;
/// Create when absent.
pub(crate) const CREATE: u16 = 0x400;
/// All objects, not one.
pub(crate) const DUMP: u16 = 0x300;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// The kernel answers at once; this only bounds a wait that should not happen.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A message under construction.
#[derive(Debug, Default)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    pub(crate) fn new(kind: u16, flags: u16, sequence: u32) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes.splice(4..6, kind.to_ne_bytes());
        bytes.splice(6..8, (flags | REQUEST).to_ne_bytes());
        bytes.splice(8..12, sequence.to_ne_bytes());
        Self { bytes }
    }

    pub(crate) fn raw(mut self, part: &[u8]) -> Self {
        self.bytes.extend_from_slice(part);
        self
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("our messages are short");
        self.bytes.splice(0..4, length.to_ne_bytes());
        self.bytes
    }
}

/// One attribute, padded to four bytes.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).expect("our attributes are short");
    let mut bytes = Vec::with_capacity(value.len() + 8);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute that holds attributes.
pub(crate) fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    const NESTED: u16 = 0x8000;
    attribute(kind | NESTED, &parts.concat())
}

/// A text attribute, with the NUL that the kernel expects.
pub(crate) fn text(kind: u16, value: &str) -> Vec<u8> {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    attribute(kind, &bytes)
}

/// A netlink socket of the calling thread's network name space.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: OwnedFd,
}

impl Socket {
    pub(crate) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket })
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send(&self.socket, bytes, SendFlags::empty())?;
        Ok(())
    }

    /// Sends one message that was flagged [`ACK`] and returns the kernel's verdict on it.
    pub(crate) fn request(&self, bytes: &[u8], sequence: u32) -> io::Result<()> {
        self.send(bytes)?;
        loop {
            for (header, payload) in self.receive()? {
                if header.sequence == sequence && header.kind == NLMSG_ERROR {
                    return verdict(&payload);
                }
            }
        }
    }

    /// Sends a dump request and hands every object to `each`.
    pub(crate) fn dump(&self, bytes: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.send(bytes)?;
        loop {
            for (header, payload) in self.receive()? {
                match header.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return verdict(&payload),
                    _ => each(&payload),
                }
            }
        }
    }

    /// Whether another datagram is already there.
    pub(crate) fn has_more(&self) -> io::Result<bool> {
        let mut poll_fds = [PollFd::new(&self.socket, PollFlags::IN)];
        Ok(poll(&mut poll_fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
    }

    /// The next datagram, split into messages.
    pub(crate) fn receive(&self) -> io::Result<Vec<(Header, Vec<u8>)>> {
        let timeout =
            Timespec::try_from(ANSWER_MAX).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut poll_fds = [PollFd::new(&self.socket, PollFlags::IN)];
        if poll(&mut poll_fds, Some(&timeout))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut buffer = vec![0; 64 << 10];
        let (length, _) = recv(self.socket.as_fd(), &mut buffer[..], RecvFlags::empty())?;
        Ok(split(buffer.get(..length).unwrap_or(&[])))
    }
}

/// What precedes each message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
}

/// Splits a datagram into messages; stops at the first that does not fit.
pub(crate) fn split(mut bytes: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut messages = Vec::new();
    while let Some(length) =
        field::<4>(bytes, 0).map(u32::from_ne_bytes).and_then(|n| usize::try_from(n).ok())
    {
        let (Some(payload), Some(kind), Some(sequence)) =
            (bytes.get(HEADER..length), field::<2>(bytes, 4), field::<4>(bytes, 8))
        else {
            break;
        };
        let header = Header { kind: u16::from_ne_bytes(kind), sequence: u32::from_ne_bytes(sequence) };
        messages.push((header, payload.to_vec()));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    messages
}

/// The `N` bytes at `at`, if they are there.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// What an error message says; code 0 is success.
pub(crate) fn verdict(payload: &[u8]) -> io::Result<()> {
    match field::<4>(payload, 0).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Whether a message is an error or acknowledgement.
pub(crate) fn is_verdict(header: Header) -> bool {
    header.kind == NLMSG_ERROR
}

/// The number of an interface in the calling thread's name space.
pub(crate) fn interface_index(name: &str) -> io::Result<u32> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    Ok(name_to_index(&socket, name)?)
}

/// Raises and lowers one interface through a socket that stays open, so that it also works when nothing else does.
#[derive(Debug)]
pub(crate) struct InterfaceSwitch {
    socket: Socket,
    index: u32,
    sequence: u32,
}

impl InterfaceSwitch {
    /// For an interface of the calling thread's name space.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        Ok(Self { socket: Socket::open(None)?, index: interface_index(name)?, sequence: 0 })
    }

    pub(crate) fn raise(&mut self) -> io::Result<()> {
        self.set(1)
    }

    pub(crate) fn lower(&mut self) -> io::Result<()> {
        self.set(0)
    }

    fn set(&mut self, flags: u32) -> io::Result<()> {
        const RTM_NEWLINK: u16 = 16;
        const IFF_UP: u32 = 1;
        self.sequence = self.sequence.wrapping_add(1);
        // struct ifinfomsg: family, pad, type, index, flags, change mask.
        let mut body = vec![0; 4];
        body.extend_from_slice(&self.index.to_ne_bytes());
        body.extend_from_slice(&flags.to_ne_bytes());
        body.extend_from_slice(&IFF_UP.to_ne_bytes());
        let message = Message::new(RTM_NEWLINK, ACK, self.sequence).raw(&body).finish();
        self.socket.request(&message, self.sequence)
    }
}
