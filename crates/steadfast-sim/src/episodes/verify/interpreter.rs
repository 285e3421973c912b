//! The programs that run the scripts: a durable program each for the keyed instances, for children and for what is sent later.
//!
//! The state is a few numbers: what was counted, and how far the part that runs has come. Everything else is in the script, which
//! all know. An instance runs one part at a time; whatever else comes waits in its inbox.

use std::time::Duration;

use steadfast_proto::episode::{Event, Failure, Match, Next, Outcome, Outgoing, Task, Wait};
use steadfast_proto::exchange::{Blob, Name, Text};

use super::super::ring::{word, words};
use super::script::{Command, LAYERS, Part, Place, Script};

/// The program of children.
pub(super) const CHILD: &str = "child";
/// The program that sends a message later.
pub(super) const LATER: &str = "later";
/// The foreign system's adapter.
pub(super) const BANK: &str = "effect/bank";
/// What the foreign system answers.
pub(super) const PAID: &str = "paid";
const RUN: &str = "run";
const ANSWER: &str = "answer";
const LAYER: [&str; LAYERS] = ["layer0", "layer1", "layer2"];

/// All programs that there are.
pub(super) fn programs() -> impl Iterator<Item = &'static str> {
    LAYER.into_iter().chain([CHILD, LATER])
}

/// The instance of a layer with that key.
pub(super) fn layer_name(layer: usize, key: u64) -> Name {
    name(LAYER[layer], &key.to_string())
}

/// What a client says to the first instance of a program.
pub(super) fn order(script: usize) -> (Text, Blob) {
    (RUN.into(), words(&[script as u64, 0]))
}

fn name(program: &str, key: &str) -> Name {
    Name::parse(&format!("{program}/{key}")).expect("it is a name")
}

/// What an instance knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// What it has counted.
    pub(super) counter: u64,
    /// How many children it began that have not ended.
    pub(super) open: u64,
    /// The part that it runs.
    pub(super) running: Option<Running>,
}

/// How far a part has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Running {
    script: usize,
    part: usize,
    done: usize,
}

impl State {
    /// The state in these bytes.
    pub(super) fn read(bytes: &Blob) -> State {
        let index = |place| usize::try_from(word(bytes, place)).unwrap_or(usize::MAX);
        let running = Running { script: index(3), part: index(4), done: index(5) };
        let running = if word(bytes, 2) == 1 { Some(running) } else { None };
        State { counter: word(bytes, 0), open: word(bytes, 1), running }
    }

    fn write(&self) -> Blob {
        let Running { script, part, done } = self.running.unwrap_or(Running { script: 0, part: 0, done: 0 });
        let is_running = u64::from(self.running.is_some());
        words(&[self.counter, self.open, is_running, script as u64, part as u64, done as u64])
    }
}

/// One episode of any of the programs.
pub(super) fn episode(scripts: &[Script], task: &Task) -> Result<Outcome, Failure> {
    if task.name.program() == LATER { later(scripts, task) } else { Ok(Episode::new(scripts, task).run()) }
}

/// Waits, and passes on.
fn later(scripts: &[Script], task: &Task) -> Result<Outcome, Failure> {
    let index = |place| usize::try_from(word(&task.event.payload, place)).unwrap_or(usize::MAX);
    if &*task.event.kind == RUN {
        let wait = Wait {
            any: Vec::new(),
            deadline: Some(task.now + Duration::from_millis(word(&task.event.payload, 2))),
        };
        let state = words(&[index(0) as u64, index(1) as u64]);
        return Ok(Outcome { state, next: Next::Wait(wait), ..Outcome::default() });
    }
    let (script, part) = (word(&task.state, 0), word(&task.state, 1));
    let [at, of] = [script, part].map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    let part =
        scripts.get(at).and_then(|script| script.parts.get(of)).expect("it was told a part that there is");
    let Place::Layer(key) = part.place else { unreachable!("children are begun at once") };
    let message = message(layer_name(part.layer, key), RUN, None, task.state.clone(), false);
    Ok(Outcome { messages: vec![message], next: Next::End(Blob::empty()), ..Outcome::default() })
}

fn message(to: Name, kind: &str, correlation: Option<Text>, payload: Blob, begins: bool) -> Outgoing {
    Outgoing { to, kind: kind.into(), correlation, payload, begins, within: None }
}

/// Names a part among all parts of all programs.
fn label(script: usize, part: usize) -> String {
    format!("{script}-{part}")
}

struct Episode<'a> {
    scripts: &'a [Script],
    task: &'a Task,
    state: State,
    messages: Vec<Outgoing>,
}

impl Episode<'_> {
    fn new<'a>(scripts: &'a [Script], task: &'a Task) -> Episode<'a> {
        Episode { scripts, task, state: State::read(&task.state), messages: Vec::new() }
    }

    fn part(&self, running: Running) -> &Part {
        &self.scripts[running.script].parts[running.part]
    }

    fn run(mut self) -> Outcome {
        let Event { kind, payload, source, .. } = &self.task.event;
        let mut answer = None;
        match &**kind {
            RUN => {
                let index = |place| usize::try_from(word(payload, place)).unwrap_or(usize::MAX);
                assert_eq!(self.state.running, None, "{} runs two parts at once", self.task.name);
                self.state.running = Some(Running { script: index(0), part: index(1), done: 0 });
                answer = source.is_none().then(|| payload.clone());
            }
            Event::CHILD_ENDED => {
                self.state.counter += word(payload, 0);
                self.state.open = self.state.open.saturating_sub(1);
            }
            ANSWER | PAID => self.state.counter += word(payload, 0),
            // The start of a keyed instance, or the end of a sleep.
            _ => {}
        }
        let next = self.advance();
        Outcome { state: self.state.write(), messages: self.messages, answer, next }
    }

    /// Everything up to what has to be waited for.
    fn advance(&mut self) -> Next {
        while let Some(running) = self.state.running {
            let Some(command) = self.part(running).commands.get(running.done).copied() else {
                if let Some(next) = self.end(running) {
                    return next;
                }
                self.state.running = None;
                break;
            };
            self.state.running = Some(Running { done: running.done + 1, ..running });
            if let Some(wait) = self.carry_out(running.script, command) {
                return Next::Wait(wait);
            }
        }
        let kinds = [RUN, Event::CHILD_ENDED];
        let any = kinds.map(|kind| Match { kind: Some(kind.into()), ..Match::default() });
        Next::Wait(Wait { any: any.into(), deadline: None })
    }

    /// What follows the last command; a keyed instance goes on with whatever comes.
    fn end(&mut self, running: Running) -> Option<Next> {
        let part = self.part(running);
        if part.place == Place::Child {
            // Its own children have to be heard first, or what they counted would be lost with it.
            let wait = Next::Wait(Wait::for_kind(Event::CHILD_ENDED));
            return Some(if self.state.open > 0 { wait } else { Next::End(words(&[self.state.counter])) });
        }
        if let Some(asker) = part.asker {
            let payload = words(&[part.commands.len() as u64]);
            let correlation = Some(label(running.script, running.part).as_str().into());
            let to = self.name_of(running.script, asker);
            self.messages.push(message(to, ANSWER, correlation, payload, false));
        }
        None
    }

    /// Who runs a part.
    fn name_of(&self, script: usize, part: usize) -> Name {
        match self.scripts[script].parts[part] {
            Part { place: Place::Layer(key), layer, .. } => layer_name(layer, key),
            Part { place: Place::Child, .. } => name(CHILD, &label(script, part)),
        }
    }

    fn carry_out(&mut self, script: usize, command: Command) -> Option<Wait> {
        match command {
            Command::Increment(amount) => {
                self.state.counter += amount;
                None
            }
            Command::Sleep(time) => {
                Some(Wait { any: Vec::new(), deadline: Some(self.task.now + Duration::from_millis(time)) })
            }
            Command::Tell(part) => {
                self.let_run(script, part);
                None
            }
            Command::Call(part) => {
                let source = Some(self.let_run(script, part));
                let correlation = Some(label(script, part).as_str().into());
                Some(Wait {
                    any: vec![Match { kind: Some(ANSWER.into()), source, correlation, filter: None }],
                    deadline: None,
                })
            }
            Command::Later(part, time) => {
                let payload = words(&[script as u64, part as u64, time]);
                self.messages.push(message(name(LATER, &label(script, part)), RUN, None, payload, true));
                self.state.open += 1;
                None
            }
            Command::Begin(part) => {
                self.let_run(script, part);
                None
            }
            Command::BeginAndWait(part) => {
                let source = Some(self.let_run(script, part));
                let child = Match { kind: Some(Event::CHILD_ENDED.into()), source, ..Match::default() };
                Some(Wait { any: vec![child], deadline: None })
            }
            Command::Pay => {
                let to = Name::parse(BANK).expect("it is a name");
                self.messages.push(message(to, "pay", None, Blob::empty(), false));
                Some(Wait::for_kind(PAID))
            }
        }
    }

    fn let_run(&mut self, script: usize, part: usize) -> Name {
        let to = self.name_of(script, part);
        let begins = self.scripts[script].parts[part].place == Place::Child;
        self.state.open += u64::from(begins);
        self.messages.push(message(to.clone(), RUN, None, words(&[script as u64, part as u64]), begins));
        to
    }
}
