//! `steadfast status`: how the cluster stands, seen from this node.

use super::Context;
use crate::api::link_types::{Verdict, VerdictReport};
use crate::api::types::Status;
use crate::failure::Failure;
use crate::output::table;

/// Say how the cluster stands and what failure it survives right now
///
/// Names the members, whether there is a quorum, whom this node suspects, which containers are frozen and why.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast status\n  steadfast status --timeline          # with what happened lately\n  steadfast -o json status | jq .quorum"
)]
pub struct Args {
    /// Show what happened lately on this node
    #[arg(long)]
    timeline: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let status: Status = context.client.get("/v1/status").await?;
    let verdicts = context.client.verdicts(None).await?;
    let shown = Shown { status, verdicts };
    context.output.data(&shown, |shown| people(&shown.status, &shown.verdicts, args.timeline));
    let status = &shown.status;
    for warning in &status.warnings {
        context.output.say(&format!("warning: {warning}"));
    }
    Ok(())
}

/// What is printed: the status, and the verdicts that hold beside it.
#[derive(serde::Serialize)]
struct Shown {
    #[serde(flatten)]
    status: Status,
    #[serde(serialize_with = "only_verdicts")]
    verdicts: VerdictReport,
}

fn only_verdicts<S: serde::Serializer>(report: &VerdictReport, serializer: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&report.verdicts, serializer)
}

/// A verdict in one line: class, what failed, by which rule, who says what.
fn verdict_line(verdict: &Verdict) -> String {
    // Who says the same is named together.
    let mut voices: Vec<(&str, Vec<&str>)> = Vec::new();
    for evidence in &verdict.evidence {
        match voices.iter_mut().find(|(says, _)| *says == evidence.says) {
            Some((_, who)) => who.push(&evidence.accuser),
            None => voices.push((&evidence.says, vec![&evidence.accuser])),
        }
    }
    let said: Vec<String> =
        voices.into_iter().map(|(says, who)| format!("{}: {says}", who.join(", "))).collect();
    let rule = verdict.rule.as_ref().map(|rule| format!(", here by rule {rule}")).unwrap_or_default();
    let said = if said.is_empty() { String::new() } else { format!(" ({})", said.join("; ")) };
    format!("verdict   {}: {}{rule}{said}", verdict.class, verdict.sentence)
}

fn people(status: &Status, verdicts: &VerdictReport, timeline: bool) -> String {
    let quorum = if status.quorum { "yes" } else { "NO: nothing is started or moved, containers freeze" };
    let lease = if status.lease_left_ms > 0 { "held" } else { "LAPSED: containers here are frozen" };
    let mut text = format!(
        "cluster   {} ({})\nnode      {} (start {})\nquorum    {quorum}\nleader    {}\nview      {} with {}; {}\nsurvives  {}\nlease     {lease} (of {} ms)",
        status.cluster.name,
        status.cluster.id,
        status.node,
        status.incarnation,
        status.leader.as_deref().unwrap_or("none known here"),
        status.view.id,
        status.view.members.join(", "),
        status.view.reason,
        status.survives.sentence,
        status.cluster.lease_ms,
    );
    for verdict in &verdicts.verdicts {
        text.push('\n');
        text.push_str(&verdict_line(verdict));
    }
    if !status.peers.is_empty() {
        let rows = status.peers.iter().map(|peer| {
            let heard = peer.networks.iter().map(|heard| match heard.age_ms {
                Some(age) => format!("{} {age} ms ago", heard.network),
                None => format!("{} never", heard.network),
            });
            let state = match (peer.member, peer.suspected) {
                (true, false) => "member",
                (true, true) => "suspected",
                (false, _) => "not in the view",
            };
            [peer.name.clone(), state.to_owned(), heard.collect::<Vec<_>>().join(", ")]
        });
        text.push_str("\n\n");
        text.push_str(&table(["PEER", "STATE", "HEARD"], rows));
    }
    if !status.containers.is_empty() {
        let rows = status.containers.iter().map(|container| {
            [
                container.name.clone(),
                container.state.clone(),
                container.epoch.to_string(),
                container.why.clone().unwrap_or_default(),
            ]
        });
        text.push_str("\n\n");
        text.push_str(&table(["CONTAINER HERE", "STATE", "EPOCH", "WHY"], rows));
    }
    if timeline && !status.timeline.is_empty() {
        let rows = status.timeline.iter().map(|happening| {
            let about = [&happening.node, &happening.container]
                .into_iter()
                .flatten()
                .cloned()
                .collect::<Vec<_>>()
                .join(" ");
            [
                super::wait::clock(happening.at_unix_ms),
                happening.what.clone(),
                about,
                happening.detail.clone(),
            ]
        });
        text.push_str("\n\n");
        text.push_str(&table(["TIME (UTC)", "WHAT", "ABOUT", "DETAIL"], rows));
    }
    text
}
