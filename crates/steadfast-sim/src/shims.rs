//! The model of a shim: a container, its program, and the fence that holds it (PROTOCOLS 0.3).
//!
//! A shim begins to freeze at `deadline - drift - FREEZE_MAX`, woken a bounded lag late, and kills what is not
//! frozen by `deadline - drift`. A stopped shim freezes nothing, but the kernel silences the container at the
//! deadline. The program is a counter of the nanoseconds that it ran: it goes on through a freeze, and a restore
//! sets it back.

use std::time::Duration;

use steadfast_proto::catalog::{ContainerRow, ContainerState, Exit};
use steadfast_proto::ids::{ContainerId, Epoch};
use steadfast_proto::lease::FREEZE_MAX;
use steadfast_proto::time::Time;

use crate::checkers::Fact;
use crate::scenario::MS;
use crate::world::{Event, ShimTimer, World};

/// One container on one host.
#[derive(Clone, Debug)]
pub(crate) struct Shim {
    pub(crate) epoch: Epoch,
    pub(crate) state: State,
    /// What the program had counted when it last began to run.
    value: u64,
    running_since: Option<u64>,
    deadline: Time,
    drift: Duration,
    lag_max: u64,
    timer_armed: bool,
    /// Whether the kernel lets its packets through.
    heard: bool,
    /// Whether a checkpoint holds it still, whatever its lease.
    pub(crate) held: bool,
    /// Whether its fence came due while it was stopped, so that only the kernel holds the container.
    late: bool,
}

/// What a container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Frozen,
    Running,
    Freezing,
    Exited(Exit),
}

impl Shim {
    /// What the program has counted at world time `at`.
    pub(crate) fn value(&self, at: u64) -> u64 {
        self.value + self.running_since.map_or(0, |since| at.saturating_sub(since))
    }

    fn freeze_at(&self) -> Time {
        self.deadline.before(self.drift + FREEZE_MAX)
    }

    fn halt(&mut self, at: u64, state: State) {
        self.value = self.value(at);
        self.running_since = None;
        self.state = state;
        self.late = false;
    }

    fn is_running(&self) -> bool {
        match self.state {
            State::Running | State::Freezing => true,
            State::Frozen | State::Exited(_) => false,
        }
    }
}

impl World {
    /// Makes the container that `row` asks for, frozen; or says why not.
    pub(crate) fn bring_up(&mut self, host: usize, row: &ContainerRow) -> Result<(), &'static str> {
        let value = if row.state == ContainerState::Recovering { self.fetch(host, row)? } else { 0 };
        let here = &mut self.hosts[host];
        if here.shims.contains_key(&row.id) {
            return Err("it is here already");
        }
        let highest = here.epochs.entry(row.id).or_insert(row.epoch);
        if *highest > row.epoch {
            return Err("a later epoch was here before");
        }
        *highest = row.epoch;
        let shim = Shim {
            epoch: row.epoch,
            state: State::Frozen,
            value,
            running_since: None,
            deadline: Time::ZERO,
            drift: Duration::ZERO,
            lag_max: 0,
            timer_armed: false,
            heard: false,
            held: false,
            late: false,
        };
        here.shims.insert(row.id, shim);
        let (id, epoch) = (row.id, row.epoch);
        self.trace
            .line(self.now, Some(host), "container", || format!("{id:?} {epoch:?} is here, value {value}"));
        Ok(())
    }

    /// What the program had counted in the checkpoint that `row` restores, if its chunks can be had.
    fn fetch(&self, host: usize, row: &ContainerRow) -> Result<u64, &'static str> {
        let checkpoint = row.restore_from().ok_or("the row names no checkpoint")?;
        let found = (checkpoint.copies.iter()).filter_map(|node| self.index_of(*node)).any(|holder| {
            let there = &self.hosts[holder];
            let reached = holder == host || (there.answers() && self.networks.connects(host, holder));
            reached && there.memory.contains_key(&checkpoint.manifest)
        });
        let image = self.images.get(&checkpoint.manifest).filter(|_| found);
        image.map(|image| image.value).ok_or("no holder of its checkpoint answers")
    }

    pub(crate) fn renew(&mut self, event: Event) {
        let Event::Renew { host, boots, deadline, drift, lag_max, containers } = event else { return };
        if self.hosts[host].boots != boots || self.hosts[host].shims_paused {
            return;
        }
        let now = self.hosts[host].clock.read(self.now);
        for (container, epoch) in containers {
            let Some(shim) = self.hosts[host].shims.get_mut(&container) else { continue };
            if shim.epoch != epoch || deadline <= shim.deadline || shim.held {
                continue;
            }
            (shim.deadline, shim.drift, shim.lag_max) = (deadline, drift, lag_max);
            if shim.freeze_at() <= now {
                continue;
            }
            if shim.is_running() {
                shim.heard = true;
                shim.late = false;
            }
            if shim.state == State::Frozen {
                self.thaw(host, container);
            }
            self.arm(host, container);
        }
    }

    /// A checkpoint was taken after which the program stands still.
    pub(crate) fn hold_still(&mut self, host: usize, container: ContainerId) {
        let now = self.now;
        if let Some(shim) = self.hosts[host].shims.get_mut(&container) {
            shim.held = true;
            shim.halt(now, State::Frozen);
        }
        self.trace.line(now, Some(host), "container", || format!("{container:?} is held still"));
        self.show(host, container);
    }

    fn thaw(&mut self, host: usize, container: ContainerId) {
        let now = self.now;
        let Some(shim) = self.hosts[host].shims.get_mut(&container) else { return };
        shim.state = State::Running;
        shim.running_since = Some(now);
        shim.heard = true;
        shim.late = false;
        let epoch = shim.epoch;
        self.trace.line(now, Some(host), "container", || format!("{container:?} {epoch:?} runs"));
        self.show(host, container);
    }

    fn arm(&mut self, host: usize, container: ContainerId) {
        let slow = self.hosts[host].slow.max(MS);
        let boots = self.hosts[host].boots;
        let clock = self.hosts[host].clock;
        let Some(shim) = self.hosts[host].shims.get_mut(&container) else { return };
        if shim.timer_armed {
            return;
        }
        shim.timer_armed = true;
        let (epoch, due) = (shim.epoch, clock.when(shim.freeze_at()));
        let lag = self.random.below(shim.lag_max.min(slow));
        self.at(due + lag, Event::Shim { host, boots, container, epoch, what: ShimTimer::Freeze });
    }

    pub(crate) fn shim_timer(
        &mut self,
        host: usize,
        boots: u64,
        container: ContainerId,
        epoch: Epoch,
        what: ShimTimer,
    ) {
        let here = &self.hosts[host];
        if here.boots != boots || here.shims.get(&container).is_none_or(|shim| shim.epoch != epoch) {
            return;
        }
        match what {
            ShimTimer::Freeze => self.begin_to_freeze(host, container),
            ShimTimer::Frozen => self.frozen(host, container),
            ShimTimer::Silence => self.silence(host, container),
        }
    }

    fn begin_to_freeze(&mut self, host: usize, container: ContainerId) {
        let here = &mut self.hosts[host];
        let (clock, boots) = (here.clock, here.boots);
        let Some(shim) = here.shims.get_mut(&container) else { return };
        shim.timer_armed = false;
        if shim.state != State::Running {
            return;
        }
        if shim.freeze_at() > clock.read(self.now) {
            self.arm(host, container);
            return;
        }
        if here.shims_paused {
            shim.late = true;
            self.show(host, container);
            return;
        }
        shim.state = State::Freezing;
        let (epoch, deadline) = (shim.epoch, shim.deadline);
        let kill_at = clock.when(deadline.before(shim.drift)).max(self.now + MS / 2);
        let mean = if self.random.chance(0.8) { 2 } else { 100 };
        let longest = u64::try_from(FREEZE_MAX.as_nanos()).unwrap_or(u64::MAX);
        let frozen_at = self.now + self.random.below(mean * MS).min(longest);
        self.counts.freezes += 1;
        if clock.when(deadline) < frozen_at {
            let what = ShimTimer::Silence;
            self.at(clock.when(deadline), Event::Shim { host, boots, container, epoch, what });
        }
        self.at(
            frozen_at.min(kill_at),
            Event::Shim { host, boots, container, epoch, what: ShimTimer::Frozen },
        );
        self.trace.line(self.now, Some(host), "container", || format!("{container:?} {epoch:?} freezes"));
    }

    fn frozen(&mut self, host: usize, container: ContainerId) {
        let here = &mut self.hosts[host];
        let clock = here.clock;
        let Some(shim) = here.shims.get_mut(&container) else { return };
        if shim.state != State::Freezing {
            return;
        }
        if here.shims_paused {
            // The freezer's order was given; the kernel carries it out without the shim.
            shim.late = false;
        }
        shim.halt(self.now, State::Frozen);
        let renewed = shim.freeze_at() > clock.read(self.now) && !here.shims_paused;
        self.show(host, container);
        if renewed {
            self.thaw(host, container);
            self.arm(host, container);
        }
    }

    fn silence(&mut self, host: usize, container: ContainerId) {
        let here = &mut self.hosts[host];
        let now = here.clock.read(self.now);
        let Some(shim) = here.shims.get_mut(&container) else { return };
        if shim.deadline <= now && shim.is_running() && shim.heard {
            shim.heard = false;
            self.show(host, container);
        }
    }

    /// Stops every shim of a host.
    pub(crate) fn pause_shims(&mut self, host: usize) {
        let here = &mut self.hosts[host];
        here.shims_paused = true;
        let (clock, boots) = (here.clock, here.boots);
        let running: Vec<_> = (here.shims.iter())
            .filter(|(_, shim)| shim.is_running())
            .map(|(container, shim)| (*container, shim.epoch, clock.when(shim.deadline)))
            .collect();
        for (container, epoch, at) in running {
            self.at(at, Event::Shim { host, boots, container, epoch, what: ShimTimer::Silence });
        }
        self.trace.line(self.now, Some(host), "shims", || "are stopped".to_owned());
    }

    /// Lets the shims of a host go on: each sees at once how late it is.
    pub(crate) fn resume_shims(&mut self, host: usize) {
        let here = &mut self.hosts[host];
        if !here.shims_paused {
            return;
        }
        here.shims_paused = false;
        let boots = here.boots;
        let shims: Vec<_> = here.shims.iter().map(|(container, shim)| (*container, shim.epoch)).collect();
        self.trace.line(self.now, Some(host), "shims", || "go on".to_owned());
        for (container, epoch) in shims {
            self.at(self.now, Event::Shim { host, boots, container, epoch, what: ShimTimer::Freeze });
        }
    }

    /// Ends a container's program.
    pub(crate) fn end_program(&mut self, host: usize, container: ContainerId, exit: Exit) {
        let now = self.now;
        let Some(shim) = self.hosts[host].shims.get_mut(&container) else { return };
        if matches!(shim.state, State::Exited(_)) {
            return;
        }
        shim.halt(now, State::Exited(exit));
        self.trace.line(now, Some(host), "container", || format!("{container:?} ends: {exit:?}"));
        self.show(host, container);
        self.tell_exit(host, container, exit);
    }

    /// Removes a container from a host, whatever it was doing.
    pub(crate) fn remove_shim(&mut self, host: usize, container: ContainerId) {
        if let Some(shim) = self.hosts[host].shims.remove(&container) {
            let epoch = shim.epoch;
            self.trace.line(self.now, Some(host), "container", || format!("{container:?} {epoch:?} is gone"));
            self.fact(&Fact::CopyGone { host, container });
        }
    }

    /// Shows the checkers what a container does now.
    fn show(&mut self, host: usize, container: ContainerId) {
        let Some(shim) = self.hosts[host].shims.get(&container) else { return };
        let fact = Fact::Copy {
            host,
            container,
            epoch: shim.epoch,
            running: shim.is_running(),
            heard: shim.is_running() && shim.heard,
            excused: shim.late && !shim.heard,
            value: shim.value(self.now),
        };
        self.fact(&fact);
    }
}
