//! What silence means: a process, a link, a network, or this node itself (PROTOCOLS 3.1 and 3.2).
//!
//! [`judge`] is one pure function of a table of ages, one per (peer, network), and of what it returned last (FD8).
//! Several networks are judged by the truth table of 3.2, a single one by the relative rule of 3.1: only lagging
//! behind the others accuses a peer, so a pause of this node and a common delay accuse nobody. The ages must be
//! those of a drained queue, less this node's own pauses. Findings are opinions and never remove anybody.
//!
//! ```
//! use std::time::Duration;
//! use steadfast_proto::detect::matrix::{Cell, Finding, State, Table, Thresholds, judge};
//! use steadfast_proto::ids::{NetworkId, NodeId};
//! use steadfast_proto::time::Time;
//!
//! let ages_ms = [(1, 0, 40), (1, 1, 900), (2, 0, 70), (2, 1, 30)]; // Peer 1 is not heard on network 1.
//! let cells = ages_ms.map(|(peer, network, age_ms)| {
//!     ((NodeId(peer), NetworkId(network)), Cell { age: Duration::from_millis(age_ms) })
//! });
//! let table = Table { now: Time::from_nanos(9_000_000_000), cells: cells.into(), previous: State::default() };
//! let judgement = judge(&table, &Thresholds::of_interval(Duration::from_millis(100)));
//! assert!(judgement.findings.iter().eq([&Finding::Link(NodeId(1), NetworkId(1))]));
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::ids::{NetworkId, NodeId};
use crate::time::Time;

/// For how long silence is nobody's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// P: how far a peer may lag behind the freshest one on a single network, and how old a fresh witness may be.
    /// 3.5 intervals; more than two and jitter, since senders are out of phase.
    pub process_lag: Duration,
    /// N: for how long a single network may be silent. Ten intervals.
    pub network_silence: Duration,
    /// Nt: how far a peer's heartbeats on one network may lag behind its own on another. Five intervals.
    pub network_lag: Duration,
    /// L: for how long a peer may be silent on all of several networks. Fifteen intervals.
    pub process_silence: Duration,
    /// After nobody was heard on a network for this long, ages there start anew. Two intervals; a common delay that
    /// is shorter brings nobody beyond P.
    pub quiet: Duration,
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds::of_interval(Duration::from_millis(100))
    }
}

impl Thresholds {
    /// The thresholds of PROTOCOLS 3.1 and 3.2 for heartbeats every `interval`.
    pub fn of_interval(interval: Duration) -> Thresholds {
        Thresholds {
            process_lag: interval.saturating_mul(7) / 2,
            network_silence: interval.saturating_mul(10),
            network_lag: interval.saturating_mul(5),
            process_silence: interval.saturating_mul(15),
            quiet: interval.saturating_mul(2),
        }
    }

    /// Refuses thresholds that would blame the innocent, with the relation that is broken. `interval` is the
    /// heartbeats'.
    pub fn check(&self, interval: Duration) -> Result<(), ThresholdsError> {
        let two = interval.saturating_mul(2);
        let &Thresholds { process_lag, network_silence, network_lag, process_silence, quiet } = self;
        if interval.is_zero() || quiet < two || process_lag <= two {
            return Err(ThresholdsError::ProcessLag { process_lag, quiet, interval });
        }
        if network_silence <= process_lag.saturating_add(two) {
            return Err(ThresholdsError::NetworkSilence { network_silence, process_lag, interval });
        }
        if network_lag <= process_lag.saturating_add(interval) {
            return Err(ThresholdsError::NetworkLag { network_lag, process_lag, interval });
        }
        if process_silence <= network_lag.saturating_add(two) {
            return Err(ThresholdsError::ProcessSilence { process_silence, network_lag, interval });
        }
        Ok(())
    }
}

/// The thresholds contradict one another; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdsError {
    /// Senders that are merely out of phase would be suspected.
    #[error(
        "process lag {process_lag:?} and quiet {quiet:?} are too short for heartbeats every {interval:?}: more than \
         two, and at least two intervals are needed"
    )]
    ProcessLag {
        /// P.
        process_lag: Duration,
        /// The silence after which ages start anew.
        quiet: Duration,
        /// The heartbeats' interval.
        interval: Duration,
    },
    /// Ordinary jitter would blame the network before the process.
    #[error(
        "network silence {network_silence:?} must exceed process lag {process_lag:?} by more than two intervals of \
         {interval:?}"
    )]
    NetworkSilence {
        /// N.
        network_silence: Duration,
        /// P.
        process_lag: Duration,
        /// The heartbeats' interval.
        interval: Duration,
    },
    /// When a network dies, the peer that was heard on it first would lose its link for a moment.
    #[error(
        "network lag {network_lag:?} must exceed process lag {process_lag:?} by more than one interval of {interval:?}"
    )]
    NetworkLag {
        /// Nt.
        network_lag: Duration,
        /// P.
        process_lag: Duration,
        /// The heartbeats' interval.
        interval: Duration,
    },
    /// A process would be suspected before the network that it is heard on.
    #[error(
        "process silence {process_silence:?} must exceed network lag {network_lag:?} by more than two intervals of \
         {interval:?}"
    )]
    ProcessSilence {
        /// L.
        process_silence: Duration,
        /// Nt.
        network_lag: Duration,
        /// The heartbeats' interval.
        interval: Duration,
    },
}

/// What is known of one peer on one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// How long ago its last heartbeat there was received, or the watch began when none was.
    pub age: Duration,
}

/// All that [`judge`] judges.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Table {
    /// The instant at which all ages were taken.
    pub now: Time,
    /// One cell for each remote peer and network that joins it to this node; one's own heartbeats have none.
    pub cells: BTreeMap<(NodeId, NetworkId), Cell>,
    /// [`Judgement::state`] of the last judgement.
    pub previous: State,
}

/// What one judgement leaves to the next.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct State {
    /// What was found last.
    standing: BTreeSet<Finding>,
    /// On which networks nobody was heard for a while.
    quiet: BTreeSet<NetworkId>,
    /// Who was heard on no network for a while.
    absent: BTreeSet<NodeId>,
    /// When ages were started anew; a lag is counted from there at the earliest.
    bases: BTreeMap<(NodeId, NetworkId), Time>,
    /// When somebody was heard after nobody was heard anywhere; a peer's silence is counted from there.
    revived_at: Option<Time>,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// The peer is silent on all networks while another is heard.
    Process(NodeId),
    /// The peer is silent on this network, where others are heard, but is heard on another one.
    Link(NodeId, NetworkId),
    /// Nobody is heard on this network.
    Network {
        /// Which one.
        network: NetworkId,
        /// Whether only one peer is left to tell, so that its link may be the culprit.
        or_link: bool,
    },
    /// Nobody is heard on any of several networks: suspect this node first.
    Isolated,
    /// The only peer is silent on the only network: the process or the network, nobody can tell.
    Indistinguishable,
}

/// What a table means.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Judgement {
    /// What is wrong; empty when all is well.
    pub findings: BTreeSet<Finding>,
    /// To be handed to the next judgement.
    pub state: State,
    /// Whether this node hears nobody, so that no opinion of it about processes may leave it and its own duties
    /// must rest (the veto of PROTOCOLS 6).
    pub is_cut_off: bool,
}

/// Judges a table. The verdict depends on nothing else (FD8).
///
/// Three rules keep a finding from being a transient. *Re-base on heal:* when something is heard where nobody was
/// heard for a while, ages there start anew, or whoever is heard second would look dead. *Fresh means within P:* a
/// witness was heard well within the limit that the accused has passed, or of several that fell silent together the
/// first to pass it would be blamed. *A finding stands until it is contradicted:* heartbeats that a witness lost do
/// not take it back.
pub fn judge(table: &Table, thresholds: &Thresholds) -> Judgement {
    let state = rebased(table, thresholds);
    let matrix = Matrix::new(table, &state, thresholds);
    let single = matrix.columns.len() == 1;
    let findings = if single { relative(&matrix) } else { truth_table(&matrix, &table.previous.standing) };
    let is_cut_off = findings.iter().any(|finding| match finding {
        Finding::Isolated | Finding::Indistinguishable => true,
        Finding::Network { .. } => single,
        Finding::Process(_) | Finding::Link(..) => false,
    });
    Judgement { state: State { standing: findings.clone(), ..state }, findings, is_cut_off }
}

/// The table by peer and by network.
struct Matrix<'a> {
    thresholds: &'a Thresholds,
    rows: BTreeMap<NodeId, Row>,
    columns: BTreeMap<NetworkId, BTreeMap<NodeId, Ages>>,
}

/// m\[q\] of one peer.
struct Row {
    /// How long ago it was heard on any network.
    heard: Duration,
    /// For how long its silence counts against it.
    silence: Duration,
}

/// a\[q\]\[n\] of one peer on one network.
struct Ages {
    /// How long ago it was heard.
    heard: Duration,
    /// The same from its base: what counts against it. To have a new base is not to be heard.
    counted: Duration,
}

impl<'a> Matrix<'a> {
    fn new(table: &Table, state: &State, thresholds: &'a Thresholds) -> Matrix<'a> {
        let mut matrix = Matrix { thresholds, rows: BTreeMap::new(), columns: BTreeMap::new() };
        let since = |base: Option<&Time>| base.map_or(Duration::MAX, |base| table.now.since(*base));
        for (&(peer, network), cell) in &table.cells {
            let heard = cell.age;
            let stands = table.previous.standing.contains(&Finding::Process(peer));
            let excuse = if stands { Duration::MAX } else { since(state.revived_at.as_ref()) };
            let row = matrix.rows.entry(peer).or_insert(Row { heard, silence: excuse });
            row.heard = row.heard.min(heard);
            row.silence = row.silence.min(heard);
            let counted = heard.min(since(state.bases.get(&(peer, network))));
            matrix.columns.entry(network).or_default().insert(peer, Ages { heard, counted });
        }
        matrix
    }

    /// Whether the peer was heard on any network just now.
    fn is_heard(&self, peer: NodeId) -> bool {
        self.rows.get(&peer).is_some_and(|row| row.heard <= self.thresholds.process_lag)
    }

    /// Whether the peer has been silent for so long that it counts as dead.
    fn is_silent(&self, peer: NodeId) -> bool {
        self.rows.get(&peer).is_some_and(|row| row.silence > self.thresholds.process_silence)
    }

    fn is_fresh(&self, ages: &Ages) -> bool {
        ages.heard <= self.thresholds.process_lag
    }

    /// Whether the peer is heard somewhere, but on this network it lags behind that.
    fn lags(&self, peer: NodeId, ages: &Ages) -> bool {
        let Some(row) = self.rows.get(&peer) else { return false };
        self.is_heard(peer) && ages.counted.saturating_sub(row.heard) > self.thresholds.network_lag
    }
}

/// The rules of 3.1 for a single network.
fn relative(matrix: &Matrix<'_>) -> BTreeSet<Finding> {
    let Some((&network, column)) = matrix.columns.first_key_value() else { return BTreeSet::new() };
    let freshest = column.values().map(|ages| ages.heard).min().unwrap_or(Duration::MAX);
    if freshest > matrix.thresholds.network_silence {
        let lone = column.len() == 1;
        let finding =
            if lone { Finding::Indistinguishable } else { Finding::Network { network, or_link: false } };
        return BTreeSet::from([finding]);
    }
    (column.iter())
        .filter(|(_, ages)| ages.counted.saturating_sub(freshest) > matrix.thresholds.process_lag)
        .map(|(peer, _)| Finding::Process(*peer))
        .collect()
}

/// The truth table of 3.2 for several networks.
fn truth_table(matrix: &Matrix<'_>, standing: &BTreeSet<Finding>) -> BTreeSet<Finding> {
    if !matrix.rows.is_empty() && matrix.rows.keys().all(|peer| matrix.is_silent(*peer)) {
        return BTreeSet::from([Finding::Isolated]);
    }
    let mut findings = processes(matrix, standing);
    for (network, column) in &matrix.columns {
        findings.extend(links_or_network(matrix, standing, *network, column));
    }
    findings
}

fn processes(matrix: &Matrix<'_>, standing: &BTreeSet<Finding>) -> BTreeSet<Finding> {
    let someone_is_heard = matrix.rows.keys().any(|peer| matrix.is_heard(*peer));
    (matrix.rows.keys())
        .filter(|peer| matrix.is_silent(**peer))
        .map(|peer| Finding::Process(*peer))
        .filter(|finding| someone_is_heard || standing.contains(finding))
        .collect()
}

/// What is wrong with one network: with all of it, with the links of some peers to it, or nothing.
fn links_or_network(
    matrix: &Matrix<'_>,
    standing: &BTreeSet<Finding>,
    network: NetworkId,
    column: &BTreeMap<NodeId, Ages>,
) -> BTreeSet<Finding> {
    let somebody_is_fresh = column.values().any(|ages| matrix.is_fresh(ages));
    if !somebody_is_fresh {
        // Only who is heard elsewhere can tell that it is this network and not the peer.
        let witnesses: Vec<_> = column.iter().filter(|(peer, _)| matrix.is_heard(**peer)).collect();
        let stands = standing.iter().find(|finding| is_about(finding, network));
        if witnesses.is_empty()
            && let Some(stands) = stands
        {
            return BTreeSet::from([*stands]);
        }
        let all_lag = !witnesses.is_empty() && witnesses.iter().all(|(peer, ages)| matrix.lags(**peer, ages));
        // Where all of them had lost their links already, whoever was heard here has merely missed a few
        // heartbeats, unless he is dead.
        let was_link = witnesses.iter().all(|(peer, _)| standing.contains(&Finding::Link(**peer, network)));
        let is_undecided = column.keys().any(|peer| !matrix.is_heard(*peer) && !matrix.is_silent(*peer));
        if (all_lag && !(was_link && is_undecided)) || stands.is_some() {
            return BTreeSet::from([Finding::Network { network, or_link: witnesses.len() == 1 }]);
        }
    }
    (column.iter())
        .filter(|(peer, ages)| {
            let stands = standing.contains(&Finding::Link(**peer, network)) && !matrix.is_fresh(ages);
            (somebody_is_fresh && matrix.lags(**peer, ages)) || (stands && !matrix.is_silent(**peer))
        })
        .map(|(peer, _)| Finding::Link(*peer, network))
        .collect()
}

fn is_about(finding: &Finding, suspected: NetworkId) -> bool {
    matches!(finding, Finding::Network { network, .. } if *network == suspected)
}

/// On which networks nobody was heard for a while.
fn quiet(table: &Table, thresholds: &Thresholds) -> BTreeSet<NetworkId> {
    let networks = table.cells.iter().map(|((_, network), cell)| (*network, cell.age));
    unheard(networks, thresholds.quiet)
}

/// Who was heard on no network for a while.
fn absent(table: &Table, thresholds: &Thresholds) -> BTreeSet<NodeId> {
    let peers = table.cells.iter().map(|((peer, _), cell)| (*peer, cell.age));
    unheard(peers, thresholds.process_lag)
}

/// Of whom there is no age of at most `limit`.
fn unheard<Id: Ord + Copy>(
    ages: impl Iterator<Item = (Id, Duration)> + Clone,
    limit: Duration,
) -> BTreeSet<Id> {
    let heard: BTreeSet<Id> = ages.clone().filter(|(_, age)| *age <= limit).map(|(id, _)| id).collect();
    ages.map(|(id, _)| id).filter(|id| !heard.contains(id)).collect()
}

/// The previous state with the ages that start anew now (re-base on heal, 3.1).
///
/// Ages start anew where nobody was heard for a while and now somebody is: on that network, or everywhere when
/// nobody was heard anywhere; and for a peer that was not heard for a while and is heard again, which it is on one
/// network first. What stands accused keeps its age.
fn rebased(table: &Table, thresholds: &Thresholds) -> State {
    let State { standing, quiet: was_quiet, absent: was_absent, bases, revived_at } = &table.previous;
    let (quiet, absent) = (quiet(table, thresholds), absent(table, thresholds));
    let healed: BTreeSet<NetworkId> = was_quiet.difference(&quiet).copied().collect();
    let returned: BTreeSet<NodeId> = was_absent.difference(&absent).copied().collect();
    let revived = !healed.is_empty() && table.cells.keys().all(|(_, network)| was_quiet.contains(network));
    let starts_anew = |peer: NodeId, network: NetworkId| {
        let down = standing.iter().any(|finding| is_about(finding, network)) && !healed.contains(&network);
        let accused = standing.contains(&Finding::Process(peer)) && !returned.contains(&peer);
        let begins = returned.contains(&peer) || healed.contains(&network) || revived;
        begins && !down && !accused && !standing.contains(&Finding::Link(peer, network))
    };
    let based = |&(peer, network): &(NodeId, NetworkId)| {
        let base = bases.get(&(peer, network)).copied();
        let base = if starts_anew(peer, network) { Some(table.now) } else { base };
        base.map(|base| ((peer, network), base))
    };
    State {
        standing: standing.clone(),
        quiet,
        absent,
        bases: table.cells.keys().filter_map(based).collect(),
        revived_at: if revived { Some(table.now) } else { *revived_at },
    }
}

#[cfg(test)]
mod tests;
