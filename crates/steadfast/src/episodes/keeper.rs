//! The loop around the machine of episodes: one thread that takes what comes, records it, and lets out what may leave.
//!
//! Whatever came while the last commit ran is the next group: it is stepped together, recorded together, and made durable by
//! one sync. Programs of this process run on the thread itself; all others elsewhere. It decides nothing about episodes: that is
//! [`steadfast_proto::episode`]'s. A store that fails ends it, since nothing may be promised any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use steadfast_proto::episode::{
    Answer, Apart, Batch, Destination, Effect, Episodes, Failure, Input, Outcome, Program, Request,
    RequestError, Task,
};
use steadfast_proto::exchange::{Frame, Message, Name, Sessions, Stale, Text};
use steadfast_proto::ids::{Incarnation, NodeId};
use steadfast_proto::machine::Machine;
use steadfast_proto::time::Time;
use tokio::sync::oneshot;

use super::{Adopted, Store, StoreError};
use crate::events::now_unix_us;
use crate::net::datagram;

/// For how long a node that lives is waited for to give a home of a shared store back, before it is taken from it.
const COURTESY: Duration = Duration::from_secs(2);
/// How soon homes are tried to be taken again that another node has not given back; doubled each time.
const SEEK: Duration = Duration::from_millis(50);
/// The longest of these times.
const SEEK_MAX: Duration = Duration::from_secs(1);
/// How many inputs make one group at most.
const GROUP_MAX: usize = 4_096;
/// How many records make a group, about: while they are made durable, others already work on what the group before said.
const GROUP_RECORDS: usize = 1_024;
/// How many frames of other nodes wait at most; one more is lost, and what it said is said again.
const FRAMES_MAX: usize = 1_024;
/// How many rounds of programs of this process run within one group.
const ROUNDS_MAX: usize = 64;
/// After how long what was recorded and nobody waits for is made durable.
const LAZY: Duration = Duration::from_millis(20);
/// After how long without anything at all the store is told so.
const IDLE: Duration = Duration::from_secs(1);
/// How many bytes of messages one frame carries, about.
const FRAME_BYTES: usize = 64 << 10;

/// Carries frames to other nodes. May lose, double and reorder them, and never blocks.
pub trait Carrier: Send {
    /// Sends one.
    fn send(&mut self, to: NodeId, frame: Frame);
    /// Keeps what is said to a party that is no instance until that party asks.
    fn keep(&mut self, party: &Name, messages: Vec<Message>);
    /// Carries out an effect on a foreign system, and says by [`Keeper::input`] what came of it.
    fn carry_out(&mut self, effect: Effect);
}

/// What runs an episode at once.
pub type RunHere = dyn Fn(&Task) -> Result<Outcome, Failure> + Send + Sync;
type Thread = JoinHandle<Result<(), KeeperError>>;

/// Runs the episodes of one version of a program.
#[derive(Clone)]
pub enum Runner {
    /// In this process, on the keeper's thread: a function of microseconds.
    Here(Arc<RunHere>),
    /// Elsewhere: it returns at once, and its [`Done`] is told later.
    Elsewhere(Arc<dyn Fn(Task, Done) + Send + Sync>),
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Runner::Here(_) => "Here",
            Runner::Elsewhere(_) => "Elsewhere",
        })
    }
}

/// All versions of one program that can be run here.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// What the machine knows of it.
    pub program: Program,
    /// What runs each version.
    pub runners: BTreeMap<u32, Runner>,
}

/// To be told what came of an episode; one that is dropped tells that it failed.
#[derive(Debug)]
pub struct Done {
    keeper: Keeper,
    of: Option<(Name, u64)>,
}

impl Done {
    /// Tells it.
    pub fn tell(mut self, result: Result<Outcome, Failure>) {
        if let Some((name, run)) = self.of.take() {
            self.keeper.input(Input::Ran { name, run, result });
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some((name, run)) = self.of.take() {
            let why = Text::from("what ran the episode went away before it ended");
            self.keeper.input(Input::Ran { name, run, result: Err(Failure { why, lasting: false }) });
        }
    }
}

/// Why there is no keeper, or none any more. Nothing durable was lost.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The store of instances can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operating system gives it no thread.
    #[error("the keeper of episodes gets no thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The keeper has ended.
    #[error("the keeper of episodes has ended; the agent's log says why")]
    Ended,
}

/// What a keeper is made of.
pub struct Parts {
    /// This node.
    pub me: NodeId,
    /// Bounds and times of the machine.
    pub settings: steadfast_proto::episode::Settings,
    /// To other nodes.
    pub carrier: Box<dyn Carrier>,
    /// Which life of this keeper: a frame of an earlier one is not heeded. It counts up by itself when homes move, so that the
    /// next keeper under this id needs one that is higher by more than that happens.
    pub life: Incarnation,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("me", &self.me).finish_non_exhaustive()
    }
}

/// What is known before anything that was recorded is gone on with: without it, messages to others would be taken for
/// messages to nobody.
#[derive(Debug, Default)]
pub struct Known {
    /// Who keeps which home, by number; all are kept here without any, unless the store is shared.
    pub homes: Vec<NodeId>,
    /// What is kept in other stores.
    pub apart: Vec<Apart>,
    /// All programs that can be run here.
    pub programs: BTreeMap<Text, Deployment>,
}

type Look = Box<dyn FnOnce(&Episodes) + Send>;

enum Command {
    Input(Input),
    Frame(NodeId, Frame),
    Ask(Request, oneshot::Sender<Result<Answer, RequestError>>),
    Deploy(BTreeMap<Text, Deployment>),
    Look(Look),
    Stop,
}

/// Keeps the instances of one node; clones are the same keeper.
#[derive(Clone)]
pub struct Keeper {
    commands: Sender<Command>,
    commits: Arc<AtomicU64>,
    frames: Arc<AtomicUsize>,
    thread: Arc<Mutex<Option<Thread>>>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keeper")
    }
}

impl Keeper {
    /// Goes on where the last one ended that used this store.
    ///
    /// # Errors
    /// What the store holds can't be used.
    pub fn start(store: impl Store + 'static, parts: Parts, known: Known) -> Result<Keeper, KeeperError> {
        let (commands, inbox) = mpsc::channel();
        let keeper =
            Keeper { commands, commits: Arc::default(), frames: Arc::default(), thread: Arc::default() };
        let state = State::open(Box::new(store), parts, known, keeper.clone())?;
        let thread = std::thread::Builder::new().name("episodes".into()).spawn(move || {
            let ended = state.serve(&inbox);
            if let Err(error) = &ended {
                tracing::error!(%error, "no episode is run on this node any more");
            }
            ended
        })?;
        *keeper.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(keeper)
    }

    /// Tells the machine something.
    pub fn input(&self, input: Input) {
        self.command(Command::Input(input));
    }

    /// A frame of another node.
    pub fn receive(&self, from: NodeId, frame: Frame) {
        if self.frames.fetch_add(1, Ordering::Relaxed) < FRAMES_MAX {
            self.command(Command::Frame(from, frame));
        } else {
            self.frames.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// These programs can be run here, and no others.
    pub fn deploy(&self, programs: BTreeMap<Text, Deployment>) {
        self.command(Command::Deploy(programs));
    }

    /// Asks for something; the answer is durable when it comes.
    ///
    /// # Errors
    /// The keeper has ended; or, inside, the request is refused.
    pub async fn ask(&self, request: Request) -> Result<Result<Answer, RequestError>, KeeperError> {
        let (sender, receiver) = oneshot::channel();
        self.command(Command::Ask(request, sender));
        receiver.await.map_err(|_| KeeperError::Ended)
    }

    /// Looks at the machine as it is after everything that was said to it so far.
    ///
    /// # Errors
    /// The keeper has ended.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Episodes) -> T + Send + 'static,
    ) -> Result<T, KeeperError> {
        let (sender, receiver) = oneshot::channel();
        self.command(Command::Look(Box::new(move |episodes| {
            // Whoever asked may have gone.
            let _ = sender.send(look(episodes));
        })));
        receiver.await.map_err(|_| KeeperError::Ended)
    }

    /// How often the store was committed since the start.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Makes everything durable and ends; blocks until then.
    ///
    /// # Errors
    /// Why it ended, if it was not for this.
    pub fn stop(&self) -> Result<(), KeeperError> {
        self.command(Command::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.map_or(Ok(()), |thread| thread.join().unwrap_or(Err(KeeperError::Ended)))
    }

    fn command(&self, command: Command) {
        // Who waits for an answer learns by its absence that the keeper has ended.
        let _ = self.commands.send(command);
    }
}

struct State {
    me: NodeId,
    keeper: Keeper,
    episodes: Episodes,
    sessions: Sessions,
    carrier: Box<dyn Carrier>,
    runners: BTreeMap<Text, Deployment>,
    store: Box<dyn Store>,
    /// Since when something is recorded that is not durable.
    dirty_since: Option<Time>,
    is_at_rest: bool,
    /// When the store was last told that nothing happens, or, a shared one, asked whether all is as it should be.
    rested_at: Time,
    /// How homes are sought that are missing.
    seeking: Option<Seeking>,
    clock: Clock,
    next_token: u64,
    asked: BTreeMap<u64, (Name, oneshot::Sender<Result<Answer, RequestError>>)>,
    batch: Batch,
}

/// Since when homes are missing, when they are sought again, and how long it is waited then if none comes.
#[derive(Clone, Copy)]
struct Seeking {
    since: Time,
    next: Time,
    pause: Duration,
}

impl State {
    fn open(
        mut store: Box<dyn Store>,
        parts: Parts,
        known: Known,
        keeper: Keeper,
    ) -> Result<State, KeeperError> {
        let clock = Clock::start();
        let now = clock.now();
        let mut episodes = Episodes::new(parts.settings, parts.me, now_unix_us());
        if store.is_shared() {
            episodes = episodes.sharing();
        }
        // There is no instance yet that anything could follow for.
        let mut batch = Batch::default();
        let others: BTreeSet<NodeId> = known.homes.iter().copied().filter(|home| *home != parts.me).collect();
        episodes.step(now, Input::Homes(known.homes), &mut batch);
        episodes.step(now, Input::Apart(known.apart), &mut batch);
        episodes.step(now, Input::Deployed(programs_of(&known.programs)), &mut batch);
        store.load(&mut episodes)?;
        let mut state = State {
            me: parts.me,
            keeper,
            episodes,
            sessions: Sessions::new(parts.life.0),
            carrier: parts.carrier,
            runners: known.programs,
            store,
            dirty_since: None,
            is_at_rest: false,
            rested_at: now,
            seeking: None,
            clock,
            next_token: 1,
            asked: BTreeMap::new(),
            batch,
        };
        // Nobody takes what is said to it before it knows of this life, and has a life that is known here.
        others.into_iter().for_each(|other| state.send(other, Vec::new()));
        state.step(Input::Recovered);
        Ok(state)
    }

    fn serve(mut self, inbox: &Receiver<Command>) -> Result<(), KeeperError> {
        self.seek_homes()?;
        self.carry_out()?;
        loop {
            let command = match inbox.recv_timeout(self.patience()) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.end(),
            };
            let is_idle = command.is_none();
            for command in command.into_iter().chain(inbox.try_iter()).take(GROUP_MAX) {
                if matches!(command, Command::Stop) {
                    self.carry_out()?;
                    return self.end();
                }
                self.take(command)?;
                if self.batch.persist.len() + self.batch.run.len() >= GROUP_RECORDS {
                    break;
                }
            }
            if self.episodes.deadline().is_some_and(|deadline| deadline <= self.clock.now()) {
                self.step(Input::Deadline);
            }
            self.seek_homes()?;
            self.carry_out()?;
            let now = self.clock.now();
            if self.dirty_since.is_some_and(|since| now.since(since) >= LAZY) {
                self.commit()?;
            } else if self.dirty_since.is_none() && self.may_rest(is_idle) {
                self.store.rest()?;
                self.is_at_rest = true;
                self.rested_at = self.clock.now();
            }
        }
    }

    /// Whether the store is to be told that nothing happens. A shared one is asked all the time, however much is committed: it may
    /// have gone, or another node is to have the copies.
    fn may_rest(&self, is_idle: bool) -> bool {
        if self.store.is_shared() {
            return self.clock.now().since(self.rested_at) >= IDLE;
        }
        is_idle && !self.is_at_rest
    }

    /// How long nothing can happen by itself.
    fn patience(&self) -> Duration {
        if !self.batch.run.is_empty() || !self.batch.persist.is_empty() {
            return Duration::ZERO;
        }
        let now = self.clock.now();
        let lazy = match self.dirty_since {
            Some(since) => LAZY.saturating_sub(now.since(since)),
            None if self.is_at_rest && !self.store.is_shared() => Duration::from_secs(3_600),
            None => IDLE,
        };
        let lazy = self.seeking.map_or(lazy, |seeking| lazy.min(seeking.next.since(now)));
        self.episodes.deadline().map_or(lazy, |deadline| lazy.min(deadline.since(now)))
    }

    /// Another table of homes. What goes is durable, and given back, before it is forgotten.
    fn rehome(&mut self, homes: Vec<NodeId>) -> Result<(), KeeperError> {
        if homes == self.episodes.homes() {
            return Ok(());
        }
        let (me, is_resized) = (self.me, homes.len() != self.episodes.homes().len());
        let is_lost = |home: &usize| is_resized || homes.get(*home) != Some(&me);
        let lost: BTreeSet<usize> = self.episodes.adopted_homes().into_iter().filter(is_lost).collect();
        if !lost.is_empty() {
            self.carry_out()?;
            self.commit()?;
            self.store.release(&lost)?;
        }
        self.step(Input::Homes(homes));
        self.seeking = None;
        self.renew();
        Ok(())
    }

    /// Takes the homes of a shared store that are this node's by the table: at once where nobody holds them, by force from whoever
    /// does not give them back.
    fn seek_homes(&mut self) -> Result<(), KeeperError> {
        let missing = self.episodes.missing_homes();
        if missing.is_empty() {
            self.seeking = None;
            return Ok(());
        }
        let now = self.clock.now();
        let Seeking { since, next, pause } =
            self.seeking.unwrap_or(Seeking { since: now, next: now, pause: SEEK });
        if now < next {
            return Ok(());
        }
        let is_patient = now.since(since) < COURTESY;
        let living = self.episodes.homes().iter().copied().filter(|_| is_patient).collect();
        let Adopted { homes, instances, epoch } = self.store.adopt(&missing, &living)?;
        // While it asks nodes that don't answer it does nothing else.
        let pause = if homes.is_empty() { pause } else { SEEK };
        let next = self.clock.now() + pause;
        self.seeking = Some(Seeking { since, next, pause: (pause * 2).min(SEEK_MAX) });
        if !homes.is_empty() {
            tracing::debug!(
                homes = homes.len(),
                instances = instances.len(),
                "homes of the shared store come"
            );
            self.step(Input::Adopted { homes, instances, epoch });
            self.renew();
        }
        Ok(())
    }

    /// What is on its way was sent before homes moved, perhaps by or to another keeper of them: none of it is heeded any more.
    fn renew(&mut self) {
        for other in self.sessions.renew() {
            self.send(other, Vec::new());
        }
    }

    fn take(&mut self, command: Command) -> Result<(), KeeperError> {
        match command {
            Command::Input(Input::Homes(homes)) => return self.rehome(homes),
            Command::Input(Input::Apart(apart)) => {
                if apart != self.episodes.apart() {
                    self.step(Input::Apart(apart));
                    self.renew();
                }
            }
            Command::Input(input) => self.step(input),
            Command::Frame(from, frame) => {
                self.keeper.frames.fetch_sub(1, Ordering::Relaxed);
                let is_new = self.sessions.is_new(from, &frame);
                match self.sessions.take(from, frame) {
                    Ok(mut messages) => {
                        messages.retain(|message| self.episodes.may_speak(from, message.from()));
                        self.step(Input::Received(messages));
                    }
                    Err(Stale::Receiver) => self.send(from, Vec::new()),
                    Err(Stale::Sender | Stale::Overtaken) => {}
                }
                if is_new {
                    self.step(Input::Met(from));
                }
            }
            Command::Ask(request, sender) => {
                let token = self.next_token;
                self.next_token += 1;
                self.asked.insert(token, (request.name().clone(), sender));
                self.step(Input::Request { token, request });
            }
            Command::Deploy(programs) => {
                let known = programs_of(&programs);
                self.runners = programs;
                self.step(Input::Deployed(known));
            }
            Command::Look(look) => look(&self.episodes),
            Command::Stop => {}
        }
        Ok(())
    }

    fn step(&mut self, input: Input) {
        let now = self.clock.now();
        self.episodes.step(now, input, &mut self.batch);
    }

    /// All that follows from the group.
    fn carry_out(&mut self) -> Result<(), KeeperError> {
        for _ in 0..ROUNDS_MAX {
            if self.batch.run.is_empty() {
                break;
            }
            for task in std::mem::take(&mut self.batch.run) {
                self.run(task);
            }
        }
        let Batch { send, persist, force, send_durable, effects, answers, run } =
            std::mem::take(&mut self.batch);
        self.batch.run = run;
        let (early, late) = if self.store.is_shared() { (Vec::new(), send) } else { (send, Vec::new()) };
        self.send_all(early);
        let now = self.clock.now();
        for record in persist {
            self.store.append(&record)?;
            self.dirty_since = self.dirty_since.or(Some(now));
            self.is_at_rest = false;
        }
        if force {
            self.commit()?;
        } else if !late.is_empty() {
            // What is known here may be old, and must not be said then, even where nothing durable is promised by it.
            self.store.check()?;
        }
        self.send_all(late);
        self.send_all(send_durable);
        effects.into_iter().for_each(|effect| self.carrier.carry_out(effect));
        for (token, answer) in answers {
            if let Some((_, sender)) = self.asked.remove(&token) {
                // Whoever asked may have gone.
                let _ = sender.send(answer);
            }
        }
        self.forget_unasked();
        Ok(())
    }

    /// Nobody waits any more for answers whose receivers have gone.
    fn forget_unasked(&mut self) {
        let gone: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, (_, sender))| sender.is_closed())
            .map(|(token, _)| *token)
            .collect();
        for token in gone {
            if let Some((name, _)) = self.asked.remove(&token) {
                self.step(Input::Unasked { token, name });
            }
        }
    }

    fn run(&mut self, task: Task) {
        let runner =
            self.runners.get(task.name.program()).and_then(|deployed| deployed.runners.get(&task.version));
        match runner.cloned() {
            Some(Runner::Here(run)) => {
                let result = catch_unwind(AssertUnwindSafe(|| run(&task))).unwrap_or_else(|panic| {
                    let why = panic.downcast_ref::<&str>().copied().map(str::to_owned);
                    let why = why.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                    Err(Failure { why: Text::cut(&format!("it panicked: {why}")), lasting: false })
                });
                self.step(Input::Ran { name: task.name, run: task.run, result });
            }
            Some(Runner::Elsewhere(run)) => {
                let done = Done { keeper: self.keeper.clone(), of: Some((task.name.clone(), task.run)) };
                run(task, done);
            }
            None => {
                let why = Text::from("no program of that version is deployed on this node");
                self.step(Input::Ran {
                    name: task.name,
                    run: task.run,
                    result: Err(Failure { why, lasting: false }),
                });
            }
        }
    }

    fn send_all(&mut self, sends: Vec<(Destination, Message)>) {
        if sends.is_empty() {
            return;
        }
        let mut by_node: BTreeMap<Destination, (usize, Vec<Message>)> = BTreeMap::new();
        for (to, message) in sends {
            let (bytes, messages) = by_node.entry(to.clone()).or_default();
            *bytes += message.weight();
            messages.push(message);
            if *bytes > FRAME_BYTES {
                let full = std::mem::take(messages);
                *bytes = 0;
                self.deliver(to, full);
            }
        }
        for (to, (_, messages)) in by_node {
            if !messages.is_empty() {
                self.deliver(to, messages);
            }
        }
    }

    fn deliver(&mut self, to: Destination, messages: Vec<Message>) {
        match to {
            Destination::Node(node) => self.send(node, messages),
            Destination::Outside(party) => self.carrier.keep(&party, messages),
        }
    }

    fn send(&mut self, to: NodeId, messages: Vec<Message>) {
        let frame = self.sessions.frame(to, messages);
        self.carrier.send(to, frame);
    }

    fn commit(&mut self) -> Result<(), KeeperError> {
        self.store.commit(&self.episodes)?;
        self.keeper.commits.fetch_add(1, Ordering::Relaxed);
        self.dirty_since = None;
        Ok(())
    }

    fn end(mut self) -> Result<(), KeeperError> {
        self.store.end(&self.episodes)?;
        Ok(())
    }
}

/// What the machine is told of programs.
fn programs_of(programs: &BTreeMap<Text, Deployment>) -> BTreeMap<Text, Program> {
    programs.iter().map(|(name, deployment)| (name.clone(), deployment.program.clone())).collect()
}

/// Nanoseconds since 1970 as they were at the start, and as many more as have passed: a clock that is set meanwhile holds no
/// deadline up, and brings none forward.
#[derive(Clone, Copy, Debug)]
struct Clock {
    unix: Time,
    boot: Time,
}

impl Clock {
    fn start() -> Clock {
        Clock { unix: Time::from_nanos(now_unix_us().saturating_mul(1_000)), boot: datagram::now() }
    }

    fn now(&self) -> Time {
        self.unix + datagram::now().since(self.boot)
    }
}
