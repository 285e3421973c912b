//! `steadfast top` in a real pseudo-terminal against real agents: a node that dies while nobody touches a key, new sizes, the
//! filter, and a terminal that is as it was whatever ends the program.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use steadfast_cli::bed::Host;

use super::support::{BINARY, COUNTER, Trial};

/// What a terminal does with what is written to it, as far as `top` uses it.
#[derive(Debug)]
struct Emulator {
    columns: usize,
    cells: Vec<Vec<char>>,
    row: usize,
    column: usize,
    pending: Vec<u8>,
    is_on_other_screen: bool,
    is_cursor_hidden: bool,
    /// Colours that were asked for.
    colours: usize,
}

impl Emulator {
    fn new(columns: usize, rows: usize) -> Emulator {
        Emulator {
            columns,
            cells: vec![vec![' '; columns]; rows],
            row: 0,
            column: 0,
            pending: Vec::new(),
            is_on_other_screen: false,
            is_cursor_hidden: false,
            colours: 0,
        }
    }

    fn resize(&mut self, columns: usize, rows: usize) {
        self.columns = columns;
        self.cells.resize(rows, Vec::new());
        self.cells.iter_mut().for_each(|row| row.resize(columns, ' '));
    }

    fn take(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let whole = match std::str::from_utf8(&pending) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        let (text, rest) = pending.split_at(whole);
        let mut text = std::str::from_utf8(text).unwrap();
        while let Some(character) = text.chars().next() {
            if character != '\u{1b}' {
                self.put(character);
                text = &text[character.len_utf8()..];
                continue;
            }
            let Some(end) = text.char_indices().skip(2).find(|(_, one)| ('@'..='~').contains(one)) else {
                break;
            };
            let (sequence, after) = text.split_at(end.0 + 1);
            self.obey(sequence);
            text = after;
        }
        self.pending = [text.as_bytes(), rest].concat();
    }

    fn put(&mut self, character: char) {
        match character {
            '\r' => self.column = 0,
            '\n' => self.row += 1,
            _ => {
                if let Some(cell) = self.cells.get_mut(self.row).and_then(|row| row.get_mut(self.column)) {
                    *cell = character;
                }
                self.column += 1;
            }
        }
    }

    fn obey(&mut self, sequence: &str) {
        let body =
            sequence.strip_prefix("\u{1b}[").unwrap_or_else(|| panic!("{sequence:?} is not understood"));
        let (arguments, verb) = body.split_at(body.len() - 1);
        match (verb, arguments) {
            ("H", _) => {
                let mut numbers = arguments.split(';').map(|number| number.parse::<usize>().unwrap_or(1) - 1);
                self.row = numbers.next().unwrap_or(0);
                self.column = numbers.next().unwrap_or(0);
            }
            ("J", "2") => self.cells.iter_mut().for_each(|row| row.fill(' ')),
            ("h", "?1049") => self.is_on_other_screen = true,
            ("l", "?1049") => self.is_on_other_screen = false,
            ("l", "?25") => self.is_cursor_hidden = true,
            ("h", "?25") => self.is_cursor_hidden = false,
            ("m", _) => {
                let is_colour = |part: &str| part.starts_with("38") || part.starts_with("48");
                self.colours += usize::from(is_colour(arguments));
            }
            _ => panic!("{sequence:?} is not understood"),
        }
    }

    fn text(&self) -> String {
        self.cells.iter().map(|row| row.iter().collect::<String>().trim_end().to_owned() + "\n").collect()
    }
}

/// `steadfast top` in a terminal of its own.
struct Top {
    child: Child,
    /// Our end.
    master: File,
    /// Kept open: a terminal that nobody has open loses its state.
    slave: File,
    screen: Arc<Mutex<Emulator>>,
}

impl Top {
    fn start(host: &Host, environment: &[(&str, &str)]) -> Top {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let slave = File::from(rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty()).unwrap());
        let (master, screen) = (File::from(master), Arc::new(Mutex::new(Emulator::new(80, 24))));
        tcsetwinsize(&master, size(80, 24)).unwrap();
        // It makes the terminal the program's own, so that a new size reaches it.
        let mut command = Command::new("setsid");
        command.args(["--ctty", BINARY, "top", "--socket"]).arg(host.socket());
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR").envs(environment.iter().copied());
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap());
        command.stderr(slave.try_clone().unwrap());
        let child = command.spawn().unwrap();
        let (mut ours, shown) = (master.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(count @ 1..) = ours.read(&mut buffer) {
                shown.lock().unwrap().take(&buffer[..count]);
            }
        });
        Top { child, master, slave, screen }
    }

    fn press(&self, keys: &str) {
        (&self.master).write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&self, columns: u16, rows: u16) {
        self.screen.lock().unwrap().resize(usize::from(columns), usize::from(rows));
        tcsetwinsize(&self.master, size(columns, rows)).unwrap();
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().text()
    }

    /// Waits until a line of the screen has all these words.
    fn wait_line(&mut self, trial: &Trial, words: &[&str]) {
        let found = trial.try_wait(|| {
            let text = self.text();
            text.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
        });
        assert!(found.is_some(), "no line has {words:?} ({:?}):\n{}", self.child.try_wait(), self.text());
    }

    /// Waits until it has ended and says how, once the terminal is as it was.
    fn wait_end(&mut self, trial: &Trial) -> ExitStatus {
        let status = trial.wait("the end of top", || self.child.try_wait().unwrap());
        trial.wait("the terminal as it was", || {
            let screen = self.screen.lock().unwrap();
            (!screen.is_on_other_screen && !screen.is_cursor_hidden).then_some(())
        });
        let modes = tcgetattr(&self.slave).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG), "{modes:?}");
        status
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

#[test]
fn top_shows_a_node_die_without_a_key_and_leaves_the_terminal_as_it_was() {
    let trial = Trial::new();
    let [alpha, _, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    trial.start_counter(0);
    let mut top = Top::start(alpha, &[]);
    top.wait_line(&trial, &[gamma.name(), "member"]);
    top.wait_line(&trial, &["survives the loss of 1 node"]);

    // Every pane, at another size too.
    top.press("2");
    top.wait_line(&trial, &["Every link that is told of is up"]);
    top.press("3");
    top.wait_line(&trial, &["proposed by"]);
    top.press("4");
    top.wait_line(&trial, &[COUNTER, "running", alpha.name()]);
    top.resize(110, 30);
    trial.checkpoint();
    top.wait_line(&trial, &[COUNTER, "2/2"]);
    top.press("\t");
    top.wait_line(&trial, &["[5 Events]"]);

    // One that does not parse is told, and put right.
    top.press("/type=\r");
    top.wait_line(&trial, &["expected"]);
    top.press("user.test\r");
    top.wait_line(&trial, &["filter: type=user.test"]);
    top.wait_line(&trial, &["Nothing has happened"]);
    // A registration takes a moment: told again until it is shown.
    let shown = trial.try_wait(|| {
        alpha.steadfast_text(&["events", "emit", "user.test", "size=12"]).unwrap();
        top.text().contains("size=12").then_some(())
    });
    assert!(shown.is_some(), "{}", top.text());

    // From here on nobody touches a key.
    top.press("1");
    top.wait_line(&trial, &["[1 Overview]"]);
    gamma.power_off().unwrap();
    top.wait_line(&trial, &["!", gamma.name(), "host dead"]);
    top.wait_line(&trial, &[gamma.name(), "removed"]);
    assert!(top.screen.lock().unwrap().colours > 0);

    top.press("q");
    let status = top.wait_end(&trial);
    assert!(status.success(), "{status:?}");
}

#[test]
fn top_puts_the_terminal_back_when_it_is_terminated_and_refuses_without_one() {
    let trial = Trial::new();
    let alpha = trial.bed.host(0);
    let mut top = Top::start(alpha, &[("NO_COLOR", "1")]);
    top.wait_line(&trial, &[alpha.name(), "member"]);
    assert_eq!(top.screen.lock().unwrap().colours, 0, "NO_COLOR is respected");
    kill_process(Pid::from_child(&top.child), Signal::TERM).unwrap();
    let status = top.wait_end(&trial);
    assert!(status.signal().is_none(), "{status:?}");

    let refused = alpha.steadfast_text(&["top"]).unwrap_err().to_string();
    assert!(refused.contains("steadfast status"), "{refused}");
}
