//! Words, marks and styles: how states, spans and long texts look in a narrow terminal, with and without colour.
//!
//! Pure. Colour is never the only sign: every state has a word or a letter of its own.

use std::time::Duration;

use ratatui::style::{Color, Modifier, Style};

use crate::units::human_duration;

/// How something is meant to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// As it should be.
    Good,
    /// On its way.
    Busy,
    /// Needs attention.
    Warning,
    /// Failed.
    Bad,
    /// Of no weight.
    Quiet,
    /// A title.
    Title,
}

/// Whether there is colour.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) is_coloured: bool,
}

impl Look {
    /// By the custom of `NO_COLOR`: set to anything but nothing means none.
    pub(super) fn of_environment() -> Look {
        Look { is_coloured: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    /// The style of a tone.
    pub(super) fn style(self, tone: Tone) -> Style {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        if !self.is_coloured {
            return match tone {
                Tone::Bad | Tone::Warning | Tone::Title => bold,
                Tone::Good | Tone::Busy | Tone::Quiet => Style::new(),
            };
        }
        match tone {
            Tone::Good => Style::new().fg(Color::Green),
            Tone::Busy => Style::new().fg(Color::Cyan),
            Tone::Warning => Style::new().fg(Color::Yellow),
            Tone::Bad => bold.fg(Color::Red),
            Tone::Quiet => Style::new().fg(Color::DarkGray),
            Tone::Title => bold,
        }
    }
}

/// How a state of a node, a container or a link, or what a view changed, is coloured.
pub(super) fn tone(state: &str) -> Tone {
    match state {
        "member" | "ready" | "running" | "up" | "admitted" | "founded" => Tone::Good,
        "joining" | "probation" | "draining" | "starting" | "recovering" | "stopping" | "replaced" => {
            Tone::Busy
        }
        "suspected" | "degraded" | "one-way" | "frozen" | "left" => Tone::Warning,
        "eliminated" | "failed" | "lost" | "down" | "removed" => Tone::Bad,
        _ => Tone::Quiet,
    }
}

/// The letter of a link's state; `-` where nobody tells it.
pub(super) fn letter(state: Option<&str>) -> char {
    match state {
        Some("up") => 'U',
        Some("degraded") => 'G',
        Some("one-way") => 'O',
        Some("down") => 'D',
        Some(_) => '?',
        None => '-',
    }
}

/// How long ago something was, in whole seconds.
pub(super) fn ago(unix_ms: u64, now_unix_ms: u64) -> String {
    let seconds = now_unix_ms.saturating_sub(unix_ms) / 1000;
    if seconds == 0 {
        "just now".to_owned()
    } else {
        format!("{} ago", human_duration(Duration::from_secs(seconds)))
    }
}

/// The text in exactly so many characters.
pub(super) fn padded(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return format!("{text:width$}");
    }
    let shortened: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{shortened}…")
}

/// The text in lines of at most so many characters, broken between words; a longer word is broken itself.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(8);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        let characters: Vec<char> = word.chars().collect();
        for (part, piece) in characters.chunks(width).enumerate() {
            let gap = usize::from(length > 0 && part == 0);
            if length > 0 && length + gap + piece.len() > width {
                lines.push(std::mem::take(&mut line));
                length = 0;
            } else if gap == 1 {
                line.push(' ');
                length += 1;
            }
            line.extend(piece);
            length += piece.len();
        }
    }
    if length > 0 || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// `1 node`, `3 nodes`.
pub(super) fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_broken_between_words_and_nothing_is_lost() {
        assert_eq!(wrapped("one two three", 8), ["one two", "three"]);
        assert_eq!(wrapped("abcdefghijkl mn", 8), ["abcdefgh", "ijkl mn"]);
        assert_eq!(wrapped("", 8), [""]);
        assert_eq!((padded("ab", 4), padded("abcdef", 4)), ("ab  ".to_owned(), "abc…".to_owned()));
    }

    #[test]
    fn every_state_of_a_link_has_its_own_letter_and_none_needs_colour() {
        let mut letters: Vec<char> =
            ["up", "degraded", "one-way", "down", "unknown"].map(|state| letter(Some(state))).to_vec();
        letters.push(letter(None));
        letters.sort_unstable();
        letters.dedup();
        assert_eq!(letters.len(), 6);
        let plain = Look { is_coloured: false };
        for tone in [Tone::Good, Tone::Busy, Tone::Warning, Tone::Bad, Tone::Quiet, Tone::Title] {
            assert_eq!(plain.style(tone).fg, None);
        }
    }
}
