//! The link matrix: for each network, how each node hears each other one, a letter each, and in words what is not up.
//!
//! Pure. A row hears, a column is heard. Where names do not fit above the columns, numbers stand there.

use std::collections::BTreeSet;

use ratatui::text::{Line, Span};

use super::app::App;
use super::judge::ordered;
use super::panes::said;
use super::picture::{Link, Picture};
use super::words::{Look, Tone, ago, letter, padded, tone, wrapped};

/// The widest column with a name above it.
const NAME_MAX: usize = 12;
/// A column with a number above it.
const NUMBER_WIDTH: usize = 4;

/// The whole pane.
pub(super) fn lines(app: &App, width: usize) -> Vec<Line<'static>> {
    let (look, picture) = (app.look, &app.picture);
    let is_shown = |state: &str| !["left", "eliminated"].contains(&state);
    let nodes: Vec<&str> = ordered(picture)
        .into_iter()
        .filter(|node| is_shown(&node.state))
        .map(|node| node.name.as_str())
        .collect();
    let networks = networks(picture);
    if nodes.len() < 2 || networks.is_empty() {
        let alone = "There are no links: this node is alone.";
        let untold = "No node has told of its links yet.";
        return vec![said(look, Tone::Quiet, if nodes.len() < 2 { alone } else { untold })];
    }
    let mut lines = vec![legend(look)];
    for network in &networks {
        lines.push(Line::default());
        lines.extend(grid(app, &nodes, network, width));
    }
    lines.push(Line::default());
    lines.extend(not_up(app, &nodes, &networks, width));
    lines
}

/// The networks that somebody tells of, in the node's order.
fn networks(picture: &Picture) -> Vec<&str> {
    let told: BTreeSet<&str> = picture
        .links
        .values()
        .flat_map(|peers| peers.values())
        .flat_map(|links| links.keys())
        .map(String::as_str)
        .collect();
    let known = picture.about.networks.iter().map(String::as_str).filter(|name| told.contains(name));
    let mut networks: Vec<&str> = known.collect();
    let rest: Vec<&str> = told.into_iter().filter(|name| !networks.contains(name)).collect();
    networks.extend(rest);
    networks
}

fn legend(look: Look) -> Line<'static> {
    let states = ["up", "degraded", "one-way", "down", "unknown"];
    let mut spans: Vec<Span<'static>> = Vec::new();
    for state in states {
        let letter = letter(Some(state)).to_string();
        spans.push(Span::styled(letter, look.style(tone(state))));
        spans.push(Span::raw(format!(" {state}   ")));
    }
    spans.push(Span::raw("- not told   (a row hears a column)"));
    Line::from(spans)
}

fn grid(app: &App, nodes: &[&str], network: &str, width: usize) -> Vec<Line<'static>> {
    let look = app.look;
    let longest = nodes.iter().map(|name| name.chars().count()).max().unwrap_or(0).min(NAME_MAX);
    let has_names = (longest + 1) * (nodes.len() + 1) + 2 <= width;
    let column = if has_names { longest + 1 } else { NUMBER_WIDTH };
    let numbered = |place: usize, name: &str| {
        if has_names { name.to_owned() } else { format!("{:>3} {name}", place + 1) }
    };
    let first = if has_names { longest + 2 } else { longest + 6 };
    let aside = if has_names { 0 } else { app.aside.min(nodes.len().saturating_sub(1)) };
    let shown: Vec<(usize, &str)> = nodes
        .iter()
        .copied()
        .enumerate()
        .skip(aside)
        .take((width.saturating_sub(first) / column).max(1))
        .collect();
    let mut head = vec![Span::styled(padded(network, first), look.style(Tone::Title))];
    head.extend(shown.iter().map(|(place, name)| {
        let above = if has_names { (*name).to_owned() } else { (place + 1).to_string() };
        Span::styled(padded(&above, column), look.style(Tone::Quiet))
    }));
    let mut lines = vec![Line::from(head)];
    for (place, from) in nodes.iter().enumerate() {
        let mut spans = vec![Span::raw(padded(&numbered(place, from), first))];
        for (_, to) in &shown {
            if from == to {
                spans.push(Span::raw(padded("·", column)));
                continue;
            }
            let state = link(&app.picture, from, to, network).map(|link| link.state.as_str());
            let style = look.style(state.map_or(Tone::Quiet, tone));
            spans.push(Span::styled(padded(&letter(state).to_string(), column), style));
        }
        lines.push(Line::from(spans));
    }
    lines
}

/// Each link that is not up, in words.
fn not_up(app: &App, nodes: &[&str], networks: &[&str], width: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for from in nodes {
        for to in nodes {
            for network in networks {
                let Some(link) = link(&app.picture, from, to, network) else { continue };
                if link.state == "up" {
                    continue;
                }
                let text = sentence(from, to, network, link, app.now_unix_ms());
                lines.extend(
                    wrapped(&text, width).into_iter().map(|part| said(app.look, tone(&link.state), part)),
                );
            }
        }
    }
    if lines.is_empty() {
        lines.push(said(app.look, Tone::Good, "Every link that is told of is up."));
    }
    lines
}

fn sentence(from: &str, to: &str, network: &str, link: &Link, now_unix_ms: u64) -> String {
    let mut text = format!("{from} hears {to} on {network}: {}", link.state);
    if let Some(detail) = &link.detail {
        text.push_str(&format!("; {detail}"));
    }
    if link.state != "unknown" {
        text.push_str(&format!("; since {}", ago(link.since_unix_ms, now_unix_ms)));
    }
    if let Some(round_trip_ms) = link.round_trip_ms {
        text.push_str(&format!("; round trip {round_trip_ms} ms, loss {} %", link.loss_percent));
    }
    text
}

fn link<'a>(picture: &'a Picture, from: &str, to: &str, network: &str) -> Option<&'a Link> {
    picture.links.get(from)?.get(to)?.get(network)
}
