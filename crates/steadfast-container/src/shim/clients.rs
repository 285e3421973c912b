//! Who talks to a shim: bounded buffers per connection, never a blocking call.
//!
//! Must never let one client hold up another, or the fence: who sends too much or reads too little is cut off.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use crate::protocol::{
    LineError, REPLY_BYTES_MAX, REQUEST_BYTES_MAX, Reply, Request, decode_request, encode_line,
};

const CLIENTS_MAX: usize = 64;

/// One connection's number, never used again.
pub(crate) type ClientId = u64;

#[derive(Debug)]
struct Client {
    id: ClientId,
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    watching: bool,
    gone: bool,
}

/// All connections of a shim.
#[derive(Debug)]
pub(crate) struct Clients {
    listener: UnixListener,
    list: Vec<Client>,
    next: ClientId,
}

impl Clients {
    pub(crate) fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, list: Vec::new(), next: 0 })
    }

    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Each connection and whether it waits to be written to.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (ClientId, BorrowedFd<'_>, bool)> {
        self.list.iter().map(|client| (client.id, client.stream.as_fd(), !client.output.is_empty()))
    }

    pub(crate) fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.list.len() >= CLIENTS_MAX || stream.set_nonblocking(true).is_err() {
                continue;
            }
            self.next += 1;
            self.list.push(Client {
                id: self.next,
                stream,
                input: Vec::new(),
                output: Vec::new(),
                watching: false,
                gone: false,
            });
        }
    }

    /// Reads and writes what can be; returns whole requests.
    pub(crate) fn serve(&mut self, id: ClientId) -> Vec<Request> {
        let Some(client) = self.list.iter_mut().find(|client| client.id == id) else { return Vec::new() };
        client.flush();
        let requests = client.read();
        self.sweep();
        requests
    }

    pub(crate) fn reply(&mut self, id: ClientId, reply: &Reply) {
        if let Some(client) = self.list.iter_mut().find(|client| client.id == id) {
            client.queue(&encode_line(reply));
        }
        self.sweep();
    }

    pub(crate) fn watch(&mut self, id: ClientId) {
        if let Some(client) = self.list.iter_mut().find(|client| client.id == id) {
            client.watching = true;
        }
    }

    /// Tells everybody who watches.
    pub(crate) fn publish(&mut self, reply: &Reply) {
        let line = encode_line(reply);
        for client in self.list.iter_mut().filter(|client| client.watching) {
            client.queue(&line);
        }
        self.sweep();
    }

    fn sweep(&mut self) {
        self.list.retain(|client| !client.gone);
    }
}

impl Client {
    fn queue(&mut self, line: &[u8]) {
        self.output.extend_from_slice(line);
        if self.output.len() > 2 * REPLY_BYTES_MAX {
            self.gone = true;
        }
        self.flush();
    }

    fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(written) => {
                    self.output.drain(..written);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }

    fn read(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.gone = true;
                    break;
                }
                Ok(length) => self.input.extend_from_slice(buffer.get(..length).unwrap_or(&[])),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.gone = true;
                    break;
                }
            }
            self.cut(&mut requests);
            if self.gone {
                break;
            }
        }
        self.cut(&mut requests);
        requests
    }

    /// Takes whole lines off the input.
    fn cut(&mut self, requests: &mut Vec<Request>) {
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            match decode_request(line.strip_suffix(b"\n").unwrap_or(&line)) {
                Ok(request) => requests.push(request),
                Err(e) => self.refuse(&e),
            }
        }
        if self.input.len() > REQUEST_BYTES_MAX {
            self.refuse(&LineError::TooLong { bytes: self.input.len() });
        }
    }

    fn refuse(&mut self, error: &LineError) {
        self.queue(&encode_line(&Reply::Refused { reason: error.to_string() }));
        self.gone = true;
    }
}
