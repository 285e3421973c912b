//! `steadfast exec`: run a command inside a running container.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use bytes::Bytes;
use rustix::termios::{self, OptionalActions, Termios};
use tokio::io::{AsyncReadExt, AsyncWrite, ReadHalf, WriteHalf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Context;
use crate::api::client::{EXEC_PROTOCOL, segment};
use crate::api::frames::Frame;
use crate::api::types::ExecRequest;
use crate::codes::Code;
use crate::failure::Failure;

/// Run a command inside a running container
///
/// Ends with the command's own exit code.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast exec redis -- redis-cli ping\n  steadfast exec -it redis -- sh\n  echo 'PING' | steadfast exec -i redis -- redis-cli"
)]
pub struct Args {
    /// The container
    name: String,
    /// Pass standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    if args.tty && !io::stdin().is_terminal() {
        return Err(Failure::new(
            Code::BadRequest,
            "-t needs a terminal, and standard input is none; leave -t out",
        ));
    }
    let path = format!("/v1/containers/{}/exec", segment(&args.name));
    let request = ExecRequest { command: args.command, stdin: args.interactive, tty: args.tty };
    let stream = context.client.upgrade(&path, EXEC_PROTOCOL, &request).await?;
    let _raw = if args.tty { RawTerminal::enter() } else { None };
    let (reader, writer) = tokio::io::split(stream);
    let (frames, queue) = mpsc::channel(16);
    tokio::spawn(send(writer, queue));
    if args.interactive {
        tokio::spawn(pass_stdin(frames.clone()));
    } else {
        // Without -i its input is empty.
        let _ = frames.send(Frame::Stdin(Bytes::new())).await;
    }
    if args.tty {
        tokio::spawn(pass_size(frames.clone()));
    }
    receive(reader).await
}

async fn receive<S>(mut reader: ReadHalf<S>) -> Result<ExitCode, Failure>
where
    S: tokio::io::AsyncRead + Unpin,
{
    loop {
        let frame = Frame::read(&mut reader).await;
        match frame.map_err(|error| {
            Failure::new(
                Code::PeerUnreachable,
                format!("the connection to the container's node broke off: {error}"),
            )
        })? {
            Some(Frame::Stdout(bytes)) => write_out(io::stdout(), &bytes),
            Some(Frame::Stderr(bytes)) => write_out(io::stderr(), &bytes),
            Some(Frame::Exit(status)) => return Ok(ExitCode::from(u8::try_from(status & 0xff).unwrap_or(1))),
            Some(Frame::Failed(message)) => return Err(Failure::new(Code::NothingToExec, message)),
            Some(Frame::Stdin(_) | Frame::Resize(..)) => {}
            None => {
                return Err(Failure::new(
                    Code::PeerUnreachable,
                    "the container's node closed the connection before the command ended",
                ));
            }
        }
    }
}

fn write_out(mut out: impl Write, bytes: &[u8]) {
    // A closed reader must not end the command inside.
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

async fn send<S: AsyncWrite + Unpin>(mut writer: WriteHalf<S>, mut queue: mpsc::Receiver<Frame>) {
    while let Some(frame) = queue.recv().await {
        if frame.write(&mut writer).await.is_err() {
            return;
        }
    }
    // Kept open: closing it would look like a caller that went away.
    std::future::pending::<()>().await;
}

async fn pass_stdin(frames: mpsc::Sender<Frame>) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0u8; 16 << 10];
    loop {
        let count = stdin.read(&mut buffer).await.unwrap_or(0);
        let bytes = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
        if frames.send(Frame::Stdin(bytes)).await.is_err() || count == 0 {
            return;
        }
    }
}

async fn pass_size(frames: mpsc::Sender<Frame>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Ok(size) = termios::tcgetwinsize(io::stdin())
            && frames.send(Frame::Resize(size.ws_row, size.ws_col)).await.is_err()
        {
            return;
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

/// The caller's terminal in raw mode, put back when dropped.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> Option<RawTerminal> {
        let before = termios::tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(RawTerminal { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The process ends next; there is nobody to tell.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
