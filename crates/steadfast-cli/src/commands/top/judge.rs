//! What is wrong, the worst first, from the picture alone, by the same rules as the page's `judge.js`.
//!
//! Pure. It repeats what the node concluded and concludes nothing itself.

use super::picture::{Container, Node, Picture};

/// How grave something is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Something failed.
    Bad,
    /// Something needs attention.
    Warning,
}

/// Something that needs attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) level: Level,
    pub(super) text: String,
    /// The node or container that it is about, where it is one.
    name: Option<String>,
}

const GRAVE: [&str; 5] = ["host-dead", "process-crashed", "network-down", "split", "node-isolated"];

/// Everything that needs attention, the worst first.
pub(super) fn problems(picture: &Picture) -> Vec<Problem> {
    let mut found = Found::default();
    if let Some(trouble) = &picture.about.trouble {
        found.add(Level::Bad, trouble.clone(), None);
    }
    for verdict in &picture.verdicts {
        let level = if GRAVE.contains(&verdict.class.as_str()) { Level::Bad } else { Level::Warning };
        found.add(level, verdict.sentence.clone(), verdict.nodes.first());
    }
    for warning in &picture.standing.warnings {
        let is_about = |name: &&String| {
            warning.starts_with(&format!("{name} ")) || warning.contains(&format!(" {name} "))
        };
        let level = if is_grave(warning) { Level::Bad } else { Level::Warning };
        found.add(level, warning.clone(), picture.containers.keys().find(is_about));
    }
    for container in picture.containers.values() {
        let is_told = found.problems.iter().any(|known| known.name.as_ref() == Some(&container.name));
        if !is_told
            && container.state == "running"
            && container.latest.is_some()
            && !is_protected(container, picture)
        {
            let (there, wanted) = (holders(container, picture).len(), container.copies_wanted);
            let text = format!("{} has {there} of {wanted} copies on other nodes", container.name);
            found.add(Level::Warning, text, Some(&container.name));
        }
    }
    for node in picture.nodes.values() {
        let is_told = picture.verdicts.iter().any(|verdict| verdict.nodes.contains(&node.name));
        if let Some(text) = wrong_with(node, picture).filter(|_| !is_told) {
            found.add(Level::Warning, text, Some(&node.name));
        }
    }
    if picture.standing.survives.as_ref().is_some_and(|survives| survives.nodes == 0)
        && picture.standing.members.len() > 1
    {
        found.add(Level::Warning, "no failure of a node would be survived now".to_owned(), None);
    }
    // Stable: what was told first stays first.
    found.problems.sort_by_key(|problem| problem.level);
    found.problems
}

/// Nodes in the order in which they are shown: those that are there first, then by name.
pub(super) fn ordered(picture: &Picture) -> Vec<&Node> {
    let mut nodes: Vec<&Node> = picture.nodes.values().collect();
    nodes.sort_by_key(|node| ["removed", "left", "eliminated"].contains(&node.state.as_str()));
    nodes
}

/// Who else has copies of a container's newest checkpoint and is there. What lies on its own node is lost with it.
pub(super) fn holders<'a>(container: &'a Container, picture: &Picture) -> Vec<&'a str> {
    let copies = container.latest.iter().flat_map(|latest| &latest.copies);
    let mut names: Vec<&str> = copies
        .map(|copy| copy.node.as_str())
        .filter(|name| *name != container.node && is_there(name, picture))
        .collect();
    names.sort_unstable();
    names
}

/// Whether as many nodes have copies as are wanted.
pub(super) fn is_protected(container: &Container, picture: &Picture) -> bool {
    u32::try_from(holders(container, picture).len()).is_ok_and(|count| count >= container.copies_wanted)
}

#[derive(Default)]
struct Found {
    problems: Vec<Problem>,
}

impl Found {
    fn add(&mut self, level: Level, text: String, name: Option<&String>) {
        if !self.problems.iter().any(|known| known.text == text) {
            self.problems.push(Problem { level, text, name: name.cloned() });
        }
    }
}

fn is_there(name: &str, picture: &Picture) -> bool {
    let state = picture.nodes.get(name).map(|node| node.state.as_str());
    state.is_some_and(|state| ["member", "suspected", "draining"].contains(&state))
}

fn is_grave(warning: &str) -> bool {
    warning.starts_with("there is no majority")
        || warning.starts_with("etcd does not answer")
        || warning.contains(" is lost: ")
        || warning.contains(" failed: ")
        || warning.contains("catalog on this node is closed")
}

fn wrong_with(node: &Node, picture: &Picture) -> Option<String> {
    match node.state.as_str() {
        "suspected" => Some(format!("{} is suspected by {}", node.name, picture.about.node)),
        "removed" => Some(format!("{} was removed and is not back", node.name)),
        "eliminated" => {
            let eliminated = node.probation.as_ref().and_then(|probation| probation.eliminated.as_ref());
            let why = eliminated.map_or("its probation failed", |eliminated| eliminated.measured.as_str());
            Some(format!("{} was not admitted: {why}", node.name))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::picture::picture_of;
    use super::*;

    #[test]
    fn the_worst_comes_first_and_nothing_twice() {
        let picture = picture_of(json!({
            "about": {"node": "alpha"},
            "standing": {"members": ["alpha", "beta"], "survives": {"nodes": 0},
                "warnings": ["web has 0 of 2 copies", "there is no majority of voters"]},
            "verdicts": {"list": [
                {"class": "link-degraded", "sentence": "alpha hears beta badly", "nodes": ["beta"]},
                {"class": "host-dead", "sentence": "gamma: host dead", "nodes": ["gamma"]}]},
            "nodes": {"alpha": {"name": "alpha", "state": "member"}, "gamma": {"name": "gamma", "state": "removed"},
                "delta": {"name": "delta", "state": "removed"}},
            "containers": {
                "web": {"name": "web", "node": "alpha", "state": "running", "copies_wanted": 2, "latest": {"number": 1}},
                "sql": {"name": "sql", "node": "alpha", "state": "running", "copies_wanted": 2, "latest":
                    {"number": 3, "copies": [{"node": "alpha"}, {"node": "gamma"}]}}},
        }));
        let found = problems(&picture);
        let texts: Vec<&str> = found.iter().map(|problem| problem.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "gamma: host dead",
                "there is no majority of voters",
                "alpha hears beta badly",
                "web has 0 of 2 copies",
                "sql has 0 of 2 copies on other nodes",
                "delta was removed and is not back",
                "no failure of a node would be survived now",
            ]
        );
        assert_eq!(found.iter().filter(|problem| problem.level == Level::Bad).count(), 2);
    }

    #[test]
    fn a_healthy_cluster_has_no_problems() {
        let picture = picture_of(json!({
            "standing": {"members": ["alpha", "beta"], "survives": {"nodes": 1}},
            "nodes": {"alpha": {"name": "alpha", "state": "member"}, "beta": {"name": "beta", "state": "member"}},
            "containers": {"web": {"name": "web", "node": "alpha", "state": "running", "copies_wanted": 1,
                "latest": {"copies": [{"node": "beta"}]}}},
        }));
        assert_eq!(problems(&picture), []);
    }
}
