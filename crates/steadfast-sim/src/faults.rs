//! Faults: what goes wrong in a world, for how long, and how it ends.
//!
//! Each fault puts its own end into the queue. When the phase of faults is over, everything is mended at once. Must
//! never do what no real machine could: an agent's core is only ever killed, stopped or left without power.

use steadfast_proto::catalog::Exit;

use crate::checkers::Fact;
use crate::network::Link;
use crate::scenario::{Fault, MS, SECOND};
use crate::shims::State;
use crate::world::{Event, World, new_clock};

/// How a fault ends.
#[derive(Clone, Debug)]
pub(crate) enum Undo {
    Mend(Vec<Link>),
    Start(usize),
    PowerOn(usize),
    Resume(usize),
    Quiet(u16),
    Fast(usize),
    /// A slow host's agent is left without a processor for a moment.
    Starve(usize),
    /// It gets one.
    Feed(usize),
}

impl World {
    /// Something fails, and the next failure is planned.
    pub(crate) fn fault(&mut self) {
        if !self.faults_on {
            return;
        }
        let next = self.random.around(self.scenario.fault_every);
        self.after(next, Event::Fault);
        let fault = if self.scenario.networks_only {
            *self
                .random
                .pick(&[Fault::HostCut, Fault::LinkCut, Fault::NetworkCut, Fault::ProgramExit])
                .expect("four")
        } else {
            let total: u64 = self.scenario.weights.iter().map(|(_, weight)| weight).sum();
            let mut left = self.random.below(total);
            let drawn = self.scenario.weights.iter().find(|(_, weight)| {
                let here = left < *weight;
                left = left.saturating_sub(*weight);
                here
            });
            let Some((fault, _)) = drawn else { return };
            *fault
        };
        self.counts.faults += 1;
        let host = self.victim();
        self.trace.line(self.now, Some(host), "FAULT", || format!("{fault:?}"));
        self.inject(fault, host);
    }

    /// A host: every other time one that owns a container.
    fn victim(&mut self) -> usize {
        let owners: Vec<usize> =
            self.catalog.containers().filter_map(|(_, row)| self.index_of(row.owner)).collect();
        let any = self.random.index(self.hosts.len());
        match self.random.below(6) {
            0..=2 => self.random.pick(&owners).copied().unwrap_or(any),
            3 => any,
            _ => self.hosts.iter().position(|host| host.slow > 0).unwrap_or(any),
        }
    }

    fn inject(&mut self, fault: Fault, host: usize) {
        let while_ns = self.random.between(30, 500) * MS * if self.random.chance(0.4) { 10 } else { 1 };
        match fault {
            Fault::AgentCrash => self.crash_for_a_while(host),
            Fault::AgentPause => {
                self.pause_agent(host);
                self.undo_after(while_ns, Undo::Resume(host));
            }
            Fault::HostPause => {
                self.pause_agent(host);
                self.pause_shims(host);
                self.undo_after(while_ns, Undo::Resume(host));
            }
            Fault::PowerLoss => {
                self.lose_power(host);
                self.undo_after(SECOND / 2 + while_ns, Undo::PowerOn(host));
            }
            Fault::HostCut | Fault::LinkCut | Fault::NetworkCut | Fault::Isolation | Fault::Split => {
                let links = self.links_to_cut(fault, host);
                self.networks.cut(&links);
                self.undo_after(while_ns, Undo::Mend(links));
            }
            Fault::Loss | Fault::Delay => {
                let network =
                    u16::try_from(self.random.below(u64::from(self.scenario.networks))).unwrap_or(0);
                let slot = usize::from(network);
                if fault == Fault::Loss {
                    self.networks.extra_loss[slot] = [0.1, 0.3, 0.7][self.random.index(3)];
                } else {
                    self.networks.extra_delay[slot] = self.random.between(5, 300) * MS;
                }
                self.undo_after(while_ns, Undo::Quiet(network));
            }
            Fault::SlowHost => {
                self.slow_down(host);
                self.undo_after(2 * while_ns, Undo::Fast(host));
            }
            Fault::ProgramExit => self.exit_program(host),
            Fault::Leaderless => self.catalog.hold_until = self.now + while_ns,
        }
    }

    fn links_to_cut(&mut self, fault: Fault, host: usize) -> Vec<Link> {
        // Where only networks may fail, the first one never does.
        let first = u64::from(self.scenario.networks_only);
        let network = self.random.between(first, u64::from(self.scenario.networks) - 1);
        let network = u16::try_from(network).unwrap_or(0);
        let other = self.random.index(self.hosts.len());
        let group: Vec<bool> = self.hosts.iter().map(|_| self.random.chance(0.5)).collect();
        let (out, into) = [(true, true), (true, false), (false, true)][self.random.index(3)];
        let all_networks = matches!(fault, Fault::Isolation) || self.random.chance(0.7);
        let mut links = Vec::new();
        for on in self.networks.all() {
            for from in 0..self.hosts.len() {
                for to in 0..self.hosts.len() {
                    let cut = match fault {
                        Fault::HostCut => on == network && ((out && from == host) || (into && to == host)),
                        Fault::LinkCut => on == network && from == host && to == other,
                        Fault::NetworkCut => on == network,
                        Fault::Isolation => (out && from == host) || (into && to == host),
                        Fault::Split => {
                            (all_networks || on == network)
                                && ((out && group[from] && !group[to]) || (into && !group[from] && group[to]))
                        }
                        Fault::AgentCrash
                        | Fault::AgentPause
                        | Fault::HostPause
                        | Fault::PowerLoss
                        | Fault::Loss
                        | Fault::Delay
                        | Fault::SlowHost
                        | Fault::ProgramExit
                        | Fault::Leaderless => false,
                    };
                    if cut && from != to {
                        links.push((on, from, to));
                    }
                }
            }
        }
        links
    }

    /// Kills an agent and starts the next one a while later.
    pub(crate) fn crash_for_a_while(&mut self, host: usize) {
        self.kill_agent(host);
        let mean = if self.random.chance(0.6) { 200 } else { 2_500 };
        let down = 20 * MS + self.random.around(mean * MS);
        self.undo_after(down, Undo::Start(host));
    }

    /// Has a host wake its processes late; never later than the drift that a core allows for it.
    pub(crate) fn slow_down(&mut self, host: usize) {
        let lease = u64::try_from(self.scenario.lease.as_nanos()).unwrap_or(SECOND);
        let was_slow = self.hosts[host].slow > 0;
        let least = if self.scenario.slow_host { lease / 6 } else { lease / 50 };
        self.hosts[host].slow = self.random.between(least, lease / 5);
        if !was_slow {
            self.undo_after(0, Undo::Starve(host));
        }
    }

    fn starve(&mut self, host: usize) {
        let slow = self.hosts[host].slow;
        if slow == 0 {
            return;
        }
        if self.hosts[host].answers() {
            self.pause_agent(host);
            let starved = self.random.between(slow / 2, slow);
            self.undo_after(starved, Undo::Feed(host));
        }
        let next = slow + self.random.below(2 * slow);
        self.undo_after(next, Undo::Starve(host));
    }

    fn lose_power(&mut self, host: usize) {
        self.hosts[host].powered = false;
        self.kill_agent(host);
        let containers: Vec<_> = self.hosts[host].shims.keys().copied().collect();
        containers.into_iter().for_each(|container| self.remove_shim(host, container));
        let here = &mut self.hosts[host];
        here.boots += 1;
        here.memory.clear();
        here.epochs.clear();
        (here.shims_paused, here.slow, here.measured) = (false, 0, (0, 0));
        let node = here.node;
        self.fact(&Fact::MemoryGone { node });
    }

    fn power_on(&mut self, host: usize) {
        if !self.hosts[host].powered {
            self.hosts[host].powered = true;
            self.hosts[host].clock = new_clock(self.now, &self.scenario, &mut self.random);
        }
        self.start_agent(host);
    }

    fn exit_program(&mut self, host: usize) {
        let running: Vec<_> = (self.hosts[host].shims.iter())
            .filter(|(_, shim)| shim.state == State::Running)
            .map(|(container, _)| *container)
            .collect();
        if let Some(container) = self.random.pick(&running).copied() {
            let exit = if self.random.chance(0.2) { Exit::Code(0) } else { Exit::Signal(11) };
            self.end_program(host, container, exit);
        }
    }

    fn undo_after(&mut self, delay: u64, undo: Undo) {
        self.after(delay, Event::Undo { round: self.round, undo: Box::new(undo) });
    }

    pub(crate) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Mend(links) => self.networks.mend(&links),
            Undo::Start(host) => self.start_agent(host),
            Undo::PowerOn(host) => self.power_on(host),
            Undo::Resume(host) => {
                if self.random.chance(0.5) {
                    self.resume_agent(host);
                    self.resume_shims(host);
                } else {
                    self.resume_shims(host);
                    self.resume_agent(host);
                }
            }
            Undo::Quiet(network) => {
                self.networks.extra_loss[usize::from(network)] = 0.0;
                self.networks.extra_delay[usize::from(network)] = 0;
            }
            Undo::Fast(host) => self.hosts[host].slow = 0,
            Undo::Starve(host) => self.starve(host),
            Undo::Feed(host) => self.resume_agent(host),
        }
    }

    /// Ends every fault.
    pub(crate) fn calm(&mut self) {
        self.trace.line(self.now, None, "CALM", || "every fault ends".to_owned());
        self.faults_on = false;
        self.round += 1;
        self.networks.mend_all();
        self.catalog.hold_until = 0;
        self.operators_undo();
        for host in 0..self.hosts.len() {
            self.hosts[host].slow = 0;
            self.undo(Undo::Resume(host));
            self.power_on(host);
        }
    }
}
