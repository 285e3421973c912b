//! What came of the trials, as figures and as a table.
//!
//! Every figure is taken over all trials together; the JSON form is what scripts read, so its keys keep their
//! meaning. Never says more than the reports do.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use steadfast_proto::detect::Profile;
use steadfast_sim::detection::{Finding, Quantiles, Report, class_name};

use super::settings::Request;
use crate::output::table;
use crate::units;

/// Quantiles in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Milliseconds {
    pub(super) p50_ms: f64,
    pub(super) p90_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

/// What came of all faults of one kind, or of one fault.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Detection {
    /// Until every other node knew; the same as `last`.
    #[serde(flatten)]
    pub(super) all: Option<Milliseconds>,
    /// Until the first other node knew.
    pub(super) first: Option<Milliseconds>,
    /// Until half of the others knew.
    pub(super) median: Option<Milliseconds>,
    /// Until the last of the others knew.
    pub(super) last: Option<Milliseconds>,
    /// Until a node noticed something by itself.
    pub(super) noticed: Option<Milliseconds>,
    /// How often it struck.
    pub(super) times: usize,
    /// How many nodes never knew.
    pub(super) missing: usize,
    /// What nodes said first, and how many of them.
    pub(super) classes: BTreeMap<&'static str, usize>,
    /// What nodes said last.
    pub(super) classes_last: BTreeMap<&'static str, usize>,
}

/// One fault of the plan.
#[derive(Clone, Debug, Serialize)]
struct FaultSummary {
    fault: String,
    #[serde(flatten)]
    detection: Detection,
}

/// What was said that was wrong, in all trials.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct WrongSummary {
    suspicions: usize,
    verdicts: usize,
    isolations: usize,
    links: usize,
    removals: usize,
    flaps: usize,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct CostSummary {
    pub(super) bytes_per_s: f64,
    pub(super) bytes_per_s_peak: f64,
    pub(super) bytes_per_s_node_max: f64,
    pub(super) packets_per_s: f64,
    pub(super) packets_per_s_peak: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct ViewSummary {
    mean: f64,
    max: usize,
    removed: usize,
}

/// What the plain time-out said.
#[derive(Clone, Copy, Debug, Serialize)]
struct PlainSummary {
    timeout_ms: f64,
    accusations: usize,
}

/// What came of a request.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Summary {
    nodes: usize,
    networks: usize,
    profile: &'static str,
    interval_ms: f64,
    duration_ms: f64,
    trials: u32,
    seed: u64,
    faults: Vec<FaultSummary>,
    /// All faults of a kind together, by its name.
    #[serde(flatten)]
    pub(super) kinds: BTreeMap<&'static str, Detection>,
    pub(super) wrong: WrongSummary,
    views: ViewSummary,
    pub(super) cost: CostSummary,
    #[serde(skip_serializing_if = "Option::is_none")]
    plain: Option<PlainSummary>,
    /// Some of what was wrong.
    examples: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trace: Vec<String>,
    again: String,
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

impl Milliseconds {
    fn of(samples: impl IntoIterator<Item = Duration>) -> Option<Milliseconds> {
        let quantiles = Quantiles::of(samples)?;
        Some(Milliseconds {
            p50_ms: ms(quantiles.p50),
            p90_ms: ms(quantiles.p90),
            p99_ms: ms(quantiles.p99),
            max_ms: ms(quantiles.max),
        })
    }
}

impl Detection {
    fn of(findings: &[&Finding]) -> Detection {
        let over = |of: fn(&Finding) -> Option<Duration>| {
            Milliseconds::of(findings.iter().filter_map(|one| of(one)))
        };
        let classes = |of: fn(&Finding) -> &BTreeMap<steadfast_proto::detect::Class, usize>| {
            let mut classes = BTreeMap::new();
            for (class, count) in findings.iter().flat_map(|one| of(one)) {
                *classes.entry(class_name(*class)).or_insert(0) += count;
            }
            classes
        };
        let last = over(Finding::last);
        Detection {
            all: last,
            first: over(Finding::first),
            median: over(Finding::median),
            last,
            noticed: Milliseconds::of(findings.iter().flat_map(|one| one.noticed.iter().copied())),
            times: findings.len(),
            missing: findings.iter().map(|one| one.missing).sum(),
            classes: classes(|one| &one.classes),
            classes_last: classes(|one| &one.classes_last),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a mean for people needs no more than 52 bits")]
fn mean(total: f64, count: usize) -> f64 {
    if count == 0 { 0.0 } else { (total / count as f64 * 10.0).round() / 10.0 }
}

impl Summary {
    /// The figures of `reports`.
    pub(super) fn of(request: &Request, reports: &[Report]) -> Summary {
        let plan = &request.plan;
        let findings: Vec<&Finding> = reports.iter().flat_map(|report| &report.findings).collect();
        let mut kinds = BTreeMap::new();
        for kind in findings.iter().map(|one| one.fault.kind) {
            let of_kind: Vec<&Finding> =
                findings.iter().filter(|one| one.fault.kind == kind).copied().collect();
            kinds.entry(kind.name()).or_insert_with(|| Detection::of(&of_kind));
        }
        let faults = plan.faults.iter().map(|fault| {
            let of_fault: Vec<&Finding> =
                findings.iter().filter(|one| one.fault == *fault).copied().collect();
            FaultSummary { fault: fault.to_string(), detection: Detection::of(&of_fault) }
        });
        Summary {
            nodes: plan.nodes,
            networks: plan.networks.len(),
            profile: match plan.settings.profile {
                Profile::Gossip => "gossip",
                Profile::Relative => "relative",
                Profile::Timeout => "timeout",
            },
            interval_ms: ms(plan.settings.interval),
            duration_ms: ms(plan.duration),
            trials: request.trials,
            seed: request.seed,
            faults: faults.collect(),
            kinds,
            wrong: wrong(reports),
            views: views(reports),
            cost: cost(reports),
            plain: plan.plain.map(|timeout| PlainSummary {
                timeout_ms: ms(timeout),
                accusations: reports.iter().map(|report| report.plain.len()).sum(),
            }),
            examples: reports.iter().flat_map(|report| &report.examples).take(10).map(said).collect(),
            trace: reports.iter().flat_map(|report| &report.lines).map(said).collect(),
            again: again(request),
        }
    }

    /// The command that does the same again.
    pub(super) fn again(&self) -> &str {
        &self.again
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        if !self.trace.is_empty() {
            parts.push(self.trace.join("\n"));
        }
        if !self.faults.is_empty() {
            let quantiles = |found: &Option<Milliseconds>| {
                found.map_or_else(|| "-".to_owned(), |found| format!("{} / {}", found.p50_ms, found.p99_ms))
            };
            let rows = self.faults.iter().map(|one| {
                let detection = &one.detection;
                let classes = detection.classes.iter().map(|(class, count)| format!("{class} {count}"));
                [
                    one.fault.clone(),
                    detection.times.to_string(),
                    quantiles(&detection.first),
                    quantiles(&detection.median),
                    quantiles(&detection.last),
                    detection.missing.to_string(),
                    classes.collect::<Vec<_>>().join(", "),
                ]
            });
            let head = ["FAULT", "TIMES", "FIRST MS", "HALF MS", "ALL MS", "NEVER", "SAID FIRST"];
            parts.push(table(head, rows));
        }
        let (wrong, views, cost) = (&self.wrong, &self.views, &self.cost);
        let mut rows = vec![
            row("wrong suspicions", wrong.suspicions.to_string(), "of one node about another that is well"),
            row("wrong verdicts", wrong.verdicts.to_string(), "about nodes that are well"),
            row(
                "wrong isolations",
                wrong.isolations.to_string(),
                "of nodes that found themselves cut off and were not",
            ),
            row("wrong link verdicts", wrong.links.to_string(), "about links and networks that are well"),
            row("wrong removals", wrong.removals.to_string(), ""),
            row("verdicts repeated", wrong.flaps.to_string(), "after they had been taken back"),
            row(
                "views",
                views.mean.to_string(),
                &format!("at most {}, {} removed in all", views.max, views.removed),
            ),
            row(
                "bytes/s per node",
                format!("{:.0}", cost.bytes_per_s),
                &format!(
                    "busiest second {:.0}, busiest node {:.0}",
                    cost.bytes_per_s_peak, cost.bytes_per_s_node_max
                ),
            ),
            row(
                "packets/s per node",
                format!("{:.1}", cost.packets_per_s),
                &format!("busiest second {:.1}", cost.packets_per_s_peak),
            ),
        ];
        if let Some(plain) = &self.plain {
            let limit = units::human_duration(Duration::from_secs_f64(plain.timeout_ms / 1e3));
            rows.push(row(
                "plain time-out",
                plain.accusations.to_string(),
                &format!("accusations after {limit}"),
            ));
        }
        parts.push(table(["FIGURE", "VALUE", "REMARK"], rows));
        if !self.examples.is_empty() {
            parts.push(format!("Wrong, for example:\n  {}", self.examples.join("\n  ")));
        }
        parts.join("\n\n")
    }
}

fn row(name: &str, value: String, remark: &str) -> [String; 3] {
    [name.to_owned(), value, remark.to_owned()]
}

fn said(said: &steadfast_sim::detection::Said) -> String {
    let mark = if said.is_right { "" } else { "  (wrong)" };
    format!("{:>12.6} s  node {}  {}{mark}", said.at.as_secs_f64(), said.node, said.what)
}

fn wrong(reports: &[Report]) -> WrongSummary {
    reports.iter().fold(WrongSummary::default(), |sum, report| WrongSummary {
        suspicions: sum.suspicions + report.wrong.suspicions,
        verdicts: sum.verdicts + report.wrong.verdicts,
        isolations: sum.isolations + report.wrong.isolations,
        links: sum.links + report.wrong.links,
        removals: sum.removals + report.wrong.removals,
        flaps: sum.flaps + report.wrong.flaps,
    })
}

#[expect(clippy::cast_precision_loss, reason = "a mean for people needs no more than 52 bits")]
fn views(reports: &[Report]) -> ViewSummary {
    ViewSummary {
        mean: mean(reports.iter().map(|report| report.views as f64).sum(), reports.len()),
        max: reports.iter().map(|report| report.views).max().unwrap_or(0),
        removed: reports.iter().map(|report| report.removed.len()).sum(),
    }
}

fn cost(reports: &[Report]) -> CostSummary {
    use steadfast_sim::detection::Cost;
    let over =
        |of: fn(&Cost) -> f64| mean(reports.iter().map(|report| of(&report.cost)).sum(), reports.len());
    CostSummary {
        bytes_per_s: over(|cost| cost.bytes_per_s),
        bytes_per_s_peak: over(|cost| cost.bytes_per_s_peak),
        bytes_per_s_node_max: over(|cost| cost.bytes_per_s_node_max),
        packets_per_s: over(|cost| cost.packets_per_s),
        packets_per_s_peak: over(|cost| cost.packets_per_s_peak),
    }
}

fn again(request: &Request) -> String {
    let mut words = vec!["steadfast simulate".to_owned()];
    words.extend(request.file.as_ref().map(|path| path.display().to_string()));
    words.push(format!("--nodes {}", request.plan.nodes));
    words.extend(request.flags.iter().cloned());
    words.push(format!("--seed {}", request.seed));
    words.join(" ")
}
