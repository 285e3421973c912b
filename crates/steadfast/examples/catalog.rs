//! Three catalog members in one process: form a catalog, change a row with a comparison, watch it, lose the leader.
//!
//! In a real node the transport is mutual TLS between agents; here it hands each message to the other member directly.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use steadfast::catalog::{
    BoxFuture, Catalog, Embedded, EmbeddedConfig, Member, RaftNodeId, Timings, Transport, TransportError,
    Txn, WatchItem,
};

#[derive(Clone, Default)]
struct Direct {
    members: Arc<Mutex<BTreeMap<RaftNodeId, Embedded>>>,
}

impl Transport for Direct {
    fn call(
        &self,
        to: RaftNodeId,
        request: Bytes,
        _timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        let member = self.members.lock().unwrap_or_else(PoisonError::into_inner).get(&to).cloned();
        Box::pin(async move {
            let unreachable = || TransportError::Unreachable { to, reason: "it is down".into() };
            Ok(member.ok_or_else(unreachable)?.handle(request).await)
        })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("steadfast-catalog-{}", std::process::id()));
    let network = Direct::default();
    for node in 1..=3 {
        let dir = dir.join(node.to_string());
        let transport = Arc::new(network.clone());
        let config = EmbeddedConfig { dir, node, cluster_id: 7, transport, timings: Timings::default() };
        let member = Embedded::open(config).await?;
        network.members.lock().unwrap_or_else(PoisonError::into_inner).insert(node, member);
    }
    let members = network.members.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let [one, two, three] = [&members[&1], &members[&2], &members[&3]];
    one.initialize(vec!["10.0.0.1:7400".into()]).await?;
    for node in 2..=3 {
        one.add_learner(node, Member::new(vec![format!("10.0.0.{node}:7400")])).await?;
        one.promote(node).await?;
    }

    let created = two.txn(Txn::compare_and_set("container/web", 0, "owner: a")).await?;
    let mut watch = three.watch("container/".into(), created.revision);
    let moved = two.txn(Txn::compare_and_set("container/web", created.revision, "owner: b")).await?;
    println!("moved: {}, revision {}", moved.succeeded, moved.revision);
    let late = one.txn(Txn::compare_and_set("container/web", created.revision, "owner: c")).await?;
    println!("a late owner is refused: {:?}", late.conflicts);
    if let WatchItem::Changed(watched) = watch.next().await? {
        println!("seen on member 3: {watched:?}");
    }

    network.members.lock().unwrap_or_else(PoisonError::into_inner).remove(&1);
    one.shutdown().await;
    tokio::join!(two.campaign(1), three.campaign(1));
    println!("after the loss of member 1: {:?}", three.get("container/web".into()).await?);
    two.shutdown().await;
    three.shutdown().await;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
