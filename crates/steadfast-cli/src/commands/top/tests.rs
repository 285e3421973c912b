//! What stands on the screen, drawn into a buffer and compared line by line.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;
use serde_json::{Value, json};

use super::app::App;
use super::picture::told;
use super::screen;
use super::words::Look;

const COLOURED: Look = Look { is_coloured: true };

/// Three nodes, of which gamma is gone, and two containers.
fn trouble() -> Value {
    let link = |state: &str| json!({"net0": {"state": state}, "net1": {"state": if state == "down" { "down" } else { "up" }}});
    json!({
        "about": {"node": "alpha", "cluster": "trial", "networks": ["net0", "net1"]},
        "standing": {"quorum": true, "view": 5, "members": ["alpha", "beta"], "survives": {"nodes": 1}, "warnings": []},
        "catalog": {"engine": "embedded", "quorum": true, "leader": "alpha"},
        "verdicts": {"list": [{"class": "host-dead", "sentence": "gamma: host dead, all its networks fell silent at once",
            "nodes": ["gamma"]}]},
        "nodes": {
            "alpha": {"name": "alpha", "state": "member", "this": true, "addresses": {"net0": "10.0.0.1"}, "memory_bytes": 1 << 30,
                "containers": ["web"]},
            "beta": {"name": "beta", "state": "member", "addresses": {"net0": "10.0.0.2"}, "memory_bytes": 1 << 30, "containers": []},
            "gamma": {"name": "gamma", "state": "removed", "addresses": {"net0": "10.0.0.3"}, "memory_bytes": 1 << 30, "containers": []},
        },
        "links": {
            "alpha": {"beta": link("up"), "gamma": link("down")},
            "beta": {"alpha": link("degraded"), "gamma": link("down")},
        },
        "views": {
            "4": {"id": 4, "members": [{"node": "alpha"}, {"node": "beta"}, {"node": "gamma"}], "change": "admitted",
                "proposer": "alpha", "reason": "gamma was admitted", "proposed_unix_ms": 0},
            "5": {"id": 5, "members": [{"node": "beta"}, {"node": "alpha"}], "change": "removed", "proposer": "alpha",
                "reason": "gamma was removed: host dead", "proposed_unix_ms": 0},
        },
        "containers": {
            "sql": {"name": "sql", "node": "gamma", "state": "failed", "reason": "no node can take it", "owner_in_view": false,
                "copies_wanted": 2},
            "web": {"name": "web", "node": "alpha", "state": "running", "owner_in_view": true, "copies_wanted": 1,
                "latest": {"number": 7, "taken_unix_ms": 0, "bytes": 1 << 20, "copies": [{"node": "beta"}]}},
        },
    })
}

fn app_of(look: Look, sections: Value) -> App {
    let mut app = App::new(look);
    app.told(told(true, sections));
    app
}

fn press(app: &mut App, code: KeyCode) {
    app.press(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)), 20);
}

fn drawn(app: &mut App, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen::draw(frame, app)).unwrap();
    terminal.backend().buffer().clone()
}

fn lines(buffer: &Buffer) -> Vec<String> {
    let width = usize::from(buffer.area.width);
    let cells: Vec<&str> = buffer.content.iter().map(|cell| cell.symbol()).collect();
    cells.chunks(width).map(|row| row.concat().trim_end().to_owned()).collect()
}

#[test]
fn the_overview_has_what_is_wrong_first() {
    let mut app = app_of(COLOURED, trouble());
    let shown = lines(&drawn(&mut app, 80, 24));
    assert_eq!(
        shown[..13],
        [
            "steadfast top  trial seen from alpha, view 5, 2 members",
            "[1 Overview]  2 Links   3 Views   4 Containers   5 Events",
            "1 thing needs attention",
            "! gamma: host dead, all its networks fell silent at once",
            "",
            "1 of 2 containers running, 1 with all their copies; survives the loss of 1 node;",
            "the catalog answers, led by alpha.",
            "",
            "NODE   STATE       LENDS       ADDRESS           RUNS",
            "alpha  member      1.0 GiB     10.0.0.1          web  (this node)",
            "beta   member      1.0 GiB     10.0.0.2          -",
            "gamma  removed     1.0 GiB     10.0.0.3          -",
            "",
        ]
    );
    assert!(shown[23].starts_with("q ends"), "{}", shown[23]);
}

#[test]
fn a_node_that_dies_is_shown_by_a_change() {
    let mut app = app_of(COLOURED, trouble());
    app.told(told(false, json!({"nodes": {"beta": {"state": "suspected"}}, "standing": {"quorum": false}})));
    let shown = lines(&drawn(&mut app, 80, 24));
    assert!(shown[0].ends_with("NO MAJORITY"), "{}", shown[0]);
    assert!(shown.iter().any(|line| line == "* beta is suspected by alpha"), "{shown:#?}");
    app.broken = Some("the agent has ended".to_owned());
    assert_eq!(lines(&drawn(&mut app, 80, 24))[0], "steadfast top  NOT LIVE: the agent has ended");
}

#[test]
fn the_matrix_has_a_letter_and_a_colour_for_every_link() {
    let mut app = app_of(COLOURED, trouble());
    press(&mut app, KeyCode::Char('2'));
    let buffer = drawn(&mut app, 80, 24);
    let shown = lines(&buffer);
    assert_eq!(
        shown[2..13],
        [
            "U up   G degraded   O one-way   D down   ? unknown   - not told   (a row hears a",
            "",
            "net0   alpha beta  gamma",
            "alpha  ·     U     D",
            "beta   G     ·     D",
            "gamma  -     -     ·",
            "",
            "net1   alpha beta  gamma",
            "alpha  ·     U     D",
            "beta   U     ·     D",
            "gamma  -     -     ·",
        ]
    );
    assert_eq!(buffer[(13, 5)].fg, Color::Green);
    assert_eq!(buffer[(19, 5)].fg, Color::Red);
    assert_eq!(buffer[(7, 6)].fg, Color::Yellow);
    assert!(shown[14].starts_with("alpha hears gamma on net0: down; since "), "{}", shown[14]);
}

#[test]
fn a_hundred_nodes_are_gone_through_by_number_with_the_arrows() {
    let names: Vec<String> = (1..=100).map(|number| format!("node-{number:03}")).collect();
    let nodes: serde_json::Map<String, Value> =
        names.iter().map(|name| (name.clone(), json!({"name": name, "state": "member"}))).collect();
    let peers: serde_json::Map<String, Value> =
        names.iter().map(|name| (name.clone(), json!({"net0": {"state": "up"}}))).collect();
    let mut app = app_of(COLOURED, json!({"nodes": nodes, "links": {"node-001": peers}}));
    press(&mut app, KeyCode::Char('2'));
    let shown = lines(&drawn(&mut app, 80, 24));
    assert!(shown[4].starts_with("net0          1   2   3"), "{}", shown[4]);
    assert!(shown[5].starts_with("  1 node-001  ·   U   U"), "{}", shown[5]);
    assert!(shown[23].contains("lines above"), "{}", shown[23]);
    for _ in 0..98 {
        press(&mut app, KeyCode::Right);
    }
    assert_eq!(lines(&drawn(&mut app, 80, 24))[4], "net0          99  100");
    press(&mut app, KeyCode::End);
    assert_eq!(lines(&drawn(&mut app, 80, 24))[22], "Every link that is told of is up.");
}

#[test]
fn views_have_their_reasons_the_last_first() {
    let mut app = app_of(COLOURED, trouble());
    press(&mut app, KeyCode::Char('3'));
    assert_eq!(
        lines(&drawn(&mut app, 80, 24))[2..8],
        [
            "View 5     removed     just now, proposed by alpha",
            "  gamma was removed: host dead",
            "  members: alpha, beta",
            "View 4     admitted    just now, proposed by alpha",
            "  gamma was admitted",
            "  members: alpha, beta, gamma",
        ]
    );
}

#[test]
fn containers_have_owner_checkpoint_and_copies() {
    let mut app = app_of(COLOURED, trouble());
    press(&mut app, KeyCode::Char('4'));
    assert_eq!(
        lines(&drawn(&mut app, 80, 24))[2..6],
        [
            "CONTAINER         STATE      OWNER         CHECKPOINT              COPIES",
            "sql               failed     gamma (gone)  none yet                0/2",
            "  no node can take it",
            "web               running    alpha         7 just now (1.0 MiB)    1/1 beta",
        ]
    );
}

#[test]
fn a_filter_that_does_not_parse_is_told_where_it_is_written() {
    let mut app = app_of(COLOURED, trouble());
    press(&mut app, KeyCode::Char('/'));
    for character in "type=".chars() {
        press(&mut app, KeyCode::Char(character));
    }
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal.draw(|frame| screen::draw(frame, &mut app)).unwrap();
    assert_eq!(lines(terminal.backend().buffer())[23], "filter: type=");
    terminal.backend_mut().assert_cursor_position((13, 23));
    press(&mut app, KeyCode::Enter);
    let shown = lines(&drawn(&mut app, 80, 24));
    assert!(!shown[2].is_empty() && shown[2] != "Nothing has happened since this was opened.", "{shown:#?}");
    assert_eq!(shown[23], "filter: type=");
}

#[test]
fn without_colour_there_is_none_and_everything_is_still_told() {
    let mut coloured = app_of(COLOURED, trouble());
    let mut plain = app_of(Look { is_coloured: false }, trouble());
    for key in ['1', '2', '3', '4', '5'] {
        press(&mut coloured, KeyCode::Char(key));
        press(&mut plain, KeyCode::Char(key));
        let buffer = drawn(&mut plain, 80, 24);
        assert!(
            buffer.content.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset),
            "pane {key}"
        );
        assert_eq!(lines(&buffer), lines(&drawn(&mut coloured, 80, 24)));
    }
}

#[test]
fn any_size_can_be_drawn() {
    let mut app = app_of(COLOURED, trouble());
    for key in ['1', '2', '3', '4', '5', '/'] {
        press(&mut app, KeyCode::Char(key));
        for (width, height) in [(1, 1), (2, 3), (20, 4), (80, 24), (250, 80)] {
            drawn(&mut app, width, height);
        }
    }
}
