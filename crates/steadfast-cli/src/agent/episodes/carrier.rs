//! Frames of exchanges between agents, over the calls of `steadfast::net::rpc`.
//!
//! One bounded queue and one task per peer, so that frames arrive in the order in which they were sent; what waited while a
//! call was under way goes with the next. A frame that finds the queue full, or whose call fails, is dropped: whatever
//! matters in it is sent again. It decides nothing about exchanges and never blocks the keeper.

use std::collections::BTreeMap;
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

/// The RPC service that takes frames.
pub(super) const SERVICE_FRAMES: u8 = 26;
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
}

impl Wire {
    pub(super) fn new(peers: Peers, runtime: Handle, parties: Parties, effects: Effects) -> Wire {
        Wire { peers, runtime, queues: BTreeMap::new(), parties, effects }
    }
}

impl Carrier for Wire {
    fn send(&mut self, to: NodeId, frame: Frame) {
        let queue = self.queues.entry(to).or_insert_with(|| {
            let (queue, waiting) = mpsc::channel(QUEUE_FRAMES);
            self.runtime.spawn(carry(self.peers.clone(), to, waiting));
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

/// Carries the frames for one peer until nobody sends any.
async fn carry(peers: Peers, to: NodeId, mut waiting: mpsc::Receiver<Frame>) {
    while let Some(first) = waiting.recv().await {
        let mut body = Vec::new();
        append(&mut body, &first);
        while body.len() < CALL_BYTES
            && let Ok(next) = waiting.try_recv()
        {
            append(&mut body, &next);
        }
        // Acks come back as frames; what fails is sent again by whoever misses them.
        if let Err(error) = peers.call_untraced(to, Class::Events, SERVICE_FRAMES, body, CALL_MAX).await {
            tracing::debug!(%to, %error, "frames of exchanges were lost");
        }
    }
}

fn append(body: &mut Vec<u8>, frame: &Frame) {
    let bytes = frame.encode();
    body.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    body.extend_from_slice(&bytes);
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
