//! Between runc and CRIU: passes their messages on, and does our part at the stages where the program stands still.
//!
//! runc asks CRIU over a socket that it hands to the program called `criu` on its path. That program is ours: it sends
//! the socket to the relay, makes a new one, and becomes the real CRIU (same process, so that runc's handling of its pid
//! and of the restored program's parent stays right). CRIU's own action scripts cannot be used beside runc's requests.
//! Must never change a message, except to answer a stage with "stop" and to take out one option (see `rpc.rs`).

use std::{
    ffi::OsString,
    fs,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::mpsc,
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};

use super::rpc;
use crate::sys;

/// Names the relay's socket to the program called `criu`.
pub(crate) const SOCKET_VARIABLE: &str = "STEADFAST_RELAY";
/// Names the real CRIU to it.
pub(crate) const CRIU_VARIABLE: &str = "STEADFAST_REAL_CRIU";

/// Larger than any message: a request lists every mount and descriptor.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
const DESCRIPTORS_MAX: usize = 8;

/// How a command went.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Whether runc ended with success.
    pub(crate) success: bool,
    /// Why a stage was answered with "stop".
    pub(crate) vetoed: Option<String>,
}

/// A listening relay.
#[derive(Debug)]
pub(crate) struct Relay {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Relay {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}

impl Relay {
    pub(crate) fn listen(path: &Path) -> io::Result<Self> {
        fs::remove_file(path).ok();
        Ok(Self { listener: UnixListener::bind(path)?, path: path.to_owned() })
    }

    /// Runs `command` (runc) and relays every CRIU that it starts; `hook` is called with the name of each stage.
    pub(crate) fn serve(
        self,
        command: &mut Command,
        hook: &(dyn Fn(&str) -> Result<(), String> + Sync),
    ) -> io::Result<Outcome> {
        let (ended, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (results, result) = mpsc::channel();
        thread::scope(|scope| {
            let listener = &self.listener;
            scope.spawn(move || {
                while wait_either(listener.as_fd(), ended.as_fd()) {
                    let Ok((stream, _)) = listener.accept() else { break };
                    if let Ok(Some(vetoed)) = connection(&stream, hook) {
                        results.send(vetoed).ok();
                    }
                }
            });
            let status = command.status();
            drop(end);
            status
        })
        .map(|status| Outcome { success: status.success(), vetoed: result.try_iter().next() })
    }
}

/// Waits until the first has something; false when the second ended first.
fn wait_either(first: BorrowedFd<'_>, end: BorrowedFd<'_>) -> bool {
    loop {
        let mut poll_fds =
            [PollFd::from_borrowed_fd(first, PollFlags::IN), PollFd::from_borrowed_fd(end, PollFlags::IN)];
        match poll(&mut poll_fds, None) {
            Ok(_) if !poll_fds[0].revents().is_empty() => return true,
            Ok(_) => return false,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Relays one CRIU until both sides are closed; returns why it was stopped, if it was.
fn connection(
    stream: &UnixStream,
    hook: &(dyn Fn(&str) -> Result<(), String> + Sync),
) -> io::Result<Option<String>> {
    let Some(first) = receive(stream.as_fd())? else { return Ok(None) };
    let mut descriptors = first.descriptors.into_iter();
    let (Some(runc), Some(criu)) = (descriptors.next(), descriptors.next()) else { return Ok(None) };
    let mut vetoed = None;
    loop {
        let mut poll_fds = [PollFd::new(&runc, PollFlags::IN), PollFd::new(&criu, PollFlags::IN)];
        match poll(&mut poll_fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
            Ok(_) => {}
        }
        let ready = poll_fds.each_ref().map(|poll_fd| !poll_fd.revents().is_empty());
        let [from_runc, from_criu] = ready;
        if from_criu {
            let Some(message) = receive(criu.as_fd())? else { return Ok(vetoed) };
            let stage = rpc::response(&message.bytes)
                .filter(|response| response.kind == rpc::NOTIFY)
                .and_then(|response| response.script);
            match stage.map(|script| hook(&script)) {
                Some(Err(reason)) => {
                    vetoed = Some(reason);
                    send(criu.as_fd(), &Packet { bytes: rpc::veto(), descriptors: Vec::new() })?;
                }
                Some(Ok(())) | None => send(runc.as_fd(), &message)?,
            }
        } else if from_runc {
            match receive(runc.as_fd())? {
                Some(mut message) => {
                    if let Some(rewritten) = rpc::without_freezer(&message.bytes) {
                        message.bytes = rewritten;
                    }
                    send(criu.as_fd(), &message)?;
                }
                None => return Ok(vetoed),
            }
        }
    }
}

/// One message with the descriptors that came along.
#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(Some(Packet { bytes, descriptors }))
}

fn send(socket: BorrowedFd<'_>, packet: &Packet) -> io::Result<()> {
    let borrowed: Vec<_> = packet.descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::from(io::ErrorKind::ArgumentListTooLong));
    }
    sendmsg(socket, &[IoSlice::new(&packet.bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The program called `criu`: hands runc's socket over when it is asked to serve one, then becomes the real CRIU.
pub(crate) fn stand_in(mut arguments: Vec<OsString>) -> ExitCode {
    let program = std::env::var_os(CRIU_VARIABLE).unwrap_or_else(|| "criu".into());
    let mut keep = None;
    if arguments.first().is_some_and(|word| word == "swrk") {
        match hand_over(arguments.get(1)) {
            Ok((socket, number)) => {
                keep = Some(socket);
                arguments.truncate(1);
                arguments.push(number.to_string().into());
            }
            Err(e) => {
                eprintln!("steadfast: handing CRIU's socket over failed: {e}");
                return ExitCode::FAILURE;
            }
        }
    }
    let error = Command::new(&program).args(arguments).exec();
    drop(keep);
    eprintln!("steadfast: {} could not be started: {error}", Path::new(&program).display());
    ExitCode::FAILURE
}

fn hand_over(number: Option<&OsString>) -> io::Result<(OwnedFd, i32)> {
    let missing = || io::Error::from(io::ErrorKind::InvalidInput);
    let number =
        number.and_then(|word| word.to_str()).and_then(|word| word.parse().ok()).ok_or_else(missing)?;
    let from_runc = sys::adopt_descriptor(number)?;
    let relay = UnixStream::connect(std::env::var_os(SOCKET_VARIABLE).ok_or_else(missing)?)?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    send(relay.as_fd(), &Packet { bytes: vec![1], descriptors: vec![from_runc, ours] })?;
    let number = sys::inherit(&theirs)?;
    Ok((theirs, number))
}
