//! What the cluster survives now, in words and for programs.
//!
//! It gathers what this node knows (who is heard, who votes and grants, where copies are) for
//! [`steadfast_proto::survival`], which does the arithmetic, and words what comes of it. It decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use steadfast::catalog::{CatalogStatus, EngineKind};
use steadfast_proto::catalog::{ClusterRow, View};
use steadfast_proto::ids::{ContainerId, NodeId};
use steadfast_proto::node::Status;
use steadfast_proto::survival::{Loss, Quorum, Standing};

use crate::api::convert::{Names, node_name};
use crate::api::view_types::{Survives, SurvivesDomain};

/// How many failure domains that are not survived a sentence names.
const NAMED_MAX: usize = 4;

/// What there is to lose, as this node sees it.
pub(super) fn standing(status: &Status, engine: &CatalogStatus, view: &View) -> Standing {
    let ids: BTreeMap<u64, NodeId> = status.nodes.values().map(|row| (row.engine_id, row.id)).collect();
    let voters = engine.voters.keys().filter_map(|voter| ids.get(voter)).copied();
    let voters = voters.filter(|node| is_heard(status, *node)).collect();
    let grantors = view.grantors.iter().copied().filter(|node| is_heard(status, *node)).collect();
    let grantors = Quorum { there: grantors, total: view.grantors.len() };
    let voters = match engine.engine {
        EngineKind::Embedded => Quorum { there: voters, total: engine.voters.len() },
        // No node's loss takes a vote in etcd.
        EngineKind::Etcd => grantors.clone(),
    };
    // Those that are rarely heard, as nobody watches them from here, are there unless somebody says otherwise.
    let is_there = |node: &NodeId| {
        view.has(*node) && (*node == status.id || !status.peers.get(node).is_some_and(|peer| peer.suspected))
    };
    let mut kept: BTreeMap<ContainerId, BTreeSet<NodeId>> = BTreeMap::new();
    for (_, row) in status.containers.values().filter(|(_, row)| row.is_active()) {
        let Some(latest) = &row.latest else { continue };
        let nodes = latest.copies.iter().chain([&row.owner]).copied().filter(|node| is_there(node));
        kept.insert(row.id, nodes.collect());
    }
    let there = status.nodes.values().filter(|row| is_there(&row.id));
    Standing { voters, grantors, kept, domains: there.map(|row| (row.id, row.domain.clone())).collect() }
}

/// Whether this node hears `node` now; the engine alone believes in a leader that was cut off.
fn is_heard(status: &Status, node: NodeId) -> bool {
    let lease = status.cluster.as_ref().map_or(Duration::from_secs(1), ClusterRow::lease);
    let peer = status.peers.get(&node);
    node == status.id || peer.is_some_and(|peer| !peer.suspected && peer.silent <= peer.timeout.max(lease))
}

/// What the cluster survives, as the API shows it.
pub(super) fn survives(standing: &Standing, engine: EngineKind, status: &Status, names: &Names) -> Survives {
    let called = |container: &ContainerId| {
        let row = status.containers.get(container);
        row.map_or_else(|| container.to_string(), |(_, row)| row.spec.name.clone())
    };
    let domains = standing.domains().into_iter().map(|(domain, (hosts, loss))| SurvivesDomain {
        domain,
        hosts: hosts.iter().map(|host| node_name(names, *host)).collect(),
        survived: loss.is_none(),
        why: loss.map(|loss| words(&loss, &called)),
    });
    let quorums = Standing { kept: BTreeMap::new(), ..standing.clone() };
    Survives {
        nodes: u32::try_from(quorums.hosts()).unwrap_or(u32::MAX),
        hosts: u32::try_from(standing.hosts()).unwrap_or(u32::MAX),
        widest_domains: standing.widest_domains().map(|count| u32::try_from(count).unwrap_or(u32::MAX)),
        domains: domains.collect(),
        sentence: sentence(standing, engine, &called),
    }
}

fn sentence(standing: &Standing, engine: EngineKind, called: &dyn Fn(&ContainerId) -> String) -> String {
    let (live, voters) = (standing.voters.there.len(), standing.voters.total);
    let majority = standing.voters.majority();
    let who = match engine {
        EngineKind::Embedded => "voters",
        EngineKind::Etcd => "grantors of leases",
    };
    let there = format!("{live} of {voters} {who} are there");
    if live < majority {
        return format!(
            "nothing: {there}, and {majority} are needed; containers are frozen until they are back"
        );
    }
    let mut text = match standing.hosts() {
        _ if voters == 1 => "no failure: there is one node; add two more for automatic recovery".to_owned(),
        _ if voters == 2 => {
            "no failure: of two nodes both are needed; a third gives automatic recovery".to_owned()
        }
        0 => format!("no further failure: {}", without_one(standing, &there, called)),
        1 => format!("the loss of any one host ({there})"),
        hosts => format!("the loss of any {hosts} hosts at once ({there})"),
    };
    if standing.hosts() > 0 {
        text.push_str(&domain_words(standing));
    }
    if !standing.kept.is_empty() {
        text.push_str("; not a power loss of all hosts at once: checkpoints lie in memory");
    }
    if engine == EngineKind::Etcd {
        text.push_str("; beside that etcd must keep a majority of its own");
    }
    text
}

/// Why not even one host may fail.
fn without_one(standing: &Standing, there: &str, called: &dyn Fn(&ContainerId) -> String) -> String {
    let (grantors, voters) = (standing.grantors.total, standing.voters.total);
    let losses = standing.domains.keys().filter_map(|node| standing.loss(&BTreeSet::from([*node])));
    // What stands first in the order of a loss stands in the way of everything else.
    match losses.min_by_key(|loss| match loss {
        Loss::Voters { .. } => 0,
        Loss::Grantors { .. } => 1,
        Loss::Containers(_) => 2,
    }) {
        Some(Loss::Grantors { .. }) if grantors < voters => {
            format!("{grantors} of {voters} voters grant leases so far")
        }
        Some(loss @ Loss::Containers(_)) => words(&loss, called),
        Some(Loss::Voters { .. }) => format!("{there}, and {} are needed", standing.voters.majority()),
        Some(Loss::Grantors { .. }) | None => format!(
            "{} of {grantors} grantors are there, and {} are needed",
            standing.grantors.there.len(),
            standing.grantors.majority()
        ),
    }
}

/// What of the named failure domains is survived.
fn domain_words(standing: &Standing) -> String {
    let domains = standing.domains();
    let lost: Vec<&Vec<String>> =
        domains.iter().filter(|(_, (_, loss))| loss.is_some()).map(|(domain, _)| domain).collect();
    // A domain that holds one that is named already adds nothing.
    let narrowest: Vec<String> = (lost.iter())
        .filter(|domain| !lost.iter().any(|other| other.len() > domain.len() && other.starts_with(domain)))
        .map(|domain| domain.join("/"))
        .collect();
    if domains.is_empty() {
        return String::new();
    }
    if narrowest.is_empty() {
        return match standing.widest_domains() {
            Some(count) if count > 1 => format!("; of any {count} failure domains at once"),
            Some(_) | None => "; of any one failure domain".to_owned(),
        };
    }
    let more = narrowest.len().saturating_sub(NAMED_MAX);
    let mut named = narrowest.into_iter().take(NAMED_MAX).collect::<Vec<_>>().join(", ");
    if more > 0 {
        named.push_str(&format!(" and {more} more"));
    }
    format!("; not of {named}")
}

fn words(loss: &Loss, called: &dyn Fn(&ContainerId) -> String) -> String {
    match loss {
        Loss::Voters { left, needed } => {
            format!("{left} of the catalog's voters would be left, and {needed} are needed")
        }
        Loss::Grantors { left, needed } => {
            format!("{left} of the grantors of leases would be left, and {needed} are needed")
        }
        Loss::Containers(containers) => {
            let names: Vec<String> = containers.iter().take(NAMED_MAX).map(called).collect();
            let more = match containers.len().saturating_sub(NAMED_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("every copy of what {}{more} would go on from would be lost", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hosts 1, 2, ... in these domains, all of them voters and grantors.
    fn hosts(domains: &[&str]) -> Standing {
        let path = |domain: &&str| {
            domain.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let domains: BTreeMap<NodeId, Vec<String>> =
            (1..).map(NodeId).zip(domains.iter().map(path)).collect();
        let all = Quorum { there: domains.keys().copied().collect(), total: domains.len() };
        Standing { voters: all.clone(), grantors: all, kept: BTreeMap::new(), domains }
    }

    fn said(standing: &Standing) -> String {
        sentence(standing, EngineKind::Embedded, &|_| "redis".to_owned())
    }

    fn kept(nodes: &[u128]) -> BTreeMap<ContainerId, BTreeSet<NodeId>> {
        BTreeMap::from([(ContainerId(1), nodes.iter().copied().map(NodeId).collect())])
    }

    #[test]
    fn one_sentence_names_hosts_and_the_domains_that_are_too_much() {
        let plain = hosts(&["", "", ""]);
        assert_eq!(said(&plain), "the loss of any one host (3 of 3 voters are there)");
        let uneven = hosts(&["a/rack-1", "a/rack-1", "b/rack-3", "b/rack-3", "b/rack-3"]);
        assert_eq!(
            said(&uneven),
            "the loss of any 2 hosts at once (5 of 5 voters are there); not of b/rack-3"
        );
        let even = hosts(&["r1", "r1", "r2", "r2", "r3"]);
        assert_eq!(
            said(&even),
            "the loss of any 2 hosts at once (5 of 5 voters are there); of any one failure domain"
        );
        assert!(
            said(&hosts(&["r1", "r2", "r3", "r4", "r5"])).ends_with("; of any 2 failure domains at once")
        );
    }

    #[test]
    fn with_etcd_it_is_the_grantors_that_count_and_etcd_for_itself() {
        let said = sentence(&hosts(&["", "", ""]), EngineKind::Etcd, &|_| String::new());
        assert_eq!(
            said,
            "the loss of any one host (3 of 3 grantors of leases are there); beside that etcd must keep a majority of its own"
        );
    }

    #[test]
    fn what_stands_in_the_way_is_said() {
        assert!(said(&hosts(&[""])).starts_with("no failure: there is one node"));
        assert!(said(&hosts(&["", ""])).starts_with("no failure: of two nodes both are needed"));
        let mut away = hosts(&["", "", ""]);
        away.voters.there.remove(&NodeId(3));
        assert_eq!(said(&away), "no further failure: 2 of 3 voters are there, and 2 are needed");
        away.voters.there.remove(&NodeId(2));
        assert!(said(&away).starts_with("nothing: 1 of 3 voters are there, and 2 are needed"));
        let mut young = hosts(&["", "", ""]);
        young.grantors = Quorum { there: [NodeId(1)].into(), total: 1 };
        assert_eq!(said(&young), "no further failure: 1 of 3 voters grant leases so far");
        let mut bare = hosts(&["", "", ""]);
        bare.kept = kept(&[2]);
        assert_eq!(
            said(&bare),
            "no further failure: every copy of what redis would go on from would be lost; not a power loss of all hosts at once: checkpoints lie in memory"
        );
    }

    #[test]
    fn copies_in_the_rack_of_their_owner_are_no_protection_from_its_loss() {
        let mut standing = hosts(&["r1", "r1", "r2", "r3", "r4"]);
        standing.kept = kept(&[1, 2]);
        let said = said(&standing);
        assert!(said.starts_with("the loss of any one host") && said.contains("; not of r1;"), "{said}");
    }
}
