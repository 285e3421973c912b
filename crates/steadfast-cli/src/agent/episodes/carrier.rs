//! Frames of exchanges between agents, over the calls of `steadfast::net::rpc`.
//!
//! One bounded queue and one task per peer, so that frames arrive in the order in which they were sent; what waited while a
//! call was under way goes with the next. A frame that finds the queue full, or whose call fails, is dropped: whatever
//! matters in it is sent again. It decides nothing about exchanges and never blocks the keeper.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use steadfast::episodes::{Carrier, Keeper};
use steadfast::net::rpc::{Class, Peers};
use steadfast_proto::episode::Effect;
use steadfast_proto::exchange::{Frame, Message, Name};
use steadfast_proto::ids::NodeId;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::effects::Effects;
use super::outside::Parties;
use super::rows::Kind;

/// The RPC service that takes frames from keepers of local instances to such.
pub(super) const SERVICE_FRAMES: u8 = 26;
/// The RPC service that takes all others: the first two bytes say which keeper speaks to which.
pub(super) const SERVICE_MOVING: u8 = 30;
/// Frames that wait for one peer at most.
const QUEUE_FRAMES: usize = 256;
/// How many bytes of frames one call carries, about.
const CALL_BYTES: usize = 4 << 20;
/// How long a peer may take for one call.
const CALL_MAX: Duration = Duration::from_secs(3);

/// Sends frames to the agents that they are for.
pub(super) struct Wire {
    peers: Peers,
    runtime: Handle,
    queues: BTreeMap<NodeId, mpsc::Sender<Frame>>,
    parties: Parties,
    effects: Effects,
    me: NodeId,
    keepers: Keepers,
}

impl Wire {
    /// The wire of the keeper that is called `me`.
    pub(super) fn new(
        (peers, runtime): (Peers, Handle),
        parties: Parties,
        effects: Effects,
        (me, keepers): (NodeId, Keepers),
    ) -> Wire {
        Wire { peers, runtime, queues: BTreeMap::new(), parties, effects, me, keepers }
    }
}

/// The keepers of this node, one of each kind of instances. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Keepers {
    all: Arc<Mutex<[Option<Keeper>; 3]>>,
}

impl Keepers {
    pub(super) fn set(&self, kind: Kind, keeper: Option<Keeper>) {
        self.lock()[kind as usize] = keeper;
    }

    pub(super) fn get(&self, kind: Kind) -> Option<Keeper> {
        self.lock()[kind as usize].clone()
    }

    /// Those that there are.
    pub(super) fn all(&self) -> Vec<Keeper> {
        self.lock().iter().flatten().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, [Option<Keeper>; 3]> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tell the ids of keepers from those of their nodes: they have the marks of other kinds of UUIDs.
const SHARED_MARK: u128 = 1 << 79;
const MIRROR_MARK: u128 = 1 << 77;

/// What a keeper on a node is called among keepers.
pub(super) fn keeper_id(node: NodeId, kind: Kind) -> NodeId {
    match kind {
        Kind::Local => node,
        Kind::Mirror => NodeId(node.0 | MIRROR_MARK),
        Kind::Shared => NodeId(node.0 | SHARED_MARK),
    }
}

/// The node of a keeper.
pub(super) fn node_of(keeper: NodeId) -> NodeId {
    NodeId(keeper.0 & !(SHARED_MARK | MIRROR_MARK))
}

fn kind_of(keeper: NodeId) -> Kind {
    match (keeper.0 & MIRROR_MARK != 0, keeper.0 & SHARED_MARK != 0) {
        (true, _) => Kind::Mirror,
        (false, true) => Kind::Shared,
        (false, false) => Kind::Local,
    }
}

impl Carrier for Wire {
    fn send(&mut self, to: NodeId, frame: Frame) {
        let queue = self.queues.entry(to).or_insert_with(|| {
            let (queue, waiting) = mpsc::channel(QUEUE_FRAMES);
            if node_of(to) == node_of(self.me) {
                self.runtime.spawn(hand_over(self.keepers.clone(), self.me, to, waiting));
            } else {
                self.runtime.spawn(carry(self.peers.clone(), self.me, to, waiting));
            }
            queue
        });
        if queue.try_send(frame).is_err() {
            tracing::trace!(%to, "a frame found the queue full");
        }
    }

    fn keep(&mut self, party: &Name, messages: Vec<Message>) {
        self.parties.tell(party, &messages);
    }

    fn carry_out(&mut self, effect: Effect) {
        self.effects.offer(&effect);
    }
}

/// Hands frames to the other keeper of this node until nobody sends any.
async fn hand_over(keepers: Keepers, me: NodeId, to: NodeId, mut waiting: mpsc::Receiver<Frame>) {
    while let Some(frame) = waiting.recv().await {
        if let Some(keeper) = keepers.get(kind_of(to)) {
            keeper.receive(me, frame);
        }
    }
}

/// Carries the frames for one peer until nobody sends any.
async fn carry(peers: Peers, me: NodeId, to: NodeId, mut waiting: mpsc::Receiver<Frame>) {
    let (node, kinds) = (node_of(to), [kind_of(me), kind_of(to)]);
    let (service, head) = match kinds {
        [Kind::Local, Kind::Local] => (SERVICE_FRAMES, Vec::new()),
        _ => (SERVICE_MOVING, kinds.map(|kind| kind as u8).to_vec()),
    };
    while let Some(first) = waiting.recv().await {
        let mut body = head.clone();
        append(&mut body, &first);
        while body.len() < CALL_BYTES
            && let Ok(next) = waiting.try_recv()
        {
            append(&mut body, &next);
        }
        // Acks come back as frames; what fails is sent again by whoever misses them.
        if let Err(error) = peers.call_untraced(node, Class::Events, service, body, CALL_MAX).await {
            tracing::debug!(%to, %error, "frames of exchanges were lost");
        }
    }
}

fn append(body: &mut Vec<u8>, frame: &Frame) {
    let bytes = frame.encode();
    body.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    body.extend_from_slice(&bytes);
}

/// As [`take`], where the first two bytes say which keeper speaks to which.
pub(super) async fn take_moving(keepers: &Keepers, from: NodeId, mut body: Bytes) -> Result<Bytes, String> {
    let mut kind = || {
        let number = body.try_get_u8().map_err(|_| "frames of exchanges are cut off".to_owned())?;
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == number);
        kind.ok_or_else(|| format!("there is no store of instances {number}"))
    };
    let (speaker, hearer) = (kind()?, kind()?);
    let keeper = keepers.get(hearer).ok_or_else(|| "this node keeps no such instances now".to_owned())?;
    take(&keeper, keeper_id(from, speaker), body).await
}

/// Hands the frames of one call to the keeper; answers when it has looked at them, so that a peer is not faster than it.
pub(super) async fn take(keeper: &Keeper, from: NodeId, mut body: Bytes) -> Result<Bytes, String> {
    while body.has_remaining() {
        let length = body.try_get_u32_le().map_err(|_| "frames of exchanges are cut off".to_owned())?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > body.remaining() {
            return Err("frames of exchanges are cut off".to_owned());
        }
        let frame = Frame::decode(&body.split_to(length)).map_err(|error| error.to_string())?;
        keeper.receive(from, frame);
    }
    keeper.look(|_| ()).await.map_err(|error| error.to_string())?;
    Ok(Bytes::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keepers_of_a_node_have_ids_of_their_own() {
        let node = NodeId(uuid::Uuid::new_v4().as_u128());
        for kind in Kind::ALL {
            let keeper = keeper_id(node, kind);
            assert_eq!((node_of(keeper), kind_of(keeper)), (node, kind));
        }
    }

    #[test]
    fn frames_of_one_call_are_told_apart() {
        let frame = |number| Frame { life: 1, to_life: 2, number, messages: Vec::new() };
        let mut body = Vec::new();
        append(&mut body, &frame(1));
        append(&mut body, &frame(2));
        let mut rest = Bytes::from(body);
        for number in 1..=2 {
            let length = usize::try_from(rest.get_u32_le()).unwrap();
            assert_eq!(Frame::decode(&rest.split_to(length)), Ok(frame(number)));
        }
        assert!(rest.is_empty());
    }
}
