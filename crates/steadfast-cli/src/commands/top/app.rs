//! What `steadfast top` knows and where its reader is: the picture, the latest events, the pane, the filter.
//!
//! Keys change only what is looked at; nothing here asks for anything or draws. Read `panes` for what stands where.

use std::collections::VecDeque;

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::picture::Picture;
use super::words::{Look, Tone};
use crate::api::convert::now_unix_ms;
use crate::api::page_types::PictureChange;
use crate::events::cloud::CloudEvent;
use crate::events::filter::Filter;
use crate::events::printing::Printer;

/// How many events are kept.
const EVENTS_MAX: usize = 500;
/// The longest filter, in characters.
const FILTER_CHARS_MAX: usize = 1000;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pane {
    /// What is wrong, and the nodes.
    Overview,
    /// The link matrix.
    Links,
    /// The views.
    Views,
    /// The containers.
    Containers,
    /// What happens.
    Events,
}

impl Pane {
    /// All of them, in the order of their keys.
    pub(super) const ALL: [Pane; 5] =
        [Pane::Overview, Pane::Links, Pane::Views, Pane::Containers, Pane::Events];

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Pane::Overview => "Overview",
            Pane::Links => "Links",
            Pane::Views => "Views",
            Pane::Containers => "Containers",
            Pane::Events => "Events",
        }
    }

    fn place(self) -> usize {
        Pane::ALL.iter().position(|pane| *pane == self).unwrap_or_default()
    }

    fn moved(self, by: usize) -> Pane {
        Pane::ALL.get((self.place() + by) % Pane::ALL.len()).copied().unwrap_or(self)
    }
}

/// What follows from a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Draw again.
    Draw,
    /// The events that are wanted are others now.
    Filter,
    /// End.
    Quit,
}

/// Everything that is drawn.
#[derive(Debug)]
pub(super) struct App {
    pub(super) look: Look,
    pub(super) picture: Picture,
    /// Whether a picture came at all.
    pub(super) is_known: bool,
    /// Why no stream of pictures is open; absent while one is.
    pub(super) broken: Option<String>,
    pub(super) pane: Pane,
    /// Newest first.
    pub(super) events: VecDeque<(Tone, String)>,
    /// The filter that is set.
    pub(super) filter: String,
    /// What is typed while a filter is written.
    pub(super) typed: Option<String>,
    /// What is wrong with the filter, or with the stream of events.
    pub(super) refused: Option<String>,
    printer: Printer,
    scrolled: [usize; 5],
    /// How many columns of the matrix are out of sight on the left.
    pub(super) aside: usize,
    offset_ms: i64,
}

impl App {
    /// Nothing is known yet.
    pub(super) fn new(look: Look) -> App {
        App {
            look,
            picture: Picture::default(),
            is_known: false,
            broken: Some("asking the agent".to_owned()),
            pane: Pane::Overview,
            events: VecDeque::new(),
            filter: String::new(),
            typed: None,
            refused: None,
            printer: Printer::default(),
            scrolled: [0; 5],
            aside: 0,
            offset_ms: 0,
        }
    }

    /// Takes over what the stream of pictures told.
    pub(super) fn told(&mut self, change: PictureChange) {
        self.offset_ms = signed(change.at_unix_ms).saturating_sub(signed(now_unix_ms()));
        self.picture.take(change);
        self.is_known = true;
        self.broken = None;
    }

    /// Takes over an event.
    pub(super) fn happened(&mut self, event: &CloudEvent) {
        let (tone, line) = match event.delivery() {
            Ok(delivery) => {
                let line = self.printer.line(&delivery);
                let is_bad =
                    ["failed", "lost", "removed", "oom", "down"].iter().any(|word| event.kind.contains(word));
                let is_gap = event.kind == "steadfast.gap";
                let tone = if is_gap {
                    Tone::Warning
                } else if is_bad {
                    Tone::Bad
                } else {
                    Tone::Title
                };
                (tone, line)
            }
            Err(error) => (Tone::Warning, error.to_string()),
        };
        self.events.push_front((tone, line));
        self.events.truncate(EVENTS_MAX);
        // Whoever reads further down goes on reading the same.
        let scrolled = &mut self.scrolled[Pane::Events.place()];
        if *scrolled > 0 {
            *scrolled = (*scrolled + 1).min(EVENTS_MAX);
        }
    }

    /// What stands above the events.
    pub(super) fn event_head(&self) -> String {
        self.printer.head()
    }

    /// Now, by the clock of the node that tells.
    pub(super) fn now_unix_ms(&self) -> u64 {
        u64::try_from(signed(now_unix_ms()).saturating_add(self.offset_ms)).unwrap_or_default()
    }

    /// How many lines of the pane are out of sight above, when it has `lines` and `height` fit.
    pub(super) fn scrolled(&mut self, lines: usize, height: usize) -> usize {
        let scrolled = &mut self.scrolled[self.pane.place()];
        *scrolled = (*scrolled).min(lines.saturating_sub(height));
        *scrolled
    }

    /// A key, or a new size; `page` is how many lines fit.
    pub(super) fn press(&mut self, event: &Event, page: usize) -> Step {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => {
                let is_break =
                    key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
                if is_break {
                    return Step::Quit;
                }
                match self.typed.take() {
                    Some(typed) => self.write(typed, *key),
                    None => self.go(*key, page),
                }
            }
            Event::Key(_)
            | Event::Resize(..)
            | Event::FocusGained
            | Event::FocusLost
            | Event::Mouse(_)
            | Event::Paste(_) => Step::Draw,
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "there are many keys, and the others do nothing")]
    fn go(&mut self, key: KeyEvent, page: usize) -> Step {
        let scrolled = &mut self.scrolled[self.pane.place()];
        match key.code {
            KeyCode::Char('q') => return Step::Quit,
            KeyCode::Char('/') => {
                self.pane = Pane::Events;
                self.typed = Some(self.filter.clone());
            }
            KeyCode::Char(digit @ '1'..='5') => {
                let place = usize::try_from(digit.to_digit(10).unwrap_or(1)).unwrap_or(1);
                self.pane = Pane::ALL.get(place - 1).copied().unwrap_or(self.pane);
            }
            KeyCode::Tab => self.pane = self.pane.moved(1),
            KeyCode::BackTab => self.pane = self.pane.moved(Pane::ALL.len() - 1),
            KeyCode::Up => *scrolled = scrolled.saturating_sub(1),
            KeyCode::Down => *scrolled = scrolled.saturating_add(1),
            KeyCode::PageUp => *scrolled = scrolled.saturating_sub(page),
            KeyCode::PageDown => *scrolled = scrolled.saturating_add(page),
            KeyCode::Home => *scrolled = 0,
            KeyCode::End => *scrolled = usize::MAX,
            KeyCode::Left => self.aside = self.aside.saturating_sub(1),
            KeyCode::Right => self.aside = (self.aside + 1).min(self.picture.nodes.len().saturating_sub(1)),
            _ => {}
        }
        Step::Draw
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "there are many keys, and the others do nothing")]
    fn write(&mut self, mut typed: String, key: KeyEvent) -> Step {
        match key.code {
            KeyCode::Esc => {
                self.refused = None;
                return Step::Draw;
            }
            KeyCode::Enter => return self.set_filter(typed),
            KeyCode::Backspace => {
                typed.pop();
            }
            KeyCode::Char('u') if key.modifiers.contains(KeyModifiers::CONTROL) => typed.clear(),
            KeyCode::Char(character) if typed.chars().count() < FILTER_CHARS_MAX => typed.push(character),
            _ => {}
        }
        self.typed = Some(typed);
        Step::Draw
    }

    fn set_filter(&mut self, typed: String) -> Step {
        let typed = typed.trim().to_owned();
        if let Err(error) = typed.parse::<Filter>() {
            // It stays to be put right.
            self.refused = Some(error.to_string());
            self.typed = Some(typed);
            return Step::Draw;
        }
        self.refused = None;
        self.filter = typed;
        self.events.clear();
        self.scrolled[Pane::Events.place()] = 0;
        Step::Filter
    }
}

fn signed(unix_ms: u64) -> i64 {
    i64::try_from(unix_ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(app: &mut App, code: KeyCode) -> Step {
        app.press(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)), 10)
    }

    fn write(app: &mut App, text: &str) {
        for character in text.chars() {
            press(app, KeyCode::Char(character));
        }
    }

    #[test]
    fn keys_choose_panes_and_end() {
        let mut app = App::new(Look { is_coloured: true });
        press(&mut app, KeyCode::Char('3'));
        assert_eq!(app.pane, Pane::Views);
        press(&mut app, KeyCode::Tab);
        press(&mut app, KeyCode::Tab);
        press(&mut app, KeyCode::Tab);
        assert_eq!(app.pane, Pane::Overview);
        press(&mut app, KeyCode::BackTab);
        assert_eq!(app.pane, Pane::Events);
        assert_eq!(press(&mut app, KeyCode::Char('q')), Step::Quit);
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(app.press(&Event::Key(control_c), 10), Step::Quit);
    }

    #[test]
    fn a_filter_is_written_refused_put_right_and_given_up() {
        let mut app = App::new(Look { is_coloured: true });
        write(&mut app, "/type=");
        assert_eq!((app.pane, app.typed.as_deref()), (Pane::Events, Some("type=")));
        assert_eq!(press(&mut app, KeyCode::Enter), Step::Draw);
        assert!(app.refused.is_some() && app.filter.is_empty());
        // While a filter is written q is a letter.
        write(&mut app, "user.q");
        assert_eq!(press(&mut app, KeyCode::Enter), Step::Filter);
        assert_eq!(
            (app.filter.as_str(), app.refused.as_deref(), app.typed.as_deref()),
            ("type=user.q", None, None)
        );
        write(&mut app, "/x");
        press(&mut app, KeyCode::Esc);
        assert_eq!((app.filter.as_str(), app.typed.as_deref()), ("type=user.q", None));
    }

    #[test]
    fn nobody_scrolls_beyond_the_end() {
        let mut app = App::new(Look { is_coloured: true });
        press(&mut app, KeyCode::End);
        assert_eq!(app.scrolled(30, 20), 10);
        press(&mut app, KeyCode::Up);
        assert_eq!(app.scrolled(30, 20), 9);
        press(&mut app, KeyCode::PageUp);
        assert_eq!(app.scrolled(30, 20), 0);
        press(&mut app, KeyCode::Down);
        assert_eq!(app.scrolled(5, 20), 0);
    }
}
