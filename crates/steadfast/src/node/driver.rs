//! The loop itself, on its own thread: sockets, timers, committed rows and commands in; datagrams, proposals,
//! jobs and events out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use steadfast_proto::catalog::{Change, Key, NodeRow, encode_row};
use steadfast_proto::ids::{Incarnation, NetworkId, NodeId};
use steadfast_proto::machine::Machine;
use steadfast_proto::node::{Batch, Event, Input, Job, JobId, Node, Proposal, RequestId, Row};
use steadfast_proto::time::Time;
use steadfast_proto::wire::Heartbeat;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::log::Journal;
use super::rows::Rows;
use super::witness::{self, Witness};
use super::{
    Addresses, DatagramCounts, Inbox, Keys, LEADER_POLL, Notice, Noticed, Parts, Question, Report,
    SpawnError, TIMELINE_MAX, Waiting, network_ids,
};
use crate::catalog::{CatalogError, Txn};
use crate::identity::ClusterKey;
use crate::net::carrier::Carrier;
use crate::net::datagram::{self, Datagram, Receiver, Refusal, Sender};
use crate::net::seal::{Introduced, Opener, Sealer};

/// How often a transaction is tried again after an outcome that changed nothing for certain.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an echo proves that a peer knows this session; then it is introduced again.
const INTRODUCED_AGE_MAX: Duration = Duration::from_secs(1);

/// Where events go.
pub(super) struct Publisher {
    events: broadcast::Sender<Noticed>,
    timeline: Arc<Mutex<VecDeque<Noticed>>>,
    boot_unix_ms: u64,
    sequence: u64,
}

impl Publisher {
    pub(super) fn new(
        events: broadcast::Sender<Noticed>,
        timeline: Arc<Mutex<VecDeque<Noticed>>>,
        boot_unix_ms: u64,
    ) -> Publisher {
        Publisher { events, timeline, boot_unix_ms, sequence: 0 }
    }

    fn publish(&mut self, now: Time, event: Event) {
        self.sequence += 1;
        let unix_ms = self.boot_unix_ms.saturating_add(now.as_nanos() / 1_000_000);
        let noticed = Noticed { unix_ms, sequence: self.sequence, event };
        let mut timeline = self.timeline.lock().unwrap_or_else(PoisonError::into_inner);
        if timeline.len() >= TIMELINE_MAX {
            timeline.pop_front();
        }
        timeline.push_back(noticed.clone());
        drop(timeline);
        // Nobody listening is no error.
        let _ = self.events.send(noticed);
    }
}

struct Driver {
    node: Node,
    parts: Parts,
    sender: Sender,
    sealer: Sealer,
    sealing: ClusterKey,
    opener: Opener,
    introduced: Introduced,
    addresses: Addresses,
    engine_ids: BTreeMap<u64, NodeId>,
    leader: Option<NodeId>,
    notices: mpsc::UnboundedSender<Notice>,
    publisher: Publisher,
    journal: Journal,
    witness: Witness,
    /// Authentic datagrams that held no heartbeat.
    malformed: u64,
    waiting: Waiting,
    next_request: u64,
    /// Used again for every datagram.
    plain: Vec<u8>,
    sealed: Vec<u8>,
}

/// Binds the sockets and starts the thread.
pub(super) fn start(
    mut parts: Parts,
    notices: mpsc::UnboundedSender<Notice>,
    inbox: Inbox,
    publisher: Publisher,
) -> Result<(), SpawnError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(SpawnError::Thread)?;
    parts.settings.networks = network_ids(parts.addresses.len());
    let bound: Vec<_> =
        parts.settings.networks.iter().copied().zip(parts.addresses.iter().map(|(_, at)| *at)).collect();
    let opened = {
        let _inside = runtime.enter();
        datagram::bind(&bound).map(|sockets| (sockets, witness::open_carrier(&bound)))
    };
    let ((sender, receiver), carrier) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // The caller may run in another runtime, where none may be waited for.
            runtime.shutdown_background();
            return Err(error.into());
        }
    };
    let newest =
        parts.keys.iter().max_by_key(|key| key.epoch).expect("a member holds at least one cluster key");
    let sealing = newest.clone();
    let sealer =
        Sealer::new(parts.cluster, newest, parts.settings.id, parts.settings.incarnation, parts.boot_salt);
    let opener = Opener::new(parts.cluster, &parts.keys);
    let settings = &parts.settings;
    let witness =
        Witness::new(parts.runtime.clone(), parts.watch.as_ref(), settings.incarnation, settings.boot);
    let driver = Driver {
        witness,
        malformed: 0,
        node: Node::new(parts.settings.clone(), datagram::now()),
        sender,
        sealer,
        sealing,
        opener,
        introduced: Introduced::new(datagram::now(), INTRODUCED_AGE_MAX),
        addresses: Addresses::new(),
        engine_ids: BTreeMap::new(),
        leader: None,
        notices,
        publisher,
        journal: Journal::new(parts.addresses.iter().map(|(name, _)| name.clone())),
        waiting: Waiting::new(),
        next_request: 1,
        plain: Vec::new(),
        sealed: Vec::new(),
        parts,
    };
    std::thread::Builder::new()
        .name("node".to_owned())
        .spawn(move || runtime.block_on(driver.run(receiver, carrier, inbox)))
        .map_err(SpawnError::Thread)?;
    Ok(())
}

impl Driver {
    async fn run(mut self, mut receiver: Receiver, mut carrier: Option<Carrier>, mut inbox: Inbox) {
        let mut inputs = Vec::new();
        let mut rows = Rows::begin(Arc::clone(&self.parts.catalog), &self.parts.runtime, &mut inputs);
        let mut leader_poll = tokio::time::interval(LEADER_POLL);
        let mut woken = false;
        loop {
            for input in inputs.drain(..) {
                self.step(input);
            }
            let wake = self.until_deadline();
            // A sleep that is over already would still come after whatever else is ready, again and again. What waits at the
            // sockets is learnt where this thread yields.
            if wake.is_zero() && !std::mem::replace(&mut woken, true) {
                tokio::task::yield_now().await;
                self.wake(&mut receiver);
                continue;
            }
            woken = false;
            tokio::select! {
                biased;
                received = receiver.receive() => match received {
                    Ok(datagrams) => {
                        self.receive(datagrams);
                        self.refused(&receiver.take_refusals());
                    }
                    Err(error) => {
                        tracing::error!(%error, "the heartbeat sockets failed; this node stops");
                        return;
                    }
                },
                // Before the rows: what was sealed here must be known when the row that names it comes.
                Ok(()) = inbox.memory.changed() => {
                    let report = inbox.memory.borrow_and_update().clone();
                    self.step(Input::Memory { free_bytes: report.free_bytes, held: report.held });
                }
                notice = inbox.notices.recv() => match notice {
                    None => return,
                    Some(Notice::Stop(stopped)) => return self.stop(stopped).await,
                    Some(Notice::Input(input)) => self.take_in(*input),
                    Some(Notice::Keys(keys)) => self.rekey(keys),
                },
                () = tokio::time::sleep(wake) => self.wake(&mut receiver),
                Some(testimony) = self.witness.next() => self.step(testimony),
                interface = witness::interface(&mut carrier) => self.step(interface),
                result = rows.next(&mut inputs) => if let Err(error) = result {
                    tracing::error!(%error, "the catalog closed; this node stops");
                    return;
                },
                // Outsiders ask as often as they like, so what the cluster needs comes first.
                Some(question) = inbox.questions.recv() => self.answer(question),
                _ = leader_poll.tick() => {
                    self.look_at_leader(rows.leader());
                    self.witness.watch(self.node.watched(), &self.addresses);
                }
            }
        }
    }

    /// Drain first (PROTOCOLS 3.1): what arrived while this thread slept must speak before silence does.
    fn wake(&mut self, receiver: &mut Receiver) {
        while let Some(Ok(datagrams)) = receiver.receive().now_or_never() {
            self.receive(datagrams);
        }
        self.refused(&receiver.take_refusals());
        self.step(Input::Deadline);
    }

    fn until_deadline(&self) -> Duration {
        match self.node.deadline() {
            Some(at) => at.since(datagram::now()),
            None => Duration::from_millis(100),
        }
    }

    fn receive(&mut self, datagrams: &mut [Datagram]) {
        for datagram in datagrams {
            let (network, received_at) = (datagram.network(), datagram.received());
            let opened = match self.opener.open(datagram.bytes()) {
                Ok(opened) => opened,
                Err(reason) => {
                    tracing::trace!(%reason, "a datagram was rejected");
                    continue;
                }
            };
            let (from, incarnation) = (opened.source, opened.incarnation);
            match Heartbeat::decode(opened.payload) {
                Ok(heartbeat) => {
                    if heartbeat.challenge == self.parts.settings.boot {
                        let sent_at = heartbeat.echo.map(|echo| echo.sent_at);
                        self.introduced.echoed(datagram::now(), from, network, sent_at);
                    }
                    self.step(Input::Heard { from, incarnation, network, received_at, heartbeat });
                }
                Err(error) => {
                    self.malformed += 1;
                    tracing::warn!(%from, %error, "an authentic datagram holds no heartbeat");
                }
            }
        }
    }

    fn refused(&mut self, refusals: &[Refusal]) {
        for refusal in refusals {
            if let Some(testimony) = self.witness.refused(refusal, &self.addresses) {
                self.step(testimony);
            }
        }
    }

    async fn stop(mut self, stopped: oneshot::Sender<()>) {
        for (to, network, heartbeat) in self.node.goodbye(datagram::now()) {
            self.send(to, network, &heartbeat);
        }
        self.witness.goodbye().await;
        // Whoever asked may be gone.
        let _ = stopped.send(());
    }

    fn look_at_leader(&mut self, leader: Option<u64>) {
        let leader = leader.and_then(|id| self.engine_ids.get(&id)).copied();
        if leader != self.leader {
            self.leader = leader;
            self.step(Input::Leader(leader));
        }
    }

    fn answer(&mut self, question: Question) {
        match question {
            Question::Status(reply) => {
                let _ = reply.send(self.node.status(datagram::now()));
            }
            Question::Datagrams(reply) => {
                let counts = self.opener.counts();
                let opened = counts.opened.saturating_sub(self.malformed);
                let rejected = counts.iter().collect();
                let _ = reply.send(DatagramCounts { opened, malformed: self.malformed, rejected });
            }
            Question::Keeps(sealed, reply) => {
                let kept = sealed
                    .into_iter()
                    .map(|(container, epoch, number, manifest)| {
                        self.node.keeps(container, epoch, number, manifest)
                    })
                    .collect();
                let _ = reply.send(kept);
            }
            Question::Request(request, reply) => {
                let id = RequestId(self.next_request);
                self.next_request += 1;
                self.waiting.insert(id, reply);
                self.step(Input::Request(id, request));
            }
        }
    }

    fn take_in(&mut self, input: Input) {
        if let Input::Renumbered(incarnation) = input {
            self.renumber(incarnation);
        }
        self.step(input);
    }

    fn renumber(&mut self, incarnation: Incarnation) {
        let (id, salt) = (self.parts.settings.id, self.parts.boot_salt);
        self.sealer = Sealer::new(self.parts.cluster, &self.sealing, id, incarnation, salt);
        self.introduced.restart(datagram::now());
        self.witness.renumber(incarnation);
    }

    fn rekey(&mut self, keys: Keys) {
        for key in keys.accepted.iter().filter(|key| key.epoch >= keys.accepted_min) {
            self.opener.accept_key(key);
        }
        let sealing = keys.accepted.into_iter().find(|key| key.epoch == keys.sealing);
        if let Some(sealing) = sealing
            && sealing != self.sealing
        {
            tracing::info!(
                from = self.sealing.epoch,
                to = sealing.epoch,
                "datagrams are sealed with another key"
            );
            self.sealer.rotate(&sealing);
            self.introduced.restart(datagram::now());
            self.sealing = sealing;
        }
        // Last, and never what this node itself seals with: it must go on hearing those that are in step with it.
        self.opener.retire_keys_before(keys.accepted_min.min(self.sealing.epoch));
    }

    fn step(&mut self, input: Input) {
        if let Input::Committed { change: Change::Node(id, row), .. } = &input {
            self.learn_addresses(*id, row.as_ref());
        }
        self.journal.note(&input);
        let now = datagram::now();
        let mut batch = Batch::default();
        self.node.step(now, input, &mut batch);
        for (to, network, heartbeat) in batch.send {
            self.send(to, network, &heartbeat);
        }
        for peer in batch.probe {
            if let Some(testimony) = self.witness.probe(now, peer) {
                // It returns like any other input, after this step.
                let _ = self.notices.send(Notice::Input(Box::new(testimony)));
            }
        }
        for proposal in batch.propose {
            self.propose(proposal);
        }
        for (id, job) in batch.run {
            self.run_job(id, job);
        }
        for event in batch.publish {
            self.journal.write(&event);
            if let Event::Answer(id, result) = &event
                && let Some(reply) = self.waiting.remove(id)
            {
                let _ = reply.send(result.clone());
                continue;
            }
            self.publisher.publish(now, event);
        }
    }

    fn learn_addresses(&mut self, id: NodeId, row: Option<&NodeRow>) {
        let Some(row) = row else {
            self.addresses.remove(&id);
            self.opener.forget(id);
            self.introduced.forget(id);
            return;
        };
        self.engine_ids.insert(row.engine_id, id);
        let theirs: BTreeMap<&str, _> = row.addresses.iter().map(|(name, at)| (name.as_str(), *at)).collect();
        let ours = self.parts.addresses.iter().map(|(name, _)| theirs.get(name.as_str()).copied());
        self.addresses.insert(id, ours.collect());
    }

    fn send(&mut self, to: NodeId, network: NetworkId, heartbeat: &Heartbeat) {
        let address = self.addresses.get(&to).and_then(|addresses| addresses.get(usize::from(network.0)));
        let Some(Some(address)) = address.copied() else { return };
        self.plain.clear();
        self.sealed.clear();
        heartbeat.encode(&mut self.plain);
        let form = self.introduced.form(datagram::now(), to, network);
        match self.sealer.seal(network, form, &self.plain, &mut self.sealed) {
            Ok(_) => {
                self.sender.send(network, address, &self.sealed);
            }
            Err(error) => tracing::error!(%error, "a heartbeat does not fit a datagram"),
        }
    }

    fn propose(&self, proposal: Proposal) {
        let (catalog, notices) = (Arc::clone(&self.parts.catalog), self.notices.clone());
        self.parts.runtime.spawn(async move {
            let id = proposal.id;
            let accepted = match transaction(proposal) {
                Ok(txn) => match tokio::time::timeout(PROPOSE_TIMEOUT, catalog.txn(txn)).await {
                    Ok(Ok(reply)) => reply.succeeded,
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "a proposal has no answer");
                        if matches!(error, CatalogError::NoMajority { .. } | CatalogError::Unreachable { .. })
                        {
                            tokio::time::sleep(LEADER_POLL).await;
                        }
                        false
                    }
                    Err(_) => false,
                },
                Err(error) => {
                    tracing::error!(%error, "a proposal can't be written");
                    false
                }
            };
            let input = Input::Proposed { proposal: id, accepted };
            let _ = notices.send(Notice::Input(Box::new(input)));
        });
    }

    fn run_job(&self, id: JobId, job: Job) {
        if !matches!(job, Job::Renew { .. }) {
            tracing::debug!(?job, "job");
        }
        self.parts.worker.run(job, Report { id, notices: self.notices.clone() });
    }
}

fn transaction(proposal: Proposal) -> Result<Txn, steadfast_proto::catalog::RowError> {
    let compare = proposal.basis.into_iter().map(|(key, revision)| (key.encode(), revision)).collect();
    let mut puts = Vec::new();
    for row in proposal.rows {
        let (key, bytes) = match &row {
            Row::View(view) => (Key::View, Some(encode_row(view)?)),
            Row::Record(record) => (Key::ViewRecord(record.view.id), Some(encode_row(record.as_ref())?)),
            Row::Forget(id) => (Key::ViewRecord(*id), None),
            Row::Probation(row) => (Key::Probation(row.node), Some(encode_row(row)?)),
            Row::NoProbation(node) => (Key::Probation(*node), None),
            Row::Drain(row) => (Key::Drain(row.node), Some(encode_row(row)?)),
            Row::Container(row) => (Key::Container(row.id), Some(encode_row(row.as_ref())?)),
        };
        puts.push((key.encode(), bytes.map(Into::into)));
    }
    Ok(Txn { compare, puts })
}
