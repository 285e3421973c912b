//! Calls over HTTP/2, as etcd speaks it: one connection to one of its members.
//!
//! It says of each call that failed whether etcd can have heard it, because that decides whether a change may be made again. It must
//! never send a call twice, nor keep an answer longer than it was asked to. Read next: `link`, which chooses among members.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, Uri};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// Bytes of answers that may be under way at once.
const WINDOW_BYTES: u32 = 4 << 20;
/// Bytes in front of each message: whether it is compressed, and its length.
const FRAME_HEADER_BYTES: usize = 5;

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallError {
    /// etcd certainly did not hear it.
    Unsent(String),
    /// etcd may have heard it.
    Lost(String),
    /// etcd answered that it did not do it, or does not know whether it was done: the message says.
    Status(String),
}

/// Where one member of etcd is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    uri: Uri,
    host: String,
    port: u16,
}

impl Endpoint {
    /// From `http://host:port` or `https://host:port`; an error says what is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is not an address of etcd; it must be http://host:port or https://host:port")
        };
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let (Some("http" | "https"), Some(host), Some(port)) = (uri.scheme_str(), uri.host(), uri.port_u16())
        else {
            return Err(wrong());
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { uri, host, port })
    }

    fn has_tls(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.uri.authority().map_or("", |authority| authority.as_str()))
    }
}

/// One connection; it ends when this is dropped, and everything under way on it.
#[derive(Debug)]
pub(super) struct Connection {
    endpoint: Endpoint,
    send: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Connects within `timeout`; an error says in one clause why not.
    pub(super) async fn open(
        endpoint: &Endpoint,
        tls: Option<&Arc<rustls::ClientConfig>>,
        timeout: Duration,
    ) -> Result<Self, String> {
        let opening = async {
            let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await;
            let stream = stream.map_err(|error| error.to_string())?;
            // Without it small requests wait for each other's acknowledgements; a failure only costs time.
            let _ = stream.set_nodelay(true);
            match (endpoint.has_tls(), tls) {
                (false, _) => Self::shake_hands(endpoint, stream).await,
                (true, None) => Err("it wants TLS, and no authority was given".to_owned()),
                (true, Some(config)) => {
                    let name =
                        ServerName::try_from(endpoint.host.clone()).map_err(|error| error.to_string())?;
                    let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
                    Self::shake_hands(endpoint, stream.map_err(|error| error.to_string())?).await
                }
            }
        };
        match tokio::time::timeout(timeout, opening).await {
            Ok(opened) => opened.map_err(|reason| format!("{endpoint}: {reason}")),
            Err(_) => Err(format!("{endpoint}: no answer within {} ms", timeout.as_millis())),
        }
    }

    async fn shake_hands(
        endpoint: &Endpoint,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Self, String> {
        let builder = h2::client::Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .enable_push(false)
            .to_owned();
        let (send, connection) = builder.handshake(stream).await.map_err(|error| error.to_string())?;
        // Each call learns by itself that the connection has ended.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { endpoint: endpoint.clone(), send, driver })
    }

    /// Whether it can still be used, as far as is known.
    pub(super) fn is_open(&self) -> bool {
        !self.driver.is_finished()
    }

    /// Asks one question; until this returns, an error is [`CallError::Unsent`].
    pub(super) async fn ask(&self, path: &'static str, message: &[u8]) -> Result<Call, CallError> {
        self.begin(path, message, true).await
    }

    /// Asks for answers until the call is dropped.
    pub(super) async fn follow(&self, path: &'static str, message: &[u8]) -> Result<Call, CallError> {
        self.begin(path, message, false).await
    }

    async fn begin(&self, path: &'static str, message: &[u8], is_all: bool) -> Result<Call, CallError> {
        let unsent = |reason: String| CallError::Unsent(format!("{}: {reason}", self.endpoint));
        let mut send = self.send.clone().ready().await.map_err(|error| unsent(error.to_string()))?;
        let scheme = if self.endpoint.has_tls() { "https" } else { "http" };
        let request = Request::post(format!("{scheme}://{}{path}", self.endpoint))
            .version(http::Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            // A member without a leader says so at once instead of letting the caller wait.
            .header("hasleader", "true")
            .body(())
            .map_err(|error| unsent(error.to_string()))?;
        let (response, mut body) =
            send.send_request(request, false).map_err(|error| unsent(error.to_string()))?;
        body.send_data(frame(message), is_all).map_err(|error| unsent(error.to_string()))?;
        Ok(Call { response, body, member: self.endpoint.to_string() })
    }
}

/// A call that etcd may have heard.
#[derive(Debug)]
pub(super) struct Call {
    response: ResponseFuture,
    body: SendStream<Bytes>,
    member: String,
}

impl Call {
    /// The one answer, of at most `bytes_max` bytes.
    pub(super) async fn answer(self, bytes_max: usize) -> Result<Bytes, CallError> {
        let mut answers = self.answers(bytes_max).await?;
        let Some(answer) = answers.next().await? else {
            return Err(CallError::Lost(format!("{}: an empty answer", answers.member)));
        };
        // The status comes last and counts: an answer without one is none.
        match answers.next().await? {
            None => Ok(answer),
            Some(_) => Err(CallError::Lost(format!("{}: two answers to one question", answers.member))),
        }
    }

    /// The answers as they come, each of at most `bytes_max` bytes.
    pub(super) async fn answers(self, bytes_max: usize) -> Result<Answers, CallError> {
        let Self { response, body, member } = self;
        let response: Response<RecvStream> = response.await.map_err(|error| lost(&member, &error))?;
        if !response.status().is_success() {
            return Err(CallError::Lost(format!("{member}: it answered {}", response.status())));
        }
        // An answer that is only a refusal has its status where the others have none.
        if let Some(status) = refusal(response.headers()) {
            return Err(CallError::Status(status));
        }
        Ok(Answers { _asking: body, body: response.into_body(), buffer: BytesMut::new(), bytes_max, member })
    }
}

/// Answers that come one after another.
#[derive(Debug)]
pub(super) struct Answers {
    /// The question stays open as long as answers are wanted.
    _asking: SendStream<Bytes>,
    body: RecvStream,
    buffer: BytesMut,
    bytes_max: usize,
    member: String,
}

impl Answers {
    /// The next one; `None` when etcd has said that it was the last. Nothing is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(message) = self.whole()? {
                return Ok(Some(message));
            }
            let Some(chunk) = self.body.data().await else { break };
            let chunk = chunk.map_err(|error| lost(&self.member, &error))?;
            self.buffer.extend_from_slice(&chunk);
            let _ = self.body.flow_control().release_capacity(chunk.len());
        }
        let trailers = self.body.trailers().await.map_err(|error| lost(&self.member, &error))?;
        match trailers {
            Some(trailers) => refusal(&trailers).map_or(Ok(None), |status| Err(CallError::Status(status))),
            None => Err(CallError::Lost(format!("{}: the answer broke off", self.member))),
        }
    }

    fn whole(&mut self) -> Result<Option<Bytes>, CallError> {
        let Some((header, rest)) = self.buffer.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        let [compressed, length @ ..] = *header;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if compressed != 0 || length > self.bytes_max {
            return Err(CallError::Lost(format!(
                "{}: an answer of {length} bytes, and at most {} are accepted",
                self.member, self.bytes_max
            )));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.buffer.advance(FRAME_HEADER_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEADER_BYTES + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// What the status says, unless it says that all is well.
fn refusal(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let code = text("grpc-status")?;
    if code == "0" {
        return None;
    }
    let message = text("grpc-message").map(unescaped).filter(|message| !message.is_empty());
    Some(message.unwrap_or_else(|| format!("status {code}")))
}

/// A message as it was before its unusual characters became `%41`.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = after.split_at_checked(2).filter(|_| *first == b'%').and_then(|(digits, after)| {
            let digits = std::str::from_utf8(digits).ok()?;
            Some((u8::from_str_radix(digits, 16).ok()?, after))
        });
        let (byte, after) = escaped.unwrap_or((*first, after));
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn lost(member: &str, error: &h2::Error) -> CallError {
    let reason = format!("{member}: {error}");
    // By this a member says that it did not look at the call.
    if error.is_reset() && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM) {
        CallError::Unsent(reason)
    } else {
        CallError::Lost(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_where_it_stands() {
        let headers = |status: &'static str, message: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", http::HeaderValue::from_static(status));
            headers.insert("grpc-message", http::HeaderValue::from_static(message));
            headers
        };
        assert_eq!(refusal(&headers("0", "")), None);
        assert_eq!(refusal(&HeaderMap::new()), None);
        assert_eq!(refusal(&headers("14", "etcdserver: no leader")).unwrap(), "etcdserver: no leader");
        assert_eq!(refusal(&headers("3", "a%20b%4")).unwrap(), "a b%4");
        assert_eq!(refusal(&headers("13", "")).unwrap(), "status 13");
    }

    #[test]
    fn addresses_are_taken_apart() {
        let endpoint = Endpoint::parse("https://[fd00::1]:2379").unwrap();
        assert_eq!((endpoint.host.as_str(), endpoint.port, endpoint.has_tls()), ("fd00::1", 2379, true));
        assert_eq!(endpoint.to_string(), "[fd00::1]:2379");
        for wrong in ["10.0.0.1:2379", "http://10.0.0.1", "ftp://a:1", ""] {
            assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
        }
    }
}
