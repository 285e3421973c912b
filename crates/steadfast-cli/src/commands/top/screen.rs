//! Where everything stands on the screen: what it is of, the panes' names, the pane, and the keys or the filter line.
//!
//! Pure drawing of what `app` knows; it decides nothing. The lines are made by `panes`.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Position, Rect};
use ratatui::style::Modifier;
use ratatui::text::{Line, Span, Text};

use super::app::{App, Pane};
use super::panes;
use super::words::{Tone, count};

/// The rows that are no pane's.
const OTHER_ROWS: u16 = 3;
const KEYS: &str = "q ends  1-5 Tab panes  ↑↓ scroll  ←→ columns  / filter events";
const FILTER: &str = "filter: ";

/// How many lines of a pane fit on a screen of this height.
pub(super) fn page(height: u16) -> usize {
    usize::from(height.saturating_sub(OTHER_ROWS).max(1))
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App) {
    let rows = [Constraint::Length(1), Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)];
    let [head, names, pane, foot] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(header(app), head);
    frame.render_widget(tabs(app), names);
    let lines = panes::lines(app, usize::from(pane.width));
    let all = lines.len();
    let height = usize::from(pane.height);
    let above = app.scrolled(all, height);
    let shown: Vec<Line<'static>> = lines.into_iter().skip(above).take(height).collect();
    frame.render_widget(Text::from(shown), pane);
    let below = all.saturating_sub(above + height);
    footer(frame, app, foot, above, below);
}

fn header(app: &App) -> Line<'static> {
    let (look, picture) = (app.look, &app.picture);
    if let Some(broken) = &app.broken {
        let standing = if app.is_known { "NOT LIVE" } else { "WAITING" };
        return Line::styled(format!("steadfast top  {standing}: {broken}"), look.style(Tone::Warning));
    }
    let view = picture.standing.view.map_or_else(|| "no view".to_owned(), |view| format!("view {view}"));
    let members = count(picture.standing.members.len(), "member");
    let mut spans = vec![
        Span::styled("steadfast top  ", look.style(Tone::Title)),
        Span::raw(format!("{} seen from {}, {view}, {members}", picture.about.cluster, picture.about.node)),
    ];
    if !picture.standing.quorum {
        spans.push(Span::styled("  NO MAJORITY", look.style(Tone::Bad)));
    }
    Line::from(spans)
}

fn tabs(app: &App) -> Line<'static> {
    let mut spans = Vec::new();
    for (place, pane) in Pane::ALL.into_iter().enumerate() {
        let is_here = pane == app.pane;
        let style = app.look.style(if is_here { Tone::Title } else { Tone::Quiet });
        let style = if is_here { style.add_modifier(Modifier::REVERSED) } else { style };
        // Brackets tell where one is, too, on a terminal that reverses nothing.
        let (left, right) = if is_here { ('[', ']') } else { (' ', ' ') };
        spans.push(Span::styled(format!("{left}{} {}{right}", place + 1, pane.name()), style));
        spans.push(Span::raw(" "));
    }
    Line::from(spans)
}

fn footer(frame: &mut Frame<'_>, app: &App, area: Rect, above: usize, below: usize) {
    if let Some(typed) = &app.typed {
        // Its end is in sight, where the next letter goes.
        let room = usize::from(area.width).saturating_sub(FILTER.len() + 1);
        let hidden = typed.chars().count().saturating_sub(room);
        let seen: String = typed.chars().skip(hidden).collect();
        let line = Line::from(format!("{FILTER}{seen}"));
        let column = u16::try_from(line.width()).unwrap_or(u16::MAX).min(area.width.saturating_sub(1));
        frame.render_widget(line, area);
        frame.set_cursor_position(Position::new(area.x.saturating_add(column), area.y));
        return;
    }
    let more = match (above, below) {
        (0, 0) => String::new(),
        _ => format!("  ({above} lines above, {below} below)"),
    };
    frame.render_widget(Line::styled(format!("{KEYS}{more}"), app.look.style(Tone::Quiet)), area);
}
