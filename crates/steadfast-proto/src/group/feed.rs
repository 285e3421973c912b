//! The leader's side of the feed: what each other member and each candidate has, and what to send it next.
//!
//! Decides what is stable: what every full member has. Must never count a candidate (VM3). Loss is met by going
//! back to the first record that is not acknowledged; a candidate behind what the log keeps gets the whole state.

use std::collections::BTreeMap;

use super::log::Log;
use super::{MESSAGE_BYTES_MAX, Member, Message, Row, Sequence, Settings};
use crate::flaw::{Flaw, is_planted};
use crate::time::Time;

/// How many records may be under way to one peer.
const WINDOW: u64 = 256;
/// How often a wait is doubled before it stays the same.
const DOUBLINGS_MAX: u32 = 3;

#[derive(Clone, Debug, Default)]
pub(super) struct Feed {
    peers: BTreeMap<Member, Peer>,
}

#[derive(Clone, Debug)]
struct Peer {
    is_full: bool,
    /// What it has; `None` before a candidate has a state.
    acked: Option<Sequence>,
    next: Sequence,
    /// Whether it has answered in this view.
    is_in_view: bool,
    resend_at: Option<Time>,
    tries: u32,
    transfer: Option<Transfer>,
}

#[derive(Clone, Debug)]
struct Transfer {
    at: Sequence,
    stable: Sequence,
    state: Vec<u8>,
    offset: usize,
    is_sent: bool,
}

impl Peer {
    fn new(is_full: bool, acked: Option<Sequence>) -> Peer {
        Peer {
            is_full,
            acked,
            next: acked.unwrap_or_default().next(),
            is_in_view: false,
            resend_at: None,
            tries: 0,
            transfer: None,
        }
    }
}

impl Feed {
    /// A feed for the full members of a view, all of whom have everything up to its cut.
    pub(super) fn begin(me: Member, row: &Row) -> Feed {
        let others = row.view.full.iter().filter(|member| **member != me);
        Feed { peers: others.map(|member| (*member, Peer::new(true, Some(row.view.cut)))).collect() }
    }

    /// Notes what a candidate has; it is fed from now on.
    pub(super) fn candidate(&mut self, member: Member, last: Option<Sequence>) {
        let peer = self.peers.entry(member).or_insert_with(|| Peer::new(false, last));
        if !peer.is_full && peer.acked.is_some() && last.is_none() {
            // It threw its state away.
            *peer = Peer::new(false, None);
        }
    }

    pub(super) fn drop_candidate(&mut self, member: Member) {
        if self.peers.get(&member).is_some_and(|peer| !peer.is_full) {
            self.peers.remove(&member);
        }
    }

    pub(super) fn retain_candidates(&mut self, stays: impl Fn(Member) -> bool) {
        self.peers.retain(|member, peer| peer.is_full || stays(*member));
    }

    /// Notes what a peer acknowledges.
    pub(super) fn acknowledge(
        &mut self,
        from: Member,
        last: Sequence,
        log: &Log,
        settings: &Settings,
        now: Time,
    ) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if last > log.last() || peer.transfer.is_some() || peer.acked.is_none() {
            return;
        }
        peer.is_in_view = true;
        if peer.acked < Some(last) {
            peer.acked = Some(last);
            peer.tries = 0;
            peer.resend_at = peer.resend_at.map(|_| now + settings.retry);
        }
        peer.next = peer.next.max(last.next());
        if peer.acked == Some(log.last()) {
            peer.resend_at = None;
        }
    }

    /// Notes how much of a snapshot a candidate has.
    pub(super) fn acknowledge_snapshot(&mut self, from: Member, at: Sequence, offset: u64) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let Some(transfer) = peer.transfer.as_mut().filter(|transfer| transfer.at == at) else { return };
        let Some(offset) = usize::try_from(offset).ok().filter(|offset| *offset <= transfer.state.len())
        else {
            return;
        };
        peer.tries = 0;
        peer.resend_at = None;
        if offset == transfer.state.len() {
            peer.transfer = None;
            peer.acked = Some(at);
            peer.next = at.next();
        } else {
            transfer.offset = offset;
            transfer.is_sent = false;
        }
    }

    /// Up to where every full member has everything, the leader's own log included.
    pub(super) fn stable(&self, log: &Log) -> Sequence {
        let full = self.peers.values().filter(|peer| peer.is_full);
        if is_planted(Flaw::GroupCandidateCounts) {
            let needed = full.count();
            let mut acked: Vec<_> = self.peers.values().map(|peer| peer.acked.unwrap_or_default()).collect();
            acked.sort_unstable_by(|one, other| other.cmp(one));
            return needed.checked_sub(1).and_then(|index| acked.get(index).copied()).unwrap_or(log.last());
        }
        full.map(|peer| peer.acked.unwrap_or_default()).min().unwrap_or(log.last()).min(log.last())
    }

    /// What the candidate that is furthest behind has, or will have once its snapshot has arrived.
    pub(super) fn held(&self) -> Option<Sequence> {
        let candidates = self.peers.values().filter(|peer| !peer.is_full);
        candidates.filter_map(|peer| peer.transfer.as_ref().map(|transfer| transfer.at).or(peer.acked)).min()
    }

    /// Sends what is due. `snapshot` gives the state up to the log's last record.
    pub(super) fn pump(
        &mut self,
        now: Time,
        (row, log, settings): (&Row, &Log, &Settings),
        snapshot: impl Fn() -> Vec<u8>,
        send: &mut Vec<(Member, Message)>,
    ) {
        for (member, peer) in &mut self.peers {
            let is_due = peer.resend_at.is_some_and(|at| at <= now);
            if is_due {
                peer.tries = (peer.tries + 1).min(DOUBLINGS_MAX);
            }
            let wait = settings.retry * 2u32.pow(peer.tries);
            let is_behind = peer.acked.is_none_or(|acked| acked.next() < log.first());
            if peer.transfer.is_none() && is_behind && !peer.is_full {
                let (at, stable, state) = (log.last(), log.stable(), snapshot());
                peer.transfer = Some(Transfer { at, stable, state, offset: 0, is_sent: false });
                peer.resend_at = None;
            }
            if let Some(transfer) = &mut peer.transfer {
                if !transfer.is_sent || is_due {
                    transfer.is_sent = true;
                    peer.resend_at = Some(now + wait);
                    send.push((*member, part(row, transfer)));
                }
                continue;
            }
            let before = send.len();
            feed(*member, peer, is_due, (row, log), send);
            if peer.is_in_view && peer.acked == Some(log.last()) {
                peer.resend_at = None;
            } else if is_due || (send.len() > before && peer.resend_at.is_none()) {
                peer.resend_at = Some(now + wait);
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.peers.values().filter_map(|peer| peer.resend_at).min()
    }
}

/// The records that are due to one peer; an empty feed where only the view is news.
fn feed(
    member: Member,
    peer: &mut Peer,
    is_due: bool,
    (row, log): (&Row, &Log),
    send: &mut Vec<(Member, Message)>,
) {
    let (view, stable) = (row.view.id, log.stable());
    let acked = peer.acked.unwrap_or_default();
    if is_due {
        peer.next = acked.next();
        if !peer.is_in_view {
            send.push((member, Message::Install(row.clone())));
        }
    }
    let before = send.len();
    while peer.next <= log.last() && peer.next.0 - acked.0 <= WINDOW {
        let records = log.from(peer.next, acked.0 + WINDOW + 1 - peer.next.0);
        if records.is_empty() {
            return;
        }
        let first = peer.next;
        peer.next = Sequence(first.0 + records.len() as u64);
        send.push((member, Message::Feed { view, first, records, stable }));
    }
    // Nothing to feed, but whether the peer is in the view is not known.
    let is_asked = !peer.is_in_view && (is_due || peer.resend_at.is_none());
    if send.len() == before && is_asked {
        send.push((member, Message::Feed { view, first: peer.next, records: Vec::new(), stable }));
    }
}

fn part(row: &Row, transfer: &Transfer) -> Message {
    let end = transfer.state.len().min(transfer.offset + MESSAGE_BYTES_MAX);
    Message::Snapshot {
        view: row.view.id,
        at: transfer.at,
        stable: transfer.stable,
        total: transfer.state.len() as u64,
        offset: transfer.offset as u64,
        bytes: transfer.state.get(transfer.offset..end).unwrap_or_default().to_vec(),
    }
}
