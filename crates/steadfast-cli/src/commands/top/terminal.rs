//! The terminal while `steadfast top` has it: raw, on its other screen, put back whatever ends the program.
//!
//! Keys and new sizes are read on a thread of its own, which ends with the process. A panic puts the terminal back before its
//! message is printed.

use std::io::{self, IsTerminal, Stdout};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{cursor, execute};
use tokio::sync::mpsc;

use crate::codes::Code;
use crate::failure::Failure;

/// How many keys wait at most; whoever types faster waits.
const KEYS_MAX: usize = 64;

/// Refuses where there is no terminal.
pub(super) fn check() -> Result<(), Failure> {
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        return Ok(());
    }
    let message = "`steadfast top` needs a terminal on standard input and output; `steadfast status` prints how the cluster stands anywhere";
    Err(Failure::new(Code::BadRequest, message))
}

/// The terminal, put back when dropped.
#[derive(Debug)]
pub(super) struct Screen {
    /// What is drawn on.
    pub(super) terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal over.
    pub(super) fn enter() -> Result<Screen, Failure> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            before(panic);
        }));
        enable_raw_mode().map_err(|error| lost(&error))?;
        // From here on dropping it puts everything back.
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout())).map_err(|error| {
            restore();
            lost(&error)
        })?;
        let screen = Screen { terminal };
        execute!(io::stdout(), EnterAlternateScreen, cursor::Hide).map_err(|error| lost(&error))?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// What was typed, and new sizes; it ends when the terminal is gone.
pub(super) fn keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

/// That the terminal does not do what it should.
pub(super) fn lost(error: &io::Error) -> Failure {
    Failure::new(Code::BadRequest, format!("the terminal can't be used: {error}"))
}

fn restore() {
    // A terminal that is gone needs nothing put back.
    let _ = execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
    let _ = disable_raw_mode();
}
