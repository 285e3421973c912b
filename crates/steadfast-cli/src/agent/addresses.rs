//! Whose an address is: one row per address, so that of two nodes with one address exactly one gets into the catalog.
//!
//! It decides the comparisons and changes that a transaction on a node's row must carry. A claim counts only while its
//! holder's own row lists the address: what a node left behind is taken over. It never writes by itself.

use std::net::SocketAddr;

use bytes::Bytes;
use steadfast::catalog::Txn;
use steadfast_proto::catalog::NodeRow;
use steadfast_proto::ids::NodeId;

use super::rows::{self, Rows};
use crate::codes::Code;
use crate::failure::Failure;

/// Adds to `txn` what makes `addresses` the node's, and takes from it what it had `before`.
///
/// Refuses with [`Code::IdentityConflict`] an address that is somebody else's.
pub(super) async fn claim(
    rows: &Rows,
    txn: &mut Txn,
    node: NodeId,
    addresses: &[(String, SocketAddr)],
    before: &[(String, SocketAddr)],
) -> Result<(), Failure> {
    let nodes: Vec<(NodeRow, u64)> = rows.all("node/").await?;
    for (network, address) in addresses {
        let lists = |row: &NodeRow| row.addresses.iter().any(|(_, one)| one == address);
        if let Some((row, _)) = nodes.iter().find(|(row, _)| row.id != node && lists(row)) {
            return Err(conflict(network, *address, &row.name));
        }
        let key = key(*address);
        let (holder, version) = holder(rows, &key).await?;
        txn.compare.push((key.clone(), version));
        if holder != Some(node) {
            txn.puts.push((key, Some(rows::encode(&node)?)));
        }
    }
    for (_, address) in before.iter().filter(|(_, one)| addresses.iter().all(|(_, other)| other != one)) {
        let key = key(*address);
        let (holder, version) = holder(rows, &key).await?;
        if holder == Some(node) {
            txn.compare.push((key.clone(), version));
            txn.puts.push((key, None::<Bytes>));
        }
    }
    Ok(())
}

async fn holder(rows: &Rows, key: &str) -> Result<(Option<NodeId>, u64), Failure> {
    let found: Option<(NodeId, u64)> = rows.get_at(key).await?;
    Ok(found.map_or((None, 0), |(node, version)| (Some(node), version)))
}

fn key(address: SocketAddr) -> String {
    format!("address/{address}")
}

fn conflict(network: &str, address: SocketAddr, name: &str) -> Failure {
    Failure::new(
        Code::IdentityConflict,
        format!("the address {address} of network {network} belongs to {name}; give this node its own"),
    )
}
