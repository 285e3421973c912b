//! Passing a request on to the agent that must carry it out, over mutual TLS, with its streams and upgrades.
//!
//! A request is passed on once at most, so that two agents with different opinions never play ball with it.

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use steadfast_proto::ids::NodeId;

use crate::agent::Agent;
use crate::codes::Code;
use crate::failure::Failure;

const PASSED_ON: HeaderName = HeaderName::from_static("steadfast-passed-on");

/// Sends the request to the agent of `owner` and gives back its answer.
pub async fn pass_on(agent: &Agent, owner: NodeId, mut request: Request) -> Result<Response, Failure> {
    let name = agent.node_name(owner);
    if request.headers().contains_key(&PASSED_ON) {
        return Err(Failure::new(
            Code::PeerUnreachable,
            format!("this is the matter of {name} since just now; try again"),
        ));
    }
    let unreachable = |error: String| {
        Failure::new(Code::PeerUnreachable, format!("{name}, which must do this, can't be reached: {error}"))
    };
    let stream = agent.peers.connect_api(owner).await.map_err(|error| unreachable(error.to_string()))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| unreachable(error.to_string()))?;
    tokio::spawn(async move {
        // How it ends is seen by whoever reads the answer.
        let _ = connection.with_upgrades().await;
    });
    request.headers_mut().insert(PASSED_ON, HeaderValue::from_static("1"));
    crate::traces::mark(request.headers_mut());
    let ours = request.extensions_mut().remove::<OnUpgrade>();
    let mut response = sender.send_request(request).await.map_err(|error| unreachable(error.to_string()))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(ours) = ours
    {
        let theirs = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            let (Ok(ours), Ok(theirs)) = (ours.await, theirs.await) else { return };
            let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
            // Either side ending ends both.
            let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
        });
    }
    Ok(response.map(Body::new))
}

/// The connection that a request asks to take over.
pub fn upgrade_of(request: &mut Request) -> Result<OnUpgrade, Failure> {
    let asked = request.headers().get(UPGRADE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let protocol = super::client::EXEC_PROTOCOL;
    if asked.as_deref() != Some(protocol) {
        return Err(Failure::new(
            Code::BadRequest,
            format!("this path needs the headers `connection: upgrade` and `upgrade: {protocol}`"),
        ));
    }
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    upgrade.ok_or_else(|| Failure::new(Code::BadRequest, "this connection can't be upgraded"))
}

/// The answer that hands the connection over.
pub fn switching(protocol: &'static str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    response
}
