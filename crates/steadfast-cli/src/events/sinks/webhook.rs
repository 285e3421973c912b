//! A web hook: each event is posted to an address, signed.
//!
//! It decides which answers end an event: 2xx that it arrived; 408, 429, 5xx and a lost connection that it is tried again;
//! everything else, redirects too, that nobody wants it. It must never print the secret, nor send a signature that could be
//! replayed later unnoticed: the time is part of what is signed. Receivers check with [`verify`] or its like.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ring::hmac;
use tokio::task::JoinHandle;

use super::connect::{Address, Trust, Wire};
use super::{AddressError, Carrier, Refusal, TrustError};
use crate::events::cloud::{CONTENT_TYPE as EVENT_TYPE, CloudEvent};

/// The header with the seconds since 1970 at which an attempt was made.
pub const TIMESTAMP_HEADER: &str = "x-steadfast-timestamp";
/// The header with the signature.
pub const SIGNATURE_HEADER: &str = "x-steadfast-signature";
/// The shortest secret, in bytes.
pub const SECRET_BYTES_MIN: usize = 16;

/// Posts events to one address.
#[derive(Clone)]
pub struct Webhook {
    address: Address,
    trust: Option<Trust>,
    key: hmac::Key,
}

/// A web hook that can't be used; nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The secret can be guessed.
    #[error(
        "the secret has {0} bytes; at least {SECRET_BYTES_MIN} are needed, for example from `openssl rand -hex 32`"
    )]
    ShortSecret(usize),
    /// The authorities can't be read.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

impl Webhook {
    /// For this address, signed with this secret; an https address is believed by `authority`, a file in PEM form, or by
    /// the machine's authorities.
    pub fn new(address: &str, secret: &[u8], authority: Option<&Path>) -> Result<Webhook, WebhookError> {
        let schemes = [("http", 80), ("https", 443)];
        let address = Address::parse(address, schemes, "https://hooks.example.net/steadfast")?;
        if address.credentials.is_some() {
            return Err(AddressError::Credentials.into());
        }
        if secret.len() < SECRET_BYTES_MIN {
            return Err(WebhookError::ShortSecret(secret.len()));
        }
        let trust = if address.is_sealed { Some(Trust::load(authority)?) } else { None };
        Ok(Webhook { address, trust, key: hmac::Key::new(hmac::HMAC_SHA256, secret) })
    }

    fn request(&self, event: &CloudEvent) -> Result<Request<Full<Bytes>>, Refusal> {
        let body = serde_json::to_vec(event).map_err(Refusal::never)?;
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.address.path.as_str())
            .header(HOST, self.address.authority())
            .header(USER_AGENT, concat!("steadfast/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, EVENT_TYPE)
            .header(TIMESTAMP_HEADER, timestamp)
            .header(SIGNATURE_HEADER, signature(&self.key, timestamp, &body))
            .body(Full::new(Bytes::from(body)));
        request.map_err(Refusal::never)
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<hyper::body::Incoming>, String> {
        let stream = self.address.connect().await.map_err(|error| error.to_string())?;
        let stream: Box<dyn Wire> = match &self.trust {
            None => Box::new(stream),
            Some(trust) => self.address.seal(stream, trust).await.map_err(|error| error.to_string())?,
        };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        let _driver = Driver(tokio::spawn(async move { drop(connection.await) }));
        // Nobody reads the body: the status says all that counts.
        sender.send_request(request).await.map_err(|error| error.to_string())
    }
}

impl Carrier for Webhook {
    async fn carry(&self, event: &CloudEvent) -> Result<(), Refusal> {
        let answer = self.exchange(self.request(event)?).await;
        let answer = answer.map_err(|reason| {
            Refusal::later(format!("{} does not answer: {reason}", self.address.authority()))
        })?;
        judge(answer.status(), answer.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()))
    }
}

/// Without the secret.
impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Ends a connection with the attempt that it was made for.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn judge(status: StatusCode, retry_after: Option<&str>) -> Result<(), Refusal> {
    if status.is_success() {
        return Ok(());
    }
    let reason = format!("the answer was {status}");
    let is_passing = status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    if !is_passing {
        return Err(Refusal::Never { reason });
    }
    let after = retry_after.and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
    Err(Refusal::Later { reason, after })
}

/// `sha256=` and the HMAC-SHA-256, in hexadecimal, of the time stamp's digits, a dot, and the body.
fn signature(key: &hmac::Key, timestamp: u64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{timestamp}.").as_bytes());
    context.update(body);
    let digits: String = context.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={digits}")
}

/// Whether a body was signed at this time with this secret; compares in constant time. That the time is recent is for the
/// receiver to check.
pub fn verify(secret: &[u8], timestamp: &str, body: &[u8], signature: &str) -> bool {
    let digits = signature.strip_prefix("sha256=").unwrap_or_default();
    let bytes: Option<Vec<u8>> = digits
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    let signed = [timestamp.as_bytes(), b".", body].concat();
    bytes.is_some_and(|bytes| {
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret), &signed, &bytes).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::extract::State;
    use axum::http::HeaderMap;
    use axum::response::IntoResponse;
    use axum::routing::post;
    use tokio::net::TcpListener;

    use super::super::tests::{PATIENCE, numbered, quick};
    use super::super::{Report, Settings, Sink};
    use super::*;

    const SECRET: &[u8] = b"a secret of some length";

    /// A status, and how long to stay away.
    type Answer = (u16, Option<&'static str>);

    #[derive(Clone, Default)]
    struct Seen {
        answers: Arc<Mutex<Vec<Answer>>>,
        requests: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    }

    async fn receive(State(seen): State<Seen>, headers: HeaderMap, body: Bytes) -> impl IntoResponse {
        seen.requests.lock().unwrap().push((headers, body));
        let (status, after) = seen.answers.lock().unwrap().pop().unwrap_or((204, None));
        let after = after.map(|after| [("retry-after", after)]);
        (
            StatusCode::from_u16(status).unwrap(),
            after.map_or_else(HeaderMap::new, |[(name, value)]| {
                HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
            }),
        )
    }

    /// A server that gives these answers, the last one first, then 204.
    async fn server(answers: &[Answer]) -> (SocketAddr, Seen, JoinHandle<()>) {
        let seen = Seen { answers: Arc::new(Mutex::new(answers.to_vec())), ..Seen::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/hook", post(receive)).with_state(seen.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (address, seen, task)
    }

    async fn deliver(address: &str, settings: Settings, authority: Option<&Path>) -> Report {
        let webhook = Webhook::new(address, SECRET, authority).unwrap();
        let (sink, _given_up) = Sink::start(webhook, settings);
        sink.offer(numbered(1));
        sink.close(PATIENCE).await
    }

    #[tokio::test]
    async fn an_event_is_posted_again_until_it_is_taken_and_each_attempt_is_signed() {
        let (address, seen, server) = server(&[(503, None), (429, Some("0")), (408, None)]).await;
        let report = deliver(&format!("http://{address}/hook"), quick(), None).await;
        assert_eq!((report.delivered, report.retries, report.given_up), (1, 3, 0), "{report:?}");
        let requests = seen.requests.lock().unwrap().clone();
        assert_eq!(requests.len(), 4);
        for (headers, body) in &requests {
            let text = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
            assert_eq!(text("content-type"), "application/cloudevents+json");
            assert_eq!(serde_json::from_slice::<CloudEvent>(body).unwrap(), numbered(1));
            let (time, signature) = (text(TIMESTAMP_HEADER), text(SIGNATURE_HEADER));
            assert!(verify(SECRET, &time, body, &signature));
            assert!(!verify(SECRET, &time, b"another body", &signature));
            assert!(!verify(SECRET, "1", body, &signature));
            assert!(!verify(b"another secret of some length", &time, body, &signature));
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            assert!(time.parse::<u64>().unwrap() <= now);
        }
        server.abort();
    }

    #[tokio::test]
    async fn an_answer_that_says_no_for_good_is_final() {
        for status in [400, 404, 410, 302] {
            let (address, seen, server) = server(&[(status, None)]).await;
            let report = deliver(&format!("http://{address}/hook"), quick(), None).await;
            assert_eq!((report.given_up, report.retries), (1, 0), "{status}");
            assert!(report.latest_given_up[0].reason.contains(&status.to_string()));
            assert_eq!(seen.requests.lock().unwrap().len(), 1);
            server.abort();
        }
    }

    #[tokio::test]
    async fn a_server_that_goes_away_and_comes_back_gets_the_event() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let webhook = Webhook::new(&format!("http://{address}/hook"), SECRET, None).unwrap();
        let (sink, _given_up) = Sink::start(webhook, Settings { attempts_max: 1_000_000, ..quick() });
        sink.offer(numbered(1));
        // The first is taken and hung up on; then nobody listens; then somebody does.
        let (first, _) = tokio::task::spawn_blocking(move || listener.accept().unwrap()).await.unwrap();
        drop(first);
        let begun = std::time::Instant::now();
        while sink.report().retries < 3 {
            assert!(begun.elapsed() < PATIENCE, "{:?}", sink.report());
            tokio::task::yield_now().await;
        }
        let seen = Seen::default();
        let router = Router::new().route("/hook", post(receive)).with_state(seen.clone());
        let listener = TcpListener::bind(address).await.unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let report = sink.close(PATIENCE).await;
        assert_eq!((report.delivered, report.given_up), (1, 0), "{report:?}");
        assert_eq!(seen.requests.lock().unwrap().len(), 1);
        server.abort();
    }

    /// One TLS server that answers each connection's first request with 204.
    async fn sealed_server(certificate: rcgen::CertifiedKey<rcgen::KeyPair>) -> (SocketAddr, JoinHandle<()>) {
        use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certificate.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut request = Vec::new();
                while !request.ends_with(b"}") {
                    let mut piece = [0; 4_096];
                    let Ok(count) = stream.read(&mut piece).await else { break };
                    if count == 0 {
                        break;
                    }
                    request.extend_from_slice(&piece[..count]);
                }
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
                let _ = stream.shutdown().await;
            }
        });
        (address, task)
    }

    #[tokio::test]
    async fn https_is_believed_by_the_given_authority_alone() {
        let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (good, bad) = (folder.path().join("good.pem"), folder.path().join("bad.pem"));
        std::fs::write(&good, certificate.cert.pem()).unwrap();
        std::fs::write(&bad, other.cert.pem()).unwrap();
        let (address, server) = sealed_server(certificate).await;
        let url = format!("https://localhost:{}/hook", address.port());
        let report = deliver(&url, quick(), Some(&good)).await;
        assert_eq!(report.delivered, 1, "{report:?}");
        let report = deliver(&url, Settings { attempts_max: 1, ..quick() }, Some(&bad)).await;
        assert_eq!(report.given_up, 1, "{report:?}");
        assert!(report.latest_given_up[0].reason.contains("certificate"), "{report:?}");
        server.abort();
    }

    #[test]
    fn what_can_not_be_used_is_refused_and_no_secret_is_printed() {
        let refusal =
            |address: &str, secret: &[u8]| Webhook::new(address, secret, None).unwrap_err().to_string();
        assert!(refusal("http://host/", b"short").contains("5 bytes"));
        assert!(refusal("http://me:you@host/", SECRET).contains("leave them out"));
        assert!(refusal("gopher://host/", SECRET).contains("http:// and https://"));
        let shown = format!("{:?}", Webhook::new("http://host/", SECRET, None).unwrap());
        assert!(shown.contains("host") && !shown.contains("secret of"));
    }

    #[test]
    fn a_signature_is_the_one_that_others_compute() {
        // By: printf '1700000000.{}' | openssl dgst -sha256 -hmac 'a secret of some length'
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
        assert_eq!(signature(&key, 1_700_000_000, b"{}"), OPENSSL_SAYS);
    }

    const OPENSSL_SAYS: &str = "sha256=9008b8e96ac884fb56cbbbb39d8c4b578c2c6de7951cbcce7f1f18311f3cd9f2";
}
