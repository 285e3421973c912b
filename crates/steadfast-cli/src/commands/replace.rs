//! `steadfast replace`: one node for another, or one member of a process group for another, in one view.

use std::time::Duration;

use super::Context;
use super::groups::{one, show as show_groups};
use super::leave::show;
use crate::api::client::segment;
use crate::api::group_types::{Group, GroupRequest, ReplaceMember};
use crate::api::types::{Changed, ReplaceRequest};
use crate::codes::Code;
use crate::failure::Failure;
use crate::units;

/// How often a group is looked at while it changes.
const LOOK: Duration = Duration::from_millis(100);

/// Have a candidate take a node's place, with all its duties, in one view
///
/// OLD may be healthy, failing, or removed already. NEW must be a candidate that is ready: a node with `standby = true`
/// whose probation is over (`steadfast nodes --evidence`). Copies of checkpoints that OLD holds are made on NEW first; the
/// containers of an OLD that is alive stand still for a last checkpoint and go on at NEW; then one view swaps the two.
/// At no moment are there fewer copies than asked. Until that view nothing is lost by giving up. OLD stays out until
/// `steadfast drain --undo OLD`.
///
/// With --group OLD is a full member of a process group and NEW a process that waits for a place in it (`steadfast
/// groups`), each written NODE or NODE/INCARNATION. NEW gets the whole state first; then one view of the group swaps the
/// two. What is not done in time is withdrawn, and nothing is changed then.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast replace beta delta\n  steadfast nodes --evidence\n  steadfast replace --group kv beta delta        # members of the process group kv\n  steadfast replace --group kv beta/3 delta/1 --timeout 5min\n  steadfast replace --group kv --withdraw        # take back what somebody else asked for"
)]
pub struct Args {
    /// The node, or the member of the group, whose place is taken
    #[arg(required_unless_present = "withdraw")]
    old: Option<String>,
    /// The candidate that takes it
    #[arg(required_unless_present = "withdraw")]
    new: Option<String>,
    /// Replace a member of this process group
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// How long a group may take before the request is withdrawn [default: 60s]
    #[arg(long, value_name = "TIME", requires = "group")]
    timeout: Option<String>,
    /// Withdraw the request that holds in the group
    #[arg(long, requires = "group", conflicts_with_all = ["old", "new"])]
    withdraw: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let (old, new) = (args.old.unwrap_or_default(), args.new.unwrap_or_default());
    let Some(group) = args.group else {
        let path = format!("/v1/nodes/{}/replace", segment(&old));
        let changed: Changed = context.client.post(&path, &ReplaceRequest { by: new }).await?;
        show(context, &changed);
        return Ok(());
    };
    let within = args.timeout.as_deref().unwrap_or("60s");
    let within = units::duration_within(within, Duration::from_secs(1), Duration::from_secs(86_400))
        .map_err(|message| Failure::new(Code::BadRequest, format!("--timeout: {message}")))?;
    let path = format!("/v1/groups/{}", segment(&group));
    let done = if args.withdraw {
        context.client.delete(&format!("{path}/request")).await?
    } else {
        replace_member(context, &path, &ReplaceMember { old, new }, within).await?
    };
    context.output.data(&done, |group| show_groups(std::slice::from_ref(group)));
    Ok(())
}

/// Asks, and follows the group until one view has swapped the two or it is sure that none will.
async fn replace_member(
    context: &Context,
    path: &str,
    asked: &ReplaceMember,
    within: Duration,
) -> Result<Group, Failure> {
    let request_path = format!("{path}/request");
    let begun: Group = context.client.put(&request_path, asked).await?;
    // What is carried out is taken away.
    let Some(request) = begun.request.clone() else { return Ok(begun) };
    let deadline = tokio::time::Instant::now() + within;
    loop {
        let group: Group = context.client.get(path).await?;
        if let Some(outcome) = judged(&group, &request) {
            return outcome.map(|()| group);
        }
        let is_gone = !group.standbys.contains(&request.new);
        if is_gone || tokio::time::Instant::now() >= deadline {
            let group: Group = context.client.delete(&request_path).await?;
            let why = if is_gone {
                "it has stopped waiting".to_owned()
            } else {
                format!("it was not done within {}", humantime::format_duration(within))
            };
            return judged(&group, &request).unwrap_or(Ok(())).map(|()| group).map_err(|failure| {
                Failure::new(
                    failure.code,
                    format!("{}: {why}; the request is withdrawn and nothing was changed", one(&request.new)),
                )
            });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether the two were swapped, or surely will not be; `None` while that is open.
fn judged(group: &Group, request: &GroupRequest) -> Option<Result<(), Failure>> {
    // Only being carried out takes a request away; one that is over without success stays until the next one.
    let Some(there) = &group.request else { return Some(Ok(())) };
    let is_ours =
        (&there.old, &there.new, there.asked_unix_ms) == (&request.old, &request.new, request.asked_unix_ms);
    if is_ours && there.state == "asked" {
        return None;
    }
    if group.members.contains(&request.new) {
        return Some(Ok(()));
    }
    let why = match (is_ours, group.members.contains(&request.old)) {
        (false, _) => "another request came after it".to_owned(),
        (true, true) => "the request was withdrawn".to_owned(),
        (true, false) => format!("{} was removed meanwhile ({})", one(&request.old), group.reason),
    };
    Some(Err(Failure::new(
        Code::GroupReplaceRefused,
        format!(
            "{} did not take the place of {} in group {}: {why}",
            one(&request.new),
            one(&request.old),
            group.name
        ),
    )))
}
