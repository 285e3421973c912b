//! `steadfast links`: what each link does and how well, seen from one node or from all of them.
//!
//! Every node answers for its own end; `--all` and `compare` ask the others too, through this node's agent. Nothing
//! is judged here.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use serde::Serialize;

use super::Context;
use crate::api::convert::now_unix_ms;
use crate::api::link_client::LinksOf;
use crate::api::link_types::{Link, LinkReport, VerdictReport};
use crate::api::types::Node;
use crate::failure::Failure;
use crate::output::{columns, table};
use crate::units;

/// Show what this node's links do: state, round trip, jitter, loss
///
/// One row per peer and network. A link is up only when heartbeats go both ways; `one-way` says which end does not
/// hear. A cut link removes nobody: as long as one network carries, the two nodes use that.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  steadfast links\n  steadfast links --all                 # the whole matrix, each node for itself\n  steadfast links --watch --peer beta   # what changes, as it does\n  steadfast links compare beta          # what both ends say\n  steadfast -o json links --state one-way,down | jq '.links[].peer'"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Only links to this node
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    /// Only links on this network
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// Only links that are up, degraded, one-way, down or unknown; a list with commas
    #[arg(long, value_name = "STATES")]
    state: Option<String>,
    /// The node whose links are shown; this one when absent
    #[arg(long, value_name = "NAME", conflicts_with = "all")]
    node: Option<String>,
    /// Ask every node, and show who hears whom
    #[arg(long, conflicts_with = "watch")]
    all: bool,
    /// Go on and say what changes
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show what both ends say of their links
    #[command(
        after_help = "Examples:\n  steadfast links compare beta\n  steadfast -o json links compare beta"
    )]
    Compare(CompareArgs),
}

#[derive(Debug, clap::Args)]
struct CompareArgs {
    /// The other end
    peer: String,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    if let Some(Verb::Compare(compare)) = &args.verb {
        return run_compare(&compare.peer, context).await;
    }
    let (is_all, is_watch) = (args.all, args.watch);
    let wanted =
        LinksOf { node: args.node, peer: args.peer, network: args.network, state: args.state, changes: None };
    if is_all {
        return run_all(&wanted, context).await;
    }
    if is_watch {
        return run_watch(wanted, context).await;
    }
    let report = context.client.links(&wanted).await?;
    context.output.data(&report, |report| people(report, now_unix_ms()));
    Ok(())
}

async fn run_watch(wanted: LinksOf, context: &Context) -> Result<(), Failure> {
    let mut reports = pin!(context.client.follow_links(wanted));
    while let Some(report) = reports.next().await {
        let report = report?;
        context.output.item(&report, |report| match report.whole {
            true => people(report, now_unix_ms()),
            false => report.links.iter().map(change_line).collect::<Vec<_>>().join("\n"),
        });
    }
    Ok(())
}

/// One change in one line.
fn change_line(link: &Link) -> String {
    // A time of day is exact in an f64.
    #[allow(clippy::cast_precision_loss, reason = "below 2^53 for 280,000 years")]
    let clock = super::wait::clock(now_unix_ms() as f64);
    let state = match &link.from {
        Some(from) if *from != link.state => format!("{from} -> {}", link.state),
        Some(_) | None => link.state.clone(),
    };
    let detail = link.detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
    let coalesced = match link.coalesced {
        0 => String::new(),
        count => format!("; {count} changes before it are left out"),
    };
    let figures = match carries(&link.state) {
        true => format!(
            ", {} +- {}, {:.1} % lost",
            delay(link.round_trip_ms),
            delay(Some(link.jitter_ms)),
            link.loss_percent
        ),
        false => String::new(),
    };
    format!("{clock}  {} on {}: {state}{detail}{figures}{coalesced}", link.peer, link.network)
}

/// A table per network.
fn people(report: &LinkReport, now_unix_ms: u64) -> String {
    let mut networks: BTreeMap<&str, Vec<&Link>> = BTreeMap::new();
    for link in &report.links {
        networks.entry(&link.network).or_default().push(link);
    }
    if networks.is_empty() {
        return format!("{} has no such links", report.node);
    }
    let mut parts = Vec::new();
    for (network, mut links) in networks {
        links.sort_by(|a, b| a.peer.cmp(&b.peer));
        let rows = links.into_iter().map(|link| row(link, now_unix_ms));
        let head = ["PEER", "STATE", "ROUND TRIP", "JITTER", "LOSS", "SINCE", "DETAIL"];
        parts.push(format!("{network}, from {}\n{}", report.node, table(head, rows)));
    }
    let cut: Vec<String> =
        report.peers.iter().filter(|peer| peer.state == "down").map(|peer| peer.peer.clone()).collect();
    if !cut.is_empty() {
        parts.push(format!("over no network: {}", cut.join(", ")));
    }
    parts.join("\n\n")
}

fn row(link: &Link, now_unix_ms: u64) -> [String; 7] {
    let figure = |text: String| if carries(&link.state) { text } else { "-".to_owned() };
    let since = Duration::from_millis(now_unix_ms.saturating_sub(link.since_unix_ms));
    [
        link.peer.clone(),
        link.state.clone(),
        figure(delay(link.round_trip_ms)),
        figure(delay(link.round_trip_ms.map(|_| link.jitter_ms))),
        figure(format!("{:.1} %", link.loss_percent)),
        units::human_duration(since),
        link.detail.clone().unwrap_or_default(),
    ]
}

fn carries(state: &str) -> bool {
    matches!(state, "up" | "degraded")
}

fn delay(ms: Option<f64>) -> String {
    ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2} ms"))
}

/// What one node says of its links.
#[derive(Debug, Serialize)]
struct Seen {
    /// The node.
    node: String,
    /// Whether it answered itself; otherwise these are its claims, as far as the verdicts here rest on them.
    answered: bool,
    /// Why it did not.
    problem: Option<String>,
    /// Its links.
    links: Vec<Link>,
}

async fn run_all(wanted: &LinksOf, context: &Context) -> Result<(), Failure> {
    let own = context.client.links(wanted).await?;
    let nodes: Vec<Node> = context.client.get("/v1/nodes").await?;
    let verdicts = context.client.verdicts(None).await?;
    let others = nodes.iter().filter(|node| node.name != own.node && node.state != "removed");
    let asked = others.map(|node| async {
        let of_node = LinksOf { node: Some(node.name.clone()), ..wanted.clone() };
        (node.name.clone(), context.client.links(&of_node).await)
    });
    let answers = futures_util::future::join_all(asked).await;
    let mut seen = vec![Seen { node: own.node.clone(), answered: true, problem: None, links: own.links }];
    for (node, answer) in answers {
        seen.push(match answer {
            Ok(report) => Seen { node, answered: true, problem: None, links: report.links },
            Err(failure) => Seen {
                links: claimed(&node, &verdicts),
                node,
                answered: false,
                problem: Some(failure.message),
            },
        });
    }
    seen.sort_by(|a, b| a.node.cmp(&b.node));
    context.output.data(&seen, |seen| matrix(seen));
    for problem in seen.iter().filter_map(|row| row.problem.as_ref()) {
        context.output.say(&format!("warning: {problem}"));
    }
    Ok(())
}

/// What a node that does not answer has claimed of its links, as far as verdicts rest on it.
fn claimed(node: &str, verdicts: &VerdictReport) -> Vec<Link> {
    let of_links = verdicts.verdicts.iter().filter(|verdict| verdict.nodes.len() == 2);
    of_links
        .flat_map(|verdict| {
            let peer = verdict.nodes.iter().find(|name| *name != node).cloned().unwrap_or_default();
            let said = verdict.evidence.iter().filter(|evidence| evidence.accuser == node);
            said.filter_map(move |evidence| {
                Some(Link {
                    peer: peer.clone(),
                    network: evidence.network.clone()?,
                    state: evidence.state.clone()?,
                    from: None,
                    heard: None,
                    hears: None,
                    detail: Some(evidence.says.clone()),
                    since_unix_ms: verdict.since_unix_ms,
                    heard_unix_ms: None,
                    round_trip_ms: None,
                    jitter_ms: 0.0,
                    loss_percent: 0.0,
                    generation: 0,
                    coalesced: 0,
                })
            })
        })
        .collect()
}

/// Who says what of whom, a matrix per network.
fn matrix(seen: &[Seen]) -> String {
    let networks: BTreeSet<&str> =
        seen.iter().flat_map(|row| row.links.iter().map(|link| link.network.as_str())).collect();
    let mut names: BTreeSet<&str> = seen.iter().map(|row| row.node.as_str()).collect();
    names.extend(seen.iter().flat_map(|row| row.links.iter().map(|link| link.peer.as_str())));
    let parts = networks.into_iter().map(|network| {
        let mut head = vec![network.to_owned()];
        head.extend(names.iter().map(|name| (*name).to_owned()));
        let rows = seen.iter().map(|row| {
            let cell = |name: &&str| {
                let is_it = |link: &&Link| link.peer == **name && link.network == network;
                match row.links.iter().find(is_it) {
                    Some(link) => cell(link),
                    None if row.node == **name => "-".to_owned(),
                    None => "?".to_owned(),
                }
            };
            let name = if row.answered { row.node.clone() } else { format!("{} (silent)", row.node) };
            std::iter::once(name).chain(names.iter().map(cell)).collect()
        });
        columns(&head, rows)
    });
    parts.collect::<Vec<_>>().join("\n\n")
}

/// A link in a matrix: the state, and what is remarkable.
fn cell(link: &Link) -> String {
    match link.state.as_str() {
        "up" => delay(link.round_trip_ms),
        "degraded" => format!("degraded {} {:.0} %", delay(link.round_trip_ms), link.loss_percent),
        "one-way" if link.heard == Some(true) => "one-way: not heard".to_owned(),
        "one-way" if link.heard == Some(false) => "one-way: hears not".to_owned(),
        other => other.to_owned(),
    }
}

/// What both ends say of their links.
#[derive(Debug, Serialize)]
struct Comparison {
    node: String,
    peer: String,
    /// Why the peer's own word is missing.
    problem: Option<String>,
    networks: Vec<Pair>,
}

/// What both ends say of one link.
#[derive(Debug, Serialize)]
struct Pair {
    network: String,
    here: Option<Link>,
    there: Option<Link>,
    /// What follows from the two together.
    means: String,
}

async fn run_compare(peer: &str, context: &Context) -> Result<(), Failure> {
    let to_peer = LinksOf { peer: Some(peer.to_owned()), ..LinksOf::default() };
    let here = context.client.links(&to_peer).await?;
    let name = here.peers.first().map_or_else(|| peer.to_owned(), |general| general.peer.clone());
    let back = LinksOf { node: Some(name.clone()), peer: Some(here.node.clone()), ..LinksOf::default() };
    let there = context.client.links(&back).await;
    let problem = there.as_ref().err().map(|failure| failure.message.clone());
    let comparison = compare(here, name, there.map(|report| report.links).unwrap_or_default(), problem);
    context.output.data(&comparison, |comparison| {
        let rows = comparison.networks.iter().map(|pair| {
            let end = |link: &Option<Link>| link.as_ref().map_or_else(|| "?".to_owned(), cell_with_state);
            [pair.network.clone(), end(&pair.here), end(&pair.there), pair.means.clone()]
        });
        let (here, there) = (format!("{} SAYS", comparison.node), format!("{} SAYS", comparison.peer));
        table(["NETWORK", &here, &there, "TOGETHER"], rows)
    });
    if let Some(problem) = &comparison.problem {
        context.output.say(&format!("warning: {problem}; what it hears is by its last heartbeat"));
    }
    Ok(())
}

fn cell_with_state(link: &Link) -> String {
    if link.state == "up" { format!("up {}", delay(link.round_trip_ms)) } else { cell(link) }
}

fn compare(here: LinkReport, peer: String, there: Vec<Link>, problem: Option<String>) -> Comparison {
    let networks: BTreeSet<String> =
        here.links.iter().chain(&there).map(|link| link.network.clone()).collect();
    let on = |links: &[Link], network: &str| links.iter().find(|link| link.network == network).cloned();
    let pairs = networks.into_iter().map(|network| {
        let (mine, theirs) = (on(&here.links, &network), on(&there, &network));
        let means = together(&here.node, &peer, mine.as_ref(), theirs.as_ref());
        Pair { network, here: mine, there: theirs, means }
    });
    Comparison { networks: pairs.collect(), node: here.node.clone(), peer, problem }
}

/// What two ends' words say together: each knows for certain what it hears.
fn together(node: &str, peer: &str, here: Option<&Link>, there: Option<&Link>) -> String {
    let inward = here.and_then(|link| link.heard);
    let by_word = here.and_then(|link| link.hears);
    let outward = there.and_then(|link| link.heard).or(by_word);
    let is_slow = [here, there].into_iter().flatten().any(|link| link.state == "degraded");
    let mut words = match (inward, outward) {
        (Some(true), Some(true)) if is_slow => "carries both ways, badly".to_owned(),
        (Some(true), Some(true)) => "carries both ways".to_owned(),
        (Some(true), Some(false)) => format!("carries from {peer} to {node} only"),
        (Some(false), Some(true)) => format!("carries from {node} to {peer} only"),
        (Some(false), Some(false)) => "carries nothing".to_owned(),
        (Some(false), None) => format!("carries nothing from {peer} to {node}"),
        (None, Some(false)) => format!("carries nothing from {node} to {peer}"),
        (Some(true) | None, None) | (None, Some(true)) => "not known yet".to_owned(),
    };
    let disagree =
        |word: Option<bool>, truth: Option<bool>| word.zip(truth).is_some_and(|(word, truth)| word != truth);
    let theirs = there.and_then(|link| link.hears);
    if there.is_some() && (disagree(by_word, there.and_then(|link| link.heard)) || disagree(theirs, inward)) {
        words.push_str("; one end has not noticed yet");
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(peer: &str, state: &str, heard: Option<bool>, hears: Option<bool>) -> Link {
        Link {
            peer: peer.to_owned(),
            network: "front".to_owned(),
            state: state.to_owned(),
            from: None,
            heard,
            hears,
            detail: None,
            since_unix_ms: 1_000,
            heard_unix_ms: None,
            round_trip_ms: Some(0.25),
            jitter_ms: 0.03,
            loss_percent: 0.0,
            generation: 3,
            coalesced: 0,
        }
    }

    #[test]
    fn two_ends_together_say_which_way_a_link_carries() {
        let up = link("b", "up", Some(true), Some(true));
        let deaf = link("b", "one-way", Some(true), Some(false));
        let mute = link("a", "one-way", Some(false), Some(true));
        let down = link("b", "down", Some(false), None);
        assert_eq!(together("a", "b", Some(&up), Some(&up)), "carries both ways");
        assert_eq!(together("a", "b", Some(&deaf), Some(&mute)), "carries from b to a only");
        assert_eq!(together("a", "b", Some(&mute), Some(&deaf)), "carries from a to b only");
        assert_eq!(together("a", "b", Some(&deaf), None), "carries from b to a only");
        assert_eq!(together("a", "b", Some(&down), Some(&down)), "carries nothing");
        assert_eq!(
            together("a", "b", Some(&up), Some(&mute)),
            "carries from b to a only; one end has not noticed yet"
        );
    }

    #[test]
    fn tables_name_peers_and_leave_out_figures_that_mean_nothing() {
        let report = LinkReport {
            node: "a".to_owned(),
            generation: 3,
            whole: true,
            links: vec![link("c", "down", Some(false), None), link("b", "up", Some(true), Some(true))],
            peers: Vec::new(),
        };
        let text = people(&report, 4_000);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "front, from a");
        assert!(
            lines[2].starts_with("b     up") && lines[2].contains("0.25 ms") && lines[2].contains("3.0s")
        );
        assert!(lines[3].starts_with("c     down") && !lines[3].contains("ms"), "{text}");
    }

    #[test]
    fn the_matrix_has_a_row_per_node_and_a_column_per_peer() {
        let seen = [
            Seen {
                node: "a".into(),
                answered: true,
                problem: None,
                links: vec![link("b", "one-way", Some(true), Some(false))],
            },
            Seen { node: "b".into(), answered: false, problem: Some("gone".into()), links: Vec::new() },
        ];
        let text = matrix(&seen);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("front") && lines[0].ends_with('b'));
        assert!(lines[1].starts_with("a") && lines[1].ends_with("one-way: not heard"));
        assert!(lines[2].starts_with("b (silent)") && lines[2].contains('?'));
    }
}
