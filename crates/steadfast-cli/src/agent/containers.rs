//! The containers of this node: every call into `steadfast-container`, off the node's own thread.
//!
//! One thread per container waits for what its shim tells; one thread passes renewals on. Jobs of one container follow
//! each other, those of different ones do not wait for each other. It decides nothing: what a container is to do
//! comes from the core, what became of it goes back there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use steadfast::node::{NodeHandle, Report};
use steadfast_container::{
    BridgeConfig, Container, Device, Event, Host, HostConfig, RestoreMode, ShimError, Spec, State,
};
use steadfast_proto::catalog::{ContainerRow, ContainerSpec, Exit, Key, Root};
use steadfast_proto::ids::{ContainerId, Epoch, NodeId};
use steadfast_proto::node::Outcome;
use steadfast_proto::time::Time;
use tracing::Span;

use super::device_verbs;
use super::devices::Room;
use super::inside::Sockets;
use super::machine::Machine;
use super::rows::Rows;
use crate::codes::Code;
use crate::config::Config;
use crate::failure::Failure;
use crate::traces;

/// A log file is rotated at this size, and this many are kept.
const LOG_BYTES_MAX: u64 = 16 << 20;
const LOG_FILES_MAX: u32 = 4;
/// How long one wait for a change takes at most; changes end it at once.
const WAIT: Duration = Duration::from_secs(5);
/// The same while a container is being started or restored: it may be frozen for ever, and no longer wanted.
const WAIT_BRINGING: Duration = Duration::from_millis(500);

/// The containers of this node.
pub(crate) struct Containers {
    host: Host,
    images: PathBuf,
    kept_logs: PathBuf,
    here: Mutex<BTreeMap<ContainerId, Here>>,
    busy: Mutex<BTreeMap<ContainerId, Arc<Mutex<()>>>>,
    renewals: Arc<Renewals>,
    node: OnceLock<NodeHandle>,
    sockets: Sockets,
    devices: Option<Arc<Room>>,
    rows: Rows,
    id: NodeId,
}

/// One container on this node.
#[derive(Clone)]
struct Here {
    container: Container,
    epoch: Epoch,
    state: String,
}

/// The newest renewal; an older one that was not passed on yet is superseded.
#[derive(Default)]
struct Renewals {
    newest: Mutex<Option<Renewal>>,
    changed: Condvar,
}

struct Renewal {
    deadline: Time,
    drift: Duration,
    containers: Vec<(ContainerId, Epoch)>,
}

impl Containers {
    /// Prepares this machine for containers.
    pub(crate) async fn open(
        config: &Config,
        machine: &Machine,
        id: NodeId,
        rows: Rows,
        devices: Option<Arc<Room>>,
    ) -> Result<Arc<Containers>, Failure> {
        let images = config.container.run.join("images");
        let host_config = HostConfig {
            scope: format!("sf-{}", id.to_string().chars().take(13).collect::<String>()),
            run_dir: config.container.run.clone(),
            data_dir: config.data.join("containers"),
            image_dir: images.clone(),
            runc: machine.runc.clone(),
            criu: machine.criu_program.clone(),
            shim: vec!["/proc/self/exe".into(), "shim".into()],
            bridge: config
                .container
                .bridge
                .clone()
                .map(|name| BridgeConfig { name, uplink: config.container.uplink.clone() }),
            log_bytes_max: LOG_BYTES_MAX,
            log_files_max: LOG_FILES_MAX,
            hidden: vec![config.data.clone(), config.memory_folder.clone()],
        };
        let opened = tokio::task::spawn_blocking(move || Host::open(host_config)).await;
        let opened = opened.map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
        let host = opened.map_err(|error| Failure::new(Code::ToolMissing, error.to_string()))?;
        let containers = Arc::new(Containers {
            host,
            images,
            kept_logs: config.data.join("logs"),
            here: Mutex::default(),
            busy: Mutex::default(),
            renewals: Arc::default(),
            node: OnceLock::new(),
            sockets: Sockets::new(),
            devices,
            rows,
            id,
        });
        let inside = Arc::clone(&containers);
        thread("renewals", move || inside.pass_renewals())?;
        Ok(containers)
    }

    /// The cgroup of the programs of a container that this node owns, by its name.
    pub(crate) fn cgroup_of(&self, name: &str) -> Option<PathBuf> {
        let rows = self.rows.all_stale::<ContainerRow>("container/");
        let (row, _) = rows.iter().find(|(row, _)| row.spec.name == name && row.owner == self.id)?;
        Some(self.host.cgroup(&row.id.to_string()))
    }

    /// Takes over what an earlier agent left, without disturbing it, and tells the core.
    pub(crate) async fn attach(self: &Arc<Self>, node: NodeHandle) -> Result<(), Failure> {
        // Attached once, at the start.
        let _ = self.node.set(node.clone());
        let host = self.host.clone();
        let adopted = tokio::task::spawn_blocking(move || host.adopt()).await;
        let adopted = adopted.map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
        let adopted = adopted.map_err(|error| Failure::new(Code::DiskFailed, error.to_string()))?;
        clear_images(&self.images, &adopted);
        for container in adopted {
            let Ok(id) = container.id().parse::<ContainerId>() else { continue };
            let epoch = Epoch(container.epoch());
            tracing::info!(%id, epoch = epoch.0, name = container.spec().name, "adopted");
            // A shim that does not answer is taken to hold it: to let it go then costs one commit.
            let held = container.status().map_or(true, |status| status.held);
            node.adopted(id, epoch, held);
            self.watch(id, epoch, container, None)?;
        }
        node.adopted_all();
        Ok(())
    }

    /// What each shim last said.
    pub(crate) fn states(&self) -> BTreeMap<ContainerId, String> {
        lock(&self.here).iter().map(|(id, here)| (*id, here.state.clone())).collect()
    }

    /// Lets a container go on that a checkpoint holds still.
    pub(crate) fn release(&self, id: ContainerId, epoch: Epoch) {
        let Some(container) = self.handle(id).filter(|container| container.epoch() == epoch.0) else {
            return;
        };
        if let Err(error) = container.release() {
            tracing::error!(%id, %error, "a container that was held still can't be let go");
        }
    }

    /// The handle of a container that runs here.
    pub(crate) fn handle(&self, id: ContainerId) -> Option<Container> {
        lock(&self.here).get(&id).map(|here| here.container.clone())
    }

    /// What the programs of a container are served through the socket inside it.
    pub(crate) fn serve_inside(&self, serves: impl Fn(ContainerId) -> Router + Send + Sync + 'static) {
        self.sockets.serve(serves);
    }

    /// Cuts the programs of a container off from the socket inside it until the value is dropped, so that it can be
    /// imaged.
    pub(crate) async fn cut_off(self: &Arc<Self>, id: ContainerId, epoch: Epoch) -> CutOff {
        self.sockets.close(id).await;
        CutOff { containers: Arc::clone(self), id, epoch }
    }

    /// Where the logs of containers lie that were removed from this node.
    pub(crate) fn kept_logs(&self) -> &Path {
        &self.kept_logs
    }

    /// A folder on a tmpfs for one image, made new and empty.
    pub(crate) fn image_folder(&self, id: ContainerId, epoch: Epoch, what: &str) -> PathBuf {
        let folder = self.images.join(format!("{id}-{}-{what}", epoch.0));
        remove_folder(&folder);
        folder
    }

    /// Lets containers run until a deadline; returns at once.
    pub(crate) fn renew(&self, deadline: Time, drift: Duration, containers: Vec<(ContainerId, Epoch)>) {
        *lock(&self.renewals.newest) = Some(Renewal { deadline, drift, containers });
        self.renewals.changed.notify_one();
    }

    fn pass_renewals(&self) {
        loop {
            let mut slot = lock(&self.renewals.newest);
            let renewal = loop {
                match slot.take() {
                    Some(renewal) => break renewal,
                    None => slot = self.renewals.changed.wait(slot).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(slot);
            let drift_ns = u64::try_from(renewal.drift.as_nanos()).unwrap_or(u64::MAX);
            for (id, epoch) in renewal.containers {
                let here = lock(&self.here).get(&id).filter(|here| here.epoch == epoch).cloned();
                let Some(here) = here else { continue };
                if let Err(error) = here.container.renew(renewal.deadline.as_nanos(), drift_ns) {
                    tracing::debug!(%id, %error, "a lease could not be renewed");
                }
            }
        }
    }

    /// Starts or restores a container; reports when it runs. Blocks.
    pub(crate) fn bring(self: &Arc<Self>, row: &ContainerRow, image: Option<&Path>, report: Report) {
        let turn = self.turn(row.id);
        let _turn = lock(&turn);
        let spec = match self.spec_here(&row.spec) {
            Ok(spec) => spec,
            Err(reason) => return report.done(Outcome::Failed(reason)),
        };
        let mode = if row.after_loss { RestoreMode::CloseOutside } else { RestoreMode::Keep };
        let created = traces::step("prepare", &[])
            .in_scope(|| self.host.create(&row.id.to_string(), row.epoch.0, &spec, image, mode));
        match created {
            Ok(container) => {
                let step = traces::step(if image.is_some() { "shim: restore" } else { "shim: start" }, &[]);
                let bringing = Bringing { report, image: image.map(Path::to_path_buf), step };
                if let Err(failure) = self.watch(row.id, row.epoch, container, Some(bringing)) {
                    tracing::error!(%failure, "a container can't be watched");
                }
            }
            Err(error) => {
                image.into_iter().for_each(remove_folder);
                report.done(Outcome::Failed(error.to_string()));
            }
        }
    }

    /// What is to run here, with this machine's nodes of the devices that it asks for.
    fn spec_here(&self, wanted: &ContainerSpec) -> Result<Spec, String> {
        let mut spec = spec(wanted)?;
        if wanted.require.devices.is_empty() {
            return Ok(spec);
        }
        let known = device_verbs::stale(&self.rows);
        for name in &wanted.require.devices {
            let row = name.parse().ok().and_then(|name| known.ever_named(&name));
            let node = row.and_then(|row| self.devices.as_ref()?.node_of(&row.id));
            let node = node.ok_or_else(|| format!("the device {name} is not on this node now"))?;
            spec.devices.push(Device { node, name: name.clone() });
        }
        Ok(spec)
    }

    /// Asks a container to end.
    pub(crate) fn stop(&self, id: ContainerId, epoch: Epoch, grace: Duration) {
        let here = lock(&self.here).get(&id).filter(|here| here.epoch == epoch).cloned();
        let Some(here) = here else { return };
        let outcome = if grace.is_zero() { here.container.kill() } else { here.container.stop(grace) };
        if let Err(error) = outcome {
            tracing::warn!(%id, %error, "a container could not be told to end; it is killed");
            if let Err(error) = here.container.kill() {
                tracing::error!(%id, %error, "a container could not be killed");
            }
        }
    }

    /// Removes every trace of a container from this node. Blocks.
    pub(crate) fn destroy(&self, id: ContainerId, epoch: Epoch, forget: bool) -> Result<(), String> {
        let turn = self.turn(id);
        let _turn = lock(&turn);
        let here = lock(&self.here).get(&id).filter(|here| here.epoch == epoch).cloned();
        let Some(here) = here else { return Ok(()) };
        if !forget {
            super::logs::keep(&self.kept_logs, id, &here.container);
        }
        here.container.destroy().map_err(|error| error.to_string())?;
        let mut all = lock(&self.here);
        if all.get(&id).is_some_and(|here| here.epoch == epoch) {
            all.remove(&id);
            self.sockets.end(id);
        }
        Ok(())
    }

    /// Follows a container on a thread of its own. `bringing` is to be reported when it runs or can't.
    fn watch(
        self: &Arc<Self>,
        id: ContainerId,
        epoch: Epoch,
        container: Container,
        bringing: Option<Bringing>,
    ) -> Result<(), Failure> {
        // Before it can run: its program finds the socket from its first moment on.
        self.sockets.open(id, &container);
        lock(&self.here)
            .insert(id, Here { container: container.clone(), epoch, state: "starting".to_owned() });
        let mut watcher = Watcher { containers: Arc::clone(self), id, epoch, container, bringing };
        thread("container", move || watcher.run())
    }

    fn set_state(&self, id: ContainerId, epoch: Epoch, state: &str) {
        if let Some(here) = lock(&self.here).get_mut(&id)
            && here.epoch == epoch
        {
            state.clone_into(&mut here.state);
        }
    }

    /// Whether the container's row, as committed, asks for another node or epoch by now.
    fn is_superseded(&self, id: ContainerId, epoch: Epoch) -> bool {
        match self.rows.get_stale::<ContainerRow>(&Key::Container(id)) {
            Some((row, _)) => row.owner != self.id || row.epoch > epoch || !row.is_active(),
            None => true,
        }
    }

    fn is_here(&self, id: ContainerId, epoch: Epoch) -> bool {
        lock(&self.here).get(&id).is_some_and(|here| here.epoch == epoch)
    }

    /// What makes the jobs of one container follow each other.
    fn turn(&self, id: ContainerId) -> Arc<Mutex<()>> {
        let mut busy = lock(&self.busy);
        busy.retain(|other, turn| *other == id || Arc::strong_count(turn) > 1);
        Arc::clone(busy.entry(id).or_default())
    }
}

/// While it is there, no program of a container is connected to this node.
pub(crate) struct CutOff {
    containers: Arc<Containers>,
    id: ContainerId,
    epoch: Epoch,
}

impl Drop for CutOff {
    fn drop(&mut self) {
        let here = lock(&self.containers.here);
        if let Some(here) = here.get(&self.id).filter(|here| here.epoch == self.epoch) {
            self.containers.sockets.open(self.id, &here.container);
        }
    }
}

/// Follows one container.
struct Watcher {
    containers: Arc<Containers>,
    id: ContainerId,
    epoch: Epoch,
    container: Container,
    bringing: Option<Bringing>,
}

/// A start or a restore that its shim carries out.
struct Bringing {
    report: Report,
    image: Option<PathBuf>,
    /// The step of a traced operation that it is.
    step: Span,
}

impl Watcher {
    fn run(&mut self) {
        while self.containers.is_here(self.id, self.epoch) {
            let wait = if self.bringing.is_some() { WAIT_BRINGING } else { WAIT };
            let state = match self.container.wait_change(wait) {
                // Nothing changed, or the watch has just begun: look.
                Ok(None) => match self.container.status() {
                    Ok(status) => status.state,
                    Err(error) => match self.lost(&error) {
                        Some(state) => state,
                        None => continue,
                    },
                },
                Ok(Some(event)) => self.took(event),
                Err(error) => match self.lost(&error) {
                    Some(state) => state,
                    None => continue,
                },
            };
            if self.is_over(state) || self.gives_up() {
                return;
            }
        }
    }

    /// Ends a start or a restore that its row has moved on from: without a lease it would stay frozen for ever.
    fn gives_up(&mut self) -> bool {
        if self.bringing.is_none() || !self.containers.is_superseded(self.id, self.epoch) {
            return false;
        }
        if let Err(error) = self.containers.destroy(self.id, self.epoch, false) {
            tracing::warn!(id = %self.id, error, "a container that is no longer wanted here could not be removed yet");
            return false;
        }
        self.brought(Outcome::Failed("its row names another node or epoch by now".to_owned()));
        true
    }

    fn took(&self, event: Event) -> State {
        match event {
            Event::Running { pid } => {
                tracing::info!(id = %self.id, epoch = self.epoch.0, pid, "a container runs");
                State::Running
            }
            Event::Frozen { late_ns } => {
                tracing::warn!(id = %self.id, late_us = late_ns / 1000, "a container is frozen: its lease has lapsed");
                State::Frozen
            }
            Event::Thawed => {
                tracing::info!(id = %self.id, "a container goes on");
                State::Running
            }
            Event::Exited(exit) => State::Exited(exit),
            Event::Failed { reason } => State::Failed { reason },
        }
    }

    /// A shim that is gone took its container along; one that is silent may only be stopped.
    fn lost(&self, error: &ShimError) -> Option<State> {
        match error {
            ShimError::Gone { .. } => Some(State::Exited(steadfast_container::Exit::Signal(9))),
            ShimError::Silent(_) | ShimError::Refused { .. } => {
                tracing::warn!(id = %self.id, %error, "a shim does not answer");
                self.containers.set_state(self.id, self.epoch, "unknown");
                None
            }
        }
    }

    /// Tells the core; whether nothing more will happen.
    fn is_over(&mut self, state: State) -> bool {
        match state {
            State::Starting => self.containers.set_state(self.id, self.epoch, "starting"),
            State::Frozen => self.containers.set_state(self.id, self.epoch, "frozen"),
            State::Running => {
                self.containers.set_state(self.id, self.epoch, "running");
                self.brought(Outcome::Up);
            }
            State::Exited(exit) => {
                // A container that was destroyed on purpose has nothing to tell.
                if self.containers.is_here(self.id, self.epoch) {
                    self.containers.set_state(self.id, self.epoch, "exited");
                    self.brought(Outcome::Up);
                    self.exited(match exit {
                        steadfast_container::Exit::Code(code) => Exit::Code(code),
                        steadfast_container::Exit::Signal(signal) => Exit::Signal(signal),
                    });
                }
                return true;
            }
            State::Failed { reason } => {
                self.containers.set_state(self.id, self.epoch, "failed");
                if self.bringing.is_some() {
                    tracing::warn!(id = %self.id, epoch = self.epoch.0, reason, "a container could not be started");
                    if let Err(error) = self.containers.destroy(self.id, self.epoch, false) {
                        tracing::error!(id = %self.id, error, "what is left of a container that could not be started stays");
                    }
                    self.brought(Outcome::Failed(reason));
                } else {
                    tracing::warn!(id = %self.id, epoch = self.epoch.0, reason, "a container could not be kept");
                    self.exited(Exit::Signal(9));
                }
                return true;
            }
        }
        false
    }

    fn brought(&mut self, outcome: Outcome) {
        if let Some(Bringing { report, image, step }) = self.bringing.take() {
            if let Outcome::Failed(reason) = &outcome {
                traces::failed(&step, reason);
            }
            image.iter().for_each(|image| remove_folder(image));
            report.done(outcome);
        }
    }

    fn exited(&self, exit: Exit) {
        tracing::info!(id = %self.id, epoch = self.epoch.0, ?exit, "a container ended");
        if let Some(node) = self.containers.node.get() {
            node.exited(self.id, self.epoch, exit);
        }
    }
}

/// A checked spec in the words of the container crate.
pub(crate) fn spec(spec: &ContainerSpec) -> Result<Spec, String> {
    let address = spec.address.as_ref().map(|text| text.parse()).transpose();
    Ok(Spec {
        name: spec.name.clone(),
        command: spec.command.clone(),
        environment: spec.environment.clone(),
        working_directory: spec.working_directory.clone().map(PathBuf::from),
        user: spec.user.clone(),
        root: match &spec.root {
            Root::Host => steadfast_container::Root::Host,
            Root::Bundle(path) => steadfast_container::Root::Bundle(PathBuf::from(path)),
        },
        volumes: spec
            .volumes
            .iter()
            .map(|volume| steadfast_container::Volume {
                source: PathBuf::from(&volume.source),
                target: PathBuf::from(&volume.target),
                read_only: volume.read_only,
            })
            .collect(),
        // Where they are is known on the node that runs it only.
        devices: Vec::new(),
        address: address.map_err(|error: steadfast_container::AddressError| error.to_string())?,
        memory_bytes_max: spec.memory_bytes_max,
        cpu_max: spec.cpu_milli_max.map(|milli| f64::from(milli) / 1000.0),
    })
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn remove_folder(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(folder = %folder.display(), %error, "an image stays behind");
    }
}

/// Removes the images that an agent left when it was killed, but not those that a restore under way may use.
fn clear_images(images: &Path, adopted: &[Container]) {
    for entry in std::fs::read_dir(images).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let used = adopted.iter().any(|container| name.to_string_lossy().starts_with(container.id()));
        if !used {
            remove_folder(&entry.path());
        }
    }
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    started
        .map(drop)
        .map_err(|error| Failure::new(Code::DiskFailed, format!("no thread could be started: {error}")))
}
