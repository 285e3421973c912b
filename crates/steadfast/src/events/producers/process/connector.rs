//! The kernel's announcements of processes that begin, change their program and end (the proc connector).
//!
//! They reach only root in the first name spaces of users and processes; elsewhere the kernel stays silent, which [`Connector::open`]
//! notices by the answer that does not come. It decides nothing about a process. Read next: `follow`.

use std::collections::VecDeque;
use std::io;

use rustix::net::netlink::{CONNECTOR, SocketAddrNetlink};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use tokio::io::Interest;

use crate::events::producers::post::{Post, Watched};
use crate::net::netlink::{Message, Messages, number, receive};

/// The connector's channel for processes, and its only group.
const CHANNEL: u32 = 1;
const LISTEN: u32 = 1;
/// Netlink's kind of message that says nothing by itself.
const KIND_DONE: u16 = 3;
const READ_BYTES: usize = 16 << 10;
/// Bytes that the kernel may queue, where it allows as much: some thousand ends.
const QUEUE_BYTES: usize = 2 << 20;

/// What a process did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Did {
    /// The kernel answers that it will speak, or with an error why not.
    Answered(u32),
    /// A process began, made by another.
    Began { pid: i32, parent: i32 },
    /// A process runs another program, or has another name.
    Changed { pid: i32 },
    /// A thread of a process ended, perhaps the only one; the code has the form of `wait`.
    Ended { thread: i32, pid: i32, code: i32 },
}

/// Announcements as they arrive.
#[derive(Debug)]
pub(super) struct Connector {
    socket: Watched,
    buffer: Box<[u8]>,
}

/// What one look brought.
pub(super) enum Look {
    /// What processes did, in order; perhaps nothing.
    Did(VecDeque<Did>),
    /// The kernel had no room: anything may have happened.
    Lost,
}

impl Connector {
    /// Listens to the kernel.
    ///
    /// # Errors
    /// The kernel does not speak to this process.
    pub(super) fn open(post: &Post) -> io::Result<Connector> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(CONNECTOR))?;
        // More room is an improvement only: after a loss everything is looked at.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, QUEUE_BYTES);
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, CHANNEL))?;
        rustix::net::send(&socket, &question(), SendFlags::DONTWAIT)?;
        let mut connector =
            Connector { socket: post.watch(socket, Interest::READABLE)?, buffer: vec![0; READ_BYTES].into() };
        // The answer is made before the question's call returns; what others did may stand before it.
        loop {
            match connector.read()? {
                None => return Err(io::ErrorKind::PermissionDenied.into()),
                Some(Look::Lost) => return Ok(connector),
                Some(Look::Did(did)) => match did.iter().find_map(answer) {
                    None => {}
                    Some(0) => return Ok(connector),
                    Some(_) => return Err(io::ErrorKind::PermissionDenied.into()),
                },
            }
        }
    }

    /// Waits for what comes next. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> io::Result<Look> {
        loop {
            if let Some(look) = self.read()? {
                return Ok(look);
            }
            self.socket.changed().await?;
        }
    }

    /// Reads once; `None` when nothing is there.
    fn read(&mut self) -> io::Result<Option<Look>> {
        match receive(&self.socket, &mut self.buffer) {
            Ok(Some(length)) => {
                let bytes = self.buffer.get(..length).unwrap_or(&self.buffer);
                Ok(Some(Look::Did(Messages(bytes).filter_map(parse).collect())))
            }
            // Another program's.
            Ok(None) => Ok(Some(Look::Did(VecDeque::new()))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Some(Look::Lost)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Some(Look::Did(VecDeque::new()))),
            Err(error) => Err(error),
        }
    }
}

fn answer(did: &Did) -> Option<u32> {
    match did {
        Did::Answered(error) => Some(*error),
        Did::Began { .. } | Did::Changed { .. } | Did::Ended { .. } => None,
    }
}

/// Asks to be told: netlink's header, the connector's, and one word.
fn question() -> Vec<u8> {
    let mut question = Vec::with_capacity(40);
    question.extend(40_u32.to_ne_bytes());
    question.extend(KIND_DONE.to_ne_bytes());
    question.resize(16, 0);
    for word in [CHANNEL, CHANNEL, 0, 0] {
        question.extend(word.to_ne_bytes());
    }
    question.extend(4_u16.to_ne_bytes());
    question.extend(0_u16.to_ne_bytes());
    question.extend(LISTEN.to_ne_bytes());
    question
}

fn parse(message: Message<'_>) -> Option<Did> {
    let word = |at: usize| message.body.get(at..).and_then(number).map(u32::from_ne_bytes);
    let id = |at: usize| message.body.get(at..).and_then(number).map(i32::from_ne_bytes);
    if word(0)? != CHANNEL {
        return None;
    }
    // Behind the connector's header of 20 bytes stand the kind, a processor, and the time in 8 bytes.
    match word(20)? {
        0 => Some(Did::Answered(word(36)?)),
        // parent's thread and process, child's thread and process; a new thread is no new process.
        1 => (id(44)? == id(48)?).then_some(Did::Began { pid: id(48)?, parent: id(40)? }),
        2 => Some(Did::Changed { pid: id(40)? }),
        0x200 => (id(36)? == id(40)?).then_some(Did::Changed { pid: id(40)? }),
        0x8000_0000 => Some(Did::Ended { thread: id(36)?, pid: id(40)?, code: id(44)? }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_are_read_and_cut_ones_are_left_out() {
        let said = |words: &[u32]| {
            let mut body = Vec::new();
            for word in
                [CHANNEL, CHANNEL, 0, 0, 0].iter().chain(&words[..1]).chain(&[0, 0, 0]).chain(&words[1..])
            {
                body.extend(word.to_ne_bytes());
            }
            body
        };
        let read = |body: &[u8]| parse(Message { kind: KIND_DONE, flags: 0, body });
        assert_eq!(read(&said(&[1, 5, 4, 9, 9])), Some(Did::Began { pid: 9, parent: 4 }));
        assert_eq!(read(&said(&[1, 5, 4, 9, 4])), None, "a thread");
        assert_eq!(read(&said(&[2, 9, 9])), Some(Did::Changed { pid: 9 }));
        assert_eq!(read(&said(&[0])), None);
        let end = said(&[0x8000_0000, 10, 9, 0x300, 17]);
        assert_eq!(read(&end), Some(Did::Ended { thread: 10, pid: 9, code: 0x300 }));
        for length in 0..end.len() - 4 {
            let _ = read(&end[..length]);
        }
    }
}
