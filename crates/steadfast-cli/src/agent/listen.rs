//! Where the API is heard: the owner-only Unix socket, connections of other nodes, and the page's address.
//!
//! The socket's file is made with mode 0600 from the beginning, and replaced only when nobody answers behind it.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::routing::post;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use steadfast::net::browser::{BrowserTls, shown_certificate};
use steadfast::net::rpc::{Accepted, BoxFuture};
use steadfast::net::tls::{Credentials, Protocol};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::Agent;
use super::join::JoinRequest;
use crate::api::page::{Door, Visitor, page_router};
use crate::api::roles::Caller;
use crate::codes::Code;
use crate::failure::{Failure, disk};
use crate::traces;

/// Connections at the page's address at once.
const PAGE_CONNECTIONS_MAX: usize = 256;
/// How long whoever connects may take to ask.
const ASK_MAX: Duration = Duration::from_secs(20);
/// How long to wait when nothing can be accepted.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A served socket; nothing is accepted any more when this is dropped.
#[derive(Debug)]
pub(crate) struct Served {
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves the API on a Unix socket that only the owner can use.
pub(crate) fn api(path: &Path, router: Router) -> Result<Served, Failure> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| disk("make the folder", folder, &error))?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Failure::new(
            Code::StateInUse,
            format!(
                "another agent answers at {}; stop it, or give this one its own `data` folder",
                path.display()
            ),
        ));
    }
    // Made under another name with the right mode, so that nobody else can connect for even a moment.
    let fresh = path.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).map_err(|error| disk("listen at", path, &error))?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
        .map_err(|error| disk("protect", &fresh, &error))?;
    std::fs::rename(&fresh, path).map_err(|error| disk("make", path, &error))?;
    let task = tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(serve(stream, router.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "the API's socket can't accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    Ok(Served { task })
}

/// Where the page is, and what it shows of itself: beyond the loopback it has TLS.
pub(crate) fn door(listen: SocketAddr, credentials: &Credentials) -> Door {
    let is_inside = listen.ip().is_loopback();
    Door { listen, certificate: (!is_inside).then(|| credentials.certificate_fingerprint()) }
}

/// Serves the page, where the configuration wants one.
pub(crate) async fn page(agent: &Arc<Agent>, credentials: &Credentials) -> Result<Option<Served>, Failure> {
    let Some(door) = &agent.door else { return Ok(None) };
    let failed = |error: String| {
        let message =
            format!("the page can't listen at {}: {error}; correct `listen` under [page]", door.listen);
        Failure::new(Code::NetworkFailed, message)
    };
    let listener = TcpListener::bind(door.listen).await.map_err(|error| failed(error.to_string()))?;
    // The agent is asked as long as it is there, which a connection need not wait for.
    let asks = Arc::downgrade(agent);
    let asks = Arc::new(move || asks.upgrade().is_some_and(|agent| agent.knows_certificates()));
    let tls = door.certificate.map(|_| BrowserTls::new(credentials, asks)).transpose();
    let tls = tls.map_err(|error| failed(error.to_string()))?;
    let router = page_router(Arc::clone(agent), door.clone());
    tracing::info!(listen = %door.listen, "the page is served; `steadfast page` opens it");
    Ok(Some(Served { task: tokio::spawn(accept_browsers(listener, tls, router)) }))
}

async fn accept_browsers(listener: TcpListener, tls: Option<BrowserTls>, router: Router) {
    let places = Arc::new(Semaphore::new(PAGE_CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok((stream, from)) => (stream, from.ip()),
            Err(error) => {
                tracing::warn!(%error, "the page's address can't accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, router) = (tls.clone(), router.clone());
        tokio::spawn(async move {
            let _place = place;
            serve_browser(stream, from, tls, router).await;
        });
    }
}

async fn serve_browser(stream: TcpStream, from: IpAddr, tls: Option<BrowserTls>, router: Router) {
    let known_as = |certificate| router.layer(Extension(Visitor { from: from.to_canonical(), certificate }));
    // Small events leave at once; a socket that refuses this only has them a little later.
    let _ = stream.set_nodelay(true);
    match tls {
        None => serve(stream, known_as(None)).await,
        Some(tls) => {
            if let Some(stream) = tls.accept(stream).await {
                let certificate = shown_certificate(&stream);
                serve(stream, known_as(certificate)).await;
            }
        }
    }
}

/// Serves a connection that another node, or a joiner, opened.
pub(crate) fn stream(agent: Arc<Agent>, accepted: Accepted) -> BoxFuture<()> {
    Box::pin(async move {
        let router = match accepted.protocol {
            Protocol::Api => {
                crate::api::server::router(agent).layer(Extension(Caller::Member(accepted.peer)))
            }
            Protocol::Join => join_router(agent),
            Protocol::Rpc | Protocol::Watch => return,
        };
        serve(accepted.stream, router).await;
    })
}

fn join_router(agent: Arc<Agent>) -> Router {
    let answer = move |axum::Json(request): axum::Json<JoinRequest>| {
        let inviter = agent.inviter.clone();
        async move { inviter.answer(request).await.map(axum::Json) }
    };
    Router::new().route("/v1/join", post(answer)).layer(axum::middleware::from_fn(traces::tell))
}

/// Serves one connection until it ends.
pub(super) async fn serve<S>(stream: S, router: Router)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ASK_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.with_upgrades().await {
        tracing::debug!(%error, "an API connection broke off");
    }
}
