//! The page: its files, who is let in, and the stream that it follows.
//!
//! It decides that whoever comes through the page's address shows a token, a certificate or a session, and may do what he
//! asks for; and that what browsers add by themselves, cookies and certificates, counts only for the page itself. The files
//! hold no secret and are given to everybody. It must never let a name that somebody else's server answers for reach this
//! one's loopback. Read `roles` for who may do what, `agent`'s `tokens` and `sessions` for who it is.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;

use super::convert::now_unix_ms;
use super::page_types::{PageToken, PictureChange, Session, SessionRequest, TokenRequest};
use super::roles::{Caller, Guest, Role};
use super::server::{body, router};
use super::tokens::only_owner;
use super::types::{Done, ErrorBody};
use crate::agent::{Agent, Shown};
use crate::codes::Code;
use crate::failure::Failure;

type Shared = State<Arc<Agent>>;
type Answer = Result<Response, Failure>;

/// How long a session lasts unless its token says otherwise.
const MINUTES_DEFAULT: u32 = 480;
/// How long one may last.
const MINUTES_MAX: u32 = 7 * 24 * 60;

/// How often a stream looks whether its reader still may read; an end that is known beforehand is met at once.
const LOOK_EVERY: Duration = Duration::from_secs(1);

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

macro_rules! files {
    ($($name:literal: $kind:expr),* $(,)?) => {
        /// The page's files: path, kind, content.
        const FILES: &[(&str, &str, &str)] =
            &[$((concat!("/", $name), $kind, include_str!(concat!("../../../../web/", $name)))),*];
    };
}

files! {
    "index.html": HTML,
    "style.css": STYLE,
    "icon.svg": IMAGE,
    "main.js": SCRIPT,
    "state.js": SCRIPT,
    "dom.js": SCRIPT,
    "words.js": SCRIPT,
    "judge.js": SCRIPT,
    "overview.js": SCRIPT,
    "map.js": SCRIPT,
    "nodes.js": SCRIPT,
    "links.js": SCRIPT,
    "views.js": SCRIPT,
    "containers.js": SCRIPT,
    "catalog.js": SCRIPT,
    "events.js": SCRIPT,
    "programs.js": SCRIPT,
    "sequence.js": SCRIPT,
    "actions.js": SCRIPT,
    "session.js": SCRIPT,
}

/// What browsers are told of every file: nothing from elsewhere, in no frame, and asked for anew unless unchanged.
const FILE_HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-cache"),
];

/// Who opened a connection to the page's address.
#[derive(Clone, Debug)]
pub(crate) struct Visitor {
    /// His address.
    pub(crate) from: IpAddr,
    /// The SHA-256 of the certificate that he has shown.
    pub(crate) certificate: Option<[u8; 32]>,
}

/// Where the page is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Door {
    /// Its address.
    pub(crate) listen: SocketAddr,
    /// The SHA-256 fingerprint of the certificate that it shows; absent without TLS.
    pub(crate) certificate: Option<[u8; 32]>,
}

impl Door {
    fn scheme(&self) -> &'static str {
        if self.certificate.is_some() { "https" } else { "http" }
    }

    /// Cookies know no ports, so two agents on one machine need two names.
    fn cookie_name(&self) -> String {
        let prefix = if self.certificate.is_some() { "__Host-" } else { "" };
        format!("{prefix}steadfast-{}", self.listen.port())
    }

    fn cookie(&self, secret: &str, seconds: u64) -> String {
        let secure = if self.certificate.is_some() { "; Secure" } else { "" };
        format!(
            "{}={secret}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}",
            self.cookie_name()
        )
    }

    /// The secret of the session that a request brings.
    fn secret<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let name = self.cookie_name();
        let cookies = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
        let mut pairs =
            cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.find_map(|(key, value)| (key == name).then_some(value))
    }

    /// What a request shows, unless it may come from another page in the same browser.
    fn shown(&self, request: &Request, visitor: Option<&Visitor>) -> Result<Option<Shown>, &'static str> {
        let headers = request.headers();
        if let Some(line) = headers.get(header::AUTHORIZATION) {
            let pair = line.to_str().ok().and_then(|line| line.split_once(' '));
            let secret = pair.filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
            return match secret {
                Some((_, secret)) => Ok(Some(Shown::Secret(secret.trim().to_owned()))),
                None => Err("the header authorization must be `Bearer TOKEN`"),
            };
        }
        let session = self.secret(headers).map(|secret| Shown::Session(secret.to_owned()));
        let certificate = visitor.and_then(|visitor| visitor.certificate).map(Shown::Certificate);
        // Browsers say with each change where it comes from, so what says nothing is none; a cookie makes it one.
        if session.is_some() || certificate.is_none() || headers.contains_key(header::ORIGIN) {
            self.check_site(request.method(), headers)?;
        } else {
            self.check_site(&Method::GET, headers)?;
        }
        Ok(session.or(certificate))
    }

    /// Whether a request comes from this page and not from another one in the same browser.
    fn check_site(&self, method: &Method, headers: &HeaderMap) -> Result<(), &'static str> {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let Some(host) = text(header::HOST) else { return Err("the request names no host") };
        // Without TLS nothing proves whose name it is, so names that anybody can point at the loopback are refused.
        if self.certificate.is_none() && !is_loopback(host) {
            return Err("this address is reached as 127.0.0.1, [::1] or localhost only");
        }
        if text(HeaderName::from_static("sec-fetch-site"))
            .is_some_and(|site| !["same-origin", "none"].contains(&site))
        {
            return Err("the request comes from another site");
        }
        let own = format!("{}://{host}", self.scheme());
        match text(header::ORIGIN) {
            Some(origin) if origin == own => Ok(()),
            Some(_) => Err("the request comes from another site"),
            None if *method == Method::GET || *method == Method::HEAD => Ok(()),
            None => Err("a request that changes something must say where it comes from (the header origin)"),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The API behind the page's address, and the page.
pub(crate) fn page_router(agent: Arc<Agent>, door: Door) -> Router {
    let inside = (Arc::clone(&agent), door);
    router(agent).layer(middleware::from_fn_with_state(inside, guard))
}

/// Gives the page's files to everybody, and anything else to whoever may have it.
async fn guard(
    State((agent, door)): State<(Arc<Agent>, Door)>,
    mut request: Request,
    next: Next,
) -> Response {
    if let Some(file) = file(&request) {
        return file;
    }
    let visitor = request.extensions().get::<Visitor>().cloned();
    let shown = match door.shown(&request, visitor.as_ref()) {
        Ok(shown) => shown,
        Err(why) => return refused(StatusCode::FORBIDDEN, why),
    };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    request.extensions_mut().insert(door.clone());
    if method == Method::POST && path == "/v1/page/session" {
        return next.run(request).await;
    }
    let guest = shown.as_ref().and_then(|shown| agent.guest(shown));
    let (Some(shown), Some(guest)) = (shown, guest) else {
        let why = "nobody is signed in here; run `steadfast page` on this node and open the address that it prints, or show a token of `steadfast tokens`";
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        return (challenge, refused(StatusCode::UNAUTHORIZED, why)).into_response();
    };
    let needed = Role::needed(&method, &path);
    if guest.role < needed {
        let why = format!("this needs the role {needed}, and yours is {}", guest.role);
        return refused(StatusCode::FORBIDDEN, &why);
    }
    if path != "/v1/page/session" {
        // What is passed on to another node needs no secret of this one.
        request.headers_mut().remove(header::COOKIE);
    }
    request.headers_mut().remove(header::AUTHORIZATION);
    let from = visitor.map(|visitor| visitor.from);
    request.extensions_mut().insert(Caller::Guest(Guest { from, ..guest }));
    let response = next.run(request).await;
    until(gone(agent, shown), response)
}

/// Comes when whoever showed this is nobody any more.
async fn gone(agent: Arc<Agent>, shown: Shown) {
    while let Some(guest) = agent.guest(&shown) {
        let left = guest.until_unix_ms.map_or(u64::MAX, |until| until.saturating_sub(now_unix_ms()));
        tokio::time::sleep(Duration::from_millis(left).min(LOOK_EVERY)).await;
    }
}

/// Ends the answer with `gone`: a stream must not outlive the right to it.
fn until(gone: impl Future<Output = ()> + Send + 'static, response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    parts.headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let is_stream =
        parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes() == b"text/event-stream");
    if !is_stream {
        return Response::from_parts(parts, body);
    }
    let bounded = body.into_data_stream().take_until(Box::pin(gone));
    Response::from_parts(parts, Body::from_stream(bounded))
}

fn refused(status: StatusCode, why: &str) -> Response {
    let body = ErrorBody { code: Code::NotAllowed.to_string(), message: why.to_owned() };
    (status, axum::Json(body)).into_response()
}

/// One of the page's files, if it is one that is asked for.
fn file(request: &Request) -> Option<Response> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return None;
    }
    let path = match request.uri().path() {
        "/" => "/index.html",
        path => path,
    };
    let (_, kind, text) = FILES.iter().find(|(name, _, _)| *name == path)?;
    let digest = blake3::hash(text.as_bytes()).to_hex();
    let tag = format!("\"{}\"", digest.get(..32).unwrap_or_default());
    let known = request.headers().get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let is_known =
        known.is_some_and(|known| known.split(',').any(|one| one.trim().trim_start_matches("W/") == tag));
    let kind = [(header::CONTENT_TYPE, *kind)];
    let tag = [(header::ETAG, tag)];
    if is_known {
        return Some((StatusCode::NOT_MODIFIED, FILE_HEADERS, tag).into_response());
    }
    Some((FILE_HEADERS, kind, tag, *text).into_response())
}

/// `POST /v1/page/tokens`: for the owner of the socket only.
pub(super) async fn make_token(
    State(agent): Shared,
    caller: Option<Extension<Caller>>,
    request: Request,
) -> Answer {
    only_owner(caller.as_deref(), "steadfast page")?;
    let asked: TokenRequest = body(request).await?;
    let Some(door) = &agent.door else {
        let message = "this node serves no page; write `[page]` with `listen = \"127.0.0.1:7480\"` into its configuration, and restart its agent";
        return Err(Failure::new(Code::ConfigInvalid, message));
    };
    let (role, minutes) = checked(&asked)?;
    let life = Duration::from_secs(u64::from(minutes) * 60);
    let (token, expires_unix_ms) = agent.sessions.token(role, life, now_unix_ms())?;
    tracing::info!(%role, minutes, "a token for the page was made");
    let made = PageToken {
        address: format!("{}://{}/#token={token}", door.scheme(), door.listen),
        token,
        role: role.to_string(),
        expires_unix_ms,
        minutes,
        certificate_sha256: door.certificate.map(|digest| colons(&digest)),
    };
    Ok(axum::Json(made).into_response())
}

fn checked(asked: &TokenRequest) -> Result<(Role, u32), Failure> {
    let wrong = |message: String| Failure::new(Code::BadRequest, message);
    let role = asked.role.as_deref().map_or(Ok(Role::Read), str::parse);
    let role = role.map_err(|message| wrong(format!("role: {message}")))?;
    match asked.minutes.unwrap_or(MINUTES_DEFAULT) {
        minutes @ 1..=MINUTES_MAX => Ok((role, minutes)),
        other => Err(wrong(format!("minutes: {other} is out of range; 1 to {MINUTES_MAX} are possible"))),
    }
}

/// As browsers print fingerprints.
fn colons(digest: &[u8; 32]) -> String {
    digest.map(|byte| format!("{byte:02X}")).join(":")
}

/// `POST /v1/page/session`: a token for a session.
pub(super) async fn sign_in(State(agent): Shared, door: Option<Extension<Door>>, request: Request) -> Answer {
    let Some(Extension(door)) = door else {
        return Err(Failure::new(
            Code::BadRequest,
            "sessions are for the page's address; here you are the owner",
        ));
    };
    let asked: SessionRequest = body(request).await?;
    let now = now_unix_ms();
    let (secret, session) = agent.sessions.open(&asked.token, now)?;
    let seconds = session.until_unix_ms.saturating_sub(now) / 1000;
    tracing::info!(role = %session.role, "somebody has signed in at the page");
    let shown = Session { role: session.role.to_string(), until_unix_ms: Some(session.until_unix_ms) };
    Ok(([(header::SET_COOKIE, door.cookie(&secret, seconds))], axum::Json(shown)).into_response())
}

/// `GET /v1/page/session`: who asks.
pub(super) async fn session(caller: Option<Extension<Caller>>) -> Answer {
    let Extension(caller) = caller.unwrap_or(Extension(Caller::Member(None)));
    let until_unix_ms = match &caller {
        Caller::Guest(guest) => guest.until_unix_ms,
        Caller::Owner | Caller::Member(_) => None,
    };
    Ok(axum::Json(Session { role: caller.role().to_string(), until_unix_ms }).into_response())
}

/// `DELETE /v1/page/session`: signs out.
pub(super) async fn sign_out(
    State(agent): Shared,
    door: Option<Extension<Door>>,
    request: Request,
) -> Answer {
    let done = axum::Json(Done { done: "signed out".to_owned() });
    let Some(Extension(door)) = door else { return Ok(done.into_response()) };
    if let Some(secret) = door.secret(request.headers()) {
        agent.sessions.close(secret);
    }
    Ok(([(header::SET_COOKIE, door.cookie("", 0))], done).into_response())
}

/// `GET /v1/page/events`: the picture, then what changes.
pub(super) async fn events(State(agent): Shared) -> Answer {
    let follower = Agent::follow_picture(&agent)?;
    let changes = futures_util::stream::unfold(follower, |mut follower| async move {
        let (whole, change) = follower.next().await?;
        let change = PictureChange { whole, at_unix_ms: now_unix_ms(), change };
        let data = serde_json::to_string(&change).unwrap_or_default();
        Some((Ok::<Event, Infallible>(Event::default().data(data)), follower))
    });
    Ok(Sse::new(changes).keep_alive(KeepAlive::default()).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(tls: bool) -> Door {
        Door { listen: "127.0.0.1:7480".parse().unwrap(), certificate: tls.then_some([7; 32]) }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn what_comes_from_other_sites_is_refused() {
        let door = door(false);
        let host = ("host", "127.0.0.1:7480");
        let own = ("origin", "http://127.0.0.1:7480");
        let check = |method: Method, pairs: &[_]| door.check_site(&method, &headers(pairs)).is_ok();
        assert!(check(Method::GET, &[host]));
        assert!(check(Method::GET, &[host, ("sec-fetch-site", "same-origin")]));
        assert!(check(Method::POST, &[host, own, ("sec-fetch-site", "same-origin")]));
        assert!(
            check(Method::POST, &[("host", "localhost:9"), ("origin", "http://localhost:9")]),
            "forwarded"
        );
        assert!(!check(Method::POST, &[host]), "who changes something says where he comes from");
        assert!(!check(Method::POST, &[host, ("origin", "https://127.0.0.1:7480")]));
        assert!(!check(Method::POST, &[host, ("origin", "null")]));
        assert!(!check(Method::GET, &[host, ("sec-fetch-site", "cross-site")]));
        assert!(!check(Method::GET, &[host, ("sec-fetch-site", "same-site")]));
        assert!(!check(Method::GET, &[("host", "evil.example:7480")]), "a name that points at the loopback");
        assert!(!check(Method::GET, &[]));
    }

    #[test]
    fn what_browsers_add_by_themselves_counts_for_the_page_alone_and_a_token_does_everywhere() {
        let door = door(true);
        let visitor = Visitor { from: IpAddr::from([10, 0, 0, 1]), certificate: Some([3; 32]) };
        let ask = |pairs: &[(&'static str, &'static str)]| {
            let mut request = Request::post("/v1/events").body(Body::empty()).unwrap();
            *request.headers_mut() = headers(pairs);
            door.shown(&request, Some(&visitor)).map(|shown| match shown {
                Some(Shown::Secret(secret)) => secret,
                Some(Shown::Certificate(_)) => "certificate".to_owned(),
                Some(Shown::Session(secret)) => format!("session {secret}"),
                None => "nothing".to_owned(),
            })
        };
        let (host, foreign) = (("host", "alpha:7480"), ("origin", "https://elsewhere.example"));
        let cookie = ("cookie", "__Host-steadfast-7480=mine");
        assert_eq!(ask(&[host, ("authorization", "bearer sft1-x"), foreign]).unwrap(), "sft1-x");
        assert!(ask(&[host, ("authorization", "Basic eDp5")]).is_err());
        assert_eq!(ask(&[host]).unwrap(), "certificate", "a program says nothing of where it comes from");
        assert_eq!(ask(&[host, ("origin", "https://alpha:7480")]).unwrap(), "certificate");
        assert!(ask(&[host, foreign]).is_err());
        assert!(ask(&[host, ("sec-fetch-site", "cross-site")]).is_err());
        assert!(ask(&[host, cookie]).is_err(), "a browser has cookies, and says where it comes from");
        assert_eq!(ask(&[host, cookie, ("origin", "https://alpha:7480")]).unwrap(), "session mine");
    }

    #[test]
    fn with_tls_any_name_of_the_node_will_do() {
        let pairs = [("host", "alpha.example:7480"), ("origin", "https://alpha.example:7480")];
        assert!(door(true).check_site(&Method::POST, &headers(&pairs)).is_ok());
    }

    #[test]
    fn a_stream_ends_with_its_session_and_other_answers_do_not() {
        let endless = || Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, Infallible>>());
        let stream = ([(header::CONTENT_TYPE, "text/event-stream")], endless()).into_response();
        let ended = crate::commands::block_on(async {
            let gone = tokio::time::sleep(Duration::from_millis(20));
            axum::body::to_bytes(until(gone, stream).into_body(), 1000).await
        });
        assert!(ended.unwrap().unwrap().is_empty());
        let whole = until(
            std::future::ready(()),
            ([(header::CONTENT_TYPE, "application/json")], "{}").into_response(),
        );
        assert_eq!(whole.headers()[header::CACHE_CONTROL], "no-store");
        let text = crate::commands::block_on(axum::body::to_bytes(whole.into_body(), 1000)).unwrap().unwrap();
        assert_eq!(text, "{}");
    }

    #[test]
    fn loopback_hosts_are_told_from_names() {
        for host in ["127.0.0.1", "127.0.0.1:7480", "[::1]:7480", "localhost", "localhost:1", "127.8.9.1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["", "10.0.0.1:7480", "localhost.evil.example", "127.0.0.1.evil.example:80", "127.0.0.1:x"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn the_cookie_is_found_among_others_and_named_after_the_port() {
        let pairs = [("cookie", "a=b; steadfast-7481=other; steadfast-7480=mine")];
        assert_eq!(door(false).secret(&headers(&pairs)), Some("mine"));
        assert_eq!(door(true).secret(&headers(&pairs)), None, "a cookie without TLS is none with it");
        let cookie = door(true).cookie("x", 60);
        assert_eq!(cookie, "__Host-steadfast-7480=x; Path=/; Max-Age=60; HttpOnly; SameSite=Strict; Secure");
    }

    #[test]
    fn files_have_their_kind_and_are_not_sent_twice() {
        let ask = |path: &str, tag: Option<&HeaderValue>| {
            let mut request = Request::builder().uri(path);
            if let Some(tag) = tag {
                request = request.header(header::IF_NONE_MATCH, tag);
            }
            file(&request.body(Body::empty()).unwrap())
        };
        let page = ask("/", None).unwrap();
        assert_eq!(page.headers()[header::CONTENT_TYPE], HTML);
        assert!(
            page.headers()[header::CONTENT_SECURITY_POLICY]
                .to_str()
                .unwrap()
                .starts_with("default-src 'self'")
        );
        let again = ask("/", Some(&page.headers()[header::ETAG])).unwrap();
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(ask("/main.js", None).unwrap().headers()[header::CONTENT_TYPE], SCRIPT);
        assert!(ask("/v1/status", None).is_none() && ask("/../Cargo.toml", None).is_none());
    }

    #[test]
    fn the_page_loads_nothing_from_elsewhere_and_all_its_modules_are_files() {
        for (path, _, text) in FILES {
            for scheme in ["https://", "http://", "//cdn"] {
                let named = text.matches(scheme).count();
                let allowed = text.matches("http://www.w3.org/2000/svg").count();
                assert!(named <= if scheme == "http://" { allowed } else { 0 }, "{path} names {scheme}");
            }
            for import in text.split("from \"./").skip(1) {
                let name = import.split('"').next().unwrap();
                assert!(
                    FILES.iter().any(|(known, _, _)| *known == format!("/{name}")),
                    "{path} imports {name}"
                );
            }
        }
    }

    #[test]
    fn wrong_requests_for_tokens_are_answered_with_what_is_right() {
        let ask =
            |role: Option<&str>, minutes| checked(&TokenRequest { role: role.map(str::to_owned), minutes });
        assert_eq!(ask(None, None).unwrap(), (Role::Read, 480));
        assert!(ask(Some("root"), None).unwrap_err().message.starts_with("role: \"root\" is no role"));
        assert!(ask(None, Some(0)).unwrap_err().message.contains("1 to 10080"));
        assert!(ask(None, Some(10_081)).is_err());
    }
}
