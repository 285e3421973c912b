//! Carries out the core's jobs with the operating system: containers, checkpoint memory, the catalog's engine.
//!
//! Every job is begun at once and reported when it has ended; blocking work goes to threads made for it. It decides
//! nothing: a job that can't be done is reported as failed with the reason.

use std::fmt::Display;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steadfast::events::hub::Hub;
use steadfast::identity::Identity;
use steadfast::node::Report;
use steadfast_container::verify_host_files;
use steadfast_proto::catalog::{CheckpointRef, ContainerRow};
use steadfast_proto::ids::{ContainerId, Epoch, Incarnation, NodeId};
use steadfast_proto::node::{Job, Outcome};
use tokio::task::spawn_blocking;
use tracing::{Instrument, Span};

use super::containers::{Containers, lock, remove_folder};
use super::engine::Engine;
use super::logs;
use super::machine::Machine;
use super::memory::{Memory, Meta};
use super::rows::Rows;
use crate::api::convert::now_unix_ms;
use crate::traces::{self, Asked};

/// How often a removal that failed is tried again before it is given up until the next start.
const DESTROY_ATTEMPTS: u32 = 5;
const DESTROY_PAUSE: Duration = Duration::from_millis(500);
/// How long a node waits to be told of registrations before it is a member without them: when all nodes start at the
/// same time nobody can tell.
const PROVISION_MAX: Duration = Duration::from_secs(3);

/// The agent's worker.
pub(crate) struct Worker {
    pub(crate) asked: Asked,
    pub(crate) containers: Option<Arc<Containers>>,
    pub(crate) memory: Memory,
    pub(crate) engine: Engine,
    pub(crate) identity: Arc<Mutex<Option<Identity>>>,
    pub(crate) rows: Rows,
    pub(crate) machine: Machine,
    pub(crate) events: Hub,
    pub(crate) runtime: tokio::runtime::Handle,
}

impl steadfast::node::Worker for Worker {
    fn run(&self, job: Job, report: Report) {
        match job {
            Job::Campaign => self.campaign(),
            Job::Renumber => self.renumber(report),
            Job::Collect => self.collect(),
            Job::Provision(incarnation) => self.provision(incarnation, report),
            Job::Renew { .. }
            | Job::Start(_)
            | Job::Restore(_)
            | Job::Checkpoint { .. }
            | Job::Release { .. }
            | Job::Stop { .. }
            | Job::Destroy { .. } => match &self.containers {
                Some(containers) => self.run_in(containers, job, report),
                None => refuse(job, report),
            },
        }
    }
}

impl Worker {
    fn run_in(&self, containers: &Arc<Containers>, job: Job, report: Report) {
        match job {
            Job::Renew { deadline, drift, containers: which } => containers.renew(deadline, drift, which),
            Job::Start(row) => {
                let containers = Arc::clone(containers);
                let span = self.span(&row, "start", "start");
                self.runtime.spawn_blocking(move || span.in_scope(|| containers.bring(&row, None, report)));
            }
            Job::Restore(row) => {
                let (containers, memory) = (Arc::clone(containers), self.memory.clone());
                let span = match row.after_loss {
                    true => self.span(&row, "restore", "recover"),
                    false => self.span(&row, "take over", "take over"),
                };
                self.runtime.spawn(restore(containers, memory, *row, report).instrument(span));
            }
            Job::Checkpoint { row, number, holders, hold } => {
                self.checkpoint(containers, (*row, number, hold), holders, report)
            }
            Job::Release { container, epoch } => {
                let containers = Arc::clone(containers);
                self.runtime.spawn_blocking(move || containers.release(container, epoch));
            }
            Job::Stop { container, epoch, grace } => {
                let containers = Arc::clone(containers);
                self.runtime.spawn_blocking(move || {
                    containers.stop(container, epoch, grace);
                    report.done(Outcome::Finished);
                });
            }
            Job::Destroy { container, epoch, forget } => {
                let containers = Arc::clone(containers);
                self.runtime.spawn_blocking(move || destroy(&containers, (container, epoch), forget, report));
            }
            Job::Collect | Job::Campaign | Job::Renumber | Job::Provision(_) => {}
        }
    }

    /// What bringing a container up is: a step of what somebody asked for, or an operation of its own.
    fn span(&self, row: &ContainerRow, asked: &str, unasked: &str) -> Span {
        let parent = traces::caused(&self.rows, row, row.epoch);
        let name = if parent.is_some() { asked } else { unasked };
        traces::step_of(parent, name, &[("container", &row.spec.name), ("epoch", &row.epoch.0)])
    }

    /// What a checkpoint is part of; one that nobody asked for leaves no trace.
    fn checkpoint_span(&self, row: &ContainerRow, number: u64, hold: bool) -> Span {
        let handed_over = || if hold { traces::caused(&self.rows, row, row.epoch.next()) } else { None };
        let Some(parent) = self.asked.of(row.id).or_else(handed_over) else { return Span::none() };
        let name = if hold { "hand over" } else { "take checkpoint" };
        let attributes: [(&str, &dyn Display); 2] = [("container", &row.spec.name), ("checkpoint", &number)];
        traces::step_of(Some(parent), name, &attributes)
    }

    fn checkpoint(
        &self,
        containers: &Arc<Containers>,
        (row, number, hold): (ContainerRow, u64, bool),
        holders: Vec<NodeId>,
        report: Report,
    ) {
        let taking = Taking {
            containers: Arc::clone(containers),
            memory: self.memory.clone(),
            criu: self.machine.criu.clone(),
            processor: self.machine.processor.clone(),
            revision: self.rows.catalog().range_stale("container/").revision,
            hold,
        };
        let span = self.checkpoint_span(&row, number, hold);
        let told = span.clone();
        let work = async move {
            let outcome = match taking.take(&row, number, holders).await {
                Ok(checkpoint) => Outcome::Sealed(Box::new(checkpoint)),
                Err(reason) => {
                    traces::failed(&told, &reason);
                    Outcome::Failed(reason)
                }
            };
            report.done(outcome);
        };
        self.runtime.spawn(work.instrument(span));
    }

    fn collect(&self) {
        let (memory, rows) = (self.memory.clone(), self.rows.clone());
        let containers = self.containers.clone();
        self.runtime.spawn(async move {
            memory.collect(&rows).await;
            if let Some(containers) = containers {
                let known =
                    rows.all_stale::<ContainerRow>("container/").into_iter().map(|(row, _)| row.id).collect();
                // Nothing waits for it.
                let _ = spawn_blocking(move || logs::forget_others(containers.kept_logs(), &known)).await;
            }
        });
    }

    /// Makes the next incarnation durable: one more start of the same data folder.
    fn renumber(&self, report: Report) {
        let identity = Arc::clone(&self.identity);
        self.runtime.spawn_blocking(move || {
            let mut slot = lock(&identity);
            let Some(old) = slot.take() else { return };
            let folder = old.directory().to_path_buf();
            // The folder's lock goes with the old value.
            drop(old);
            match Identity::open_for_start(&folder) {
                Ok(fresh) => {
                    let incarnation = fresh.incarnation();
                    *slot = Some(fresh);
                    report.renumbered(incarnation);
                }
                Err(error) => tracing::error!(%error, "a new incarnation could not be made durable; this node stays out"),
            }
        });
    }

    /// Gets every registration of the whole cluster. A node that nobody tells of them is a member all the same.
    fn provision(&self, incarnation: Incarnation, report: Report) {
        let events = self.events.clone();
        self.runtime.spawn(async move {
            let outcome = match tokio::time::timeout(PROVISION_MAX, events.provisioned(incarnation)).await {
                Ok(()) => Outcome::Finished,
                Err(_) => {
                    let why = "no member told what is registered for in the whole cluster";
                    tracing::warn!("{why}: the first events of this node may be missed");
                    Outcome::Failed(why.to_owned())
                }
            };
            report.done(outcome);
        });
    }

    fn campaign(&self) {
        let engine = self.engine.clone();
        self.runtime.spawn(async move { engine.campaign().await });
    }
}

/// Answers for a node that runs no containers.
fn refuse(job: Job, report: Report) {
    match job {
        Job::Start(_) | Job::Restore(_) | Job::Checkpoint { .. } => {
            report.done(Outcome::Failed("this node runs no containers".to_owned()))
        }
        Job::Stop { .. } | Job::Destroy { .. } => report.done(Outcome::Finished),
        Job::Renew { .. }
        | Job::Release { .. }
        | Job::Collect
        | Job::Campaign
        | Job::Renumber
        | Job::Provision(_) => {}
    }
}

async fn restore(containers: Arc<Containers>, memory: Memory, row: ContainerRow, report: Report) {
    let image = containers.image_folder(row.id, row.epoch, "restore");
    let fetched = match row.restore_from() {
        Some(checkpoint) => {
            let step = traces::step("fetch", &[("checkpoint", &checkpoint.number)]);
            memory.fetch(checkpoint, &image).instrument(step).await
        }
        None => Err("it has no committed checkpoint".to_owned()),
    };
    let meta = match fetched {
        Ok(meta) => meta,
        Err(reason) => {
            traces::failed(&Span::current(), &reason);
            return report.done(Outcome::Failed(reason));
        }
    };
    let span = Span::current();
    // The outcome comes through the report.
    let _ = spawn_blocking(move || {
        let _here = span.enter();
        if let Err(mismatch) = verify_host_files(&meta.host_files) {
            remove_folder(&image);
            return report.done(Outcome::Failed(mismatch.to_string()));
        }
        containers.bring(&row, Some(&image), report);
    })
    .await;
}

fn destroy(containers: &Containers, (id, epoch): (ContainerId, Epoch), forget: bool, report: Report) {
    for attempt in 1..=DESTROY_ATTEMPTS {
        match containers.destroy(id, epoch, forget) {
            Ok(()) => break,
            Err(error) => tracing::error!(%id, error, attempt, "a container could not be removed whole"),
        }
        std::thread::sleep(DESTROY_PAUSE);
    }
    report.done(Outcome::Finished);
}

/// One checkpoint under way.
struct Taking {
    containers: Arc<Containers>,
    memory: Memory,
    criu: String,
    processor: String,
    revision: u64,
    hold: bool,
}

impl Taking {
    /// Captures, ships, and leaves nothing behind but what its holders sealed.
    async fn take(
        self,
        row: &ContainerRow,
        number: u64,
        holders: Vec<NodeId>,
    ) -> Result<CheckpointRef, String> {
        if holders.is_empty() {
            return Err(
                "not enough checkpoint memory on other nodes: there is no other node that is well".to_owned()
            );
        }
        let container = self.containers.handle(row.id).ok_or("it does not run on this node")?;
        let image = Image(self.containers.image_folder(row.id, row.epoch, "checkpoint"));
        let taken_unix_ms = now_unix_ms();
        let (folder, first, hold) = (image.0.clone(), row.latest.is_none(), self.hold);
        let cut_off = self.containers.cut_off(row.id, row.epoch).await;
        let step = traces::step("capture", &[]);
        let capture = spawn_blocking(move || {
            let _step = step.enter();
            if first {
                check_first(&container)?;
            }
            container.checkpoint(&folder, hold).map_err(|error| error.to_string())
        });
        let capture = capture.await;
        drop(cut_off);
        let capture = capture.map_err(|error| error.to_string())??;
        let meta = Meta { host_files: capture.host_files };
        let holders = (holders, row.spec.copies_for(self.hold));
        let ship = self.memory.ship(&image.0, row, number, holders, self.revision, &meta);
        let shipped = ship.instrument(traces::step("ship", &[])).await?;
        Ok(CheckpointRef {
            number,
            epoch: row.epoch,
            manifest: shipped.manifest,
            bytes: shipped.bytes_total,
            copies: shipped.holders.into_iter().collect(),
            wanted: row.spec.copies,
            frozen_us: capture.frozen_ns / 1000,
            taken_unix_ms,
            criu: self.criu,
            processor: self.processor,
        })
    }
}

/// Looks, before the first checkpoint, whether the program can be imaged at all.
fn check_first(container: &steadfast_container::Container) -> Result<(), String> {
    let found = container.preflight().map_err(|error| format!("it can't be looked at: {error}"))?;
    if found.is_empty() {
        return Ok(());
    }
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    Err(found.join("; "))
}

/// An image folder that goes when this is dropped.
struct Image(std::path::PathBuf);

impl Drop for Image {
    fn drop(&mut self) {
        remove_folder(&self.0);
    }
}
