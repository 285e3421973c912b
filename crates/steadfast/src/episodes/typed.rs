//! Programs in Rust, with a state and messages of their own types.
//!
//! What they are told and what they say is JSON on the way, so they talk to programs in any language. An episode that returns
//! an error, or panics, has changed nothing and is run again.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use steadfast::episodes::{Context, Durable, Then};
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct Account { balance: i64 }
//!
//! #[derive(Serialize, Deserialize)]
//! #[serde(tag = "kind", content = "payload", rename_all = "lowercase")]
//! enum Told { Start(i64), Transfer { to: String, amount: i64 }, Deposit(i64) }
//!
//! struct Bank;
//! impl Durable for Bank {
//!     type State = Account;
//!     type Told = Told;
//!     fn episode(&self, account: &mut Account, told: Told, context: &mut Context<'_>) -> Result<Then, String> {
//!         match told {
//!             Told::Start(amount) | Told::Deposit(amount) => account.balance += amount,
//!             Told::Transfer { to, amount } => {
//!                 account.balance -= amount;
//!                 context.send(&to, &Told::Deposit(amount))?;
//!             },
//!         }
//!         Ok(Then::anything())
//!     }
//! }
//! # let runner = steadfast::episodes::runner(Bank);
//! # assert_eq!(format!("{runner:?}"), "Here");
//! ```

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use steadfast_proto::episode::{Event, EventId, Failure, Match, Next, Outcome, Outgoing, Task, Wait};
use steadfast_proto::exchange::{Blob, Name, Text};
use steadfast_proto::time::Time;

use super::Runner;

/// A durable program.
pub trait Durable: Send + Sync + 'static {
    /// What an instance remembers; it begins with the default.
    type State: Serialize + DeserializeOwned + Default;
    /// What it may be told: an enum that serde reads from `{"kind": …, "payload": …}`, with a variant for `start` and, if it
    /// waits with a deadline, one for `timer`.
    type Told: DeserializeOwned;

    /// One episode: a function of the state and the event alone. It may run again after a crash, so whatever else it does
    /// must not matter; what the time is and what is left to chance, it asks the context.
    ///
    /// # Errors
    /// One sentence: nothing has changed, and it is run again later.
    fn episode(
        &self,
        state: &mut Self::State,
        told: Self::Told,
        context: &mut Context<'_>,
    ) -> Result<Then, String>;
}

/// What an episode knows beside its state and its event, and what it says.
#[derive(Debug)]
pub struct Context<'a> {
    task: &'a Task,
    messages: Vec<Outgoing>,
    answer: Option<Blob>,
    /// How many numbers were drawn.
    drawn: u64,
}

/// What follows an episode.
#[derive(Debug)]
pub struct Then(Next);

impl Context<'_> {
    /// The instance.
    pub fn name(&self) -> &Name {
        &self.task.name
    }

    /// Who sent the event, if an instance did.
    pub fn source(&self) -> Option<&Name> {
        self.task.event.source.as_ref()
    }

    /// What the event belongs to.
    pub fn correlation(&self) -> Option<&str> {
        self.task.event.correlation.as_deref()
    }

    /// When this run of the episode began.
    pub fn now(&self) -> Time {
        self.task.now
    }

    /// The next number left to chance; each run of this episode gets the same ones.
    pub fn random(&mut self) -> u64 {
        let seed = format!("{}\0{}\0{}", self.task.name, self.task.episode, self.drawn);
        self.drawn += 1;
        let hash = blake3::hash(seed.as_bytes());
        hash.as_bytes().first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk))
    }

    /// Says something to an instance; it leaves when the episode is durable.
    ///
    /// # Errors
    /// The name is none, or the message is not of the form `{"kind": …, "payload": …}`.
    pub fn send(&mut self, to: &str, message: &impl Serialize) -> Result<(), String> {
        self.say(to, message, false)
    }

    /// The same, and begins the instance as a child if there is none.
    ///
    /// # Errors
    /// As of [`Context::send`].
    pub fn begin(&mut self, to: &str, message: &impl Serialize) -> Result<(), String> {
        self.say(to, message, true)
    }

    /// Answers the request that the event is; without one nobody hears it.
    ///
    /// # Errors
    /// The answer can't be written as JSON.
    pub fn answer(&mut self, answer: &impl Serialize) -> Result<(), String> {
        self.answer = Some(written(answer)?);
        Ok(())
    }

    fn say(&mut self, to: &str, message: &impl Serialize, begins: bool) -> Result<(), String> {
        let to = Name::parse(to).map_err(|error| error.to_string())?;
        let mut value = serde_json::to_value(message).map_err(|error| error.to_string())?;
        let kind = value.get("kind").and_then(Value::as_str).map(Text::from);
        let kind =
            kind.ok_or("a message is an enum with `#[serde(tag = \"kind\", content = \"payload\")]`")?;
        let payload = value.get_mut("payload").map_or(Value::Null, Value::take);
        let payload = written(&payload)?;
        self.messages.push(Outgoing { to, kind, correlation: None, payload, begins, within: None });
        Ok(())
    }
}

impl Then {
    /// The next episode, when anything comes.
    pub fn anything() -> Then {
        Then(Next::Wait(Wait::for_anything()))
    }

    /// The next episode, when something of one of these kinds comes.
    pub fn one_of(kinds: &[&str]) -> Then {
        let any = kinds.iter().map(|kind| Match { kind: Some((*kind).into()), ..Match::default() });
        Then(Next::Wait(Wait { any: any.collect(), deadline: None }))
    }

    /// Or when this time is over: then it is told `timer`.
    #[must_use]
    pub fn or_after(mut self, time: Duration, context: &Context<'_>) -> Then {
        if let Next::Wait(wait) = &mut self.0 {
            wait.deadline = Some(context.now() + time);
        }
        self
    }

    /// Nothing: the instance has ended with this answer.
    ///
    /// # Errors
    /// The answer can't be written as JSON.
    pub fn end(answer: &impl Serialize) -> Result<Then, String> {
        Ok(Then(Next::End(written(answer)?)))
    }
}

/// What runs a program's episodes.
pub fn runner(program: impl Durable) -> Runner {
    Runner::Here(Arc::new(move |task| {
        run(&program, task).map_err(|why| Failure { why: Text::cut(&why), lasting: false })
    }))
}

pub(super) fn run<P: Durable>(program: &P, task: &Task) -> Result<Outcome, String> {
    let mut state = if task.state.is_empty() {
        P::State::default()
    } else {
        serde_json::from_slice(&task.state).map_err(|error| format!("its state can not be read: {error}"))?
    };
    let Event { id, kind, payload, .. } = &task.event;
    let payload = match id {
        _ if payload.is_empty() => Value::Null,
        // The core writes a sentence, and knows no JSON.
        EventId::Notice(_) if &**kind == Event::UNDELIVERABLE => String::from_utf8_lossy(payload).into(),
        EventId::Notice(_) | EventId::Message { .. } | EventId::Request(_) | EventId::Timer(_) => {
            serde_json::from_slice(payload)
                .map_err(|error| format!("the payload of {kind} is no JSON: {error}"))?
        }
    };
    let told = if payload.is_null() {
        json!({ "kind": &**kind })
    } else {
        json!({ "kind": &**kind, "payload": payload })
    };
    let told = serde_json::from_value(told)
        .map_err(|error| format!("{kind} is not what it understands: {error}"))?;
    let mut context = Context { task, messages: Vec::new(), answer: None, drawn: 0 };
    let Then(next) = program.episode(&mut state, told, &mut context)?;
    let Context { messages, answer, .. } = context;
    Ok(Outcome { state: written(&state)?, messages, answer, next })
}

fn written(value: &impl Serialize) -> Result<Blob, String> {
    serde_json::to_vec(value)
        .map(Blob::from)
        .map_err(|error| format!("it can not be written as JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(episode: u64) -> [u64; 2] {
        let kind = Event::START.into();
        let event =
            Event { id: EventId::Request(1), kind, source: None, correlation: None, payload: Blob::empty() };
        let name = Name::parse("a/1").expect("a name");
        let task = Task { name, version: 1, run: 1, episode, state: Blob::empty(), event, now: Time::ZERO };
        let mut context = Context { task: &task, messages: Vec::new(), answer: None, drawn: 0 };
        [context.random(), context.random()]
    }

    #[derive(serde::Deserialize)]
    #[serde(tag = "kind", content = "payload", rename_all = "lowercase")]
    enum Told {
        Undeliverable(String),
    }

    struct Sender;

    impl Durable for Sender {
        type State = ();
        type Told = Told;

        fn episode(&self, (): &mut (), told: Told, _: &mut Context<'_>) -> Result<Then, String> {
            let Told::Undeliverable(why) = told;
            Then::end(&why)
        }
    }

    #[test]
    fn why_a_message_came_back_is_a_text() {
        let name = Name::parse("a/1").expect("a name");
        let event = Event {
            id: EventId::Notice(1),
            kind: Event::UNDELIVERABLE.into(),
            source: None,
            correlation: None,
            payload: Blob::from(b"there is no b/2".to_vec()),
        };
        let task =
            Task { name, version: 1, run: 1, episode: 2, state: Blob::empty(), event, now: Time::ZERO };
        let outcome = run(&Sender, &task).expect("an episode");
        assert_eq!(outcome.next, Next::End(Blob::from(br#""there is no b/2""#.to_vec())));
    }

    #[test]
    fn what_is_left_to_chance_repeats_itself_in_a_second_run_and_nowhere_else() {
        assert_eq!(drawn(1), drawn(1));
        let [one, two] = drawn(1);
        assert!(one != two && !drawn(2).contains(&one));
    }
}
