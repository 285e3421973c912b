//! A test kit: one's own programs in the simulated world, with crashes and lost messages, and without waiting for any clock.
//!
//! All that happens follows from a seed, so a run that fails repeats itself. Time is skipped: a wait of a year takes no longer
//! than one of a second.
//!
//! ```
//! use std::time::Duration;
//! use steadfast_proto::episode::{Event, Next, Outcome, Wait};
//! use steadfast_sim::episodes::Kit;
//!
//! // Counts what it is told, and ends when nothing was said for a year.
//! let mut kit = Kit::new(7).with_faults(50).with_program("counter", |task| {
//!     let mut wait = Wait::for_kind("add");
//!     wait.deadline = Some(task.now + Duration::from_secs(365 * 86_400));
//!     let count = task.state.first().copied().unwrap_or_default();
//!     let (count, next) = match &*task.event.kind {
//!         "add" => (count + 1, Next::Wait(wait)),
//!         Event::TIMER => (count, Next::End(vec![count].into())),
//!         _ => (count, Next::Wait(wait)),
//!     };
//!     Ok(Outcome { state: vec![count].into(), next, ..Outcome::default() })
//! });
//! kit.start("counter/1", b"").expect("it begins");
//! for _ in 0..3 {
//!     kit.send("counter/1", "add", b"").expect("it is taken");
//! }
//! kit.skip(Duration::from_secs(365 * 86_400 + 60)).expect("nothing is lost");
//! assert_eq!(kit.answer("counter/1").as_deref(), Some(&[3][..]));
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use oorandom::Rand64;
use steadfast_proto::episode::{
    Effect, Failure, Instance, Key, Outcome, Program, Request, RequestError, Settings, Status, Task,
};
use steadfast_proto::exchange::{Blob, Name};
use steadfast_proto::ids::NodeId;
use steadfast_proto::machine::Machine;

use super::{Channel, Move, Run, Violation, World};

/// How many nodes the world has.
const NODES: u128 = 3;
/// After so many steps without an end something goes round and round.
const STEPS_MAX: usize = 1_000_000;

/// A world for programs under test.
#[derive(Debug)]
pub struct Kit {
    seed: u64,
    faults: u32,
    programs: BTreeMap<String, Deployed>,
    begun: Option<Begun>,
    requests: u64,
}

struct Deployed {
    program: Program,
    run: Run,
}

impl std::fmt::Debug for Deployed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.program.fmt(f)
    }
}

#[derive(Debug)]
struct Begun {
    world: World,
    random: Rand64,
}

/// Why a run came to no good end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KitError {
    /// A name is none.
    #[error(transparent)]
    Name(#[from] steadfast_proto::exchange::NameError),
    /// The request was refused.
    #[error(transparent)]
    Refused(#[from] RequestError),
    /// The machine itself did what it must not: please report it with the seed.
    #[error("with seed {seed}: {violation}")]
    Violation {
        /// Which run.
        seed: u64,
        /// What was seen.
        violation: Violation,
    },
    /// The programs go on for ever.
    #[error("with seed {seed}: after {STEPS_MAX} steps the instances still have something to do")]
    Endless {
        /// Which run.
        seed: u64,
    },
}

impl Kit {
    /// A world that does what follows from `seed`.
    pub fn new(seed: u64) -> Kit {
        Kit { seed, faults: 0, programs: BTreeMap::new(), begun: None, requests: 0 }
    }

    /// With so many crashes and lost or doubled messages, while there is something to disturb.
    #[must_use]
    pub fn with_faults(mut self, faults: u32) -> Kit {
        self.faults = faults;
        self
    }

    /// With this program.
    #[must_use]
    pub fn with_program(
        mut self,
        name: &str,
        run: impl Fn(&Task) -> Result<Outcome, Failure> + Send + Sync + 'static,
    ) -> Kit {
        let deployed = Deployed { program: Program::default(), run: Arc::new(run) };
        self.programs.insert(name.to_owned(), deployed);
        self
    }

    /// Begins an instance; when this returns, it has durably begun.
    ///
    /// # Errors
    /// The name is none, the request is refused, or the run ends badly.
    pub fn start(&mut self, name: &str, payload: &[u8]) -> Result<(), KitError> {
        let (name, key) = (Name::parse(name)?, self.key());
        self.insist(&Request::Start { name, payload: payload.into(), key: Some(key), wait: false })
    }

    /// Tells an instance something; when this returns, that is durable.
    ///
    /// # Errors
    /// The name is none, the request is refused, or the run ends badly.
    pub fn send(&mut self, name: &str, kind: &str, payload: &[u8]) -> Result<(), KitError> {
        let (name, key) = (Name::parse(name)?, self.key());
        let (kind, payload) = (kind.into(), payload.into());
        self.insist(&Request::Send { name, kind, correlation: None, payload, key: Some(key), wait: false })
    }

    /// Lets everything happen that can happen without a clock.
    ///
    /// # Errors
    /// The run ends badly.
    pub fn go(&mut self) -> Result<(), KitError> {
        self.advance(|_| false)
    }

    /// Lets everything happen that does so within this time, and ends without a fault.
    ///
    /// # Errors
    /// The run ends badly.
    pub fn skip(&mut self, time: Duration) -> Result<(), KitError> {
        let end = self.begun().world.now + time;
        for _ in 0..STEPS_MAX {
            self.go()?;
            let world = &mut self.begun().world;
            let due = world.nodes.iter().filter_map(|(id, node)| Some((node.episodes.deadline()?, *id)));
            match due.min() {
                Some((due, id)) if due <= end => world.apply(Move::Tick(id)),
                Some(_) | None => {
                    world.now = end;
                    return Ok(());
                }
            }
        }
        Err(KitError::Endless { seed: self.seed })
    }

    /// An instance as it is.
    pub fn instance(&self, name: &str) -> Option<&Instance> {
        let name = Name::parse(name).ok()?;
        let world = &self.begun.as_ref()?.world;
        world.nodes.get(&world.keeper(&name))?.episodes.instance(&name)
    }

    /// What an instance ended with.
    pub fn answer(&self, name: &str) -> Option<Blob> {
        match &self.instance(name)?.status {
            Status::Ended { answer, .. } => Some(answer.clone()),
            Status::Active | Status::Cancelled { .. } => None,
        }
    }

    /// The effects on foreign systems that were carried out; one may stand here twice, with the same id, after a crash.
    pub fn effects(&self) -> &[Effect] {
        self.begun.as_ref().map_or(&[], |begun| &begun.world.effects)
    }

    /// How many bytes are kept for messages that are not finished.
    pub fn bytes_of_messages(&self) -> usize {
        self.begun.as_ref().map_or(0, |begun| begun.world.bytes_of_messages())
    }

    fn key(&mut self) -> Key {
        self.requests += 1;
        Key { text: self.requests.to_string().as_str().into(), digest: u128::from(self.requests) }
    }

    fn begun(&mut self) -> &mut Begun {
        let (seed, programs) = (self.seed, &self.programs);
        self.begun.get_or_insert_with(|| {
            let programs = programs.iter().map(|(name, deployed)| {
                (name.clone(), (deployed.program.clone(), Arc::clone(&deployed.run)))
            });
            let world = World::new(NODES, Channel::Fenced, Settings::default(), programs.collect());
            Begun { world, random: Rand64::new(u128::from(seed)) }
        })
    }

    /// Asks until it is answered, as a client does: a crash may take a request that was not answered.
    fn insist(&mut self, request: &Request) -> Result<(), KitError> {
        let token = self.requests;
        for _ in 0..STEPS_MAX {
            self.begun().world.request(token, request.clone());
            self.advance(|world| world.answers.contains_key(&token))?;
            if let Some(answer) = self.begun().world.answers.remove(&token) {
                return answer.map(drop).map_err(KitError::from);
            }
        }
        Err(KitError::Endless { seed: self.seed })
    }

    fn advance(&mut self, is_enough: impl Fn(&World) -> bool) -> Result<(), KitError> {
        let seed = self.seed;
        for _ in 0..STEPS_MAX {
            let faults = self.faults;
            let Begun { world, random } = self.begun();
            if let Some(violation) = world.violation.clone() {
                return Err(KitError::Violation { seed, violation });
            }
            let moves = world.moves();
            if moves.is_empty() || is_enough(world) {
                return Ok(());
            }
            let is_fault = faults > 0 && random.rand_range(0..10) == 0;
            let action = if is_fault { fault(world, random) } else { moves[pick(random, moves.len())] };
            world.apply(action);
            self.faults -= u32::from(is_fault);
        }
        Err(KitError::Endless { seed })
    }
}

fn fault(world: &World, random: &mut Rand64) -> Move {
    let flying = world.in_flight();
    match random.rand_range(0..4) {
        0 if flying > 0 => Move::Lose(pick(random, flying)),
        1 if flying > 0 => Move::Copy(pick(random, flying)),
        _ => {
            let node = NodeId(u128::from(random.rand_range(0..3)) + 1);
            Move::Crash(node, pick(random, world.at_risk(node) + 1))
        }
    }
}

/// One of `count`.
pub(super) fn pick(random: &mut Rand64, count: usize) -> usize {
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    usize::try_from(random.rand_range(0..count.max(1))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use steadfast_proto::episode::{Event, Input, Next, Outgoing, Wait};

    use super::*;

    fn failing(_: &Task) -> Result<Outcome, Failure> {
        Err(Failure { why: "no".into(), lasting: false })
    }

    #[test]
    fn a_program_that_fails_is_parked_and_says_why() {
        let mut kit = Kit::new(1).with_program("bad", failing);
        kit.start("bad/1", b"").expect("it begins");
        kit.skip(Duration::from_secs(86_400)).expect("nothing else goes wrong");
        let stopped = kit.instance("bad/1").and_then(|instance| instance.stopped.clone());
        let Some(steadfast_proto::episode::Stopped::Failing { attempts, why, until: None }) = stopped else {
            panic!("it is {stopped:?}");
        };
        assert_eq!((attempts, &*why), (12, "no"));
    }

    #[test]
    fn an_episode_that_gives_too_much_is_not_committed_and_says_why() {
        let gives = |task: &Task| {
            let sizes = &task.event.payload;
            let [state, message, count] =
                [0, 1, 2].map(|place| sizes.get(place).copied().map_or(0, usize::from));
            let to = Name::parse("big/other").expect("a name");
            let payload = Blob::from(vec![0; message << 10]);
            let (kind, begins) = ("x".into(), false);
            let one = Outgoing { to, kind, correlation: None, payload, begins, within: None };
            Ok(Outcome {
                state: vec![0; state << 14].into(),
                messages: vec![one; count * 2],
                ..Outcome::default()
            })
        };
        for (sizes, problem) in [
            ([65, 0, 0], "its state has 1064960 bytes"),
            ([0, 0, 129], "it sends 258 messages"),
            ([0, 255, 5], "together"),
        ] {
            let mut kit = Kit::new(9).with_program("big", gives);
            kit.start("big/1", &sizes).expect("it begins");
            kit.skip(Duration::from_secs(86_400)).expect("nothing else goes wrong");
            let instance = kit.instance("big/1").expect("it is there");
            assert_eq!((instance.episode, instance.state.len(), instance.inbox.len()), (0, 0, 1));
            let why = format!("{:?}", instance.stopped);
            assert!(why.contains(problem), "{why}");
        }
    }

    /// Begins a child and ends with its answer.
    fn parent(task: &Task) -> Result<Outcome, Failure> {
        if &*task.event.kind == Event::CHILD_ENDED {
            return Ok(Outcome { next: Next::End(task.event.payload.clone()), ..Outcome::default() });
        }
        let to = Name::parse("child/1").expect("a name");
        let child = Outgoing {
            to,
            kind: "go".into(),
            correlation: None,
            payload: task.event.payload.clone(),
            begins: true,
            within: None,
        };
        let next = Next::Wait(Wait::for_kind(Event::CHILD_ENDED));
        Ok(Outcome { messages: vec![child], next, ..Outcome::default() })
    }

    fn child(task: &Task) -> Result<Outcome, Failure> {
        Ok(Outcome { next: Next::End(task.event.payload.clone()), ..Outcome::default() })
    }

    #[test]
    fn a_child_answers_its_parent_whatever_crashes() {
        for seed in 0..200 {
            let mut kit =
                Kit::new(seed).with_faults(10).with_program("parent", parent).with_program("child", child);
            kit.start("parent/1", b"x").expect("it begins");
            kit.skip(Duration::from_secs(60)).expect("nothing is lost");
            assert_eq!(kit.answer("parent/1").as_deref(), Some(&b"x"[..]), "seed {seed}");
            assert_eq!(kit.bytes_of_messages(), 0, "seed {seed}");
        }
    }

    /// What has ended is forgotten after a day, and nothing at all is left of it.
    #[test]
    fn what_has_ended_is_forgotten() {
        for seed in 0..100 {
            let mut kit =
                Kit::new(seed).with_faults(10).with_program("parent", parent).with_program("child", child);
            kit.start("parent/1", b"x").expect("it begins");
            kit.skip(Duration::from_secs(2 * 86_400)).expect("nothing is lost");
            let left = ["parent/1", "child/1"].map(|name| kit.instance(name));
            assert!(left.iter().all(Option::is_none), "seed {seed}: {left:?}");
        }
    }

    /// The record of a cancellation names all children, and has to fit the log.
    #[test]
    fn an_instance_has_a_bounded_number_of_children() {
        let breeds = |task: &Task| {
            let child = |number| Outgoing {
                to: Name::parse(&format!("child/{}-{number}", task.episode)).expect("a name"),
                kind: "go".into(),
                correlation: None,
                payload: Blob::empty(),
                begins: true,
                within: None,
            };
            let next = Next::Wait(Wait::for_kind("more"));
            Ok(Outcome { messages: (0..256).map(child).collect(), next, ..Outcome::default() })
        };
        let mut kit = Kit::new(10).with_program("parent", breeds).with_program("child", waits);
        kit.start("parent/1", b"").expect("it begins");
        for _ in 0..8 {
            kit.send("parent/1", "more", b"").expect("it is taken");
            kit.skip(Duration::from_secs(1)).expect("nothing goes wrong");
        }
        let parent = kit.instance("parent/1").expect("it is there");
        assert_eq!((parent.episode, parent.children.len()), (8, 2_048));
        assert!(format!("{:?}", parent.stopped).contains("2304 children"), "{:?}", parent.stopped);
    }

    /// An effect is carried out with one id, once or again after a crash, and its sender is forgotten when it has ended.
    #[test]
    fn an_effect_is_over_when_it_is_done() {
        for seed in 0..100 {
            let effect = |_: &Task| {
                let to = Name::parse("effect/http").expect("a name");
                let (kind, payload) = ("post".into(), Blob::empty());
                let post = Outgoing { to, kind, correlation: None, payload, begins: false, within: None };
                Ok(Outcome { messages: vec![post], next: Next::End(Blob::empty()), ..Outcome::default() })
            };
            let mut kit = Kit::new(seed).with_faults(6).with_program("poster", effect);
            kit.start("poster/1", b"").expect("it begins");
            kit.skip(Duration::from_secs(3_600)).expect("nothing is lost");
            let ids: BTreeMap<_, _> =
                kit.effects().iter().map(|effect| (effect.stream.clone(), effect.seq)).collect();
            assert_eq!(ids.values().collect::<Vec<_>>(), [&1], "seed {seed}");
            kit.skip(Duration::from_secs(2 * 86_400)).expect("nothing is lost");
            assert!(kit.instance("poster/1").is_none(), "seed {seed}: {:?}", kit.instance("poster/1"));
        }
    }

    fn waits(_: &Task) -> Result<Outcome, Failure> {
        Ok(Outcome { next: Next::Wait(Wait::for_kind("never")), ..Outcome::default() })
    }

    #[test]
    fn a_cancellation_ends_an_instance_and_its_children() {
        let mut kit = Kit::new(4).with_faults(10).with_program("parent", parent).with_program("child", waits);
        kit.start("parent/1", b"x").expect("it begins");
        kit.skip(Duration::from_secs(60)).expect("nothing is lost");
        let name = Name::parse("parent/1").expect("a name");
        kit.insist(&Request::Cancel { name }).expect("it is taken");
        kit.skip(Duration::from_secs(60)).expect("nothing is lost");
        for name in ["parent/1", "child/1"] {
            let status = kit.instance(name).map(|instance| instance.status.clone());
            assert!(matches!(status, Some(Status::Cancelled { .. })), "{name}: {status:?}");
        }
    }

    #[test]
    fn a_message_to_nobody_comes_back() {
        let to_nobody = |task: &Task| {
            if &*task.event.kind == Event::UNDELIVERABLE {
                return Ok(Outcome { next: Next::End(task.event.payload.clone()), ..Outcome::default() });
            }
            let to = Name::parse("child/none").expect("a name");
            let (kind, payload) = ("hello".into(), Blob::empty());
            let message = Outgoing { to, kind, correlation: None, payload, begins: false, within: None };
            let next = Next::Wait(Wait::for_kind(Event::UNDELIVERABLE));
            Ok(Outcome { messages: vec![message], next, ..Outcome::default() })
        };
        let mut kit = Kit::new(5).with_program("child", child).with_program("lonely", to_nobody);
        kit.start("lonely/1", b"").expect("it begins");
        kit.skip(Duration::from_secs(60)).expect("nothing is lost");
        assert_eq!(kit.answer("lonely/1").as_deref(), Some(&b"there is no such instance"[..]));
        assert_eq!(kit.bytes_of_messages(), 0);
    }

    #[test]
    fn requests_are_refused_with_a_reason() {
        let mut kit = Kit::new(6).with_program("child", waits);
        assert!(matches!(kit.start("nothing/1", b""), Err(KitError::Refused(RequestError::NoProgram(_)))));
        assert!(matches!(kit.send("child/1", "x", b""), Err(KitError::Refused(RequestError::NoInstance(_)))));
        kit.start("child/1", b"").expect("it begins");
        assert!(matches!(kit.start("child/1", b""), Err(KitError::Refused(RequestError::Exists(_)))));
        let key = Key { text: "k".into(), digest: 1 };
        let name = Name::parse("child/1").expect("a name");
        let send = |digest| Request::Send {
            name: name.clone(),
            kind: "x".into(),
            correlation: None,
            payload: Blob::empty(),
            key: Some(Key { digest, ..key.clone() }),
            wait: false,
        };
        kit.insist(&send(1)).expect("it is taken");
        kit.insist(&send(1)).expect("it is the same");
        assert!(matches!(kit.insist(&send(2)), Err(KitError::Refused(RequestError::KeyReused(..)))));
        assert_eq!(kit.instance("child/1").map(|instance| instance.inbox.len()), Some(1));
    }

    #[test]
    fn an_input_from_an_impostor_is_not_heeded() {
        let mut kit = Kit::new(8).with_program("child", waits);
        kit.start("child/1", b"").expect("it begins");
        let world = &mut kit.begun().world;
        let to = Name::parse("child/1").expect("a name");
        let node = world.keeper(&to);
        let stream = steadfast_proto::exchange::Stream {
            from: Name::parse("outside/a").expect("a name"),
            epoch: 1,
            to,
        };
        let messages = vec![steadfast_proto::exchange::Message::Close { stream }];
        world.step(node, Input::Outside { party: Name::parse("outside/b").expect("a name"), messages });
        assert_eq!(world.nodes[&node].episodes.counters().impostors, 1);
    }
}
