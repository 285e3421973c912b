//! Jobs: what the operating system would do, in random time and with random failure.
//!
//! A job may end long after it makes sense; what it leaves is what the real one would leave. Checkpoints go into
//! the holders' memory, and each holder's core is told of it before the seal is acknowledged.

use std::collections::BTreeSet;

use steadfast_proto::catalog::{CheckpointRef, ContainerRow, Exit};
use steadfast_proto::ids::{ContainerId, Digest, Epoch, NodeId};
use steadfast_proto::node::{Input, Job, JobId, Outcome};

use crate::checkers::Fact;
use crate::host::Held;
use crate::scenario::{MS, SECOND};
use crate::shims::State;
use crate::world::{Event, Image, World};

/// How far a job is.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    Bring(Box<ContainerRow>),
    Capture { row: Box<ContainerRow>, number: u64, holders: Vec<NodeId>, hold: bool },
    Ship { row: Box<ContainerRow>, number: u64, holders: Vec<NodeId>, manifest: Digest, image: Image },
    Stop { container: ContainerId, epoch: Epoch },
    Release { container: ContainerId, epoch: Epoch },
    Destroy { container: ContainerId, epoch: Epoch },
    Collect,
    Campaign,
    Renumber,
    Provision,
}

impl World {
    pub(crate) fn begin_job(&mut self, host: usize, life: u64, job: JobId, what: Job) {
        let mut delay = MS / 10 + self.random.around(self.scenario.job);
        if self.random.chance(self.scenario.job_hang) {
            delay += self.random.below(4 * SECOND);
        }
        let stage = match what {
            Job::Renew { .. } => return,
            Job::Start(row) | Job::Restore(row) => {
                if let Some(agent) = &mut self.hosts[host].agent {
                    agent.bringing.insert(job, row.clone());
                }
                Stage::Bring(row)
            }
            Job::Checkpoint { row, number, holders, hold } => Stage::Capture { row, number, holders, hold },
            Job::Release { container, epoch } => Stage::Release { container, epoch },
            Job::Stop { container, epoch, grace } => {
                delay = self.random.below(u64::try_from(grace.as_nanos()).unwrap_or(SECOND).min(SECOND));
                Stage::Stop { container, epoch }
            }
            Job::Destroy { container, epoch, forget: _ } => Stage::Destroy { container, epoch },
            Job::Collect => Stage::Collect,
            Job::Campaign => {
                delay = self.random.below(20 * MS);
                Stage::Campaign
            }
            Job::Renumber => {
                delay = self.random.below(20 * MS);
                Stage::Renumber
            }
            Job::Provision(_) => {
                delay = self.random.below(20 * MS);
                Stage::Provision
            }
        };
        self.after(delay, Event::Job { host, life, job, stage: Box::new(stage) });
    }

    pub(crate) fn job_stage(&mut self, host: usize, life: u64, job: JobId, stage: Box<Stage>) {
        if !self.hosts[host].is_life(life) {
            return;
        }
        // The agent itself captures, ships, collects and counts; runc goes on without it.
        let needs_agent = !matches!(*stage, Stage::Bring(_) | Stage::Stop { .. } | Stage::Destroy { .. });
        if needs_agent && self.is_paused(host, life) {
            self.defer(host, Event::Job { host, life, job, stage });
            return;
        }
        let fails = self.random.chance(if self.faults_on { self.scenario.job_failure } else { 0.0 });
        let outcome = match *stage {
            Stage::Bring(row) => self.brought(host, job, &row, fails),
            Stage::Capture { row, number, holders, hold } => match self.capture(host, &row) {
                Some(image) if !fails => {
                    if hold {
                        self.hold_still(host, row.id);
                    }
                    let manifest = self.new_manifest(image);
                    let delay = MS / 5 + self.random.around(self.scenario.job);
                    let stage = Box::new(Stage::Ship { row, number, holders, manifest, image });
                    self.after(delay, Event::Job { host, life, job, stage });
                    return;
                }
                Some(_) | None => Outcome::Failed("it could not be captured".to_owned()),
            },
            Stage::Ship { row, number, holders, manifest, image } => {
                self.ship(host, &row, number, &holders, manifest, image)
            }
            Stage::Release { container, epoch } => {
                let shim = self.hosts[host].shims.get_mut(&container);
                if let Some(shim) = shim.filter(|shim| shim.epoch == epoch) {
                    shim.held = false;
                }
                return;
            }
            Stage::Stop { .. } | Stage::Destroy { .. } if fails => Outcome::Failed("runc failed".to_owned()),
            Stage::Stop { container, epoch } => {
                if self.hosts[host].shims.get(&container).is_some_and(|shim| shim.epoch == epoch) {
                    self.end_program(host, container, Exit::Signal(15));
                }
                Outcome::Finished
            }
            Stage::Destroy { container, epoch } => {
                if self.hosts[host].shims.get(&container).is_some_and(|shim| shim.epoch == epoch) {
                    self.remove_shim(host, container);
                }
                Outcome::Finished
            }
            Stage::Collect => {
                self.collect(host);
                Outcome::Finished
            }
            Stage::Campaign => {
                self.campaign(host);
                Outcome::Finished
            }
            Stage::Provision if fails => Outcome::Failed("nobody answers".to_owned()),
            Stage::Provision => Outcome::Finished,
            Stage::Renumber if fails => Outcome::Failed("the disk is full".to_owned()),
            Stage::Renumber => {
                let next = self.hosts[host].incarnation.next();
                self.hosts[host].incarnation = next;
                self.input(host, life, Input::Renumbered(next));
                Outcome::Finished
            }
        };
        self.input(host, life, Input::Done { job, outcome });
    }

    fn input(&mut self, host: usize, life: u64, input: Input) {
        self.handle(Event::Input { host, life, input: Box::new(input) });
    }

    fn brought(&mut self, host: usize, job: JobId, row: &ContainerRow, fails: bool) -> Outcome {
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.bringing.remove(&job);
        }
        if fails {
            return Outcome::Failed("runc failed".to_owned());
        }
        match self.bring_up(host, row) {
            Ok(()) => Outcome::Up,
            Err(reason) => Outcome::Failed(reason.to_owned()),
        }
    }

    /// The state of a running container; a frozen one is not captured, as its lease has lapsed.
    fn capture(&mut self, host: usize, row: &ContainerRow) -> Option<Image> {
        let shim = self.hosts[host].shims.get(&row.id)?;
        let running = shim.epoch == row.epoch && shim.state == State::Running;
        let value = shim.value(self.now);
        running.then(|| Image { value, bytes: self.random.between(1, 120) })
    }

    fn new_manifest(&mut self, image: Image) -> Digest {
        let number = self.number().rotate_left(32);
        let mut bytes = [0u8; 32];
        for (byte, digit) in bytes.iter_mut().zip(number.to_be_bytes()) {
            *byte = digit;
        }
        let manifest = Digest(bytes);
        self.images.insert(manifest, image);
        manifest
    }

    fn ship(
        &mut self,
        host: usize,
        row: &ContainerRow,
        number: u64,
        holders: &[NodeId],
        manifest: Digest,
        image: Image,
    ) -> Outcome {
        let hold = self.hosts[host].shims.get(&row.id).is_some_and(|shim| shim.held);
        let held = Held { container: row.id, epoch: row.epoch, number, bytes: image.bytes };
        let mut copies = BTreeSet::new();
        for node in holders {
            if copies.len() >= row.spec.copies_for(hold) {
                break;
            }
            let Some(holder) = self.index_of(*node) else { continue };
            let reached = self.hosts[holder].answers() && self.networks.connects(host, holder);
            if !reached || self.hosts[holder].free_bytes() < image.bytes {
                continue;
            }
            self.hosts[holder].memory.insert(manifest, held);
            self.fact(&Fact::Sealed { node: *node, manifest });
            self.tell_memory(holder);
            copies.insert(*node);
        }
        if copies.is_empty() {
            return Outcome::Failed("no other node has room for it".to_owned());
        }
        self.fact(&Fact::Captured { manifest, value: image.value });
        Outcome::Sealed(Box::new(CheckpointRef {
            number,
            epoch: row.epoch,
            manifest,
            bytes: image.bytes,
            copies,
            wanted: row.spec.copies,
            frozen_us: 0,
            taken_unix_ms: 0,
            criu: "4.2.1".to_owned(),
            processor: "x".to_owned(),
        }))
    }

    /// Frees what the core does not keep.
    fn collect(&mut self, host: usize) {
        let here = &self.hosts[host];
        let (Some(agent), node) = (&here.agent, here.node) else { return };
        let garbage: Vec<Digest> = (here.memory.iter())
            .filter(|(manifest, held)| !agent.node.keeps(held.container, held.epoch, held.number, **manifest))
            .map(|(manifest, _)| *manifest)
            .collect();
        for manifest in &garbage {
            self.hosts[host].memory.remove(manifest);
            self.fact(&Fact::Freed { node, manifest: *manifest });
        }
        if !garbage.is_empty() {
            self.tell_memory(host);
        }
    }
}
