//! `steadfast status`: how the cluster stands, seen from this node; what failed comes before everything else.

use super::Context;
use crate::api::link_types::Verdict;
use crate::api::types::Status;
use crate::failure::Failure;
use crate::output::table;

/// Of how many different testimonies a verdict is printed with; `-o json` has all.
const TESTIMONIES_SHOWN: usize = 8;

/// Say how the cluster stands and what failure it survives right now
///
/// What it survives counts the catalog's voters, the grantors of leases and the copies of checkpoints that are there now, by
/// host and by failure domain.
///
/// Begins with the verdicts that hold, or by which nodes were removed that are not back, each with who says so; what failed first
/// comes first. Then names the members, whether there is a quorum, whom this node suspects, which containers are frozen and why.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast status\n  steadfast status --timeline          # with what happened lately\n  steadfast -o json status | jq .quorum\n  steadfast -o json status | jq '.verdicts[] | .sentence'"
)]
pub struct Args {
    /// Show what happened lately on this node
    #[arg(long)]
    timeline: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let status: Status = context.client.get("/v1/status").await?;
    context.output.data(&status, |status| people(status, args.timeline));
    for warning in &status.warnings {
        context.output.say(&format!("warning: {warning}"));
    }
    Ok(())
}

/// A verdict: class and subject; since when, who accuses, by which rule; who says what.
fn verdict_lines(verdict: &Verdict) -> String {
    let mut text = format!("verdict   {}\n", verdict.sentence);
    let by = match verdict.accusers.as_slice() {
        [] => String::new(),
        accusers => format!(", by {}", accusers.join(", ")),
    };
    let rule = verdict.rule.as_ref().map(|rule| format!("; here by rule {rule}")).unwrap_or_default();
    // A u64 of milliseconds since 1970 fits an f64 exactly.
    #[allow(clippy::cast_precision_loss, reason = "below 2^53 for 280,000 years")]
    let since = super::wait::clock(verdict.since_unix_ms as f64);
    let removed = if verdict.over { "; removed from the view for it" } else { "" };
    text.push_str(&format!("          since {since} UTC{by}{rule}{removed}\n"));
    // Who says the same is named together.
    let mut voices: Vec<(&str, Vec<&str>)> = Vec::new();
    for evidence in &verdict.evidence {
        match voices.iter_mut().find(|(says, _)| *says == evidence.says) {
            Some((_, who)) => who.push(&evidence.accuser),
            None => voices.push((&evidence.says, vec![&evidence.accuser])),
        }
    }
    for (says, who) in voices.iter().take(TESTIMONIES_SHOWN) {
        text.push_str(&format!("          {}: {says}\n", who.join(", ")));
    }
    let more = voices.len().saturating_sub(TESTIMONIES_SHOWN);
    if more > 0 {
        text.push_str(&format!("          and {more} more: see `steadfast -o json status`\n"));
    }
    text
}

fn people(status: &Status, timeline: bool) -> String {
    let mut text: String = status.verdicts.iter().map(verdict_lines).collect();
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(&standing(status));
    tables(status, timeline, &mut text);
    text
}

/// How the cluster stands, a line for each thing.
fn standing(status: &Status) -> String {
    let quorum = if status.quorum { "yes" } else { "NO: nothing is started or moved, containers freeze" };
    let lease = if status.lease_left_ms > 0 { "held" } else { "LAPSED: containers here are frozen" };
    let catalog = match (status.catalog.engine.as_str(), status.catalog.reachable) {
        ("etcd", true) => {
            format!("catalog   in etcd, which answers ({})", status.catalog.endpoints.join(", "))
        }
        ("etcd", false) => {
            format!("catalog   in etcd, which does NOT answer ({})", status.catalog.endpoints.join(", "))
        }
        _ => format!("leader    {}", status.leader.as_deref().unwrap_or("none known here")),
    };
    format!(
        "cluster   {} ({})\nnode      {} (start {})\nquorum    {quorum}\n{catalog}\nview      {} with {}; {}\nsurvives  {}\nlease     {lease} (of {} ms)",
        status.cluster.name,
        status.cluster.id,
        status.node,
        status.incarnation,
        status.view.id,
        status.view.members.join(", "),
        status.view.reason,
        status.survives.sentence,
        status.cluster.lease_ms,
    )
}

fn tables(status: &Status, timeline: bool, text: &mut String) {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::link_types::Evidence;
    use crate::api::types::{CatalogState, Cluster, View};
    use crate::api::view_types::Survives;

    fn healthy() -> Status {
        let view =
            View { id: 3, members: vec!["alpha".into()], proposer: "alpha".into(), reason: "founded".into() };
        Status {
            verdicts: Vec::new(),
            cluster: Cluster { id: "7".into(), name: "home".into(), lease_ms: 1_000, created_unix_ms: 1 },
            node: "alpha".into(),
            node_id: "1".into(),
            incarnation: 1,
            quorum: true,
            leader: Some("alpha".into()),
            catalog: CatalogState {
                engine: "embedded".into(),
                reachable: true,
                endpoints: Vec::new(),
                why: None,
            },
            view,
            survives: Survives {
                nodes: 0,
                hosts: 0,
                widest_domains: None,
                domains: Vec::new(),
                sentence: "no failure".into(),
            },
            lease_left_ms: 900,
            peers: Vec::new(),
            containers: Vec::new(),
            timeline: Vec::new(),
            warnings: Vec::new(),
            datagrams: [].into(),
        }
    }

    fn dead(evidence: Vec<Evidence>) -> Verdict {
        Verdict {
            class: "host-dead".into(),
            sentence: "host dead: gamma, or every path to it".into(),
            nodes: vec!["gamma".into()],
            network: None,
            since_unix_ms: 45_296_789,
            rule: Some("gossip".into()),
            accusers: vec!["alpha".into(), "beta".into()],
            evidence,
            over: false,
            generation: 1,
        }
    }

    fn says(accuser: &str, says: &str) -> Evidence {
        Evidence { accuser: accuser.into(), says: says.into(), network: None, state: None }
    }

    #[test]
    fn what_failed_comes_before_everything_else_and_nothing_comes_when_nothing_did() {
        let mut status = healthy();
        assert!(people(&status, false).starts_with("cluster   home"));
        status.verdicts.push(dead(vec![
            says("alpha", "heard nothing of it for 312 ms"),
            says("beta", "it said goodbye"),
        ]));
        let expected = "\
verdict   host dead: gamma, or every path to it
          since 12:34:56.789 UTC, by alpha, beta; here by rule gossip
          alpha: heard nothing of it for 312 ms
          beta: it said goodbye

cluster   home (7)
";
        assert!(people(&status, false).starts_with(expected), "{}", people(&status, false));
    }

    #[test]
    fn testimonies_without_end_are_cut_short() {
        let verdict = dead((0..20).map(|number| says("alpha", &format!("silent for {number} ms"))).collect());
        let text = verdict_lines(&verdict);
        assert!(text.ends_with("and 12 more: see `steadfast -o json status`\n"), "{text}");
        let removed = Verdict { over: true, rule: None, ..dead(Vec::new()) };
        assert!(verdict_lines(&removed).ends_with("by alpha, beta; removed from the view for it\n"));
        // One more who says what another said makes no line of its own.
        let verdict = dead(vec![says("alpha", "it said goodbye"), says("beta", "it said goodbye")]);
        assert!(verdict_lines(&verdict).ends_with("          alpha, beta: it said goodbye\n"));
    }
}
