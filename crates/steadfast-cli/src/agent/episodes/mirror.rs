//! Copies of mirrored instances on this node, and those on others as its keeper asks for them.
//!
//! Who keeps which home and where its copies are is one row of the catalog. A copy is on another node of the view that keeps
//! mirrored instances: in another failure domain if there is one, else on the next by id, so that copies are spread. It decides
//! nothing about episodes: that is `steadfast::episodes::mirrored`'s.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use steadfast::catalog::Txn;
use steadfast::episodes::mirrored::{Answer, Cluster, Copies, Question, Table};
use steadfast::episodes::{IndexError, StoreError};
use steadfast::net::rpc::{Class, Services};
use steadfast_proto::catalog::{Key, NodeRow, View, decode_row, encode_row};
use steadfast_proto::domains::closeness;
use steadfast_proto::exchange::Blob;
use steadfast_proto::ids::NodeId;

use super::Room;
use super::carrier::{keeper_id, node_of};
use super::moving::sharers;
use super::parts::{Asked, BYTES_MAX, Said};
use super::rows::{Kind, MIRRORED};
use super::salt;

/// The RPC service that answers for this node's copies.
const SERVICE_COPIES: u8 = 31;
/// How long a node may take to write what it is asked to.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// How long it may take to say what it has.
const READ_MAX: Duration = Duration::from_secs(3);
/// How soon it is noticed that a node which is asked has left the view.
const LOOK: Duration = Duration::from_millis(50);

impl Room {
    /// Answers other nodes.
    pub(super) fn offer_copies(&self, services: &Services) {
        let room = self.clone();
        services.register(SERVICE_COPIES, move |peer, body| {
            let room = room.clone();
            Box::pin(async move {
                let asked = tokio::task::spawn_blocking(move || {
                    room.inner.asking.hear(peer, &body, |question| room.answer(question))
                });
                asked.await.map_err(|_| "the node is shutting down".to_owned())?
            })
        });
    }

    fn answer(&self, question: &[u8]) -> Result<Vec<u8>, String> {
        let question = Question::decode(question).map_err(|error| error.to_string())?;
        if !self.inner.may_keep {
            return Err("this node keeps no instances".to_owned());
        }
        let answered = self.copies().and_then(|copies| copies.ask(question));
        answered.map(|answer| answer.encode()).map_err(|error| error.to_string())
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
        // While they are being read there is time later.
        let Ok(copies) = self.inner.copies.try_lock().map(|copies| copies.clone()) else { return };
        let Some((copies, (table, _))) = copies.zip(self.inner.rows.get_stale_at::<Table>(MIRRORED)) else {
            return;
        };
        if let Some((view, _)) = self.inner.rows.get_stale::<View>(&Key::View) {
            self.inner.asking.retain(|node| view.has(node));
        }
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
    /// The number of the next question.
    asked: AtomicU64,
}

impl Others {
    pub(super) fn new(room: Room) -> Others {
        Others { room, asked: AtomicU64::new(salt()) }
    }

    fn is_member(&self, node: NodeId) -> bool {
        let view = self.room.inner.rows.get_stale::<View>(&Key::View);
        view.is_none_or(|(view, _)| view.has(node))
    }

    async fn put(&self, node: NodeId, question: &Question) -> Result<Answer, String> {
        let max = match question {
            Question::Stage { .. } | Question::Commit { .. } => WRITE_MAX,
            Question::Fence { .. } | Question::Read { .. } => READ_MAX,
        };
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let mut said = Said { bytes: Blob::empty(), is_last: false };
        for asked in Asked::all(number, &question.encode()) {
            said = self.call(node, &asked, max).await?;
        }
        let mut answer = said.bytes.to_vec();
        for part in 1.. {
            if said.is_last {
                break;
            }
            said = self.call(node, &Asked::Rest { question: number, part }, max).await?;
            answer.extend_from_slice(&said.bytes);
            if answer.len() > BYTES_MAX {
                return Err(format!("an answer of node {node} has more than {BYTES_MAX} bytes"));
            }
        }
        Answer::decode(&answer).map_err(|error| error.to_string())
    }

    async fn call(&self, node: NodeId, asked: &Asked, max: Duration) -> Result<Said, String> {
        let body = Bytes::from(encode_row(asked).map_err(|error| error.to_string())?);
        let call = self.room.inner.peers.call_untraced(node, Class::Events, SERVICE_COPIES, body, max);
        let mut call = std::pin::pin!(call);
        let said = loop {
            tokio::select! {
                said = &mut call => break said.map_err(|error| error.to_string())?,
                () = tokio::time::sleep(LOOK) => if !self.is_member(node) {
                    return Err(format!("node {node} is not in the view any more"));
                },
            }
        };
        decode_row(&said).map_err(|error| error.to_string())
    }
}

impl Cluster for Others {
    fn ask(&self, node: NodeId, question: Question) -> BoxFuture<'_, Result<Answer, String>> {
        Box::pin(async move { self.put(node_of(node), &question).await })
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
