//! Where the API is heard: the owner-only Unix socket, and connections of other nodes.
//!
//! The socket's file is made with mode 0600 from the beginning, and replaced only when nobody answers behind it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::routing::post;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use steadfast::net::rpc::{Accepted, BoxFuture};
use steadfast::net::tls::Protocol;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::Agent;
use super::join::JoinRequest;
use crate::codes::Code;
use crate::failure::{Failure, disk};

/// A served socket; its file is removed when this is dropped.
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
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    });
    Ok(Served { task })
}

/// Serves a connection that another node, or a joiner, opened.
pub(crate) fn stream(agent: Arc<Agent>, accepted: Accepted) -> BoxFuture<()> {
    Box::pin(async move {
        let router = match accepted.protocol {
            Protocol::Api => crate::api::server::router(agent),
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
    Router::new().route("/v1/join", post(answer))
}

async fn serve<S>(stream: S, router: Router)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router);
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.with_upgrades().await {
        tracing::debug!(%error, "an API connection broke off");
    }
}
