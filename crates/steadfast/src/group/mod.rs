//! Runs one process of a mirrored group: its messages over TCP, its list of members in a row of the catalog.
//!
//! Decides nothing: `steadfast_proto::group` does, stepped here with what arrives and when its deadline comes. A
//! message that can't leave is dropped, as on any network; the core sends it again. Must never step the core from two
//! tasks. The connections are plain TCP, for loopback or for a network that is sealed below. Read next: [`Register`],
//! then `wire`.

#[cfg(feature = "agent")]
mod agent;
mod register;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use steadfast_proto::group::{
    Application, Event, Group, Input, Member, Message, Outcome, Output, RequestId, Standing, Swap,
};
use steadfast_proto::machine::Machine;
use steadfast_proto::time::Time;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

#[cfg(feature = "agent")]
pub use agent::{AgentRegister, Offer, Settled};
pub use register::{
    CatalogRegister, Register, RegisterError, RowError, Seen, decode_row, encode_row, row_from_text,
    row_to_text,
};

use crate::net::datagram::now;

/// How many inputs wait for the core; whoever brings more waits.
const INPUTS_MAX: usize = 4_096;
/// How many messages wait for one peer; more are dropped.
const OUTGOING_MAX: usize = 1_024;
/// To how many incarnations messages are under way at once.
const PEERS_MAX: usize = 64;
/// How often the row is read, beside what members tell one another.
const READ_EVERY: Duration = Duration::from_millis(250);

/// Where the process of a member listens.
pub type Addresses = Arc<dyn Fn(Member) -> Option<SocketAddr> + Send + Sync>;

/// What a process of a group needs beside its core.
pub struct GroupConfig {
    /// Where the other members connect.
    pub listener: TcpListener,
    /// Where the others listen.
    pub addresses: Addresses,
    /// The group's row.
    pub register: Arc<dyn Register>,
}

impl fmt::Debug for GroupConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("GroupConfig").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// The process is over: it was dropped, or its program panicked. Nothing is known of what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the process of the group has ended; start it anew with a higher incarnation")]
pub struct Ended;

type Look<A> = Box<dyn FnOnce(&Group<A>) + Send>;

enum Command<A> {
    Input(Box<Input>),
    Write(Vec<u8>, oneshot::Sender<Outcome>),
    Look(Look<A>),
}

/// A running process of a group; it ends when the last handle is dropped.
pub struct GroupHandle<A> {
    commands: mpsc::Sender<Command<A>>,
}

impl<A> Clone for GroupHandle<A> {
    fn clone(&self) -> GroupHandle<A> {
        GroupHandle { commands: self.commands.clone() }
    }
}

impl<A> fmt::Debug for GroupHandle<A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("GroupHandle").finish_non_exhaustive()
    }
}

impl<A: Application + Send + 'static> GroupHandle<A> {
    /// Starts `group` as a task of the current runtime.
    pub fn spawn(group: Group<A>, config: GroupConfig) -> GroupHandle<A> {
        let (commands, received) = mpsc::channel(INPUTS_MAX);
        tokio::spawn(run(group, config, received));
        GroupHandle { commands }
    }

    /// Writes a record, and waits until every full member has it or it is refused.
    ///
    /// # Errors
    /// The process has ended; the record may have been written.
    pub async fn write(&self, record: Vec<u8>) -> Result<Outcome, Ended> {
        let (reply, outcome) = oneshot::channel();
        self.commands.send(Command::Write(record, reply)).await.map_err(|_| Ended)?;
        outcome.await.map_err(|_| Ended)
    }

    /// Says that a member failed, for good.
    ///
    /// # Errors
    /// The process has ended.
    pub async fn fenced(&self, member: Member) -> Result<(), Ended> {
        self.input(Input::Fenced(member)).await
    }

    /// Says how a candidate stands by the criteria that are measured outside the group.
    ///
    /// # Errors
    /// The process has ended.
    pub async fn evidence(&self, candidate: Member, standing: Standing) -> Result<(), Ended> {
        self.input(Input::Evidence { candidate, standing }).await
    }

    async fn input(&self, input: Input) -> Result<(), Ended> {
        self.commands.send(Command::Input(Box::new(input))).await.map_err(|_| Ended)
    }

    /// What `look` sees in the process, between two of its steps.
    ///
    /// # Errors
    /// The process has ended.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Group<A>) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        let (reply, seen) = oneshot::channel();
        let look = Box::new(move |group: &Group<A>| {
            // Who asked may have gone away.
            let _ = reply.send(look(group));
        });
        self.commands.send(Command::Look(look)).await.map_err(|_| Ended)?;
        seen.await.map_err(|_| Ended)
    }
}

struct Driver<A> {
    group: Group<A>,
    addresses: Addresses,
    register: Arc<dyn Register>,
    inputs: mpsc::Sender<Input>,
    peers: BTreeMap<Member, mpsc::Sender<Message>>,
    waiting: BTreeMap<RequestId, oneshot::Sender<Outcome>>,
    requests: u64,
    tasks: JoinSet<()>,
}

async fn run<A: Application + Send + 'static>(
    group: Group<A>,
    config: GroupConfig,
    mut commands: mpsc::Receiver<Command<A>>,
) {
    let (inputs, mut arrived) = mpsc::channel(INPUTS_MAX);
    let mut tasks = JoinSet::new();
    tasks.spawn(wire::listen(config.listener, group.me(), inputs.clone()));
    tasks.spawn(follow(Arc::clone(&config.register), inputs.clone()));
    let GroupConfig { addresses, register, .. } = config;
    let (peers, waiting) = (BTreeMap::new(), BTreeMap::new());
    let mut driver = Driver { group, addresses, register, inputs, peers, waiting, requests: 0, tasks };
    driver.step(Input::Deadline);
    loop {
        let wait = driver.group.deadline().map_or(Duration::from_secs(3_600), |at| at.since(now()));
        let input = tokio::select! {
            command = commands.recv() => match command {
                None => return,
                Some(command) => driver.command(command),
            },
            input = arrived.recv() => input,
            () = tokio::time::sleep(wait) => Some(Input::Deadline),
        };
        if let Some(input) = input {
            driver.step(input);
        }
        // Finished tasks are let go.
        while driver.tasks.try_join_next().is_some() {}
    }
}

impl<A: Application> Driver<A> {
    fn command(&mut self, command: Command<A>) -> Option<Input> {
        match command {
            Command::Input(input) => Some(*input),
            Command::Look(look) => {
                look(&self.group);
                None
            }
            Command::Write(record, reply) => {
                self.requests += 1;
                let request = RequestId(self.requests);
                self.waiting.insert(request, reply);
                Some(Input::Write { request, record })
            }
        }
    }

    fn step(&mut self, input: Input) {
        let now: Time = now();
        let mut out = Output::default();
        self.group.step(now, input, &mut out);
        for (to, message) in out.send {
            self.send(to, message);
        }
        if let Some(swap) = out.swap {
            self.swap(swap);
        }
        for (request, outcome) in out.replies {
            if let Some(reply) = self.waiting.remove(&request) {
                // The writer may have gone away.
                let _ = reply.send(outcome);
            }
        }
        for event in out.events {
            note(self.group.me(), &event);
        }
    }

    fn send(&mut self, to: Member, message: Message) {
        if self.peers.get(&to).is_none_or(mpsc::Sender::is_closed) {
            self.peers.retain(|_, peer| !peer.is_closed());
            let Some(address) = (self.addresses)(to) else { return };
            if self.peers.len() >= PEERS_MAX {
                return;
            }
            let (sender, outgoing) = mpsc::channel(OUTGOING_MAX);
            self.tasks.spawn(wire::speak(self.group.me(), to, address, outgoing));
            self.peers.insert(to, sender);
        }
        if let Some(peer) = self.peers.get(&to) {
            // A full queue is a slow network: the core sends again what matters.
            let _ = peer.try_send(message);
        }
    }

    fn swap(&mut self, swap: Swap) {
        let (register, inputs) = (Arc::clone(&self.register), self.inputs.clone());
        self.tasks.spawn(async move {
            let outcome = register.swap(swap.expected, swap.next).await;
            // The process may be ending.
            let _ = inputs.send(Input::Swapped { number: swap.number, outcome }).await;
        });
    }
}

/// Hands in the row whenever it is another one, whom an operator wants in, and who failed.
async fn follow(register: Arc<dyn Register>, inputs: mpsc::Sender<Input>) {
    let mut known = Seen::default();
    loop {
        match register.look().await {
            Ok(seen) => {
                for input in news(&known, &seen) {
                    if inputs.send(input).await.is_err() {
                        return;
                    }
                }
                known = seen;
            }
            Err(error) => tracing::debug!(%error, "the group's row can't be read now"),
        }
        tokio::time::sleep(READ_EVERY).await;
    }
}

fn news(known: &Seen, seen: &Seen) -> Vec<Input> {
    let row = seen.row.clone().filter(|row| known.row.as_ref() != Some(row));
    let dropped = known.promote.filter(|candidate| seen.promote != Some(*candidate));
    let pending = dropped.map(|candidate| Input::Evidence { candidate, standing: Standing::Pending });
    // Again and again: it may apply here only later.
    let pass = seen.promote.map(|candidate| Input::Evidence { candidate, standing: Standing::Pass });
    let failed = seen.failed.iter().filter(|member| !known.failed.contains(member));
    let failed = failed.map(|member| Input::Fenced(*member));
    row.map(Input::Committed).into_iter().chain(failed).chain(pending).chain(pass).collect()
}

fn note(me: Member, event: &Event) {
    match event {
        Event::Installed { row, last } => {
            tracing::info!(?me, view = %row.view.id, reason = ?row.view.reason, last = last.0, "a view is in force");
        }
        Event::Eliminated(why) => tracing::warn!(?me, ?why, "this candidate is eliminated"),
        Event::Attempted { .. } | Event::Aborted { .. } => tracing::debug!(?me, ?event, "a change of view"),
    }
}
