//! LIVE-AGAIN: once faults end, every node is a member again and every container is where its row says, running and
//! not frozen, within a bound. LIVE-LEAVE: then a member that is told to leave does.
//!
//! These are the second and third phase of a run. What a container may be instead of running is what its user asked for or what
//! was truly lost.

use steadfast_proto::catalog::{ContainerRow, ContainerState, Desired};
use steadfast_proto::ids::NodeId;
use steadfast_proto::placement::recover_on;
use steadfast_proto::probation::Standing;

use crate::shims::State;
use crate::world::World;

/// What is not yet as it should be, if anything.
pub(crate) fn unsettled(world: &World) -> Option<String> {
    let Some((_, view)) = world.catalog.view() else { return Some("there is no view".to_owned()) };
    for host in &world.hosts {
        let Some(agent) = &host.agent else { return Some(format!("{:?} has no agent", host.node)) };
        // One whose place another took waits for a place of its own, or was told to stay out.
        let stays_out = view.successors.contains_key(&host.node)
            || world.catalog.drains().any(|row| row.node == host.node && row.leave);
        if !stays_out && view.members.get(&host.node) != Some(&agent.incarnation) {
            let lacks = lacks(world, host.node);
            return Some(format!("{:?} is no member as {:?}{lacks}", host.node, agent.incarnation));
        }
        if agent.node.installed().map(|installed| installed.id) != Some(view.id) {
            return Some(format!("{:?} has not installed view {}", host.node, view.id));
        }
        let stray = host.shims.iter().find(|(id, shim)| {
            let row = world.catalog.container(**id).map(|(_, row)| row);
            !row.is_some_and(|row| row.owner == host.node && row.epoch == shim.epoch && row.is_active())
        });
        if let Some((id, shim)) = stray {
            return Some(format!("{:?} still has {id:?} {:?}", host.node, shim.epoch));
        }
        let kept = |manifest| {
            world.catalog.containers().any(|(_, row)| row.checkpoints().any(|kept| kept.manifest == manifest))
        };
        if let Some((manifest, held)) = host.memory.iter().find(|(manifest, held)| {
            let row = world.catalog.container(held.container).map(|(_, row)| row);
            !kept(**manifest) && !row.is_some_and(|row| row.is_active())
        }) {
            return Some(format!("{:?} holds {manifest:?} of {:?} for nobody", host.node, held.container));
        }
    }
    world.catalog.containers().find_map(|(_, row)| unsettled_container(world, row))
}

/// Whether `node`, which was told to leave, stays although nothing holds it: no container that can go nowhere else, and no
/// checkpoint that would be lost with it.
pub(crate) fn stays(world: &World, node: NodeId) -> bool {
    let Some((_, view)) = world.catalog.view() else { return true };
    let mut others = world.user_candidates();
    others.retain(|one| one.node != node);
    let is_bound =
        |row: &ContainerRow| row.is_active() && row.owner == node && recover_on(row, &others).is_none();
    let holds = |row: &ContainerRow| is_bound(row) || view.loses_with(node, row);
    view.has(node) && !world.catalog.containers().any(|(_, row)| holds(row))
}

/// What a candidate still lacks, by each other node's word.
fn lacks(world: &World, candidate: NodeId) -> String {
    let mut said = String::new();
    for host in &world.hosts {
        let status = host.agent.as_ref().map(|agent| agent.node.status(host.clock.read(world.now)));
        let Some(known) = status.and_then(|mut status| status.candidates.remove(&candidate)) else {
            continue;
        };
        let missing = known.evidence.into_iter().filter(|one| one.standing != Standing::Pass);
        let missing: Vec<String> =
            missing.map(|one| format!("{}: {}", one.criterion, one.measured)).collect();
        said.push_str(&format!("; {:?} {:?} lacks {missing:?}", host.node, known.row.intent));
    }
    said
}

fn unsettled_container(world: &World, row: &ContainerRow) -> Option<String> {
    let state = match (&row.state, row.desired) {
        (ContainerState::Stopped(_) | ContainerState::Failed(_) | ContainerState::Lost(_), _) => return None,
        (ContainerState::Running, Desired::Run) => {
            let owner = world.index_of(row.owner)?;
            world.hosts[owner].shims.get(&row.id).map(|shim| shim.state)
        }
        (ContainerState::Starting | ContainerState::Recovering, _) | (_, Desired::Stop { .. }) => None,
    };
    let runs = state == Some(State::Running);
    (!runs).then(|| {
        format!("{:?} is {:?} {:?}, {:?}, and there {state:?}", row.id, row.state, row.epoch, row.desired)
    })
}
