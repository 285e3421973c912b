//! What one seed's world is like: its size, networks, speeds, and which faults it meets how often.
//!
//! Everything is drawn from the seed, so that ten thousand seeds are ten thousand different worlds: some fast, some
//! slow, some with one kind of fault only. Read `faults` for what each fault does.

use std::time::Duration;

use steadfast_proto::probation;

use crate::random::Random;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000 * MS;

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An agent is killed; its shims go on.
    AgentCrash,
    /// An agent is stopped by SIGSTOP for a while.
    AgentPause,
    /// An agent and its shims are stopped for a while.
    HostPause,
    /// A host loses power with everything on it, and returns later.
    PowerLoss,
    /// A host is cut off one network.
    HostCut,
    /// One direction between two hosts is cut on one network.
    LinkCut,
    /// A whole network carries nothing.
    NetworkCut,
    /// A host is cut off all networks, in one direction or both.
    Isolation,
    /// The hosts fall into two groups that don't hear each other, or only one the other.
    Split,
    /// A network loses many datagrams.
    Loss,
    /// A network is slow.
    Delay,
    /// A host wakes its processes late.
    SlowHost,
    /// A container's program ends.
    ProgramExit,
    /// The catalog has no leader for a while.
    Leaderless,
}

/// Every fault.
pub const FAULTS: [Fault; 14] = [
    Fault::AgentCrash,
    Fault::AgentPause,
    Fault::HostPause,
    Fault::PowerLoss,
    Fault::HostCut,
    Fault::LinkCut,
    Fault::NetworkCut,
    Fault::Isolation,
    Fault::Split,
    Fault::Loss,
    Fault::Delay,
    Fault::SlowHost,
    Fault::ProgramExit,
    Fault::Leaderless,
];

/// Who votes in the ideal log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voters {
    /// The grantors of the committed view.
    Grantors,
    /// The first five nodes, whatever the view says.
    Fixed,
}

/// One world.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// How many nodes.
    pub nodes: usize,
    /// How many networks they share.
    pub networks: u16,
    /// The lease.
    pub lease: Duration,
    /// The usual one-way delay, in nanoseconds.
    pub delay: u64,
    /// The mean of what is added to the delay, in nanoseconds.
    pub jitter: u64,
    /// The share of datagrams that is always lost.
    pub loss: f64,
    /// The share of datagrams that arrives twice.
    pub duplication: f64,
    /// The share of datagrams that arrives much later.
    pub straggling: f64,
    /// How long an ordinary job takes, in nanoseconds.
    pub job: u64,
    /// The share of jobs that fails.
    pub job_failure: f64,
    /// The share of jobs that takes seconds.
    pub job_hang: f64,
    /// How long the log takes to commit, in nanoseconds.
    pub commit: u64,
    /// How much clocks differ in rate, in parts per million.
    pub skew_ppm: u64,
    /// Who votes.
    pub voters: Voters,
    /// Whether one host is slow from beginning to end.
    pub slow_host: bool,
    /// Whether the cluster begins with its founder alone.
    pub founding: bool,
    /// How often each fault is drawn, in shares.
    pub weights: Vec<(Fault, u64)>,
    /// The mean time between faults, in nanoseconds.
    pub fault_every: u64,
    /// The mean time between what users ask, in nanoseconds.
    pub user_every: u64,
    /// How long faults go on, in nanoseconds.
    pub safety: u64,
    /// How many containers users start.
    pub containers: usize,
    /// Whether nothing fails but a proper subset of the networks.
    pub networks_only: bool,
    /// What members ask of candidates.
    pub probation: probation::Settings,
}

impl Scenario {
    /// The world of `seed`.
    pub fn of(seed: u64) -> Scenario {
        Scenario::draw(&mut Random::new(seed), None)
    }

    /// The world of `random`'s seed, of `nodes` nodes if given.
    pub(crate) fn draw(random: &mut Random, nodes: Option<usize>) -> Scenario {
        let networks_only = random.chance(0.06);
        let size = 3 + random.index(7);
        let networks = if networks_only { random.between(2, 3) } else { random.between(1, 3) };
        let mut weights: Vec<(Fault, u64)> = FAULTS.iter().map(|fault| (*fault, random.below(5))).collect();
        if random.chance(0.3) {
            // A world with few kinds of faults reaches depths that a mixture never does.
            weights.iter_mut().for_each(|(_, weight)| *weight = 0);
            for _ in 0..2 {
                let index = random.index(weights.len());
                if let Some((_, weight)) = weights.get_mut(index) {
                    *weight += 1;
                }
            }
        }
        let calm = random.chance(0.5);
        let draw =
            |random: &mut Random, from: &[u64]| *random.pick(from).expect("the lists below are not empty");
        let scenario = Scenario {
            nodes: nodes.unwrap_or(size),
            networks: u16::try_from(networks).expect("at most three"),
            lease: Duration::from_millis(draw(random, &[450, 1_000, 1_000, 1_000, 2_000])),
            delay: draw(random, &[MS / 10, MS / 10, MS / 2, 2 * MS, 8 * MS]),
            jitter: draw(random, &[MS / 20, MS / 10, MS, 4 * MS]),
            loss: if calm { 0.0 } else { 0.03 },
            duplication: if calm { 0.0 } else { 0.03 },
            straggling: if networks_only { 0.0 } else { 0.001 },
            job: draw(random, &[MS / 2, 5 * MS, 40 * MS, 40 * MS, 200 * MS]),
            job_failure: if calm { 0.0 } else { 0.05 },
            job_hang: if calm { 0.01 } else { 0.05 },
            commit: draw(random, &[MS / 5, MS, MS, 5 * MS, 20 * MS]),
            skew_ppm: 200,
            voters: if random.chance(0.6) { Voters::Grantors } else { Voters::Fixed },
            slow_host: !networks_only && random.chance(0.1),
            founding: random.chance(0.2),
            weights,
            fault_every: random.between(300, 3_000) * MS,
            user_every: random.between(300, 3_000) * MS,
            safety: random.between(10, 25) * SECOND,
            containers: 1 + random.index(5),
            networks_only,
            probation: probation::Settings {
                seen: Duration::from_millis(300),
                // Where a network loses something all the time, a longer time without loss would never come.
                clean: Duration::from_millis(if calm { draw(random, &[500, 1_000, 3_000]) } else { 300 }),
                loss_permille_max: 500,
                ..probation::Settings::default()
            },
        };
        if scenario.slow_host { scenario.with_little_slack() } else { scenario }
    }

    /// A world in which the allowance for drift is all that keeps two copies apart: everything is quick but one host,
    /// which is cut off again and again.
    fn with_little_slack(self) -> Scenario {
        let weights =
            self.weights.iter().map(|(fault, _)| (*fault, u64::from(*fault == Fault::Isolation))).collect();
        Scenario {
            lease: self.lease.max(Duration::from_secs(1)),
            delay: MS / 10,
            jitter: MS / 20,
            loss: 0.0,
            job: MS / 2,
            job_failure: 0.0,
            job_hang: 0.0,
            commit: MS / 5,
            weights,
            fault_every: 3 * SECOND,
            ..self
        }
    }
}
