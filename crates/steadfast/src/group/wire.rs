//! Messages of a group on a TCP connection: one frame each, in one direction.
//!
//! A frame is magic with version, length, checksum, then (from, to, message) in postcard. Must never hand on a frame
//! that is too long, damaged, or meant for another incarnation.

use std::net::SocketAddr;
use std::time::Duration;

use steadfast_proto::group::{Input, Member, Message};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const MAGIC: [u8; 4] = *b"SFG\x01";
/// The longest body of a frame, in bytes.
const FRAME_BYTES_MAX: u32 = 256 * 1024;
/// How many connections are read at once.
const CONNECTIONS_MAX: usize = 64;
/// After how long without a message a connection is closed.
const IDLE: Duration = Duration::from_secs(20);
/// How long to wait for a connection.
const CONNECT: Duration = Duration::from_secs(1);

/// Takes connections and hands in what arrives on them.
pub(super) async fn listen(listener: TcpListener, me: Member, inputs: mpsc::Sender<Input>) {
    let mut readers = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while readers.try_join_next().is_some() {}
        if readers.len() < CONNECTIONS_MAX {
            readers.spawn(read(stream, me, inputs.clone()));
        }
    }
}

async fn read(stream: TcpStream, me: Member, inputs: mpsc::Sender<Input>) {
    let mut stream = BufReader::new(stream);
    while let Ok(Some((from, to, message))) = read_frame(&mut stream).await {
        if to == me && inputs.send(Input::Received { from, message }).await.is_err() {
            return;
        }
    }
}

async fn read_frame(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<(Member, Member, Message)>> {
    let mut magic = [0; 4];
    stream.read_exact(&mut magic).await?;
    let length = stream.read_u32().await?;
    let checksum = stream.read_u32().await?;
    if magic != MAGIC || length > FRAME_BYTES_MAX {
        return Ok(None);
    }
    let mut body = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut body).await?;
    if crc32c::crc32c(&body) != checksum {
        return Ok(None);
    }
    Ok(postcard::from_bytes(&body).ok())
}

/// Sends what comes out of `outgoing` to one incarnation, over a connection that is made when it is needed.
pub(super) async fn speak(
    me: Member,
    to: Member,
    address: SocketAddr,
    mut outgoing: mpsc::Receiver<Message>,
) {
    let mut stream: Option<TcpStream> = None;
    while let Ok(Some(message)) = tokio::time::timeout(IDLE, outgoing.recv()).await {
        if stream.is_none() {
            let connected = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
            let Ok(Ok(connected)) = connected else { continue };
            // Without it a small message waits for the acknowledgement of the one before.
            let _ = connected.set_nodelay(true);
            stream = Some(connected);
        }
        let Some(open) = &mut stream else { continue };
        if open.write_all(&frame(me, to, &message)).await.is_err() {
            stream = None;
        }
    }
}

fn frame(from: Member, to: Member, message: &Message) -> Vec<u8> {
    let body =
        postcard::to_allocvec(&(from, to, message)).expect("a message has no part that postcard can't write");
    let length = u32::try_from(body.len()).expect("a message is far below 4 GiB");
    let mut frame = MAGIC.to_vec();
    frame.extend(length.to_be_bytes());
    frame.extend(crc32c::crc32c(&body).to_be_bytes());
    frame.extend(body);
    frame
}
