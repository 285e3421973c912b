//! From the core's types to the API's and back.
//!
//! The one place that knows both. It decides words (`running`, `under-protected`), never what is allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use steadfast_proto::catalog::{
    CheckpointRef, ContainerRow, ContainerSpec, ContainerState, Desired, Exit, Restart, Root, View,
    ViewReason, ViewRecord,
};
use steadfast_proto::ids::NodeId;

use super::{link_words, types, view_types};
use crate::codes::Code;
use crate::config::source::{Given, Problems};
use crate::failure::Failure;
use crate::spec::RawSpec;

/// The nodes' names by id.
pub type Names = BTreeMap<NodeId, String>;

/// A node's name, or the start of its id when its row is gone.
pub fn node_name(names: &Names, id: NodeId) -> String {
    names.get(&id).cloned().unwrap_or_else(|| id.to_string().chars().take(8).collect())
}

/// Milliseconds since 1970, now.
pub fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// A row as the API shows it.
pub fn container(
    row: &ContainerRow,
    revision: u64,
    names: &Names,
    view: Option<&View>,
    now_unix_ms: u64,
) -> types::Container {
    let latest = row.latest.as_ref().map(|latest| checkpoint(row, latest, names));
    let (state, reason) = state(row);
    let live = |copy: &NodeId| view.is_none_or(|view| view.members.contains_key(copy));
    let copies =
        row.latest.as_ref().map_or(0, |latest| row.protecting(latest).filter(|copy| live(copy)).count());
    let at_risk_since = row.latest.as_ref().filter(|_| row.is_active()).map(|latest| latest.taken_unix_ms);
    types::Container {
        name: row.spec.name.clone(),
        id: row.id.to_string(),
        node: node_name(names, row.owner),
        state: state.to_owned(),
        reason,
        owner_in_view: view.is_none_or(|view| view.members.contains_key(&row.owner)),
        epoch: row.epoch.0,
        changed_unix_ms: row.changed_unix_ms,
        latest,
        at_risk_since_unix_ms: at_risk_since,
        at_risk_ms: at_risk_since.map(|since| now_unix_ms.saturating_sub(since)),
        copies: u32::try_from(copies).unwrap_or(u32::MAX),
        copies_wanted: u32::from(row.spec.copies),
        spec: spec(&row.spec),
        revision,
    }
}

fn state(row: &ContainerRow) -> (&'static str, Option<String>) {
    let stopping = matches!(row.desired, Desired::Stop { .. });
    match &row.state {
        ContainerState::Starting | ContainerState::Running | ContainerState::Recovering if stopping => {
            ("stopping", None)
        }
        ContainerState::Starting => ("starting", None),
        ContainerState::Running => ("running", None),
        ContainerState::Recovering => {
            let from = row.restore_from().map(|from| format!("from checkpoint {}", from.number));
            ("recovering", from)
        }
        ContainerState::Stopped(exit) => ("stopped", exit_reason(*exit)),
        ContainerState::Failed(reason) => ("failed", Some(reason.clone())),
        ContainerState::Lost(reason) => ("lost", Some(reason.clone())),
    }
}

fn exit_reason(exit: Exit) -> Option<String> {
    match exit {
        Exit::Code(code) => Some(format!("exit code {code}")),
        Exit::Signal(signal) => Some(format!("signal {signal}")),
        Exit::Never => None,
    }
}

/// A committed checkpoint as the API shows it; nobody was asked about the copies yet.
pub fn checkpoint(row: &ContainerRow, checkpoint: &CheckpointRef, names: &Names) -> types::Checkpoint {
    let latest = row.latest.as_ref().is_some_and(|latest| latest.number == checkpoint.number);
    let copies = checkpoint.copies.iter();
    let copies =
        copies.map(|copy| types::Copy { node: node_name(names, *copy), state: "held".to_owned() }).collect();
    let frozen = Duration::from_micros(checkpoint.frozen_us);
    types::Checkpoint {
        container: row.spec.name.clone(),
        number: checkpoint.number,
        epoch: checkpoint.epoch.0,
        role: if latest { "latest" } else { "parent" }.to_owned(),
        taken_unix_ms: checkpoint.taken_unix_ms,
        bytes: checkpoint.bytes,
        frozen_ms: frozen.as_secs_f64() * 1000.0,
        copies,
        copies_wanted: u32::from(checkpoint.wanted),
        protection: if row.protecting(checkpoint).count() < usize::from(checkpoint.wanted) {
            "under-protected"
        } else {
            "protected"
        }
        .to_owned(),
        manifest: checkpoint.manifest.to_string(),
    }
}

/// The agreed list of members as the API shows it.
pub fn view(view: &View, names: &Names) -> types::View {
    types::View {
        id: view.id.0,
        members: view.members.keys().map(|member| node_name(names, *member)).collect(),
        proposer: node_name(names, view.proposer),
        reason: view_reason(&view.reason, names, |_| None),
    }
}

/// A view as it is kept, as the API shows it.
pub fn view_record(record: &ViewRecord, names: &Names) -> view_types::ViewRecord {
    let view = &record.view;
    let changed = |node: NodeId, accusers: &BTreeSet<NodeId>| view_types::ChangedNode {
        node: node_name(names, node),
        incarnation: view.members.get(&node).map(|incarnation| incarnation.0),
        class: record.verdicts.get(&node).map(|class| link_words::class(*class).to_owned()),
        accusers: accusers.iter().map(|accuser| node_name(names, *accuser)).collect(),
    };
    let (change, nodes) = match &view.reason {
        ViewReason::Founded => ("founded", vec![changed(view.proposer, &BTreeSet::new())]),
        ViewReason::Admitted(node) => ("admitted", vec![changed(*node, &BTreeSet::new())]),
        ViewReason::Grantor(node) => ("grantor", vec![changed(*node, &BTreeSet::new())]),
        ViewReason::NoGrantor(node) => ("no_grantor", vec![changed(*node, &BTreeSet::new())]),
        ViewReason::Replaced { old, new } => {
            ("replaced", [old, new].map(|node| changed(*node, &BTreeSet::new())).into())
        }
        ViewReason::Left(node) => ("left", vec![changed(*node, &BTreeSet::new())]),
        ViewReason::Removed(removed) => {
            ("removed", removed.iter().map(|(node, accusers)| changed(*node, accusers)).collect())
        }
    };
    let found = |node: &NodeId| record.verdicts.get(node).map(|class| link_words::words(*class));
    let members = view.members.iter().map(|(node, incarnation)| view_types::Member {
        node: node_name(names, *node),
        incarnation: incarnation.0,
    });
    view_types::ViewRecord {
        id: view.id.0,
        members: members.collect(),
        grantors: view.grantors.iter().map(|grantor| node_name(names, *grantor)).collect(),
        change: change.to_owned(),
        nodes,
        proposer: node_name(names, view.proposer),
        reason: view_reason(&view.reason, names, found),
        proposed_unix_ms: record.proposed_unix_ms,
    }
}

/// Why a view was proposed, in words; `found` says what a removed node was found to be, where that is known.
pub(crate) fn view_reason(
    reason: &ViewReason,
    names: &Names,
    found: impl Fn(&NodeId) -> Option<&'static str>,
) -> String {
    match reason {
        ViewReason::Founded => "the cluster was made".to_owned(),
        ViewReason::Admitted(node) => format!("{} was admitted", node_name(names, *node)),
        ViewReason::Grantor(node) => format!("{} became a grantor of leases", node_name(names, *node)),
        ViewReason::NoGrantor(node) => format!("{} grants leases no longer", node_name(names, *node)),
        ViewReason::Replaced { old, new } => {
            format!("{} took the place of {}", node_name(names, *new), node_name(names, *old))
        }
        ViewReason::Left(node) => format!("{} left", node_name(names, *node)),
        ViewReason::Removed(removed) => {
            let each = removed.iter().map(|(node, accusers)| {
                let accusers: Vec<String> =
                    accusers.iter().map(|accuser| node_name(names, *accuser)).collect();
                let class = found(node).map(|class| format!(" ({class})")).unwrap_or_default();
                format!("{} was removed{class}, accused by {}", node_name(names, *node), accusers.join(", "))
            });
            each.collect::<Vec<_>>().join("; ")
        }
    }
}

/// A checked spec as the API and the file write it.
pub fn spec(spec: &ContainerSpec) -> types::Spec {
    let volumes = spec.volumes.iter().map(|volume| {
        let mode = if volume.read_only { ":ro" } else { "" };
        format!("{}:{}{mode}", volume.source, volume.target)
    });
    let every = spec
        .every_ms
        .map(|every_ms| humantime::format_duration(Duration::from_millis(u64::from(every_ms))).to_string());
    types::Spec {
        name: Some(spec.name.clone()),
        command: spec.command.clone(),
        environment: spec.environment.clone(),
        working_directory: spec.working_directory.clone(),
        user: spec.user.clone(),
        root: Some(match &spec.root {
            Root::Host => "host".to_owned(),
            Root::Bundle(path) => format!("bundle:{path}"),
        }),
        volumes: volumes.collect(),
        address: spec.address.clone(),
        require_domain: spec.require.domain.clone(),
        require_devices: spec.require.devices.iter().cloned().collect(),
        memory: spec.memory_bytes_max.map(|bytes| format!("{bytes}B")),
        cpu: spec.cpu_milli_max.map(|milli| (f64::from(milli) / 1000.0).to_string()),
        every: Some(every.unwrap_or_else(|| "never".to_owned()).replace(' ', "")),
        protection: Some(format!("mirror({})", spec.copies)),
        restart: Some(
            match spec.restart {
                Restart::No => "no",
                Restart::Latest => "latest",
                Restart::Fresh => "fresh",
            }
            .to_owned(),
        ),
    }
}

/// Checks a spec that came through the API: the same rules and words as for the file.
pub fn checked_spec(spec: types::Spec) -> Result<ContainerSpec, Failure> {
    let given = |key: &'static str, text: Option<String>| text.map(|text| Given::flag(key, text));
    let each = |key: &'static str, texts: Vec<String>| {
        texts.into_iter().map(|text| Given::flag(key, text)).collect::<Vec<_>>()
    };
    let pairs =
        spec.environment.into_iter().map(|(key, value)| (key, Given::flag("spec.environment", value)));
    let raw = RawSpec {
        name: given("spec.name", spec.name),
        command: Some(each("spec.command", spec.command)),
        root: given("spec.root", spec.root),
        every: given("spec.every", spec.every),
        protection: given("spec.protection", spec.protection),
        restart: given("spec.restart", spec.restart),
        address: given("spec.address", spec.address),
        volumes: each("spec.volumes", spec.volumes),
        require_domain: given("spec.require_domain", spec.require_domain),
        require_devices: each("spec.require_devices", spec.require_devices),
        user: given("spec.user", spec.user),
        working_directory: given("spec.working_directory", spec.working_directory),
        environment: pairs.collect(),
        memory: given("spec.memory", spec.memory),
        cpu: given("spec.cpu", spec.cpu),
        ..RawSpec::default()
    };
    let mut problems = Problems::default();
    let checked = raw.check(&mut problems);
    problems.finish(Code::SpecInvalid)?;
    checked.ok_or_else(|| Failure::new(Code::Internal, "the spec can't be used, and no reason was found"))
}

#[cfg(test)]
mod tests {
    use steadfast_proto::ids::{ContainerId, Digest, Epoch};

    use super::*;
    use crate::spec::{EXAMPLE, load};

    #[test]
    fn a_spec_survives_the_api() {
        let checked = load(Some(("example", EXAMPLE)), RawSpec::default()).unwrap();
        assert_eq!(checked_spec(spec(&checked)).unwrap(), checked);
        let never = ContainerSpec {
            every_ms: None,
            memory_bytes_max: Some(12_345_678),
            cpu_milli_max: Some(250),
            ..checked
        };
        assert_eq!(checked_spec(spec(&never)).unwrap(), never);
    }

    #[test]
    fn the_copy_of_the_node_that_runs_it_protects_nothing() {
        let spec = load(Some(("example", EXAMPLE)), RawSpec::default()).unwrap();
        let latest = CheckpointRef {
            number: 1,
            epoch: Epoch(1),
            manifest: Digest([7; 32]),
            bytes: 1,
            copies: [NodeId(1), NodeId(2)].into(),
            wanted: 2,
            frozen_us: 0,
            taken_unix_ms: 0,
            criu: String::new(),
            processor: String::new(),
        };
        let mut row = ContainerRow {
            id: ContainerId(1),
            spec,
            owner: NodeId(1),
            epoch: Epoch(2),
            state: ContainerState::Running,
            desired: Desired::Run,
            latest: Some(latest),
            parent: None,
            restore_number: None,
            after_loss: true,
            tried: BTreeSet::new(),
            changed_unix_ms: 0,
        };
        let shown = container(&row, 1, &Names::new(), None, 0);
        assert_eq!((shown.copies, shown.latest.unwrap().protection.as_str()), (1, "under-protected"));
        row.owner = NodeId(3);
        let shown = container(&row, 1, &Names::new(), None, 0);
        assert_eq!((shown.copies, shown.latest.unwrap().protection.as_str()), (2, "protected"));
    }

    #[test]
    fn a_wrong_field_of_a_body_is_named() {
        let spec =
            types::Spec { command: vec!["x".into()], every: Some("10".into()), ..types::Spec::default() };
        let failure = checked_spec(spec).unwrap_err();
        assert_eq!(failure.code, Code::SpecInvalid);
        assert!(failure.message.starts_with("spec.every: \"10\" has no unit"), "{}", failure.message);
    }
}
