//! What stands in each pane, as lines: what is wrong and the nodes, views with their reasons, containers, events.
//!
//! Pure: from what is known to lines of a width; read `matrix` for the links and `screen` for where the lines go.

use ratatui::text::{Line, Span};

use super::app::{App, Pane};
use super::judge::{Level, holders, is_protected, ordered, problems};
use super::matrix;
use super::picture::{Container, Picture};
use super::words::{Look, Tone, ago, count, padded, tone, wrapped};
use crate::units::human_size;

/// The lines of the pane that is looked at.
pub(super) fn lines(app: &App, width: usize) -> Vec<Line<'static>> {
    if app.pane == Pane::Events {
        return events(app, width);
    }
    if !app.is_known {
        return vec![said(app.look, Tone::Quiet, "Nothing is known yet.")];
    }
    match app.pane {
        Pane::Overview => overview(app, width),
        Pane::Links => matrix::lines(app, width),
        Pane::Views => views(app, width),
        Pane::Containers => containers(app, width),
        Pane::Events => events(app, width),
    }
}

/// One line in one tone.
pub(super) fn said(look: Look, tone: Tone, text: impl Into<String>) -> Line<'static> {
    Line::styled(text.into(), look.style(tone))
}

fn overview(app: &App, width: usize) -> Vec<Line<'static>> {
    let (look, picture) = (app.look, &app.picture);
    let found = problems(picture);
    let mut lines = Vec::new();
    if found.is_empty() {
        lines.push(said(look, Tone::Good, "Everything is well."));
    } else {
        let verb = if found.len() == 1 { "needs" } else { "need" };
        lines.push(said(look, Tone::Title, format!("{} {verb} attention", count(found.len(), "thing"))));
    }
    for problem in &found {
        let (mark, tone) = match problem.level {
            Level::Bad => ("! ", Tone::Bad),
            Level::Warning => ("* ", Tone::Warning),
        };
        for (place, part) in wrapped(&problem.text, width.saturating_sub(2)).into_iter().enumerate() {
            lines.push(said(look, tone, format!("{}{part}", if place == 0 { mark } else { "  " })));
        }
    }
    lines.push(Line::default());
    lines.extend(wrapped(&figures(picture), width).into_iter().map(Line::from));
    lines.push(Line::default());
    lines.extend(nodes(look, picture));
    lines
}

/// What there is, in one sentence.
fn figures(picture: &Picture) -> String {
    let active: Vec<&Container> =
        picture.containers.values().filter(|container| container.state != "stopped").collect();
    let running = active.iter().filter(|container| container.state == "running").count();
    let protected = active.iter().filter(|container| is_protected(container, picture)).count();
    let survives = picture.standing.survives.as_ref().map_or_else(
        || "what it survives is not known here".to_owned(),
        |survives| {
            format!("survives the loss of {}", count(usize::try_from(survives.nodes).unwrap_or(0), "node"))
        },
    );
    let catalog = match (picture.catalog.quorum, &picture.catalog.leader) {
        (true, Some(leader)) => format!("the catalog answers, led by {leader}"),
        (true, None) => format!("the catalog ({}) answers", picture.catalog.engine),
        (false, _) => "the catalog stands still".to_owned(),
    };
    let all = active.len();
    format!(
        "{running} of {all} containers running, {protected} with all their copies; {survives}; {catalog}."
    )
}

fn nodes(look: Look, picture: &Picture) -> Vec<Line<'static>> {
    let all = ordered(picture);
    let name_width =
        all.iter().map(|node| node.name.chars().count()).chain([4]).max().unwrap_or(4).min(20) + 2;
    let head = format!(
        "{}{}{}{}RUNS",
        padded("NODE", name_width),
        padded("STATE", 12),
        padded("LENDS", 12),
        padded("ADDRESS", 18)
    );
    let mut lines = vec![said(look, Tone::Title, head)];
    for node in all {
        let mut runs = if node.containers.is_empty() { "-".to_owned() } else { node.containers.join(", ") };
        if node.this {
            runs.push_str("  (this node)");
        }
        let first = picture.about.networks.iter().find_map(|network| node.addresses.get(network));
        let address = first.or_else(|| node.addresses.values().next()).map_or("-", String::as_str);
        lines.push(Line::from(vec![
            Span::raw(padded(&node.name, name_width)),
            Span::styled(padded(&node.state, 12), look.style(tone(&node.state))),
            Span::raw(padded(&human_size(node.memory_bytes), 12)),
            Span::raw(format!("{} ", padded(address, 17))),
            Span::raw(runs),
        ]));
    }
    lines
}

fn views(app: &App, width: usize) -> Vec<Line<'static>> {
    let (look, now) = (app.look, app.now_unix_ms());
    let mut lines = Vec::new();
    for view in app.picture.views.values().rev() {
        lines.push(Line::from(vec![
            Span::styled(format!("View {:<6}", view.id), look.style(Tone::Title)),
            Span::styled(padded(&view.change, 12), look.style(tone(&view.change))),
            Span::raw(format!("{}, proposed by {}", ago(view.proposed_unix_ms, now), view.proposer)),
        ]));
        let mut members: Vec<&str> = view.members.iter().map(|member| member.node.as_str()).collect();
        members.sort_unstable();
        let members = format!("members: {}", members.join(", "));
        let indented = |text: &str| -> Vec<String> {
            wrapped(text, width.saturating_sub(2)).into_iter().map(|part| format!("  {part}")).collect()
        };
        lines.extend(indented(&view.reason).into_iter().map(Line::from));
        lines.extend(indented(&members).into_iter().map(|part| said(look, Tone::Quiet, part)));
    }
    if lines.is_empty() {
        lines.push(said(look, Tone::Quiet, "No view is known here yet."));
    }
    lines
}

fn containers(app: &App, width: usize) -> Vec<Line<'static>> {
    let (look, picture, now) = (app.look, &app.picture, app.now_unix_ms());
    if picture.containers.is_empty() {
        return vec![said(look, Tone::Quiet, "Nothing runs here yet: steadfast run --name NAME -- COMMAND")];
    }
    let head = format!(
        "{}{}{}{}COPIES",
        padded("CONTAINER", 18),
        padded("STATE", 11),
        padded("OWNER", 14),
        padded("CHECKPOINT", 24)
    );
    let mut lines = vec![said(look, Tone::Title, head)];
    for container in picture.containers.values() {
        let checkpoint = container.latest.as_ref().map_or_else(
            || "none yet".to_owned(),
            |latest| {
                format!("{} {} ({})", latest.number, ago(latest.taken_unix_ms, now), human_size(latest.bytes))
            },
        );
        let owner_tone = if container.owner_in_view { Tone::Good } else { Tone::Bad };
        let owner = if container.owner_in_view {
            container.node.clone()
        } else {
            format!("{} (gone)", container.node)
        };
        let there = holders(container, picture);
        let is_short = !is_protected(container, picture) && container.state != "stopped";
        let copies = format!("{}/{} {}", there.len(), container.copies_wanted, there.join(", "));
        lines.push(Line::from(vec![
            Span::raw(format!("{} ", padded(&container.name, 17))),
            Span::styled(padded(&container.state, 11), look.style(tone(&container.state))),
            Span::styled(
                format!("{} ", padded(&owner, 13)),
                if container.owner_in_view { Line::default().style } else { look.style(owner_tone) },
            ),
            Span::raw(format!("{} ", padded(&checkpoint, 23))),
            Span::styled(copies, look.style(if is_short { Tone::Warning } else { Tone::Good })),
        ]));
        for part in container.reason.iter().flat_map(|reason| wrapped(reason, width.saturating_sub(2))) {
            let is_bad = ["failed", "lost"].contains(&container.state.as_str());
            lines.push(said(look, if is_bad { Tone::Bad } else { Tone::Quiet }, format!("  {part}")));
        }
    }
    lines
}

fn events(app: &App, width: usize) -> Vec<Line<'static>> {
    let look = app.look;
    let mut lines = Vec::new();
    if !app.filter.is_empty() {
        let filter = wrapped(&format!("filter: {}", app.filter), width);
        lines.extend(filter.into_iter().map(|part| said(look, Tone::Busy, part)));
    }
    // A refusal points at a character: its lines stay as they are.
    lines.extend(
        app.refused.iter().flat_map(|refused| refused.lines()).map(|part| said(look, Tone::Bad, part)),
    );
    if app.events.is_empty() {
        lines.push(said(look, Tone::Quiet, "Nothing has happened since this was opened."));
        return lines;
    }
    lines.push(said(look, Tone::Title, app.event_head()));
    lines.extend(app.events.iter().map(|(tone, line)| said(look, *tone, line.clone())));
    lines
}
