//! `steadfast groups`: the process groups of programs, their members, and who waits for a place.

use super::Context;
use crate::api::group_types::{Group, GroupMember};
use crate::failure::Failure;
use crate::output::table;

/// Show the process groups of programs: members, mirrors, who waits for a place
///
/// The members of a group all hold the same state; the first leads. Each is written NODE/INCARNATION, where the
/// incarnation is the life of its process. Who is WAITING can take the place of a member: `steadfast replace --group GROUP
/// OLD NEW`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast groups\n  steadfast -o json groups | jq '.[] | select(.members | length < .mirrors)'"
)]
pub struct Args {}

pub(super) async fn run(_: Args, context: &Context) -> Result<(), Failure> {
    let groups: Vec<Group> = context.client.get("/v1/groups").await?;
    context.output.data(&groups, |groups| show(groups));
    Ok(())
}

/// Groups as a table.
pub(super) fn show(groups: &[Group]) -> String {
    table(["GROUP", "VIEW", "MEMBERS", "MIRRORS", "WAITING", "WHY"], groups.iter().map(row))
}

fn row(group: &Group) -> [String; 6] {
    let asked = group.request.as_ref().filter(|request| request.state == "asked");
    let asked =
        asked.map(|request| format!("; {} is to take the place of {}", one(&request.new), one(&request.old)));
    [
        group.name.clone(),
        group.view.to_string(),
        list(&group.members),
        format!("{} of {}", group.members.len(), group.mirrors),
        Some(list(&group.standbys)).filter(|list| !list.is_empty()).unwrap_or_else(|| "-".to_owned()),
        format!("{}{}", group.reason, asked.unwrap_or_default()),
    ]
}

/// A member as people write it.
pub(super) fn one(member: &GroupMember) -> String {
    format!("{}/{}", member.node, member.incarnation)
}

fn list(members: &[GroupMember]) -> String {
    members.iter().map(one).collect::<Vec<_>>().join(", ")
}
