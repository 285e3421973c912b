//! A command inside a running container, with its streams over one connection.
//!
//! Without a terminal three pipes are used, with one a pseudo-terminal. The command's end is the last frame; a caller
//! that goes away closes its input (a terminal is hung up).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use bytes::Bytes;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use steadfast_container::{Container, ExecError, Exit};
use steadfast_proto::catalog::ContainerRow;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::Agent;
use crate::api::frames::{Frame, PAYLOAD_BYTES_MAX};
use crate::api::types::ExecRequest;
use crate::codes::Code;
use crate::failure::Failure;

/// A command that waits for its connection.
pub(crate) struct Running {
    container: Container,
    request: ExecRequest,
}

/// Wraps what an output printed.
type MakeFrame = fn(Bytes) -> Frame;

/// The ends of the streams that stay here.
struct Ours {
    stdin: Option<File>,
    outputs: Vec<(File, MakeFrame)>,
    terminal: Option<File>,
}

impl Agent {
    /// Prepares a command in a container that runs on this node.
    pub(crate) fn exec(&self, row: &ContainerRow, request: ExecRequest) -> Result<Running, Failure> {
        let name = &row.spec.name;
        if request.command.first().is_none_or(String::is_empty) {
            return Err(Failure::new(Code::BadRequest, "command is empty; name the program to run"));
        }
        let Some(container) = self.containers.as_ref().and_then(|containers| containers.handle(row.id))
        else {
            return Err(Failure::new(
                Code::WrongState,
                format!("{name} does not run, so nothing can be run in it; `steadfast ps` shows its state"),
            ));
        };
        Ok(Running { container, request })
    }
}

impl Running {
    /// Runs the command over an upgraded connection until it ends.
    pub(crate) async fn serve<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, mut writer) = tokio::io::split(stream);
        let opened = if self.request.tty { terminal() } else { pipes() };
        let (theirs, ours) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let failed = Frame::Failed(format!("no streams for the command: {error}"));
                // A caller that went away needs no answer.
                let _ = failed.write(&mut writer).await;
                return;
            }
        };
        let (frames, mut queue) = mpsc::channel::<Frame>(16);
        let mut reading = Vec::new();
        for (file, frame) in ours.outputs {
            let frames = frames.clone();
            reading.push(spawn_blocking(move || pass_out(file, frame, &frames)));
        }
        let input = tokio::spawn(pass_in(reader, ours.stdin, ours.terminal));
        let (container, command, tty) = (self.container, self.request.command, self.request.tty);
        let work = spawn_blocking(move || container.exec(&command, theirs, tty));
        tokio::spawn(async move {
            let last = last_frame(work.await);
            for reader in reading {
                // The command has ended, so its outputs end as well.
                let _ = reader.await;
            }
            let _ = frames.send(last).await;
        });
        while let Some(frame) = queue.recv().await {
            let is_last = matches!(frame, Frame::Exit(_) | Frame::Failed(_));
            if frame.write(&mut writer).await.is_err() || is_last {
                break;
            }
        }
        input.abort();
    }
}

fn last_frame(outcome: Result<Result<Exit, ExecError>, tokio::task::JoinError>) -> Frame {
    match outcome {
        Ok(Ok(Exit::Code(code))) => Frame::Exit(code),
        Ok(Ok(Exit::Signal(signal))) => Frame::Exit(128 + signal),
        Ok(Err(error)) => Frame::Failed(error.to_string()),
        Err(error) => Frame::Failed(format!("the agent is shutting down: {error}")),
    }
}

fn pipes() -> io::Result<([OwnedFd; 3], Ours)> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (stdin_theirs, stdin_ours) = pipe()?;
    let (stdout_ours, stdout_theirs) = pipe()?;
    let (stderr_ours, stderr_theirs) = pipe()?;
    let ours = Ours {
        stdin: Some(File::from(stdin_ours)),
        outputs: vec![(File::from(stdout_ours), Frame::Stdout), (File::from(stderr_ours), Frame::Stderr)],
        terminal: None,
    };
    Ok(([stdin_theirs, stdout_theirs, stderr_theirs], ours))
}

fn terminal() -> io::Result<([OwnedFd; 3], Ours)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let slave = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty())?;
    let theirs = [slave.try_clone()?, slave.try_clone()?, slave];
    let ours = Ours {
        stdin: Some(File::from(master.try_clone()?)),
        outputs: vec![(File::from(master.try_clone()?), Frame::Stdout)],
        terminal: Some(File::from(master)),
    };
    Ok((theirs, ours))
}

/// Passes on what the command prints until it ends.
fn pass_out(mut file: File, frame: MakeFrame, frames: &mpsc::Sender<Frame>) {
    let mut buffer = vec![0u8; PAYLOAD_BYTES_MAX / 2];
    loop {
        // A terminal whose last user is gone answers with an error rather than an end.
        let count = match file.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { return };
        if frames.blocking_send(frame(Bytes::copy_from_slice(bytes))).is_err() {
            return;
        }
    }
}

/// Passes on what the caller types.
async fn pass_in<R: AsyncRead + Unpin>(mut reader: R, mut stdin: Option<File>, terminal: Option<File>) {
    while let Ok(Some(frame)) = Frame::read(&mut reader).await {
        match frame {
            Frame::Stdin(bytes) if bytes.is_empty() => stdin = None,
            Frame::Stdin(bytes) => {
                let Some(mut file) = stdin.take() else { continue };
                let written = spawn_blocking(move || file.write_all(&bytes).map(|()| file)).await;
                // A command that closed its input gets no more.
                stdin = written.ok().and_then(Result::ok);
            }
            Frame::Resize(rows, columns) => {
                if let Some(terminal) = &terminal {
                    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                    // A terminal that is gone has no size.
                    let _ = tcsetwinsize(terminal, size);
                }
            }
            Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit(_) | Frame::Failed(_) => return,
        }
    }
}
