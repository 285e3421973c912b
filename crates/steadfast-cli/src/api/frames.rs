//! The framed stream of an exec connection after its upgrade.
//!
//! A frame is a kind byte, a length (u32, big-endian) and that many bytes. Frames come from outside: lengths are
//! bounded and an unknown kind ends the connection. Both ends use this; who sends which kind is said at [`Frame`].

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest payload, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// To the program's standard input; empty ends it.
    Stdin(Bytes),
    /// From its standard output, or from its terminal.
    Stdout(Bytes),
    /// From its standard error.
    Stderr(Bytes),
    /// The caller's terminal has this size now: rows, columns.
    Resize(u16, u16),
    /// The program ended with this status (128 + signal where a signal ended it); the last frame.
    Exit(i32),
    /// It could not be started; the last frame.
    Failed(String),
}

impl Frame {
    /// Writes the frame.
    pub async fn write<W: AsyncWrite + Unpin>(&self, writer: &mut W) -> io::Result<()> {
        let (kind, payload) = self.encode();
        let length = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut head = Vec::with_capacity(5 + payload.len());
        head.push(kind);
        head.extend_from_slice(&length.to_be_bytes());
        head.extend_from_slice(&payload);
        writer.write_all(&head).await?;
        writer.flush().await
    }

    /// Reads the next frame; `None` when the other side closed between frames.
    pub async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<Option<Frame>> {
        let mut head = [0u8; 5];
        if reader.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        reader.read_exact(&mut head[1..]).await?;
        let [kind, a, b, c, d] = head;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > PAYLOAD_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a frame of {length} bytes, more than {PAYLOAD_BYTES_MAX}"),
            ));
        }
        let mut payload = vec![0u8; length];
        reader.read_exact(&mut payload).await?;
        Frame::decode(kind, payload).map(Some)
    }

    fn encode(&self) -> (u8, Bytes) {
        match self {
            Frame::Stdin(bytes) => (0, bytes.clone()),
            Frame::Stdout(bytes) => (1, bytes.clone()),
            Frame::Stderr(bytes) => (2, bytes.clone()),
            Frame::Resize(rows, columns) => {
                let mut payload = rows.to_be_bytes().to_vec();
                payload.extend_from_slice(&columns.to_be_bytes());
                (3, payload.into())
            }
            Frame::Exit(status) => (4, status.to_be_bytes().to_vec().into()),
            Frame::Failed(message) => (5, message.clone().into_bytes().into()),
        }
    }

    fn decode(kind: u8, payload: Vec<u8>) -> io::Result<Frame> {
        let malformed =
            || io::Error::new(io::ErrorKind::InvalidData, format!("a malformed frame of kind {kind}"));
        Ok(match kind {
            0 => Frame::Stdin(payload.into()),
            1 => Frame::Stdout(payload.into()),
            2 => Frame::Stderr(payload.into()),
            3 => {
                let [a, b, c, d] = payload.try_into().map_err(|_| malformed())?;
                Frame::Resize(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
            }
            4 => Frame::Exit(i32::from_be_bytes(payload.try_into().map_err(|_| malformed())?)),
            5 => Frame::Failed(String::from_utf8_lossy(&payload).into_owned()),
            _ => return Err(malformed()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn frames_survive_the_wire() {
        block_on(async {
            let frames = [
                Frame::Stdin(Bytes::from_static(b"ls\n")),
                Frame::Stdin(Bytes::new()),
                Frame::Resize(24, 80),
                Frame::Exit(-1),
                Frame::Failed("no".into()),
            ];
            let mut wire = Vec::new();
            for frame in &frames {
                frame.write(&mut wire).await.unwrap();
            }
            let mut reader = wire.as_slice();
            for frame in &frames {
                assert_eq!(Frame::read(&mut reader).await.unwrap().as_ref(), Some(frame));
            }
            assert_eq!(Frame::read(&mut reader).await.unwrap(), None);
        });
    }

    #[test]
    fn garbage_is_an_error_and_never_a_large_allocation() {
        block_on(async {
            assert!(Frame::read(&mut [1u8, 255, 255, 255, 255].as_slice()).await.is_err());
            assert!(Frame::read(&mut [9u8, 0, 0, 0, 0].as_slice()).await.is_err());
            assert!(Frame::read(&mut [4u8, 0, 0, 0, 1, 7].as_slice()).await.is_err());
            assert!(Frame::read(&mut [1u8, 0, 0].as_slice()).await.is_err());
        });
    }
}
