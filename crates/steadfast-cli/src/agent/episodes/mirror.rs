//! Copies of mirrored instances on this node, and those on others as its keeper asks for them.
//!
//! Who keeps which home and where its copies are is one row of the catalog. A copy is on another node of the view that keeps
//! mirrored instances: in another failure domain if there is one, else on the next by id, so that copies are spread. It decides
//! nothing about episodes: that is `steadfast::episodes::mirrored`'s.

use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use steadfast::catalog::Txn;
use steadfast::episodes::mirrored::{Answer, Cluster, Copies, Question, Table};
use steadfast::episodes::{IndexError, StoreError};
use steadfast::net::rpc::{Class, Services};
use steadfast_proto::catalog::{Key, NodeRow, View, decode_row, encode_row};
use steadfast_proto::domains::closeness;
use steadfast_proto::ids::NodeId;

use super::Room;
use super::carrier::{keeper_id, node_of};
use super::moving::sharers;
use super::rows::{Kind, MIRRORED};

/// The RPC service that answers for this node's copies.
const SERVICE_COPIES: u8 = 31;
/// How long a node is asked.
const ASK_MAX: Duration = Duration::from_secs(10);
/// How soon it is noticed that a node which is asked has left the view.
const LOOK: Duration = Duration::from_millis(50);

impl Room {
    /// Answers other nodes.
    pub(super) fn offer_copies(&self, services: &Services) {
        let room = self.clone();
        services.register_bulk(SERVICE_COPIES, move |_, body| {
            let room = room.clone();
            Box::pin(async move {
                let asked = tokio::task::spawn_blocking(move || {
                    let question = Question::decode(&body).map_err(|error| error.to_string())?;
                    if !room.inner.may_keep {
                        return Err("this node keeps no instances".to_owned());
                    }
                    let answered = room.copies().and_then(|copies| copies.ask(question));
                    answered.map_err(|error| error.to_string())
                });
                let answer = asked.await.map_err(|_| "the node is shutting down".to_owned())??;
                Ok(Bytes::from(answer.encode()).into())
            })
        });
    }

    /// This node's copies, which are read when they are needed first. Blocks.
    pub(super) fn copies(&self) -> Result<Copies, IndexError> {
        let mut copies = self.inner.copies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copies) = &*copies {
            return Ok(copies.clone());
        }
        let opened = Copies::open(&self.inner.folder.with_file_name("mirrored"))?;
        *copies = Some(opened.clone());
        Ok(opened)
    }

    /// Forgets copies that nobody needs any more.
    pub(super) fn tidy_copies(&self) {
        let copies = self.inner.copies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((copies, (table, _))) = copies.zip(self.inner.rows.get_stale_at::<Table>(MIRRORED)) else {
            return;
        };
        self.inner.runtime.spawn_blocking(move || {
            if let Err(error) = copies.tidy(&table) {
                tracing::error!(%error, "copies of mirrored instances can't be tidied up");
            }
        });
    }

    /// What is missing of mirrored instances.
    pub(super) fn unmirrored(&self) -> Option<String> {
        let table = self.inner.rows.get_stale_at::<Table>(MIRRORED)?.0;
        let alone = table.alone(keeper_id(self.inner.me, Kind::Mirror));
        (alone > 0)
            .then(|| "no other node has copies of the mirrored instances that this node keeps".to_owned())
    }
}

/// The other nodes, and the catalog, as the store of mirrored instances needs them.
pub(super) struct Others {
    room: Room,
}

impl Others {
    pub(super) fn new(room: Room) -> Others {
        Others { room }
    }

    fn is_member(&self, node: NodeId) -> bool {
        let view = self.room.inner.rows.get_stale::<View>(&Key::View);
        view.is_none_or(|(view, _)| view.has(node))
    }

    async fn call(&self, node: NodeId, body: Bytes) -> Result<Answer, String> {
        let call = self.room.inner.peers.call_untraced(node, Class::Events, SERVICE_COPIES, body, ASK_MAX);
        let mut call = std::pin::pin!(call);
        let answer = loop {
            tokio::select! {
                answer = &mut call => break answer.map_err(|error| error.to_string())?,
                () = tokio::time::sleep(LOOK) => if !self.is_member(node) {
                    return Err(format!("node {node} is not in the view any more"));
                },
            }
        };
        Answer::decode(&answer).map_err(|error| error.to_string())
    }
}

impl Cluster for Others {
    fn ask(&self, node: NodeId, question: Question) -> BoxFuture<'_, Result<Answer, String>> {
        Box::pin(async move { self.call(node_of(node), question.encode().into()).await })
    }

    fn holders(&self) -> Vec<NodeId> {
        let (rows, me) = (&self.room.inner.rows, self.room.inner.me);
        let nodes = rows.all_stale::<NodeRow>("node/");
        let domain = |node: NodeId| {
            let row = nodes.iter().find(|(row, _)| row.id == node);
            row.map(|(row, _)| row.domain.clone()).unwrap_or_default()
        };
        let own = domain(me);
        let mut others: Vec<NodeId> =
            sharers(rows, Kind::Mirror).into_iter().filter(|node| *node != me).collect();
        // The next one by id, and behind the last the first.
        others.sort_by_key(|node| {
            (closeness(&domain(*node), std::iter::once(own.as_slice())), *node < me, *node)
        });
        others.into_iter().map(|node| keeper_id(node, Kind::Mirror)).collect()
    }

    fn table(&self) -> BoxFuture<'_, Result<(Table, u64), StoreError>> {
        Box::pin(async move {
            let found = self.room.inner.rows.catalog().get(MIRRORED.to_owned()).await?;
            let Some(row) = found else { return Ok((Table::default(), 0)) };
            Ok((decode_row(&row.value)?, row.version))
        })
    }

    fn swap(&self, version: u64, table: Table) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        Box::pin(async move {
            let bytes = Bytes::from(encode_row(&table)?);
            let txn = Txn::compare_and_set(MIRRORED.to_owned(), version, bytes);
            let reply = self.room.inner.rows.catalog().txn(txn).await?;
            Ok(reply.succeeded.then_some(reply.revision))
        })
    }
}
