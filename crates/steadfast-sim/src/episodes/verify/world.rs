//! Two nodes in simulated time, clients that do not give up, a foreign system that knows what it has done, and kills.
//!
//! Everything follows from one seed. Frames may be lost, doubled or overtaken; a program may fail, and may be answered late;
//! a client may miss its answer and asks again with the same key. Must never know what a program is to come to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use steadfast_proto::episode::{
    Answer, Effect, EffectResult, Failure, Input, Instance, Key, Mode, Order, Program, Reply, Request,
    RequestError, Settings, Status, Task, home_of,
};
use steadfast_proto::exchange::{Blob, Frame, Stream, Text};
use steadfast_proto::ids::NodeId;
use steadfast_proto::machine::Machine;
use steadfast_proto::time::Time;

use super::super::Violation;
use super::super::ring::words;
use super::host::{Arrival, Host, Tails};
use super::interpreter::{self, State};
use super::script::{LAYERS, RECEIPT, Script};
use super::{KILL_EVERY, Plan};
use crate::random::Random;

const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];
/// How long instances that have ended, and keys of requests, are remembered.
const KEEP: Duration = Duration::from_secs(2);
/// What is not forced is written after this long at the latest, as the keeper does it.
const LAZY: Duration = Duration::from_millis(20);
/// How often it is looked whether all is over.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A client that has heard nothing for so long asks again.
const PATIENCE: Duration = Duration::from_millis(60);

/// Something that happens at some time.
#[derive(Debug)]
enum Happening {
    Frame { to: usize, from: NodeId, frame: Frame },
    Turn { host: usize },
    Committed { host: usize, life: u64 },
    Ran { host: usize, life: u64, input: Input },
    Effect { host: usize, life: u64, effect: Effect },
    Ask(usize),
    Kill,
    Restart(usize),
}

/// Somebody who wants one thing and asks until it is granted.
#[derive(Debug)]
struct Client {
    request: Request,
    /// What is expected for an answer.
    answer: Answer,
    is_done: bool,
}

/// What was counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    pub(super) kills: u64,
    pub(super) commits: u64,
    pub(super) episodes: u64,
    pub(super) last_kill: Time,
}

/// Everything.
pub(super) struct World {
    pub(super) now: Time,
    pub(super) counted: Counted,
    pub(super) violation: Option<Violation>,
    pub(super) hosts: Vec<Host>,
    /// The payments that the foreign system has carried out, by their ids.
    pub(super) paid: BTreeSet<(Stream, u64)>,
    queue: BTreeMap<(Time, u64), Happening>,
    happened: u64,
    random: Random,
    plan: Plan,
    scripts: Arc<Vec<Script>>,
    programs: BTreeMap<Text, Program>,
    clients: Vec<Client>,
    tokens: BTreeMap<u64, usize>,
    last_token: u64,
    /// When the last frame between the nodes arrives, in each direction.
    arrives: [Time; 2],
}

impl World {
    /// With clients that want all scripts to be run, the first of them after all keyed instances have begun.
    pub(super) fn new(plan: &Plan, seed: u64, scripts: Vec<Script>) -> World {
        let random = Random::new(seed ^ 0x5EED_7E57);
        let order = if seed % 4 == 3 { Order::Full } else { Order::Lean };
        let mode = if seed.is_multiple_of(2) { Mode::Strict } else { Mode::Pipelined };
        let program = Program { mode, ..Program::default() };
        let programs = interpreter::programs().map(|name| (name.into(), program.clone())).collect();
        let hosts = NODES
            .map(|id| Host::new(id, Settings { order, keep: KEEP, seed: seed ^ 1, ..Settings::default() }));
        let mut world = World {
            now: Time::from_nanos(1),
            counted: Counted { kills: 0, commits: 0, episodes: 0, last_kill: Time::ZERO },
            violation: None,
            hosts: hosts.into(),
            paid: BTreeSet::new(),
            queue: BTreeMap::new(),
            happened: 0,
            random,
            plan: *plan,
            scripts: Arc::new(scripts),
            programs,
            clients: Vec::new(),
            tokens: BTreeMap::new(),
            last_token: 0,
            arrives: [Time::ZERO; 2],
        };
        (0..NODES.len()).for_each(|host| world.start(host));
        world.invite();
        world
    }

    /// All that is going to be asked for.
    fn invite(&mut self) {
        for layer in 0..LAYERS {
            for key in 0..self.plan.keys {
                let name = interpreter::layer_name(layer, key);
                let request = Request::Start { name, payload: Blob::empty(), key: None, wait: false };
                self.client(request, Answer::Taken, self.now);
            }
        }
        for index in 0..self.scripts.len() {
            let Some(super::script::Place::Layer(key)) =
                self.scripts[index].parts.first().map(|part| part.place)
            else {
                continue;
            };
            let (kind, payload) = interpreter::order(index);
            let wait = self.random.chance(0.5);
            let answer = if wait { Answer::Answered(words(&[index as u64, 0])) } else { Answer::Taken };
            let name = interpreter::layer_name(0, key);
            let request = Request::Send { name, kind, correlation: None, payload, key: None, wait };
            let at = self.now + KILL_EVERY + Duration::from_nanos(self.random.below(nanos(self.plan.load)));
            self.client(request, answer, at);
        }
        let first = self.now + KILL_EVERY;
        self.schedule(first, Happening::Kill);
    }

    fn client(&mut self, mut request: Request, answer: Answer, at: Time) {
        let number = self.clients.len();
        if let Request::Start { key, .. } | Request::Send { key, .. } = &mut request {
            *key = Some(Key { text: number.to_string().as_str().into(), digest: number as u128 });
        }
        self.clients.push(Client { request, answer, is_done: false });
        self.schedule(at, Happening::Ask(number));
    }

    fn schedule(&mut self, at: Time, what: Happening) {
        self.happened += 1;
        self.queue.insert((at, self.happened), what);
    }

    fn after(&mut self, low_us: u64, high_us: u64) -> Time {
        self.now + Duration::from_micros(self.random.between(low_us, high_us))
    }

    /// Lets everything happen until `end`.
    pub(super) fn go(&mut self, end: Time) {
        while self.violation.is_none()
            && let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end)
        {
            let ((at, _), what) = entry.remove_entry();
            self.now = at;
            self.happen(what);
        }
        self.now = end;
    }

    fn happen(&mut self, what: Happening) {
        let is_alive =
            |host: usize, life: u64, world: &World| world.hosts[host].is_up && world.hosts[host].life == life;
        match what {
            Happening::Frame { to, from, frame } => self.arrive(to, Arrival::Frame(from, frame)),
            Happening::Turn { host } => {
                if self.hosts[host].turn == Some(self.now) {
                    self.turn(host);
                }
            }
            Happening::Committed { host, life } => {
                if is_alive(host, life, self) {
                    self.counted.commits += 1;
                    let tails = self.hosts[host].committed();
                    self.carry(host, tails);
                    self.rest(host);
                }
            }
            Happening::Ran { host, life, input } => {
                if is_alive(host, life, self) {
                    self.arrive(host, Arrival::Input(input));
                }
            }
            Happening::Effect { host, life, effect } => self.pay(host, life, effect),
            Happening::Ask(client) => self.ask(client),
            Happening::Kill => self.kill(),
            Happening::Restart(host) => self.start(host),
        }
    }

    fn start(&mut self, host: usize) {
        self.hosts[host].start(self.now, &NODES, &self.programs);
        self.turn_at(host, self.now);
    }

    fn kill(&mut self) {
        let host = self.random.index(NODES.len());
        let kept = self.random.index(self.hosts[host].at_risk() + 1);
        self.hosts[host].kill(kept);
        self.counted.kills += 1;
        self.counted.last_kill = self.now;
        let restart = self.after(200, 20_000);
        self.schedule(restart, Happening::Restart(host));
        let next = self.now + KILL_EVERY;
        if next <= self.plan.faults_end() {
            self.schedule(next, Happening::Kill);
        }
    }

    fn arrive(&mut self, host: usize, arrival: Arrival) {
        if self.hosts[host].is_up {
            self.hosts[host].arrive(arrival);
            let soon = self.after(1, 20);
            self.turn_at(host, soon);
        }
    }

    /// Lets a node look at `at`, unless it does so before, or has to wait for its disk first.
    fn turn_at(&mut self, host: usize, at: Time) {
        let node = &mut self.hosts[host];
        if node.is_up && !node.is_committing && node.turn.is_none_or(|turn| at < turn) {
            node.turn = Some(at);
            self.schedule(at, Happening::Turn { host });
        }
    }

    /// One group of inputs, and what follows from it.
    fn turn(&mut self, host: usize) {
        self.hosts[host].turn = None;
        let mut tasks = self.hosts[host].look(self.now);
        while !tasks.is_empty() {
            let mut more = Vec::new();
            for task in tasks {
                let input = self.run(&task);
                if self.random.chance(self.plan.late) {
                    let (at, life) = (self.after(50, 3_000), self.hosts[host].life);
                    self.schedule(at, Happening::Ran { host, life, input });
                } else {
                    more.extend(self.hosts[host].ran(self.now, input));
                }
            }
            tasks = more;
        }
        let is_due = |since: Time, now: Time| now.since(since) >= LAZY;
        let now = self.now;
        let node = &mut self.hosts[host];
        let tails = node.write(now);
        node.is_committing |= node.dirty_since.is_some_and(|since| is_due(since, now));
        let (is_committing, life) = (node.is_committing, node.life);
        self.carry(host, tails);
        if is_committing {
            let at = self.after(60, 300);
            self.schedule(at, Happening::Committed { host, life });
        } else {
            self.rest(host);
        }
    }

    /// Until when a node has nothing to do.
    fn rest(&mut self, host: usize) {
        let node = &self.hosts[host];
        let lazy = node.dirty_since.map(|since| since + LAZY);
        let due = if node.is_busy() {
            Some(self.now)
        } else {
            node.episodes.deadline().into_iter().chain(lazy).min()
        };
        if let Some(due) = due {
            self.turn_at(host, due.max(self.now));
        }
    }

    fn run(&mut self, task: &Task) -> Input {
        self.counted.episodes += 1;
        let result = if self.random.chance(self.plan.failing) {
            Err(Failure { why: "it is not its day".into(), lasting: false })
        } else {
            interpreter::episode(&self.scripts, task)
        };
        Input::Ran { name: task.name.clone(), run: task.run, result }
    }

    fn carry(&mut self, host: usize, tails: Tails) {
        let from = self.hosts[host].id;
        for (to, frame) in tails.frames {
            let Some(to) = NODES.iter().position(|node| *node == to) else { continue };
            self.fly(from, to, frame);
        }
        let life = self.hosts[host].life;
        for effect in tails.effects {
            let at = self.after(100, 2_000);
            self.schedule(at, Happening::Effect { host, life, effect });
        }
        for (token, answer) in tails.answers {
            self.hear(token, answer);
        }
    }

    /// In order as a rule; some are lost, doubled, or so late that others overtake them.
    fn fly(&mut self, from: NodeId, to: usize, frame: Frame) {
        if self.random.chance(self.plan.lost) {
            return;
        }
        if self.random.chance(self.plan.lost) {
            let (at, frame) = (self.after(40, 4_000), frame.clone());
            self.schedule(at, Happening::Frame { to, from, frame });
        }
        let at = if self.random.chance(self.plan.lost) {
            self.after(500, 4_000)
        } else {
            let at = self.after(40, 150).max(self.arrives[to]);
            self.arrives[to] = at;
            at
        };
        self.schedule(at, Happening::Frame { to, from, frame });
    }

    /// The foreign system does what it has not done yet, whether anybody hears of it or not.
    fn pay(&mut self, host: usize, life: u64, effect: Effect) {
        let Effect { stream, seq, .. } = effect;
        let is_away = self.random.chance(self.plan.failing);
        if !is_away {
            self.paid.insert((stream.clone(), seq));
        }
        let reply = Reply { kind: interpreter::PAID.into(), payload: words(&[RECEIPT]) };
        let result =
            if is_away { EffectResult::Later("it is away".into()) } else { EffectResult::Done(Some(reply)) };
        if self.hosts[host].life == life {
            self.arrive(host, Arrival::Input(Input::Effected { stream, seq, result }));
        }
    }

    fn ask(&mut self, client: usize) {
        if self.clients[client].is_done {
            return;
        }
        let request = self.clients[client].request.clone();
        let host = home_of(request.name(), NODES.len());
        for _ in 0..if self.random.chance(self.plan.lost) { 2 } else { 1 } {
            self.last_token += 1;
            let token = self.last_token;
            self.tokens.insert(token, client);
            self.arrive(host, Arrival::Input(Input::Request { token, request: request.clone() }));
        }
        let again = self.now + PATIENCE;
        self.schedule(again, Happening::Ask(client));
    }

    fn hear(&mut self, token: u64, answer: Result<Answer, RequestError>) {
        let Some(client) = self.tokens.remove(&token) else { return };
        if self.random.chance(self.plan.lost) {
            return;
        }
        let Client { request, answer: expected, is_done } = &mut self.clients[client];
        match answer {
            Ok(answer) if answer == *expected => *is_done = true,
            // It asks again.
            Err(RequestError::Full(..)) => {}
            other => {
                let what = format!("{} answers {other:?} where {expected:?} is due", request.name());
                self.violation.get_or_insert(Violation { invariant: "E-S3", what });
            }
        }
    }

    /// All instances.
    pub(super) fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.hosts.iter().flat_map(|host| host.episodes.instances())
    }

    /// Nothing goes wrong from now on.
    pub(super) fn end_faults(&mut self) {
        (self.plan.lost, self.plan.failing) = (0.0, 0.0);
    }

    /// Lets everything happen until all is over; gives when that was, unless it was not before `end`.
    pub(super) fn drain(&mut self, end: Time) -> Option<Time> {
        while self.now < end && self.violation.is_none() {
            if self.is_over() {
                return Some(self.now);
            }
            self.go(self.now + LOOK_EVERY);
        }
        None
    }

    fn is_over(&self) -> bool {
        self.hosts.iter().all(|host| host.is_up && !host.is_busy())
            && self.clients.iter().all(|client| client.is_done)
            && self.instances().all(|instance| unfinished(instance).is_none())
    }

    /// What is not over yet, for people.
    pub(super) fn unfinished(&self) -> String {
        let clients = self.clients.iter().filter(|client| !client.is_done).count();
        let open: Vec<String> = self.instances().filter_map(unfinished).collect();
        let some = open.iter().take(8).cloned().collect::<Vec<_>>().join("; ");
        format!("{clients} clients wait, {} instances are not at rest: {some}", open.len())
    }

    /// Lets what has ended be forgotten.
    pub(super) fn forget(&mut self) {
        let later = self.now + KEEP + Settings::default().rto_max * 4;
        self.go(later);
    }
}

/// What an instance is still about.
fn unfinished(instance: &Instance) -> Option<String> {
    let (name, bytes) = (&instance.name, instance.bytes_of_messages());
    if !instance.is_quiet() || bytes > 0 {
        return Some(format!("{name} keeps {bytes} bytes of messages, {:?}", instance.doing()));
    }
    let is_keyed = name.program() != interpreter::CHILD && name.program() != interpreter::LATER;
    let state = State::read(&instance.state);
    match &instance.status {
        Status::Active if is_keyed && state.running.is_none() && state.open == 0 => None,
        Status::Ended { .. } if !is_keyed => None,
        status @ (Status::Active | Status::Ended { .. } | Status::Cancelled { .. }) => {
            Some(format!("{name} is {status:?}, {:?}, with {state:?}", instance.doing()))
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
