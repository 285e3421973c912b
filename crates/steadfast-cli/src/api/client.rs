//! The client of the HTTP API over the agent's Unix socket.
//!
//! Every command uses this and nothing else. A refusal comes back as the very [`Failure`] that the agent met. It
//! retries nothing: what is safe to repeat is for the caller to say.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::types::ErrorBody;
use crate::codes::Code;
use crate::failure::Failure;

/// The largest answer that is read into memory, in bytes.
const ANSWER_BYTES_MAX: usize = 128 << 20;
/// The longest event of a followed stream, in bytes.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// What an exec connection upgrades to.
pub const EXEC_PROTOCOL: &str = "steadfast-exec/1";

/// Talks to one agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// For the agent behind this socket; connects at each request.
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into() }
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Reads.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        decode(self.send(Method::GET, path, None).await?).await
    }

    /// Reads what is not JSON.
    pub async fn get_bytes(&self, path: &str) -> Result<Bytes, Failure> {
        collect(self.send(Method::GET, path, None).await?).await
    }

    /// Asks for something to be done.
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Failure> {
        decode(self.send(Method::POST, path, Some(encode(body)?)).await?).await
    }

    /// Asks for something to be done once, however often it is asked for with this key.
    pub async fn post_once<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        key: &str,
    ) -> Result<T, Failure> {
        let mut request = request(Method::POST, path, Some(encode(body)?))?;
        let key = HeaderValue::from_str(key).map_err(|_| {
            Failure::new(
                Code::BadRequest,
                format!("the idempotency key {key:?} holds signs that none can hold"),
            )
        })?;
        request.headers_mut().insert("idempotency-key", key);
        let response = self.exchange(request).await?;
        if response.status().is_success() { decode(response).await } else { Err(refusal(response).await) }
    }

    /// Asks for something to be so; safe to repeat.
    pub async fn put<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Failure> {
        decode(self.send(Method::PUT, path, Some(encode(body)?)).await?).await
    }

    /// Removes.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        decode(self.send(Method::DELETE, path, None).await?).await
    }

    /// Follows a stream of server-sent events, each one value.
    pub async fn follow<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<T, Failure>> + use<T>, Failure> {
        let events = self.follow_with_ids(path).await?;
        Ok(events.map_ok(|(_, value)| value))
    }

    /// The same, each with the id that its stream can be resumed after.
    pub async fn follow_with_ids<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<(String, T), Failure>> + use<T>, Failure> {
        let response = self.send(Method::GET, path, None).await?;
        let state = (response.into_body(), Vec::<u8>::new());
        Ok(futures_util::stream::try_unfold(state, |(mut body, mut pending)| async move {
            loop {
                if let Some(event) = take_event_with_id(&mut pending) {
                    let Some(data) = event? else { continue };
                    return Ok(Some((data, (body, pending))));
                }
                if pending.len() > EVENT_BYTES_MAX {
                    return Err(Failure::new(Code::Internal, "the agent sent an event of more than 4 MiB"));
                }
                match body.frame().await {
                    None => return Ok(None),
                    Some(Ok(frame)) => {
                        if let Ok(bytes) = frame.into_data() {
                            pending.extend_from_slice(&bytes);
                        }
                    }
                    Some(Err(error)) => return Err(lost(&error)),
                }
            }
        }))
    }

    /// Asks for a connection of its own; the agent answers by switching protocols.
    pub async fn upgrade<B: Serialize + Sync>(
        &self,
        path: &str,
        protocol: &str,
        body: &B,
    ) -> Result<TokioIo<Upgraded>, Failure> {
        let request = request(Method::POST, path, Some(encode(body)?))?;
        let (mut parts, body) = request.into_parts();
        let protocol = protocol.parse().map_err(|_| Failure::new(Code::Internal, "not a protocol name"))?;
        parts.headers.insert(UPGRADE, protocol);
        parts.headers.insert(CONNECTION, hyper::header::HeaderValue::from_static("upgrade"));
        let response = self.exchange(Request::from_parts(parts, body)).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| lost(&error))?;
        Ok(TokioIo::new(upgraded))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Response<Incoming>, Failure> {
        let response = self.exchange(request(method, path, body)?).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(response).await)
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| lost(&error))?;
        tokio::spawn(async move {
            // How the connection ends is seen by whoever reads the answer.
            let _ = connection.with_upgrades().await;
        });
        sender.send_request(request).await.map_err(|error| lost(&error))
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "the kinds of I/O errors are not ours and many")]
    fn unreachable(&self, error: &io::Error) -> Failure {
        let socket = self.socket.display();
        let message = match error.kind() {
            io::ErrorKind::NotFound => {
                format!("no agent's socket is at {socket}; start the agent, or name its socket with --socket")
            }
            io::ErrorKind::PermissionDenied => {
                format!("{socket} belongs to another user; run this as root, or as the agent's user")
            }
            io::ErrorKind::ConnectionRefused => {
                format!("the agent behind {socket} has ended; start it: systemctl start steadfast")
            }
            _ => format!("the agent behind {socket} does not answer: {error}"),
        };
        Failure::new(Code::AgentUnreachable, message)
    }
}

/// One part of a path, safe whatever somebody typed.
pub fn segment(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric()
            || b"-_~".contains(&byte)
            || (byte == b'.' && text != "." && text != "..")
        {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn request(method: Method, path: &str, body: Option<Bytes>) -> Result<Request<Full<Bytes>>, Failure> {
    let mut builder = Request::builder().method(method).uri(path).header(HOST, "steadfast");
    if body.is_some() {
        builder = builder.header(CONTENT_TYPE, "application/json");
    }
    let request = builder.body(Full::new(body.unwrap_or_default()));
    request.map_err(|error| Failure::new(Code::BadRequest, format!("{path:?} can't be asked for: {error}")))
}

fn encode<B: Serialize>(body: &B) -> Result<Bytes, Failure> {
    let bytes = serde_json::to_vec(body);
    bytes.map(Bytes::from).map_err(|error| {
        Failure::new(Code::Internal, format!("the request can't be written as JSON: {error}"))
    })
}

async fn decode<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, Failure> {
    let bytes = collect(response).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new(Code::BadRequest, format!("the agent's answer can't be understood ({error}); do agent and command have the same version?"))
    })
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, Failure> {
    let collected = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let collected = collected.map_err(|error| {
        Failure::new(
            Code::AgentUnreachable,
            format!("the agent's answer broke off: {error}; the request may have been carried out"),
        )
    })?;
    Ok(collected.to_bytes())
}

async fn refusal(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let body = match collect(response).await {
        Ok(body) => body,
        Err(failure) => return failure,
    };
    match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(error) => Failure::new(error.code.parse().unwrap_or(Code::Internal), error.message),
        Err(_) => Failure::new(
            Code::BadRequest,
            format!(
                "the agent refused with {status} and without a reason; do agent and command have the same version?"
            ),
        ),
    }
}

fn lost(error: &hyper::Error) -> Failure {
    Failure::new(
        Code::AgentUnreachable,
        format!("the connection to the agent broke off: {error}; the request may have been carried out"),
    )
}

/// Takes one whole event off the front; `Some(Ok(None))` is a comment that only keeps the connection alive.
#[doc(hidden)]
pub fn take_event<T: DeserializeOwned>(pending: &mut Vec<u8>) -> Option<Result<Option<T>, Failure>> {
    let taken = take_event_with_id(pending)?;
    Some(taken.map(|event| event.map(|(_, value)| value)))
}

type Identified<T> = Option<(String, T)>;

fn take_event_with_id<T: DeserializeOwned>(pending: &mut Vec<u8>) -> Option<Result<Identified<T>, Failure>> {
    let end = pending.windows(2).position(|pair| pair == b"\n\n")?;
    let event: Vec<u8> = pending.drain(..end + 2).collect();
    let text = String::from_utf8_lossy(&event);
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let (name, id) = (field("event:"), field("id:").unwrap_or_default().to_owned());
    let data: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim_start).collect();
    if data.is_empty() {
        return Some(Ok(None));
    }
    let data = data.join("\n");
    if name == Some("error") {
        let failure = match serde_json::from_str::<ErrorBody>(&data) {
            Ok(error) => Failure::new(error.code.parse().unwrap_or(Code::Internal), error.message),
            Err(_) => Failure::new(Code::Internal, data),
        };
        return Some(Err(failure));
    }
    let value = serde_json::from_str(&data);
    Some(value.map(|value| Some((id, value))).map_err(|error| {
        Failure::new(Code::BadRequest, format!("the agent sent an event that can't be understood: {error}"))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_whole_and_comments_skipped() {
        let mut pending =
            b": alive\n\ndata: 5\n\nevent: error\ndata: {\"code\":\"SF-0010\",\"message\":\"no\"}\n\ndata: 6"
                .to_vec();
        assert!(matches!(take_event::<u32>(&mut pending), Some(Ok(None))));
        assert!(matches!(take_event::<u32>(&mut pending), Some(Ok(Some(5)))));
        let Some(Err(failure)) = take_event::<u32>(&mut pending) else {
            panic!("an error event is a failure")
        };
        assert_eq!(failure.code, Code::ContainerNotFound);
        assert!(take_event::<u32>(&mut pending).is_none());
    }

    #[test]
    fn whatever_is_typed_stays_one_part_of_the_path() {
        assert_eq!(segment("web-1"), "web-1");
        assert_eq!(segment("a/b?c"), "a%2Fb%3Fc");
        assert_eq!(segment(".."), "%2E%2E");
    }
}
