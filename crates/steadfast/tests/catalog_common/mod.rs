//! Catalog members in one process, on a network that can be cut, delayed and made to lose messages.
//!
//! A member that is stopped and started again keeps its directory. Everything is removed when the cluster is dropped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    dead_code,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "shared by test programs only"
)]

pub mod etcds;
pub mod history;
pub mod processes;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use steadfast::catalog::{
    BoxFuture, Catalog, CatalogStatus, Embedded, EmbeddedConfig, Member, OpenError, RaftNodeId, Role,
    Timings, Transport, TransportError, Txn,
};

pub const CLUSTER: u128 = 0x5747;
/// Longest wait for anything that should happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub struct World {
    members: BTreeMap<RaftNodeId, Embedded>,
    /// Directed pairs that don't reach each other.
    cut: BTreeSet<(RaftNodeId, RaftNodeId)>,
    delay: Duration,
    /// Of 1000 messages this many are lost, half of them after they were acted on.
    loss: u32,
    random: u64,
    /// Messages that arrived.
    messages: u64,
}

/// The network between the members of one test.
#[derive(Clone, Default)]
pub struct Network {
    world: Arc<Mutex<World>>,
}

enum Fate {
    Arrives,
    Lost,
    AnswerLost,
}

impl Network {
    pub fn cut(&self, from: RaftNodeId, to: RaftNodeId) {
        self.world.lock().unwrap().cut.insert((from, to));
    }

    /// Cuts a member off in both directions.
    pub fn isolate(&self, node: RaftNodeId, others: &[RaftNodeId]) {
        for other in others.iter().filter(|other| **other != node) {
            self.cut(node, *other);
            self.cut(*other, node);
        }
    }

    pub fn heal(&self) {
        let mut world = self.world.lock().unwrap();
        world.cut.clear();
        world.loss = 0;
        world.delay = Duration::ZERO;
    }

    pub fn trouble(&self, delay: Duration, loss: u32) {
        let mut world = self.world.lock().unwrap();
        world.delay = delay;
        world.loss = loss;
    }

    fn fate(&self, from: RaftNodeId, to: RaftNodeId) -> (Option<Embedded>, Duration, Fate) {
        let mut world = self.world.lock().unwrap();
        world.random =
            world.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let dice = (world.random >> 33) % 1000;
        let fate = match dice {
            dice if dice < u64::from(world.loss) / 2 => Fate::Lost,
            dice if dice < u64::from(world.loss) => Fate::AnswerLost,
            _ => Fate::Arrives,
        };
        world.messages += 1;
        let reached = if world.cut.contains(&(from, to)) { None } else { world.members.get(&to).cloned() };
        (reached, world.delay, fate)
    }

    /// How many messages were sent so far.
    pub fn messages(&self) -> u64 {
        self.world.lock().unwrap().messages
    }

    fn is_cut(&self, from: RaftNodeId, to: RaftNodeId) -> bool {
        let world = self.world.lock().unwrap();
        world.cut.contains(&(from, to)) || !world.members.contains_key(&to)
    }
}

struct Wire {
    network: Network,
    from: RaftNodeId,
}

impl Transport for Wire {
    fn call(
        &self,
        to: RaftNodeId,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        Box::pin(async move {
            let (member, delay, fate) = self.network.fate(self.from, to);
            let Some(member) = member else {
                return Err(TransportError::Unreachable { to, reason: "it is cut off".into() });
            };
            let lost = |reason: &str| Err(TransportError::Lost { to, reason: reason.into() });
            let work = async {
                tokio::time::sleep(delay).await;
                if matches!(fate, Fate::Lost) {
                    std::future::pending::<()>().await;
                }
                let answer = member.handle(request).await;
                if matches!(fate, Fate::AnswerLost) || self.network.is_cut(to, self.from) {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(delay).await;
                answer
            };
            match tokio::time::timeout(timeout, work).await {
                Ok(answer) => Ok(answer),
                Err(_) => lost("it took too long"),
            }
        })
    }
}

/// Some members and what they stand on.
pub struct Cluster {
    pub network: Network,
    pub timings: Timings,
    dir: tempfile::TempDir,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { network: Network::default(), timings: Timings::default(), dir: tempfile::tempdir().unwrap() }
    }
}

impl Cluster {
    /// A catalog of `count` voters, numbered from 1.
    pub async fn of(count: RaftNodeId) -> Self {
        let cluster = Self::default();
        cluster.grow(count).await;
        cluster
    }

    pub async fn grow(&self, count: RaftNodeId) {
        let first = self.start(1).await;
        first.initialize(vec!["one".into()]).await.unwrap();
        for node in 2..=count {
            self.start(node).await;
            first.add_learner(node, Member::new(vec![format!("node {node}")])).await.unwrap();
            first.promote(node).await.unwrap();
        }
    }

    pub fn dir_of(&self, node: RaftNodeId) -> std::path::PathBuf {
        self.dir.path().join(format!("{node}"))
    }

    pub fn config(&self, node: RaftNodeId) -> EmbeddedConfig {
        EmbeddedConfig {
            dir: self.dir_of(node),
            node,
            cluster_id: CLUSTER,
            transport: Arc::new(Wire { network: self.network.clone(), from: node }),
            timings: self.timings,
        }
    }

    pub async fn try_start(&self, node: RaftNodeId) -> Result<Embedded, OpenError> {
        self.try_start_with(self.config(node)).await
    }

    async fn try_start_with(&self, config: EmbeddedConfig) -> Result<Embedded, OpenError> {
        let node = config.node;
        let member = Embedded::open(config).await?;
        self.network.world.lock().unwrap().members.insert(node, member.clone());
        Ok(member)
    }

    pub async fn start_with(&self, config: EmbeddedConfig) -> Embedded {
        self.try_start_with(config).await.unwrap()
    }

    pub async fn start(&self, node: RaftNodeId) -> Embedded {
        self.try_start(node).await.unwrap()
    }

    pub fn member(&self, node: RaftNodeId) -> Embedded {
        self.network.world.lock().unwrap().members.get(&node).cloned().unwrap()
    }

    pub fn members(&self) -> Vec<Embedded> {
        self.network.world.lock().unwrap().members.values().cloned().collect()
    }

    /// Takes a member off the network at once, then ends it.
    pub async fn kill(&self, node: RaftNodeId) {
        let member = self.network.world.lock().unwrap().members.remove(&node).unwrap();
        member.shutdown().await;
    }

    /// The member that leads and has a majority; waits for it.
    pub async fn leader(&self) -> Embedded {
        eventually("a leader", || async {
            self.members().into_iter().find(|member| {
                let status = member.status();
                status.role == Role::Leader && status.has_quorum
            })
        })
        .await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.network.world.lock().unwrap().members.clear();
    }
}

/// Asks until there is an answer, with a generous bound.
pub async fn eventually<T, F, A>(what: &str, mut ask: F) -> T
where
    F: FnMut() -> A,
    A: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn status_that(
    member: &Embedded,
    what: &str,
    holds: impl Fn(&CatalogStatus) -> bool,
) -> CatalogStatus {
    eventually(what, || async { Some(member.status()).filter(&holds) }).await
}

/// Writes one row, whatever was there.
pub async fn put(member: &Embedded, key: &str, value: &str) -> u64 {
    let reply = member.txn(Txn::put(key, value.to_owned())).await.unwrap();
    assert!(reply.succeeded);
    reply.revision
}

pub async fn get(member: &Embedded, key: &str) -> Option<String> {
    let row = member.get(key.to_owned()).await.unwrap()?;
    Some(String::from_utf8(row.value.to_vec()).unwrap())
}
