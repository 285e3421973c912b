//! A program behind an HTTP end point: each episode is one POST of JSON, each outcome the JSON of its answer.
//!
//! It keeps a few connections open, since a new one costs more than an episode. A connection that the other side closed while
//! nobody used it is no failure: the request is made again on a new one, which is harmless because an episode that has no
//! outcome may be run again; the header `steadfast-episode: NAME/EPISODE` lets an end point recognise that. What is said in
//! both directions is in [`super::json`]. It must never follow a redirect or read more than the limit.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use steadfast_proto::episode::Task;
use tokio::net::UnixStream;

use super::{DeployError, Limits, Ran, json, too_long};
use crate::events::sinks::connect::{Address, Trust, Wire};

/// How many connections to one end point are kept while nobody uses them: as many as an agent runs episodes at once, or some
/// would be made anew for each.
const IDLE_MAX: usize = 64;
/// Which episode of which instance a request is for.
const EPISODE_HEADER: &str = "steadfast-episode";
const EXAMPLE: &str = "http://127.0.0.1:8080/order";

/// Where a program is asked.
#[derive(Debug)]
pub(super) struct EndPoint {
    place: Place,
    /// As it was given, for errors.
    url: String,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

#[derive(Debug)]
enum Place {
    Tcp(Address, Option<Trust>),
    Unix(PathBuf),
}

impl EndPoint {
    pub(super) fn new(url: &str) -> Result<EndPoint, DeployError> {
        let wrong = |problem: String| {
            // What stands before an @ may be a password.
            let given = url.rsplit('@').next().unwrap_or_default().chars().take(200).collect();
            DeployError::Url { given, problem }
        };
        let place = match url.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Place::Unix(path.into()),
            Some(_) => {
                return Err(wrong(
                    "a socket is given by its whole path, such as unix:/run/order.sock".to_owned(),
                ));
            }
            None => {
                let address = Address::parse(url, [("http", 80), ("https", 443)], EXAMPLE);
                let address = address.map_err(|error| wrong(error.to_string()))?;
                if address.credentials.is_some() {
                    return Err(wrong(
                        "it holds a user or a password before \"@\"; leave them out".to_owned(),
                    ));
                }
                let trust = address.is_sealed.then(|| Trust::load(None)).transpose();
                Place::Tcp(address, trust.map_err(|error| wrong(error.to_string()))?)
            }
        };
        Ok(EndPoint { place, url: url.to_owned(), idle: Mutex::default() })
    }

    pub(super) async fn run(&self, task: &Task, limits: Limits) -> Ran {
        let body = match tokio::time::timeout(limits.time_max, self.ask(task, limits)).await {
            Ok(Ok(body)) => body,
            Ok(Err(why)) => return Ran::failed(why),
            Err(_) => return Ran::failed(format!("{}: {}", self.url, too_long(limits))),
        };
        json::answer(&body, task, limits)
            .unwrap_or_else(|error| Ran::failed(format!("{}: {error}", self.url)))
    }

    async fn ask(&self, task: &Task, limits: Limits) -> Result<Bytes, String> {
        let body = Bytes::from(json::task(task));
        let (response, connection) = self.exchange(task, &body).await?;
        let status = response.status();
        let body =
            Limited::new(response.into_body(), limits.answer_bytes_max).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    format!(
                        "{} answers more than {} bytes, which is the limit",
                        self.url, limits.answer_bytes_max
                    )
                } else {
                    format!("{} broke off its answer: {error}", self.url)
                }
            })?;
        self.keep(connection);
        let body = body.to_bytes();
        if status != StatusCode::OK {
            return Err(format!(
                "{} answered {status}; 200 with an outcome would be right; its answer begins: {}",
                self.url,
                json::begins(&body)
            ));
        }
        Ok(body)
    }

    /// The head of the answer, and the connection on which its body comes.
    async fn exchange(
        &self,
        task: &Task,
        body: &Bytes,
    ) -> Result<(Response<Incoming>, SendRequest<Full<Bytes>>), String> {
        while let Some(mut connection) = self.take() {
            if connection.ready().await.is_err() {
                continue;
            }
            if let Ok(response) = connection.send_request(self.request(task, body)?).await {
                return Ok((response, connection));
            }
        }
        let mut connection =
            self.connect().await.map_err(|error| format!("{} can not be reached: {error}", self.url))?;
        let response = connection.send_request(self.request(task, body)?).await;
        let response = response.map_err(|error| format!("{} does not answer: {error}", self.url))?;
        Ok((response, connection))
    }

    fn request(&self, task: &Task, body: &Bytes) -> Result<Request<Full<Bytes>>, String> {
        let (path, host) = match &self.place {
            Place::Tcp(address, _) => (address.path.as_str(), address.authority()),
            Place::Unix(_) => ("/", "localhost".to_owned()),
        };
        // A name may hold letters that no header can; they stand as they do in a path.
        let episode = format!("{}/{}", escaped(task.name.as_str()), task.episode);
        let request = Request::post(path)
            .header(HOST, host)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(EPISODE_HEADER, episode)
            .body(Full::new(body.clone()));
        request.map_err(|error| format!("{} can not be asked: {error}", self.url))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let stream: Box<dyn Wire> = match &self.place {
            Place::Tcp(address, None) => Box::new(address.connect().await?),
            Place::Tcp(address, Some(trust)) => address.seal(address.connect().await?, trust).await?,
            Place::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends when its sender is dropped; how it ends is seen by whoever waits for the answer.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    fn take(&self) -> Option<SendRequest<Full<Bytes>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn keep(&self, connection: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !connection.is_closed() && idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }
}

/// A name as it can stand in a header: bytes that are not ASCII are written as `%C3`.
fn escaped(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}
