//! `effect/http`: one request, with the message's id as `Idempotency-Key`.
//!
//! ```json
//! {"method": "POST", "url": "https://pay.example/charges", "headers": {"x-shop": "7"}, "body": ANY,
//!  "reply": "charged", "timeout_ms": 30000}
//! ```
//! `url` alone is needed. A final answer is 2xx, and every other but 408, 409, 425, 429 and 5xx, after which, as when nobody
//! answers, it is tried again: 409 is what a server says whose first request with that key is still under way. It must
//! never follow a redirect, nor print what an address says before `@`.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use steadfast_proto::exchange::{Blob, Text};
use tokio::task::JoinHandle;

use super::{Ended, attempt, bytes, form, reply, reply_kind};
use crate::episodes::programs::json;
use crate::events::sinks::connect::{Address, Trust, Wire};

const EXAMPLE: &str = r#"{"url": "https://pay.example/charges", "body": {"amount": 25}, "reply": "charged"}"#;
const EXAMPLE_URL: &str = "https://pay.example/charges";
/// How much of an answer a reply carries, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The longest pause that a server can ask for.
const AFTER_MAX: Duration = Duration::from_secs(3_600);
/// How many headers an order has at most.
const HEADERS_MAX: usize = 32;
/// Headers that the adapter alone can write.
const OWN_HEADERS: [&str; 5] =
    ["host", "content-length", "transfer-encoding", "connection", "idempotency-key"];

/// The adapter.
#[derive(Debug, Default)]
pub(super) struct Http {
    trust: OnceLock<Trust>,
}

/// A request that is to be made.
#[derive(Debug)]
pub(crate) struct Order {
    method: Method,
    address: Address,
    headers: HeaderMap,
    body: Bytes,
    reply: Option<Text>,
    time_max: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    #[serde(default)]
    method: Option<String>,
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: Option<Box<RawValue>>,
    #[serde(default)]
    reply: Option<String>,
    #[serde(default)]
    timeout_ms: Option<u64>,
}

impl Order {
    pub(super) fn read(payload: &Blob) -> Result<Order, String> {
        let form: Form = form(payload, EXAMPLE)?;
        let address = Address::parse(&form.url, [("http", 80), ("https", 443)], EXAMPLE_URL)
            .map_err(|error| format!("url: {error}"))?;
        if address.credentials.is_some() {
            return Err("url: it holds a user or a password before \"@\"; leave them out".to_owned());
        }
        let method = match form.method.as_deref().unwrap_or("POST") {
            "POST" => Method::POST,
            "PUT" => Method::PUT,
            "PATCH" => Method::PATCH,
            "DELETE" => Method::DELETE,
            "GET" => Method::GET,
            other => {
                return Err(format!(
                    "method: {other:?} is none; POST, PUT, PATCH, DELETE and GET are possible"
                ));
            }
        };
        let mut headers = headers(&form.headers)?;
        let body = form.body.as_deref().map(|body| bytes("body", body)).transpose()?;
        if let Some((body, is_json)) = &body
            && !body.is_empty()
            && !headers.contains_key(CONTENT_TYPE)
        {
            let kind = if *is_json { "application/json" } else { "application/octet-stream" };
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        Ok(Order {
            method,
            address,
            headers,
            body: Bytes::from(body.unwrap_or_default().0),
            reply: reply_kind(form.reply.as_deref())?,
            time_max: attempt(form.timeout_ms)?,
        })
    }

    pub(super) fn target(&self) -> String {
        self.address.authority()
    }

    fn request(&self, id: &str) -> Result<Request<Full<Bytes>>, String> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(self.address.path.as_str())
            .header(HOST, self.address.authority())
            .header(USER_AGENT, concat!("steadfast/", env!("CARGO_PKG_VERSION")))
            .header("idempotency-key", id)
            .body(Full::new(self.body.clone()))
            .map_err(|error| error.to_string())?;
        for (name, value) in &self.headers {
            request.headers_mut().insert(name.clone(), value.clone());
        }
        Ok(request)
    }
}

fn headers(given: &BTreeMap<String, String>) -> Result<HeaderMap, String> {
    if given.len() > HEADERS_MAX {
        return Err(format!("headers: there are {}; {HEADERS_MAX} are possible", given.len()));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let parsed = HeaderName::from_bytes(name.as_bytes());
        let parsed = parsed.map_err(|_| format!("headers: {name:?} is no header's name"))?;
        if OWN_HEADERS.contains(&parsed.as_str()) {
            return Err(format!("headers: {name:?} is written by the adapter; leave it out"));
        }
        // The value may be a secret.
        let value = HeaderValue::from_str(value)
            .map_err(|_| format!("headers: the value of {name:?} holds what no header can"))?;
        headers.insert(parsed, value);
    }
    Ok(headers)
}

impl Http {
    pub(super) async fn carry_out(&self, order: &Order, id: &str) -> Ended {
        let request = match order.request(id) {
            Ok(request) => request,
            Err(error) => return Ended::Never(format!("the request can not be made: {error}")),
        };
        let target = order.target();
        let later = |why: String| Ended::Later { why, after: None };
        match tokio::time::timeout(order.time_max, self.exchange(order, request)).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => later(format!("{target} does not answer: {error}")),
            Err(_) => {
                let time = humantime::format_duration(order.time_max);
                later(format!("{target} did not answer within {time}"))
            }
        }
    }

    async fn exchange(&self, order: &Order, request: Request<Full<Bytes>>) -> Result<Ended, String> {
        let stream = order.address.connect().await.map_err(|error| error.to_string())?;
        let stream: Box<dyn Wire> = if order.address.is_sealed {
            order.address.seal(stream, self.trust()?).await.map_err(|error| error.to_string())?
        } else {
            Box::new(stream)
        };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        let _driver = Driver(tokio::spawn(async move { drop(connection.await) }));
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        Ok(judge(order, answer).await)
    }

    fn trust(&self) -> Result<&Trust, String> {
        if let Some(trust) = self.trust.get() {
            return Ok(trust);
        }
        let loaded = Trust::load(None).map_err(|error| error.to_string())?;
        Ok(self.trust.get_or_init(|| loaded))
    }
}

/// Ends a connection with the attempt that it was made for.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What an answer means.
async fn judge(order: &Order, answer: Response<Incoming>) -> Ended {
    let status = answer.status();
    let why = format!("{} answered {status}", order.target());
    if status.is_success() {
        let Some(kind) = &order.reply else { return Ended::Done(None) };
        // The effect is there whatever becomes of the rest of the answer.
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.ok().map(|body| body.to_bytes());
        let is_cut = body.is_none();
        let shown: serde_json::Value =
            serde_json::from_str(json::any(&body.unwrap_or_default()).get()).unwrap_or_default();
        let mut payload = json!({"status": status.as_u16(), "body": shown});
        if is_cut {
            payload["cut"] = true.into();
        }
        return Ended::Done(reply(Some(kind), &payload));
    }
    let passing = [
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::CONFLICT,
        StatusCode::TOO_EARLY,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    if !status.is_server_error() && !passing.contains(&status) {
        return Ended::Never(why);
    }
    let seconds =
        answer.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.trim().parse().ok());
    Ended::Later { why, after: seconds.map(Duration::from_secs).map(|after| after.min(AFTER_MAX)) }
}
