//! This node's own row: written anew when what it says has changed since the last start; its identity stays.
//!
//! A node that moved to other addresses is not found by the others, nor told who leads the catalog: then it asks one of them, to
//! which it can still speak, to write the row. Nobody writes another's row for anybody else (the connection says who asks). A node
//! without a row has none to write: it was removed for good, or never joined (U4).

use bytes::Bytes;
use steadfast::catalog::Txn;
use steadfast::net::rpc::{Class, Peers, Services};
use steadfast_proto::catalog::{Key, NodeRow, decode_row};

use super::rows::{self, Rows};
use super::{WAIT_PAUSE, addresses};
use crate::codes::Code;
use crate::failure::Failure;

/// The RPC service through which a node has its own row written.
const SERVICE_ROW: u8 = 25;
const ROW_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Offers to write the rows of those who ask.
pub(super) fn offer(services: &Services, rows: &Rows) {
    let rows = rows.clone();
    services.register(SERVICE_ROW, move |peer, request| {
        let rows = rows.clone();
        Box::pin(async move {
            let row: NodeRow = decode_row(&request).map_err(|error| error.to_string())?;
            if row.id != peer {
                return Err(format!("node {peer} can have its own row written only, not that of {}", row.id));
            }
            match refreshed(&rows, &row).await {
                Ok(true) => Ok(Bytes::new()),
                Ok(false) => Err("the row changes all the time, or is not there".to_owned()),
                Err(failure) => Err(failure.message),
            }
        })
    });
}

/// Brings this node's row up to date, and returns when it is.
pub(super) async fn refresh(rows: Rows, peers: Peers, own: NodeRow) {
    let mut said = None;
    loop {
        match refreshed(&rows, &own).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(failure) if failure.code == Code::IdentityConflict && said != Some(failure.clone()) => {
                tracing::error!(%failure, "the cluster keeps this node's former addresses");
                said = Some(failure);
            }
            Err(failure) => {
                tracing::debug!(%failure, "this node's row is not written yet");
                if has_others_write(&rows, &peers, &own).await {
                    return;
                }
            }
        }
        tokio::time::sleep(WAIT_PAUSE).await;
    }
}

/// Whether one of the others wrote this node's row.
async fn has_others_write(rows: &Rows, peers: &Peers, own: &NodeRow) -> bool {
    let Ok(request) = rows::encode(own) else { return false };
    for (row, _) in rows.all_stale::<NodeRow>("node/") {
        if row.id == own.id {
            continue;
        }
        match peers.call(row.id, Class::Control, SERVICE_ROW, request.clone(), ROW_TIMEOUT).await {
            Ok(_) => return true,
            Err(error) => tracing::debug!(node = row.name, %error, "it did not write this node's row"),
        }
    }
    false
}

/// Whether the catalog has this node's row as it should be.
async fn refreshed(rows: &Rows, own: &NodeRow) -> Result<bool, Failure> {
    let key = Key::Node(own.id);
    let Some((row, version)) = rows.get::<NodeRow>(&key).await? else { return Ok(false) };
    let mut txn =
        Txn { compare: vec![(key.encode(), version)], puts: vec![(key.encode(), Some(rows::encode(own)?))] };
    addresses::claim(rows, &mut txn, own.id, &own.addresses, &row.addresses).await?;
    if row == *own && txn.puts.len() == 1 {
        return Ok(true);
    }
    rows.commit(txn).await.map(|reply| reply.succeeded)
}
