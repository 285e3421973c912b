//! The program that every operation of the cluster runs: change something in the catalog, wait until it has come about, go on.
//!
//! An operation is an instance like any other (PROTOCOLS 2 and 6). Each of its steps has a change, an effect that is made
//! again after a crash and then finds itself made, and a goal, of which it is told that it is reached, or why it never will
//! be. The program is a function of the operation and of what it is told; what the changes and goals are is decided in
//! `changes` and `goals`.

use serde::{Deserialize, Serialize};
use steadfast_proto::catalog::{decode_row, encode_row};
use steadfast_proto::episode::{Event, Failure as Fault, Next, Outcome, Outgoing, Task, Wait};
use steadfast_proto::exchange::{Blob, Name, Text};
use steadfast_proto::ids::{ContainerId, Epoch, NodeId};

use crate::codes::Code;
use crate::failure::Failure;

/// The program's name.
pub(super) const PROGRAM: &str = "operation";
/// The adapter that makes the changes.
pub(super) const ADAPTER: &str = "effect/cluster";
/// The event that says that a goal is reached, or never will be.
pub(super) const REACHED: &str = "reached";
const CHANGE: &str = "change";

/// What is to be done, and what was there when it was asked for: by that a change tells whether it has been made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    /// A candidate takes a member's place.
    Replace { old: NodeId, new: NodeId },
    /// A node hands over its containers; its row had this version.
    Drain { node: NodeId, version: u64 },
    /// A node hands over its duties and leaves; its row had this version.
    Leave { node: NodeId, version: u64 },
    /// A checkpoint behind this one is taken of a container in this epoch.
    Checkpoint { container: ContainerId, epoch: Epoch, after: u64 },
    /// A container in this epoch goes back to a checkpoint, the newest or this one, on any node or this one.
    Restore { container: ContainerId, epoch: Epoch, number: Option<u64>, to: Option<NodeId> },
    /// A candidate becomes a member.
    Join { node: NodeId },
    /// A container goes on in this epoch after the loss of the node that ran it.
    Recover { container: ContainerId, epoch: Epoch },
}

/// A change that a step makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Replace,
    Drain,
    Checkpoint,
    End,
    Restore,
}

/// What a step waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    Replaced,
    Drained,
    Left,
    Checkpointed,
    Ended,
    Runs,
    Joined,
}

type Step = (Option<Change>, Goal);

impl What {
    /// Its steps, in their order.
    fn steps(&self) -> &'static [Step] {
        match self {
            What::Replace { .. } => &[(Some(Change::Replace), Goal::Replaced)],
            What::Drain { .. } => &[(Some(Change::Drain), Goal::Drained)],
            What::Leave { .. } => &[(Some(Change::Drain), Goal::Left)],
            What::Checkpoint { .. } => &[(Some(Change::Checkpoint), Goal::Checkpointed)],
            What::Restore { .. } => &[(Some(Change::End), Goal::Ended), (Some(Change::Restore), Goal::Runs)],
            What::Join { .. } => &[(None, Goal::Joined)],
            What::Recover { .. } => &[(None, Goal::Runs)],
        }
    }

    /// Whether the other one, which nobody asked for, is what this one does.
    pub(super) fn brings_back(&self, unasked: &What) -> bool {
        let What::Restore { container, epoch, .. } = self else { return false };
        *unasked == What::Recover { container: *container, epoch: epoch.next() }
    }

    /// The command's name, or what the cluster does by itself.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            What::Replace { .. } => "replace",
            What::Drain { .. } => "drain",
            What::Leave { .. } => "leave",
            What::Checkpoint { .. } => "checkpoint",
            What::Restore { .. } => "restore",
            What::Join { .. } => "join",
            What::Recover { .. } => "recover",
        }
    }
}

/// How far an operation is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operation {
    pub(crate) what: What,
    /// The node that was asked for it; the cluster began it itself without one.
    pub(crate) asked_at: Option<NodeId>,
    /// The trace that it is part of.
    pub(crate) trace: Option<String>,
    /// How many of its steps are done.
    pub(crate) step: u8,
}

impl Operation {
    pub(super) fn new(what: What, asked_at: Option<NodeId>, trace: Option<String>) -> Operation {
        Operation { what, asked_at, trace, step: 0 }
    }

    pub(super) fn encode(&self) -> Result<Blob, String> {
        encode_row(self).map(Blob::from).map_err(|error| error.to_string())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Operation, String> {
        decode_row(bytes).map_err(|error| format!("the operation can not be read: {error}"))
    }

    fn step(&self) -> Option<Step> {
        self.what.steps().get(usize::from(self.step)).copied()
    }

    pub(super) fn change(&self) -> Option<Change> {
        self.step()?.0
    }

    pub(super) fn goal(&self) -> Option<Goal> {
        self.step().map(|(_, goal)| goal)
    }

    /// How many steps there are.
    pub(super) fn steps(&self) -> u8 {
        u8::try_from(self.what.steps().len()).unwrap_or(u8::MAX)
    }
}

/// That a step's goal is reached; or why it never will be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reached {
    pub(super) step: u8,
    pub(super) failed: Option<Failed>,
}

/// Why an operation failed: the number of a code, and its sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failed(pub(super) u16, pub(super) String);

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Failed {
        Failed(failure.code.number(), failure.message)
    }
}

impl From<Failed> for Failure {
    fn from(Failed(number, message): Failed) -> Failure {
        let code = Code::ALL.iter().find(|code| code.number() == number);
        Failure::new(code.copied().unwrap_or(Code::Internal), message)
    }
}

/// How an operation ended: the answer of its instance.
pub(super) type End = Option<Failed>;

/// One episode.
pub(super) fn episode(task: &Task) -> Result<Outcome, Fault> {
    let event = &task.event;
    let outcome = match &*event.kind {
        Event::START => Operation::decode(&event.payload).and_then(|operation| enter(&operation)),
        REACHED => reached(task),
        other => Err(format!("an operation is told nothing of the kind {other}")),
    };
    outcome.map_err(|why| Fault { why: Text::cut(&why), lasting: true })
}

fn reached(task: &Task) -> Result<Outcome, String> {
    let operation = Operation::decode(&task.state)?;
    let Reached { step, failed } = decode_row(&task.event.payload)
        .map_err(|error| format!("what is reached can not be read: {error}"))?;
    if step != operation.step {
        return Ok(Outcome { state: task.state.clone(), next: Next::Wait(wait()), ..Outcome::default() });
    }
    match failed {
        Some(failed) => ended(&operation, Some(failed)),
        None => enter(&Operation { step: step + 1, ..operation }),
    }
}

/// Begins the next step, or ends.
fn enter(operation: &Operation) -> Result<Outcome, String> {
    let Some((change, _)) = operation.step() else { return ended(operation, None) };
    let state = operation.encode()?;
    let messages = match change {
        None => Vec::new(),
        Some(_) => {
            let to = Name::parse(ADAPTER).map_err(|error| error.to_string())?;
            let payload = state.clone();
            let kind = CHANGE.into();
            vec![Outgoing { to, kind, correlation: None, payload, begins: false, within: None }]
        }
    };
    Ok(Outcome { state, messages, answer: None, next: Next::Wait(wait()) })
}

fn wait() -> Wait {
    Wait::for_kind(REACHED)
}

fn ended(operation: &Operation, end: End) -> Result<Outcome, String> {
    let answer = encode_row(&end).map_err(|error| error.to_string())?;
    Ok(Outcome { state: operation.encode()?, next: Next::End(Blob::from(answer)), ..Outcome::default() })
}
