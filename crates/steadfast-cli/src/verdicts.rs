//! The classes of verdicts as people see them: names, sentences, and a page each.
//!
//! `steadfast explain CLASS` prints a page and `docs/reference/verdicts.md` is generated from them (a test fails when it
//! is stale). What convicts is decided in `steadfast_proto::detect`; this only words it.

use std::fmt;
use std::str::FromStr;

use steadfast_proto::detect::Class;

use crate::failure::did_you_mean;

/// A class and its page.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// The class.
    pub class: Class,
    /// What programs call it.
    pub name: &'static str,
    /// What people call it: the words of DESIGN 1, everywhere.
    pub words: &'static str,
    /// What it means, in one sentence.
    pub meaning: &'static str,
    /// What it rests on.
    pub evidence: &'static [&'static str],
    /// What the cluster does about it by itself.
    pub follows: &'static [&'static str],
    /// What a person can do, in this order.
    pub remedy: &'static [&'static str],
}

/// Every class, in the order of DESIGN 1.
pub const PAGES: &[Page] = &[
    Page {
        class: Class::ProcessCrashed,
        name: "process-crashed",
        words: "process crashed",
        meaning: "The agent of a node ended while its machine lives.",
        evidence: &[
            "the machine's kernel refuses heartbeats (port unreachable), or ended the watch connection",
            "it is about this start of the agent: an older one, or a forged word, counts for nothing",
            "two observers have it so (one, where only one watches), or the agent said goodbye",
        ],
        follows: &[
            "an agent that is back before its lease ends keeps its place",
            "otherwise the node is removed from the view, and its containers go on elsewhere",
        ],
        remedy: &[
            "look at the agent's log on that machine: `journalctl -u steadfast`",
            "start it: `systemctl start steadfast`; it joins by itself",
        ],
    },
    Page {
        class: Class::ProcessStalled,
        name: "process-stalled",
        words: "process stalled",
        meaning: "The agent of a node does not run although its machine lives.",
        evidence: &[
            "no heartbeat comes on any network, and the machine's kernel still acknowledges the watch connection",
            "two observers have it so (one, where only one watches)",
        ],
        follows: &[
            "it is reported at once, and the node is removed only when the stall has lasted for 10 s",
            "its containers freeze when its lease ends, and thaw when it is back in time",
        ],
        remedy: &[
            "look for what keeps it from running: a stopped process (`ps -o stat`), memory pressure, a hanging disk",
            "let it go on, or end it: a new start is quicker than a stall",
        ],
    },
    Page {
        class: Class::HostDead,
        name: "host-dead",
        words: "host dead",
        meaning: "A machine, or every path to it, is gone.",
        evidence: &[
            "no heartbeat comes on any network, and nothing that its kernel says",
            "enough of the nodes that watch it agree, and none of good standing has heard it since",
        ],
        follows: &[
            "the node is removed from the view",
            "its containers go on elsewhere once its lease is certainly over",
        ],
        remedy: &[
            "see whether the machine has power and whether any of its cables carries",
            "when it is back its agent joins by itself",
        ],
    },
    Page {
        class: Class::NodeIsolated,
        name: "node-isolated",
        words: "node isolated",
        meaning: "A node hears nobody.",
        evidence: &[
            "of itself: no heartbeat comes on any network, or nobody that it hears hears it",
            "of another: it speaks, and says itself that it hears nobody",
        ],
        follows: &[
            "a node that is isolated accuses nobody: that all others died at once is less likely",
            "without a majority its containers freeze when its lease ends",
        ],
        remedy: &[
            "check that node's interfaces and its firewall: `steadfast links` on it names each network",
            "it reconnects by itself",
        ],
    },
    Page {
        class: Class::NetworkDownAtNode,
        name: "network-down-at-node",
        words: "network down at a node",
        meaning: "One node is off one network; the others still use it.",
        evidence: &[
            "at least three quarters of the node's links on that network carry nothing in one direction at least",
            "the links of other nodes on it do",
        ],
        follows: &["nothing is removed and nothing moves: traffic uses the other networks"],
        remedy: &[
            "check that node's cable, interface and switch port on that network",
            "`steadfast links --all` shows the row of that node",
        ],
    },
    Page {
        class: Class::NetworkDown,
        name: "network-down",
        words: "network down",
        meaning: "A whole network carries nothing.",
        evidence: &[
            "at least two thirds of the live nodes are off it",
            "they hear one another on another network",
        ],
        follows: &["nothing is removed and nothing moves: traffic uses the other networks"],
        remedy: &[
            "check the switch of that network",
            "until it is back one more network failure may split the cluster",
        ],
    },
    Page {
        class: Class::LinkCut,
        name: "link-cut",
        words: "link cut",
        meaning: "Two nodes don't hear each other on one network, in one direction or both.",
        evidence: &[
            "at least one end says so of the other, and both are heard by others",
            "`one-way` means that one end hears and is not heard: the other end's word tells it so",
        ],
        follows: &["nothing is removed and nothing moves: the two use their other networks"],
        remedy: &[
            "`steadfast links compare PEER` shows what each end says",
            "look for a firewall rule, a bad switch port, a duplicate address, or a route that goes one way only",
        ],
    },
    Page {
        class: Class::LinkDegraded,
        name: "link-degraded",
        words: "link degraded",
        meaning: "A link carries in both directions and loses or delays much.",
        evidence: &[
            "more than 5 % of its heartbeats were lost lately, or",
            "its round trip is more than four times what it usually is",
        ],
        follows: &["nothing is removed; more heartbeats may be missed before somebody is suspected"],
        remedy: &[
            "`steadfast links` shows round trip, jitter and loss",
            "look for a full uplink, a duplex mismatch, or errors on the interface (`ip -s link`)",
        ],
    },
    Page {
        class: Class::Split,
        name: "split",
        words: "split",
        meaning: "The members fell into groups that don't hear each other.",
        evidence: &[
            "at least a third of the members, and two or more, fell silent together for all that watch them",
        ],
        follows: &[
            "the group with a majority of the catalog's voters removes the others, in one view",
            "without a majority nothing is started or moved, and containers freeze until it is back",
        ],
        remedy: &[
            "check what the silent nodes have in common: a rack, a switch, an uplink",
            "they join again by themselves",
        ],
    },
];

/// The page of a class.
pub fn page_of(class: Class) -> &'static Page {
    PAGES.iter().find(|page| page.class == class).expect("a test compares the pages with the classes")
}

/// A text that is not the name of a class.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0:?} is neither an error code (like SF-0013) nor a class of verdict (like \"link cut\"){1}")]
pub struct ParseClassError(String, String);

impl FromStr for &'static Page {
    type Err = ParseClassError;

    /// Accepts `link-cut`, `Link cut` and `link_cut`; also `network down at a node`.
    fn from_str(text: &str) -> Result<&'static Page, ParseClassError> {
        let name = text.trim().to_ascii_lowercase().replace([' ', '_'], "-");
        let hint = || did_you_mean(&name, PAGES.iter().map(|page| page.name));
        let is_meant = |page: &&Page| page.name == name || page.words.replace(' ', "-") == name;
        PAGES.iter().find(is_meant).ok_or_else(|| ParseClassError(text.into(), hint()))
    }
}

impl fmt::Display for Page {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "## {}\n\n{} Programs call it `{}`.",
            capital(self.words),
            self.meaning,
            self.name
        )?;
        let parts =
            [("It rests on:", self.evidence), ("What follows:", self.follows), ("What to do:", self.remedy)];
        for (title, lines) in parts {
            writeln!(formatter, "\n{title}\n")?;
            lines.iter().try_for_each(|line| writeln!(formatter, "- {line}"))?;
        }
        Ok(())
    }
}

/// The same words at the beginning of a sentence.
fn capital(words: &str) -> String {
    let mut letters = words.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

/// The whole reference page, `docs/reference/verdicts.md`.
pub fn reference() -> String {
    let mut text = String::from(
        "# Verdicts\n\nGenerated from `crates/steadfast-cli/src/verdicts.rs`; `steadfast explain CLASS` prints the same. A verdict is one\nnode's opinion: it never removes or moves anything by itself, only a committed change does. `steadfast status` begins\nwith those that hold, or by which nodes were removed that are not back, each with its evidence and its accusers.\n",
    );
    for page in PAGES {
        text.push_str(&format!("\n{page}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_one_page_under_its_name() {
        // Closed on purpose: a class that is added must be added here.
        let is_known = |class: Class| match class {
            Class::ProcessCrashed
            | Class::ProcessStalled
            | Class::HostDead
            | Class::NodeIsolated
            | Class::NetworkDownAtNode
            | Class::NetworkDown
            | Class::LinkCut
            | Class::LinkDegraded
            | Class::Split => PAGES.iter().filter(|page| page.class == class).count() == 1,
        };
        assert!(PAGES.iter().all(|page| is_known(page.class)) && PAGES.len() == 9);
        for page in PAGES {
            for text in [page.name.to_owned(), page.words.to_owned(), capital(page.words)] {
                assert_eq!(text.parse::<&'static Page>().unwrap().class, page.class, "{text}");
            }
        }
    }

    #[test]
    fn the_words_are_those_of_the_design_everywhere() {
        let design = "process crashed, process stalled, host dead, node isolated, network down at a node, network down, link cut, link degraded, split";
        let words: Vec<&str> = PAGES.iter().map(|page| page.words).collect();
        assert_eq!(words.join(", "), design);
        let concepts = include_str!("../../../docs/concepts/failures.md");
        for page in PAGES {
            assert!(concepts.contains(&format!("\n| {} | ", page.words)), "{} is not explained", page.words);
            assert!(!page.evidence.is_empty() && !page.follows.is_empty() && !page.remedy.is_empty());
        }
    }

    #[test]
    fn a_misspelt_class_gets_the_nearest_one() {
        assert_eq!("Link cut".parse::<&'static Page>().unwrap().class, Class::LinkCut);
        let error = "link-cutt".parse::<&'static Page>().unwrap_err();
        assert!(error.to_string().contains("did you mean \"link-cut\""), "{error}");
    }
}
