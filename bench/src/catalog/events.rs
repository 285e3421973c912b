//! etcd's watches as its users have them: streams of one HTTP/2 connection, on which events come as they happen.
//!
//! Only as much of the protocol as one key needs; what an event says is left to the caller. Read next: `theirs`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Buf, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::Request;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::watch::{Given, Watcher};

/// In front of each message: whether it is compressed, and its length.
const HEADER_BYTES: usize = 5;
const MESSAGE_BYTES_MAX: usize = 1 << 20;
const OPEN_MAX: Duration = Duration::from_secs(10);

/// Drives the connection while a stream of it is used.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One watch.
struct Stream {
    /// Kept: the end of it would end the watch.
    _asking: SendStream<Bytes>,
    answers: RecvStream,
    received: BytesMut,
    _driver: Arc<Driver>,
}

/// Opens `count` watches of `key` at `address` (`host:port`); each is under way when this returns.
pub async fn watch(address: &str, key: &str, count: usize) -> anyhow::Result<Vec<Box<dyn Watcher>>> {
    let opening = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (send, connection) = h2::client::handshake(stream).await?;
        let driver = Arc::new(Driver(tokio::spawn(async move { drop(connection.await) })));
        let mut watches: Vec<Box<dyn Watcher>> = Vec::new();
        for _ in 0..count {
            watches.push(Box::new(Stream::open(&send, address, key, &driver).await?));
        }
        anyhow::Ok(watches)
    };
    tokio::time::timeout(OPEN_MAX, opening).await.context("etcd opens no watch")?
}

impl Stream {
    async fn open(
        send: &SendRequest<Bytes>,
        address: &str,
        key: &str,
        driver: &Arc<Driver>,
    ) -> anyhow::Result<Stream> {
        let mut send = send.clone().ready().await?;
        let request = Request::post(format!("http://{address}/etcdserverpb.Watch/Watch"))
            .version(http::Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let (answer, mut asking) = send.send_request(request, false)?;
        asking.send_data(create_request(key)?, false)?;
        let answers = answer.await?.into_body();
        let mut stream =
            Stream { _asking: asking, answers, received: BytesMut::new(), _driver: Arc::clone(driver) };
        // The first message says that the watch was made.
        stream.message().await?;
        Ok(stream)
    }

    async fn message(&mut self) -> anyhow::Result<Bytes> {
        loop {
            if let Some(message) = take_message(&mut self.received)? {
                return Ok(message);
            }
            let data = self.answers.data().await.context("etcd ended the watch")??;
            self.answers.flow_control().release_capacity(data.len())?;
            self.received.extend_from_slice(&data);
        }
    }
}

impl Watcher for Stream {
    fn next(&mut self) -> Given<'_> {
        Box::pin(self.message())
    }
}

/// A framed `WatchRequest { create_request: { key } }`.
fn create_request(key: &str) -> anyhow::Result<Bytes> {
    // Lengths below 128 are one byte each.
    let length = u8::try_from(key.len()).ok().filter(|length| *length < 120).context("the key is short")?;
    let mut message = vec![0x0a, length + 2, 0x0a, length];
    message.extend_from_slice(key.as_bytes());
    let mut framed = vec![0, 0, 0, 0, length + 4];
    framed.append(&mut message);
    Ok(framed.into())
}

/// The first whole message, if it is there.
fn take_message(received: &mut BytesMut) -> anyhow::Result<Option<Bytes>> {
    let Some((header, _)) = received.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let [_, length @ ..] = *header;
    let length = usize::try_from(u32::from_be_bytes(length))?;
    if length > MESSAGE_BYTES_MAX {
        bail!("etcd sent a message of {length} bytes");
    }
    if received.len() < HEADER_BYTES + length {
        return Ok(None);
    }
    received.advance(HEADER_BYTES);
    Ok(Some(received.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_whole_and_in_order() {
        let mut received = BytesMut::from(&[0, 0, 0, 0, 2, 7][..]);
        assert_eq!(take_message(&mut received).unwrap(), None);
        received.extend_from_slice(&[8, 0, 0, 0, 0, 1, 9, 0]);
        assert_eq!(take_message(&mut received).unwrap().as_deref(), Some(&[7, 8][..]));
        assert_eq!(take_message(&mut received).unwrap().as_deref(), Some(&[9][..]));
        assert_eq!(take_message(&mut received).unwrap(), None);
        assert_eq!(create_request("ab").unwrap().as_ref(), b"\0\0\0\0\x06\x0a\x04\x0a\x02ab");
    }
}
