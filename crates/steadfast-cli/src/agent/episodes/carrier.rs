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

/// The RPC service that takes frames from keepers of local instances to such.
pub(super) const SERVICE_FRAMES: u8 = 26;
/// The RPC service that takes all others: the first byte says whose they are.
pub(super) const SERVICE_SHARED: u8 = 30;
/// In that byte: the sender keeps shared instances.
const FROM_SHARED: u8 = 1;
/// In that byte: the receiver keeps shared instances.
const TO_SHARED: u8 = 2;
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

/// The keepers of this node: one of local instances, one of shared ones. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Keepers {
    both: Arc<Mutex<[Option<Keeper>; 2]>>,
}

impl Keepers {
    pub(super) fn set(&self, is_shared: bool, keeper: Option<Keeper>) {
        self.both()[usize::from(is_shared)] = keeper;
    }

    pub(super) fn get(&self, is_shared: bool) -> Option<Keeper> {
        self.both()[usize::from(is_shared)].clone()
    }

    /// Those that there are.
    pub(super) fn all(&self) -> Vec<Keeper> {
        self.both().iter().flatten().cloned().collect()
    }

    fn both(&self) -> MutexGuard<'_, [Option<Keeper>; 2]> {
        self.both.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the id of a keeper of shared instances from that of its node: it has the mark of another kind of UUID.
const SHARED_MARK: u128 = 1 << 79;

/// What the keeper of shared instances on a node is called among keepers.
pub(super) fn shared_id(node: NodeId) -> NodeId {
    NodeId(node.0 | SHARED_MARK)
}

/// The node of a keeper.
pub(super) fn node_of(keeper: NodeId) -> NodeId {
    NodeId(keeper.0 & !SHARED_MARK)
}

fn keeps_shared(keeper: NodeId) -> bool {
    keeper.0 & SHARED_MARK != 0
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
        if let Some(keeper) = keepers.get(keeps_shared(to)) {
            keeper.receive(me, frame);
        }
    }
}

/// Carries the frames for one peer until nobody sends any.
async fn carry(peers: Peers, me: NodeId, to: NodeId, mut waiting: mpsc::Receiver<Frame>) {
    let from = if keeps_shared(me) { FROM_SHARED } else { 0 };
    let kind = from | if keeps_shared(to) { TO_SHARED } else { 0 };
    let (node, service) = (node_of(to), if kind == 0 { SERVICE_FRAMES } else { SERVICE_SHARED });
    while let Some(first) = waiting.recv().await {
        let mut body = if kind == 0 { Vec::new() } else { vec![kind] };
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

/// As [`take`], where the first byte says which keeper speaks to which.
pub(super) async fn take_shared(keepers: &Keepers, from: NodeId, mut body: Bytes) -> Result<Bytes, String> {
    let kind = body.try_get_u8().map_err(|_| "frames of exchanges are cut off".to_owned())?;
    let keeper = keepers.get(kind & TO_SHARED != 0);
    let keeper = keeper.ok_or_else(|| "this node keeps no such instances now".to_owned())?;
    let from = if kind & FROM_SHARED == 0 { from } else { shared_id(from) };
    take(&keeper, from, body).await
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
    fn both_keepers_of_a_node_have_ids_of_their_own() {
        let node = NodeId(uuid::Uuid::new_v4().as_u128());
        assert_eq!((node_of(node), node_of(shared_id(node))), (node, node));
        assert!(keeps_shared(shared_id(node)) && !keeps_shared(node));
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
