//! What the cluster does in several steps, as durable instances: join, replace, drain, leave, checkpoint, restore, recovery.
//!
//! They live in the catalog (PROTOCOLS 6), and one member of the view runs them: the first of its members, who takes them over by
//! a row that every commit compares. So an operation whose nodes end at any step goes on at another, and none of its steps
//! is made twice. It decides nothing about members or containers: that is the cores'; an operation asks, waits, and tells.
//! Read next: `program`, `changes`, `goals`.

mod changes;
mod goals;
mod program;
mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use steadfast::catalog::Versioned;
use steadfast::episodes::{Carrier, Deployment, InCatalog, Keeper, KeeperError, Known, Parts, Runner};
use steadfast::net::rpc::{Class, Services};
use steadfast_proto::catalog::{Key, View, decode_row, encode_row};
use steadfast_proto::episode::{
    Answer, Effect, EffectResult, Episodes, Input, Instance, Program, Request, RequestError, Settings, Status,
};
use steadfast_proto::exchange::{Blob, Frame, Message, Name, Text};
use steadfast_proto::ids::{Incarnation, NodeId};
use tokio::runtime::Handle;
use tracing::Instrument;

use self::changes::Undone;
use self::goals::Facts;
use self::program::{End, Failed, Operation, PROGRAM, REACHED, Reached};
use super::{Agent, planted};
use crate::codes::Code;
use crate::failure::Failure;
use crate::traces;

pub(crate) use self::program::What;

/// The RPC service by which an operation is begun at the node that runs them.
const SERVICE_BEGIN: u8 = 33;
const BEGIN_MAX: Duration = Duration::from_secs(3);
/// For how long a node is looked for that can begin an operation.
const SEARCH_MAX: Duration = Duration::from_secs(10);
/// How long an operation is followed before the request answers that it goes on.
const FOLLOW_MAX: Duration = Duration::from_secs(600);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(50);
/// How often the node that runs operations looks at goals, and all nodes at who that is.
const TEND: Duration = Duration::from_millis(100);
/// For how long an operation that has ended is listed.
const KEEP: Duration = Duration::from_secs(3_600);
/// How many operations there may be that have not ended.
const ACTIVE_MAX: usize = 256;
/// How many there may be in all: each is a row of the catalog.
const ALL_MAX: usize = 4_096;

/// Where operations are.
const ROWS: &str = "operation/at/";
/// Which node runs them.
const HOLDER: &str = "operation/holder";

/// The operations, where this node runs them.
#[derive(Default)]
pub(crate) struct Operations {
    held: Mutex<Option<Held>>,
}

#[derive(Clone)]
struct Held {
    keeper: Keeper,
    given_up: Arc<AtomicBool>,
}

impl Operations {
    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keeper(&self) -> Option<Keeper> {
        self.held().as_ref().map(|held| held.keeper.clone())
    }

    /// Ends without waiting for the catalog: what is not committed was promised to nobody.
    pub(super) async fn stop(&self) {
        let Some(held) = self.held().take() else { return };
        held.given_up.store(true, Ordering::Relaxed);
        // Why it ended does not matter any more.
        let _ = tokio::task::spawn_blocking(move || held.keeper.stop()).await;
    }
}

/// The node that runs operations in a view.
fn runs_in(view: &View) -> Option<NodeId> {
    view.members.keys().next().copied()
}

/// Lets other nodes begin operations here, and has checkpoints of what runs here taken.
pub(super) fn offer(agent: &Arc<Agent>, services: &Services) {
    changes::offer(agent, services);
    let agent = Arc::downgrade(agent);
    services.register(SERVICE_BEGIN, move |_, body| {
        let agent = agent.upgrade();
        Box::pin(async move {
            let agent = agent.ok_or_else(|| "the agent ends".to_owned())?;
            let (key, operation): (String, Operation) =
                decode_row(&body).map_err(|error| error.to_string())?;
            agent.begin_here(&key, &operation).await.map_err(|failure| failure.message)?;
            Ok(Bytes::new())
        })
    });
}

impl Agent {
    /// Begins an operation and gives its name. It is durable then, and goes on whatever ends.
    pub(crate) async fn begin(&self, what: What, subject: &str) -> Result<Name, Failure> {
        let random = uuid::Uuid::new_v4().as_fields().0;
        let key = format!("{}-{subject}-{random:08x}", what.verb());
        let trace = traces::current().map(|trace| trace.to_string());
        let operation = Operation::new(what, Some(self.id), trace);
        let name = name_of(&key)?;
        let body = Bytes::from(
            encode_row(&(&key, &operation))
                .map_err(|error| Failure::new(Code::Internal, error.to_string()))?,
        );
        let deadline = tokio::time::Instant::now() + SEARCH_MAX;
        loop {
            let view = self.rows.get_stale::<View>(&Key::View).map(|(view, _)| view);
            let failure = match view.as_ref().and_then(runs_in) {
                Some(node) if node == self.id => match self.begin_here(&key, &operation).await {
                    Ok(()) => return Ok(name),
                    Err(failure) => failure.message,
                },
                Some(node) => {
                    let asked = self.peers.call(node, Class::Control, SERVICE_BEGIN, body.clone(), BEGIN_MAX);
                    match asked.await {
                        Ok(_) => return Ok(name),
                        Err(error) => format!("{}: {error}", self.node_name(node)),
                    }
                }
                None => "this node has no view yet".to_owned(),
            };
            if tokio::time::Instant::now() >= deadline {
                let message = format!("nothing was begun, no node runs operations just now: {failure}");
                return Err(Failure::new(Code::PeerUnreachable, message));
            }
            tokio::time::sleep(TEND).await;
        }
    }

    /// Begins it at this node; one that has begun already is the same one.
    async fn begin_here(&self, key: &str, operation: &Operation) -> Result<(), Failure> {
        let Some(keeper) = self.operations.keeper() else {
            return Err(Failure::new(Code::PeerUnreachable, "this node does not run operations"));
        };
        let ended = |_| Failure::new(Code::PeerUnreachable, "this node runs operations no more");
        let name = name_of(key)?;
        let counted = keeper.look(|episodes| {
            let active = episodes.instances().filter(|one| one.is_active()).count();
            (active, episodes.instances().count())
        });
        let (active, all) = counted.await.map_err(ended)?;
        if active >= ACTIVE_MAX || all >= ALL_MAX {
            let message = format!(
                "{active} operations run and {} ended within the last hour, at most {ACTIVE_MAX} may run and {ALL_MAX} be remembered; \
                 try again later, `steadfast operations` lists them",
                all - active
            );
            return Err(Failure::new(Code::TooMany, message));
        }
        let payload = operation.encode().map_err(|why| Failure::new(Code::Internal, why))?;
        let asked = keeper.ask(Request::Start { name, payload, key: None, wait: false });
        match asked.await.map_err(ended)? {
            Ok(Answer::Taken | Answer::Answered(_) | Answer::Ended(_)) | Err(RequestError::Exists(_)) => {
                Ok(())
            }
            Err(error) => Err(Failure::new(Code::Internal, error.to_string())),
        }
    }

    /// Begins an operation, and waits until it has ended.
    pub(crate) async fn operate(&self, what: What, subject: &str) -> Result<(), Failure> {
        let name = self.begin(what, subject).await?;
        self.follow_operation(&name, || false).await
    }

    /// Waits until an operation has ended, or is so far.
    pub(crate) async fn follow_operation(
        &self,
        name: &Name,
        is_far: impl Fn() -> bool + Send,
    ) -> Result<(), Failure> {
        let key = format!("{ROWS}{name}");
        let deadline = tokio::time::Instant::now() + FOLLOW_MAX;
        let (mut seen, mut version) = (false, 0);
        loop {
            match self.rows.catalog().get_stale(&key).1 {
                Some(row) if row.version == version && is_far() => return Ok(()),
                Some(row) if row.version != version => {
                    (seen, version) = (true, row.version);
                    let instance = read(&row)?;
                    match ended(&instance)? {
                        Some(None) => return Ok(()),
                        Some(Some(failed)) => return Err(failed.into()),
                        None => {}
                    }
                }
                // This node may not have it yet.
                None if seen => return Ok(()),
                Some(_) | None => {}
            }
            if tokio::time::Instant::now() >= deadline {
                let message = format!(
                    "{} has not finished yet; it goes on, and `steadfast operations` shows how far it is",
                    name.key()
                );
                return Err(Failure::new(Code::TimedOut, message));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Runs operations whenever it is this node's turn.
    pub(super) async fn run_operations(self: Arc<Self>, life: Incarnation) {
        loop {
            tokio::time::sleep(TEND).await;
            // By this node's copy, which may be old: a holder that was followed by another commits nothing.
            let view = self.rows.get_stale::<View>(&Key::View).map(|(view, _)| view);
            if view.as_ref().and_then(runs_in) != Some(self.id) {
                self.operations.stop().await;
                continue;
            }
            let keeper = match self.operations.keeper() {
                Some(keeper) => keeper,
                // One that has just started may not know yet that it is no member any more.
                None if !self.status().await.is_ok_and(|status| status.synced) => continue,
                None => match self.take_over(life).await {
                    Ok(keeper) => keeper,
                    Err(error) => {
                        tracing::debug!(%error, "the operations are not taken over yet");
                        continue;
                    }
                },
            };
            match self.tend_operations(&keeper).await {
                Ok(()) => {}
                Err(Tend::Failed(failure)) => {
                    tracing::debug!(%failure, "the goals of operations can't be looked at");
                }
                Err(Tend::Ended) => self.operations.stop().await,
            }
        }
    }

    async fn take_over(self: &Arc<Self>, life: Incarnation) -> Result<Keeper, KeeperError> {
        let given_up = Arc::new(AtomicBool::new(false));
        let catalog = self.rows.catalog().clone();
        let me = Bytes::from(self.node_name(self.id));
        let store = InCatalog::take_over(catalog, ROWS, (HOLDER, me), Arc::clone(&given_up)).await?;
        planted::crash("operations:taken over");
        let own = Arc::new(OnceLock::new());
        let adapter = Adapter {
            agent: Arc::downgrade(self),
            runtime: Handle::current(),
            keeper: Arc::clone(&own),
            under_way: Arc::default(),
        };
        let settings = Settings { keep: KEEP, attempts_max: u32::MAX, ..Settings::default() };
        let parts = Parts { me: self.id, settings, carrier: Box::new(adapter), life };
        let keeper = Keeper::start(store, parts, Known { programs: programs(), ..Known::default() })?;
        // What was unfinished waits for this: its messages are sent again by their timer.
        let _ = own.set(keeper.clone());
        *self.operations.held() = Some(Held { keeper: keeper.clone(), given_up });
        tracing::info!("this node runs the cluster's operations");
        Ok(keeper)
    }

    /// Begins what nobody asked for, and tells operations of the goals that are reached.
    async fn tend_operations(&self, keeper: &Keeper) -> Result<(), Tend> {
        let all: BTreeMap<Name, Option<Operation>> = keeper.look(waiting).await.map_err(|_| Tend::Ended)?;
        for (key, what) in Facts::stale(&self.rows).map_err(Tend::Failed)?.unasked() {
            let name = name_of(&key).map_err(Tend::Failed)?;
            let is_asked_for = all.values().flatten().any(|one| one.what.brings_back(&what));
            if all.contains_key(&name) || is_asked_for {
                continue;
            }
            if let Err(failure) = self.begin_here(&key, &Operation::new(what, None, None)).await {
                // The cluster does it all the same; and those that run must come to their ends before others can begin.
                tracing::debug!(%failure, name = name.key(), "what the cluster does is not listed yet");
                break;
            }
        }
        if all.values().all(Option::is_none) {
            return Ok(());
        }
        // After the operations were looked at: what they have changed is in these rows.
        let facts = Facts::read(&self.rows).await.map_err(Tend::Failed)?;
        for (name, operation) in all.into_iter().filter_map(|(name, one)| Some((name, one?))) {
            let failed = match goals::reached(&facts, &operation) {
                Ok(false) => continue,
                Ok(true) => None,
                Err(failure) => Some(failure.into()),
            };
            planted::crash(&format!("operations:reached:{}:{}", operation.what.verb(), operation.step));
            tell(keeper, name, operation.step, failed).await?;
        }
        Ok(())
    }
}

/// Why operations could not be tended.
enum Tend {
    /// Just now.
    Failed(Failure),
    /// There is no keeper any more.
    Ended,
}

/// Tells an operation that the goal of a step is reached, or never will be; one that is further does not heed it.
async fn tell(keeper: &Keeper, name: Name, step: u8, failed: Option<Failed>) -> Result<(), Tend> {
    let payload = encode_row(&Reached { step, failed }).map(Blob::from);
    let payload = payload.map_err(|error| Tend::Failed(Failure::new(Code::Internal, error.to_string())))?;
    let (kind, correlation, key) = (REACHED.into(), None, None);
    let told = Request::Send { name, kind, correlation, payload, key, wait: false };
    match keeper.ask(told).await {
        // One that has ended needs nothing any more.
        Ok(Ok(_) | Err(_)) => Ok(()),
        Err(_) => Err(Tend::Ended),
    }
}

/// All operations that are known, and of those that wait for their goal how far they are.
fn waiting(episodes: &Episodes) -> BTreeMap<Name, Option<Operation>> {
    let each = episodes.instances().map(|instance| {
        let has_changed = instance.outboxes.values().all(|outbox| outbox.is_empty());
        let waits = instance.is_active() && instance.inbox.is_empty() && has_changed;
        (instance.name.clone(), if waits { operation_of(instance) } else { None })
    });
    each.collect()
}

fn operation_of(instance: &Instance) -> Option<Operation> {
    Operation::decode(&instance.state).ok()
}

fn read(row: &Versioned) -> Result<Instance, Failure> {
    Instance::decode(&row.value).map_err(|error| Failure::new(Code::Internal, error.to_string()))
}

/// How it ended, if it has.
fn ended(instance: &Instance) -> Result<Option<End>, Failure> {
    match &instance.status {
        Status::Active => Ok(None),
        Status::Ended { answer, .. } => {
            let end = decode_row(answer).map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
            Ok(Some(end))
        }
        Status::Cancelled { .. } => Err(Failure::new(Code::InstanceState, "the operation was cancelled")),
    }
}

fn name_of(key: &str) -> Result<Name, Failure> {
    Name::parse(&format!("{PROGRAM}/{key}"))
        .map_err(|error| Failure::new(Code::BadRequest, error.to_string()))
}

fn programs() -> BTreeMap<Text, Deployment> {
    let runners = BTreeMap::from([(1, Runner::Here(Arc::new(program::episode)))]);
    BTreeMap::from([(PROGRAM.into(), Deployment { program: Program::default(), runners })])
}

/// Makes the changes of operations.
struct Adapter {
    agent: Weak<Agent>,
    runtime: Handle,
    /// Set once there is one.
    keeper: Arc<OnceLock<Keeper>>,
    /// Of which operations a change is being made: the machine asks again meanwhile.
    under_way: Arc<Mutex<BTreeSet<Name>>>,
}

impl Adapter {
    fn under_way(all: &Mutex<BTreeSet<Name>>) -> MutexGuard<'_, BTreeSet<Name>> {
        all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Carrier for Adapter {
    fn send(&mut self, to: NodeId, _: Frame) {
        tracing::error!(%to, "an operation said something to another node; they have nothing to say to each other");
    }

    fn keep(&mut self, party: &Name, _: Vec<Message>) {
        tracing::error!(%party, "an operation said something to an outside party");
    }

    fn carry_out(&mut self, effect: Effect) {
        let (Some(agent), Some(keeper)) = (self.agent.upgrade(), self.keeper.get().cloned()) else { return };
        let name = effect.stream.from.clone();
        if !Adapter::under_way(&self.under_way).insert(name.clone()) {
            return;
        }
        let under_way = Arc::clone(&self.under_way);
        self.runtime.spawn(async move {
            let result = change(&agent, &keeper, &effect).await;
            Adapter::under_way(&under_way).remove(&name);
            if let Some(result) = result {
                keeper.input(Input::Effected { stream: effect.stream, seq: effect.seq, result });
            }
        });
    }
}

/// Makes the change; nothing is said when the keeper has ended, and the next one makes it again.
async fn change(agent: &Agent, keeper: &Keeper, effect: &Effect) -> Option<EffectResult> {
    let operation = match Operation::decode(&effect.letter.payload) {
        Ok(operation) => operation,
        Err(why) => return Some(EffectResult::Never(Text::cut(&why))),
    };
    let (verb, step) = (operation.what.verb(), operation.step);
    planted::crash(&format!("operations:before:{verb}:{step}"));
    let parent = operation.trace.as_deref().and_then(|trace| trace.parse().ok());
    let span = match parent {
        Some(_) => traces::step_of(parent, "change", &[("step", &step)]),
        None => tracing::Span::none(),
    };
    let made = agent.make(&operation).instrument(span).await;
    planted::crash(&format!("operations:after:{verb}:{step}"));
    match made {
        Ok(()) => Some(EffectResult::Done(None)),
        Err(Undone::Later(why)) => {
            tracing::debug!(operation = %effect.stream.from, why, "a change is tried again");
            Some(EffectResult::Later(Text::cut(&why)))
        }
        // It is told of the failure with all its words, and has nothing left to send.
        Err(Undone::Never(failure)) => {
            let told = tell(keeper, effect.stream.from.clone(), step, Some(failure.into())).await;
            told.is_ok().then_some(EffectResult::Done(None))
        }
    }
}
