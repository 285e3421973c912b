//! Checkpoint memory as a service to the other nodes, and the same questions from their side.
//!
//! It decides nothing itself: it decodes, asks the pool on a blocking thread, and answers. A peer can
//! use only its own grants. Read next: `pool` (answers), `ship` and `fetch` (questions).

use std::time::Duration;

use bytes::Bytes;
use steadfast_proto::ids::NodeId;

use super::pool::{Pool, PutError, SealError};
use super::wire::{Request, Response, WireError, decode, encode};
use crate::net::rpc::{Body, Class, Peers, RpcError, Services};

/// The number of this service on every node.
pub const SERVICE: u8 = 3;

/// Offers `pool` to the peers.
pub fn register(services: &Services, pool: &Pool) {
    let pool = pool.clone();
    services.register_bulk(SERVICE, move |peer, bytes| {
        let pool = pool.clone();
        Box::pin(async move {
            let (request, bulk) = decode::<Request>(bytes).map_err(|error| error.to_string())?;
            let work = move || answer(&pool, peer, request, &bulk);
            let done = tokio::task::spawn_blocking(work).await;
            let (response, bulk) = done.map_err(|_| "the node is shutting down".to_owned())?;
            Ok(encode(&response, bulk))
        })
    });
}

fn answer(pool: &Pool, peer: NodeId, request: Request, bulk: &[u8]) -> (Response, Bytes) {
    let response = match request {
        Request::Profile => Response::Usage(pool.usage()),
        Request::Reserve { id, bytes } => match pool.reserve(peer, id, bytes) {
            Ok(granted) => Response::Granted { token: granted.token, held: granted.held },
            Err(refused) => Response::Denied(refused),
        },
        Request::Renew { token } => done(pool.renew(peer, token)),
        Request::Has { token, digests } => match pool.has(peer, token, &digests) {
            Ok(here) => Response::Here(here),
            Err(error) => Response::Refused(error.to_string()),
        },
        Request::Put { token, digest, crc } => done(pool.put(peer, token, digest, crc, bulk)),
        Request::Seal { token, revision } => match pool.seal(peer, token, revision, bulk) {
            Ok(digest) => Response::Sealed(digest),
            Err(SealError::Missing { digests }) => Response::Missing(digests),
            Err(error) => Response::Refused(error.to_string()),
        },
        Request::Release { token } => {
            pool.release(peer, token);
            Response::Done
        }
        Request::Get { digest } => match pool.get(digest) {
            Some((bytes, crc)) => return (Response::Chunk { crc }, bytes),
            None => Response::Absent,
        },
        Request::Manifest { digest } => match pool.manifest(digest) {
            Some(bytes) => return (Response::Manifest, bytes),
            None => Response::Absent,
        },
        Request::List => Response::List(pool.sealed()),
    };
    (response, Bytes::new())
}

fn done(result: Result<(), PutError>) -> Response {
    match result {
        Ok(()) => Response::Done,
        Err(error) => Response::Refused(error.to_string()),
    }
}

/// Why a question to another node's checkpoint memory has no usable answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error(transparent)]
    Rpc(#[from] RpcError),
    #[error("node {node} gave an answer that can't be used: {source}")]
    Wire { node: NodeId, source: WireError },
    #[error("node {node} refused: {reason}")]
    Refused { node: NodeId, reason: String },
    #[error("node {node} gave an answer to another question")]
    Unexpected { node: NodeId },
}

/// Asks `node`; every question may be asked again when its answer was lost.
pub(super) async fn ask(
    peers: &Peers,
    node: NodeId,
    request: &Request,
    bulk: Bytes,
    timeout: Duration,
) -> Result<(Response, Bytes), AskError> {
    let body: Body = encode(request, bulk);
    // A checkpoint has thousands of chunks, and a trace few steps.
    let is_step = !matches!(request, Request::Put { .. } | Request::Get { .. } | Request::Renew { .. });
    let call = async |body| match is_step {
        true => peers.call(node, Class::Bulk, SERVICE, body, timeout).await,
        false => peers.call_untraced(node, Class::Bulk, SERVICE, body, timeout).await,
    };
    let answer = match call(body.clone()).await {
        // The path broke. All questions are idempotent, and the next call takes another network.
        Err(RpcError::Lost { .. }) => call(body).await?,
        Ok(answer) => answer,
        Err(error) => return Err(error.into()),
    };
    let (response, bulk) = decode::<Response>(answer).map_err(|source| AskError::Wire { node, source })?;
    if let Response::Refused(reason) = response {
        return Err(AskError::Refused { node, reason });
    }
    Ok((response, bulk))
}
